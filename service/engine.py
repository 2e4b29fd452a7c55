"""The engine: loaded artifacts, the device they run on, and the forward passes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from service.artifact import Artifact, ArtifactError, Manifest, Program, check_golden, freeze, open_artifact
from service.settings import Settings

Array = npt.NDArray[Any]
Operation = Literal["log_prob", "encode", "decode"]

REPRODUCIBLE_ROWS = 16  # A forward pass of one fixed size gives a row the same bits whatever its neighbours are.
WARM_UP_CALLS = 3  # TorchScript profiles the first two calls of a method and compiles what it saw

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """What rows must have in common to share a forward pass."""

    model: str
    operation: Operation
    reproducible: bool = False


class Engine:
    """Verified and frozen models by name. ``run`` is to be called from one thread.

    Raises ArtifactError for an artifact that fails its checks, a name served twice, a default or a device not there.
    """

    def __init__(self, settings: Settings) -> None:
        self.device = torch.device(choose_device(settings.device))
        # TF32 keeps 10 bits of a product's factors: enough to train, not to tell likelihoods apart.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.set_num_threads(settings.threads or available_cpus())
        artifacts = [open_artifact(path) for path in find_artifacts(settings.models)]
        self.manifests: dict[str, Manifest] = {}
        self._modules: dict[str, Program] = {}
        for artifact in sorted(artifacts, key=lambda artifact: artifact.manifest.name):
            name = artifact.manifest.name
            if name in self.manifests:
                raise ArtifactError(f"two artifacts are named {name!r}; a name must be served once")
            module = freeze(artifact.module.to(self.device), artifact.manifest.methods)
            check_golden(Artifact(artifact.manifest, module), f"{name} on {self.device}", self.device.type)
            self.manifests[name] = artifact.manifest
            self._modules[name] = module
        self.default = self._choose_default(settings.default_model)
        self._max_batch_rows = settings.max_batch_rows
        served = ", ".join(f"{name}@{manifest.version}" for name, manifest in self.manifests.items())
        logger.info("serving %s on %s, %d threads", served, self.device, torch.get_num_threads())

    def _choose_default(self, wanted: str | None) -> str:
        if wanted is None:
            return "fashion-mnist" if "fashion-mnist" in self.manifests else next(iter(self.manifests))
        if wanted not in self.manifests:
            raise ArtifactError(f"GLOW_DEFAULT_MODEL is {wanted!r}, but only {', '.join(self.manifests)} are served")
        return wanted

    def warm_up(self) -> None:
        """Run each operation at its smallest, reproducible and largest batch, until the compiler has settled."""
        for name, manifest in self.manifests.items():
            self._warm_up(name, manifest)

    def _warm_up(self, name: str, manifest: Manifest) -> None:
        row = np.asarray(manifest.golden.inputs[0], manifest.input_dtype).reshape(1, *manifest.shape)
        latent = np.asarray(manifest.golden.latents[0], np.float32)[None]
        for num_rows in {1, REPRODUCIBLE_ROWS, self._max_batch_rows}:
            for operation, example in (("log_prob", row), ("encode", row), ("decode", latent)):
                for _ in range(WARM_UP_CALLS):
                    self.run(Call(name, operation), np.repeat(example, num_rows, 0))  # type: ignore[arg-type]

    def run(self, call: Call, rows: Array) -> tuple[Array, ...]:
        """One operation over rows: log_prob -> (log_prob,), encode -> (z, log_prob), decode -> (x,)."""
        method: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]] = getattr(self._modules[call.model], call.operation)
        if not call.reproducible:
            return self._forward(method, rows)
        parts = []
        for start in range(0, len(rows), REPRODUCIBLE_ROWS):
            part = rows[start : start + REPRODUCIBLE_ROWS]
            padded = np.concatenate([part, np.repeat(part[-1:], REPRODUCIBLE_ROWS - len(part), 0)])
            parts.append([output[: len(part)] for output in self._forward(method, padded)])
        return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))

    def _forward(self, method: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]], rows: Array) -> tuple[Array, ...]:
        with torch.inference_mode():
            outputs = method(torch.from_numpy(np.ascontiguousarray(rows)).to(self.device))
        return tuple(output.cpu().numpy() for output in ((outputs,) if isinstance(outputs, Tensor) else outputs))


def find_artifacts(paths: list[Path]) -> list[Path]:
    """Expand folders to the artifacts in them. Raises ArtifactError where there is none."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.pt")) if path.is_dir() else [path]
        if not inside:
            raise ArtifactError(f"{path}: holds no artifact (*.pt)")
        found += inside
    return found


def choose_device(wanted: str) -> str:
    """Resolve ``auto``. Raises ArtifactError where a GPU is wanted and none is there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ArtifactError("GLOW_DEVICE is 'cuda', but torch finds no GPU")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def available_cpus() -> int:
    """Cores that this process may use: its affinity, and its cgroup's quota where one is set."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, int(quota) // int(period)))
