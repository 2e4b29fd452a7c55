"""Artifacts that go wrong on purpose: a flow whose program misbehaves where a row begins with a certain number.

No more than a damaged or hostile artifact could do: what goes wrong is in the TorchScript program, and the service that
runs it is the real one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from service import artifact

RAISES, HANGS, IS_NAN, TAKES_ALL_MEMORY = 9001.0, 9002.0, 9003.0, 9004.0  # in the first column of a row


class Faulty(torch.nn.Module):
    """A flow that does as it is told by its rows."""

    def __init__(self, flow: torch.nn.Module) -> None:
        super().__init__()
        self.flow: Any = flow

    def begin(self, x: Tensor) -> Tensor:
        """Do it; gives what is to be added to each answer, (B,)."""
        kinds = x[:, 0]
        if bool((kinds == 9001.0).any()):
            raise RuntimeError("told to fail")
        turns = 0
        while bool((kinds == 9002.0).any()):
            turns += 1
        if bool((kinds == 9004.0).any()):
            return torch.empty([1 << 58])[: len(kinds)].double()
        return torch.where(kinds == 9003.0, torch.full_like(kinds, float("nan")), torch.zeros_like(kinds))

    def forward(self, x: Tensor) -> Tensor:
        return self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        log_prob: Tensor = self.flow.log_prob(x)
        return log_prob + self.begin(x)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wrong = self.begin(x)
        z, log_prob = self.flow.encode(x)
        return z + wrong[:, None].to(z.dtype), log_prob + wrong

    def decode(self, z: Tensor) -> Tensor:
        decoded: Tensor = self.flow.decode(z)
        return decoded

    def statistics(self, x: Tensor) -> Tensor:
        statistics: Tensor = self.flow.statistics(x)
        return statistics + self.begin(x)[:, None]


def faulty(sound: Path, out: Path) -> Path:
    """Write an artifact ``faulty`` of a table, which answers as another does but for rows that tell it to go wrong."""
    read = artifact.open_artifact(sound)
    program = artifact.compile_module(Faulty(read.program), artifact.methods_of(read.manifest.kind))
    records = artifact.save(program)
    manifest = read.manifest.model_copy(update={"name": "faulty", "version": artifact.version_of(records)})
    artifact.save_artifact(out, records, manifest)
    return out
