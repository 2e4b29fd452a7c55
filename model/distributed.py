"""Data parallelism: the same run on several processes, started by torchrun or alone.

Every process draws the whole batch and its noise, takes its own share of the rows, and averages gradients with the
others, so that without dropout a run depends on the recipe and not on the number of processes, but for rounding.
"""

from __future__ import annotations

import os
import sys
from typing import Literal

import torch
from torch import Tensor, distributed, nn

from model.recipe import RecipeError


class Processes:
    """The processes of a run: this one's ``rank`` of ``size`` and its ``device``; outside torchrun a single one.

    Raises RecipeError where a GPU is wanted and none is there.
    """

    def __init__(self, device: Literal["auto", "cpu", "cuda"] = "auto") -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = torch.device("cpu")
        if device == "cuda" and not torch.cuda.is_available():
            raise RecipeError("training.device is 'cuda', but torch finds no GPU")
        if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        if self.size > 1:
            distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and talks."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of a batch, whose size must be a multiple of the number of processes."""
        return rows.chunk(self.size)[self.rank]

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one exchange."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def broadcast(self, module: nn.Module) -> None:
        """Give every process the leading one's parameters and buffers."""
        if self.size > 1:
            for value in module.state_dict().values():
                distributed.broadcast(value, src=0)

    def finish(self, code: int) -> None:
        """End a process of several with an exit code, once all have come this far; alone, raise SystemExit if not 0.

        Without the interpreter's teardown: now and then gloo's threads outlive it and abort a finished run.
        """
        if self.size > 1:
            distributed.barrier()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        if code:
            raise SystemExit(code)
