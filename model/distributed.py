"""Data parallelism: the same run on several processes, of one host or of several, started by torchrun, or alone.

Every process takes its share of the rows of a step and averages gradients with the others, so that without dropout a
run depends on the recipe and not on the number of processes, but for rounding. One exchange of all gradients at the end
of a step, and not DistributedDataParallel's buckets during the backward pass: that was no faster (``make bench-ddp``),
and here the figures of the step, whether to stop and gradients summed over parts of a batch travel along.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from common.cli import WRONG_USE
from common.errors import UsageError

_T = TypeVar("_T")
STEP_LIMIT = timedelta(minutes=5)  # of an exchange between steps: a host without power closes no connection
PATIENCE = timedelta(days=1)  # while others read data, or the leading process measures and writes


class LostProcessError(UsageError):
    """Another process of the run ended, or its host cannot be reached."""


class Processes:
    """The processes of a run: this one's ``rank`` of ``size``, and its place among those of its host; by default alone.

    Those of a host have ranks in a row, of which the first leads the host. Every method that exchanges something is
    called by all processes in the same order, and raises LostProcessError where one of them is gone.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        local_size: int = 1,
        patient: distributed.ProcessGroup | None = None,
    ) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self._patient = patient  # for what may take long
        self._failing = False

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and talks."""
        return self.rank == 0

    @property
    def leads_host(self) -> bool:
        """Whether this process does what is done once a host."""
        return self.local_rank == 0

    def part(self, total: int) -> slice:
        """This process's part of so many rows: the parts differ by one row at most."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def local_share(self, things: list[_T]) -> list[_T]:
        """This process's part of what the processes of a host divide among them."""
        return things[self.local_rank :: self.local_size]

    def gather(self, value: _T) -> list[_T]:
        """Return the value of every process, by rank."""
        if self.size == 1:
            return [value]
        values: list[_T | None] = [None] * self.size
        with _exchange():
            distributed.all_gather_object(values, value, group=self._patient)
        return values  # type: ignore[return-value]

    def give(self, value: _T | None, source: int) -> _T:
        """Return the value that one process has."""
        values = [value]
        if self.size > 1:
            with _exchange():
                distributed.broadcast_object_list(values, src=source, group=self._patient)
        return values[0]  # type: ignore[return-value]

    def together(self, act: Callable[[], _T]) -> _T:
        """Do something in every process and return its own result, once all are done.

        What goes wrong in some of them is raised in the first of these, and the others end behind it. Calls may nest.
        """
        if self.size == 1:
            return act()
        value, error = None, None
        try:
            value = act()
        except Exception as raised:
            if self._failing or isinstance(raised, LostProcessError):
                raise
            error, self._failing = raised, True
        failing = [rank for rank, fails in enumerate(self.gather(error is not None)) if fails]
        if not failing:
            return value  # type: ignore[return-value]
        if error is not None and self.rank == failing[0]:
            raise error
        with suppress(RuntimeError):  # until that one has told what is wrong, and is gone
            distributed.barrier(group=self._patient)
        os._exit(WRONG_USE)

    def once_a_host(self, act: Callable[[], _T]) -> _T:
        """Do something in the leading process of each host and return its result in all of that host."""
        value = self.together(lambda: act() if self.leads_host else None)
        return self.gather(value)[self.rank - self.local_rank]  # type: ignore[return-value]

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one exchange."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _exchange():
            distributed.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def broadcast(self, module: nn.Module) -> None:
        """Give every process the leading one's parameters and buffers."""
        if self.size > 1:
            with _exchange():
                for value in module.state_dict().values():
                    distributed.broadcast(value, src=0)

    def finish(self, code: int) -> None:
        """End a process of several with an exit code, once all have come this far; alone, raise SystemExit if not 0.

        Without the interpreter's teardown: now and then gloo's threads outlive it and abort a finished run.
        """
        if self.size > 1:
            with _exchange():
                distributed.barrier(group=self._patient)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        if code:
            raise SystemExit(code)


ALONE = Processes()


def join() -> Processes:
    """Join the processes that torchrun has started with this one, if it has."""
    rank, size, local_rank, local_size = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
    )
    if size == 1:
        return ALONE
    backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = _unused(next(rendezvous("env://", rank, size))[0], rank, size)
    distributed.init_process_group(backends, timeout=STEP_LIMIT, store=store, rank=rank, world_size=size)
    patient = distributed.new_group(backend="gloo", timeout=PATIENCE)
    return Processes(rank, size, local_rank, local_size, patient)


def _unused(store: Store, rank: int, size: int) -> Store:
    """Agree on a part of torchrun's store that no process before has written to.

    For torchrun keeps its store where it starts processes again (torch 2.13), and in it the addresses of dead ones. The
    leading process sets a name; others know that it is not that of a dead one when a name of their own is answered.
    """
    own = secrets.token_hex(8)
    if rank == 0:
        store.set("glow", own)
        for other in range(1, size):
            store.set(f"glow/{own}/{store.get(f'glow/{own}/{other}').decode()}", "")
        return PrefixStore(own, store)
    while True:
        name = store.get("glow").decode()
        store.set(f"glow/{name}/{rank}", own)
        for _ in range(100):
            if store.check([f"glow/{name}/{own}"]):
                return PrefixStore(name, store)
            time.sleep(0.01)


def may_restart() -> bool:
    """Whether torchrun starts the processes again where one has died: ``--max-restarts``."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"^\[\S*\] ", "", str(error).strip()).partition(". ")[0]  # not the place in gloo's code
        raise LostProcessError(f"another process of the run has ended or cannot be reached: {reason}") from error
