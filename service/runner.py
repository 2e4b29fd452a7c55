"""One model on one device: forward passes by a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt
import torch
from torch import Tensor

from service.artifact import Artifact, Operation
from service.artifact.torchscript import (
    WARM_UP_CALLS,
    Program,
    channels_last,
    freeze,
    multiply_rows,
    optimize,
    pack_weights,
    spare_fusion,
)

Array = npt.NDArray[Any]
Form = Literal["packed", "channels_last", "frozen", "optimized", "cuda_graph"]
Method = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]

CPU_FORMS: tuple[Form, ...] = ("packed", "channels_last", "frozen", "optimized")
CUDA_FORMS: tuple[Form, ...] = ("frozen", "channels_last", "cuda_graph")


@dataclass(frozen=True)
class Plan:
    """How a forward pass runs.

    ``frozen``: weights inlined; ``channels_last``: frozen, convolutions in that layout; ``packed``: channels last, the
    weights in oneDNN's own layout; ``optimized``: frozen and rewritten by torch for this processor;
    ``cuda_graph``: frozen, recorded once for each number of rows and replayed without the host.
    """

    form: Form
    threads: int = 1  # on the CPU


class Runner:
    """Runs the operations of an artifact over exactly as many rows as it is given, by whatever plan.

    To be called from one thread at a time; on the CPU from any number of them once ``keep`` was called. Forms of the
    program are made when a plan first asks for them, until ``keep``; one that cannot be made is not tried again.
    """

    def __init__(self, artifact: Artifact, device: torch.device) -> None:
        self.manifest = artifact.manifest
        self.architecture = artifact.architecture
        self.device = device
        if device.type == "cuda":
            spare_fusion()
        self._program: Program | None = artifact.program
        self._forms: dict[Form, Program] = {}
        self._failed: dict[Form, str] = {}
        self._graphs: dict[tuple[Operation, int], _Graph] = {}

    def run(self, operation: Operation, plan: Plan, rows: Array) -> tuple[Array, ...]:
        """A pass: statistics -> ((B, S),), encode -> (z, log_prob), decode -> (x,), log_prob_map -> (map,)."""
        with torch.inference_mode():
            if self.device.type == "cpu":
                if torch.get_num_threads() != plan.threads:
                    torch.set_num_threads(plan.threads)
                outputs = _as_tuple(self._method(plan.form, operation)(torch.from_numpy(rows)))
                return tuple(output.numpy() for output in outputs)
            return self._run_on_cuda(operation, plan, rows)

    def _method(self, form: Form, operation: Operation) -> Method:
        if form not in self._forms and form not in self._failed:
            assert self._program is not None, f"{form} was not kept"
            try:
                self._forms[form] = self._make(form, self._program)
            except Exception as error:  # an operator that this build of torch lacks is an AttributeError
                self._failed[form] = f"{type(error).__name__}: {error}"
        if form in self._failed:
            raise RuntimeError(f"cannot be made: {self._failed[form]}")
        method: Method = getattr(self._forms[form], operation)
        return method

    def _make(self, form: Form, program: Program) -> Program:
        methods = self.manifest.methods
        if form == "packed":
            return pack_weights(self._make("channels_last", program), methods)
        if form == "optimized":
            return optimize(self._make("frozen", program), methods)
        if form == "channels_last":
            program = channels_last(program)
        frozen = freeze(program.to(self.device), methods)
        return multiply_rows(frozen, methods) if self.manifest.kind == "vector" else frozen

    def keep(self, passes: set[tuple[Operation, int, Plan]]) -> None:
        """Forget what was made for other passes than these (an operation over so many rows by a plan), and of what."""
        forms = {"frozen" if plan.form == "cuda_graph" else plan.form for _, _, plan in passes}
        self._forms = {form: program for form, program in self._forms.items() if form in forms}
        graphs = {(operation, rows) for operation, rows, plan in passes if plan.form == "cuda_graph"}
        self._graphs = {key: graph for key, graph in self._graphs.items() if key in graphs}
        self._program = None

    def _run_on_cuda(self, operation: Operation, plan: Plan, rows: Array) -> tuple[Array, ...]:
        """Send rows from page-locked memory, run, and fetch the answers into such memory; wait once, at the end."""
        inputs = torch.from_numpy(rows).pin_memory().to(self.device, non_blocking=True)
        if plan.form == "cuda_graph":
            key = (operation, len(rows))
            if key not in self._graphs:
                pool = next((graph.pool for graph in self._graphs.values()), None)
                self._graphs[key] = _Graph(self._method("frozen", operation), inputs, pool)
            outputs = self._graphs[key].replay(inputs)
        else:
            outputs = _as_tuple(self._method(plan.form, operation)(inputs))
        fetched = [torch.empty_like(output, device="cpu", pin_memory=True) for output in outputs]
        for target, output in zip(fetched, outputs, strict=True):
            target.copy_(output, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return tuple(target.numpy() for target in fetched)


class _Graph:
    """A method recorded as a CUDA graph for one shape of inputs.

    Graphs may share a pool of memory, since none needs what another leaves there, they replay one at a time, and
    answers are fetched before the next one replays.
    """

    def __init__(self, method: Method, example: Tensor, pool: torch.cuda._POOL_HANDLE | None) -> None:
        self._inputs = torch.zeros_like(example)  # not the example, or a replay that copied nothing would seem right
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_CALLS):
                method(self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # By itself, whatever another thread does meanwhile would end the recording, even to free an answer.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._outputs = _as_tuple(method(self._inputs))

    @property
    def pool(self) -> torch.cuda._POOL_HANDLE:
        """The memory that it was recorded in."""
        return self._graph.pool()

    def replay(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Run on inputs of that shape; the outputs last until the next call of any graph that shares the pool."""
        self._inputs.copy_(inputs, non_blocking=True)
        self._graph.replay()
        return self._outputs


def _as_tuple(outputs: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs
