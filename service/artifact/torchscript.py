"""TorchScript: the one module that knows the language the artifact's program is written in.

torch has deprecated it in favour of torch.export and is pinned below its removal; the day it goes, this module changes.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterable

import torch

Program = torch.jit.ScriptModule
WARM_UP_CALLS = 3  # the first two calls of a method are profiled, and what was seen is compiled
PACKED_FAN_IN = 64  # weights behind one output of a convolution, at least, for packing them to pay


def compile_module(module: torch.nn.Module, methods: Iterable[str]) -> Program:
    """Compile a module: ``forward``, the methods named, ``inverse`` of every part of it, and whatever these call."""
    for name in methods:
        torch.jit.export(getattr(type(module), name))
    for part in module.modules():  # the compiler does not find a method of a layer that it meets in a reversed list
        if (inverse := getattr(type(part), "inverse", None)) is not None:
            torch.jit.export(inverse)
    with _quietly():
        program: Program = torch.jit.script(module)
    return program


def save(program: Program) -> dict[str, bytes]:
    """Return the records of a program's archive, without the source positions of debugging."""
    buffer = io.BytesIO()
    with _quietly():
        torch.jit.save(program, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {
            info.filename: archive.read(info) for info in archive.infolist() if not info.filename.endswith(".debug_pkl")
        }


def load_records(records: dict[str, bytes]) -> Program:
    """Load a program from the records of its archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return load(buffer.getvalue())


def load(data: bytes) -> Program:
    """Load a program from the bytes of its archive, to the CPU."""
    with _quietly():
        program: Program = torch.jit.load(io.BytesIO(data), "cpu")  # type: ignore[no-untyped-call]
    return program.eval()


def freeze(program: Program, methods: list[str]) -> Program:
    """Inline a program's weights as constants, for inference alone."""
    with _quietly():
        frozen: Program = torch.jit.freeze(program.eval(), preserved_attrs=methods)
    return frozen


def channels_last(program: Program) -> Program:
    """Copy a program with the weights of its convolutions laid out channels last, which their outputs then are too."""
    copy = load_records(save(program))
    copy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return copy


def optimize(frozen: Program, methods: list[str]) -> Program:
    """Rewrite a frozen program for this processor: weights packed, convolutions merged with what follows them.

    What comes out cannot be saved.
    """
    with _quietly():
        optimized: Program = torch.jit.optimize_for_inference(frozen, other_methods=methods)
    return optimized


def pack_convolutions(frozen: Program, methods: list[str]) -> Program:
    """Let oneDNN keep the weights of a frozen program's large convolutions in its own layout, and do relus behind them.

    Otherwise it packs them at every call, and torch does not use it at all for a single row. Small convolutions stay:
    there its overhead is more than what it gains. In place; what comes out cannot be saved.
    """
    for name in methods:
        graph = getattr(frozen, name).graph
        for node in graph.findAllNodes("aten::conv2d", True):
            inputs = list(node.inputs())
            weight = inputs[1].node()
            if weight.kind() == "prim::Constant" and weight.t("value")[0].numel() >= PACKED_FAN_IN:
                _pack(graph, node, inputs, weight.t("value"))
    return frozen


def _pack(graph: torch._C.Graph, node: torch._C.Node, inputs: list[torch._C.Value], weight: torch.Tensor) -> None:
    """Replace a convolution node, and a relu that alone uses its output, by oneDNN's own operator."""
    x, _, bias, stride, padding, dilation, groups = inputs
    users = [use.user for use in node.output().uses()]
    relu = users[0] if len(users) == 1 and users[0].kind() in ("aten::relu", "aten::relu_") else None
    packed = graph.create("prim::Constant", [], 1)
    packed.t_(
        "value",
        torch.ops.mkldnn._reorder_convolution_weight(
            weight, padding.toIValue(), stride.toIValue(), dilation.toIValue(), groups.toIValue(), None
        ),
    )
    no_scalars = graph.create("prim::ListConstruct", [], 1)
    no_scalars.output().setType(torch._C.ListType(torch._C.OptionalType(torch._C.NumberType.get())))
    for made in (packed, no_scalars):
        made.insertBefore(node)
    with graph.insert_point_guard(node):
        activation = graph.insertConstant("relu" if relu else "none")  # type: ignore[attr-defined]
        algorithm = graph.insertConstant("")  # type: ignore[attr-defined]
    convolution = graph.create(
        "mkldnn::_convolution_pointwise",
        [x, packed.output(), bias, padding, stride, dilation, groups, activation, no_scalars.output(), algorithm],
        1,
    )
    convolution.insertBefore(node)
    if relu:
        relu.output().replaceAllUsesWith(convolution.output())
        relu.destroy()
    node.output().replaceAllUsesWith(convolution.output())
    node.destroy()


class _quietly(warnings.catch_warnings):
    """Silence the notice that TorchScript is deprecated."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..* is deprecated", category=DeprecationWarning)
