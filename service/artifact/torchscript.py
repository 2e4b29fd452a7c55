"""TorchScript: the one module that knows the language the artifact's program is written in.

torch has deprecated it in favour of torch.export and is pinned below its removal; the day it goes, this module changes.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Iterable

import torch

Program = torch.jit.ScriptModule
WARM_UP_CALLS = 3  # the first two calls of a method are profiled, and what was seen is compiled
_CONSTANTS = re.compile(rb"^(?:  \w+ : Final\[.*\n)+", re.MULTILINE)
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
    """Return the records of a program's archive, the same for the same program whatever process saves it.

    Without the source positions of debugging, and without torch's own id, a hash of what is put in order here.
    """
    buffer = io.BytesIO()
    with _quietly():
        torch.jit.save(program, buffer)
    with zipfile.ZipFile(buffer) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    left_out = (".debug_pkl", "/.data/serialization_id")
    return {
        name: _CONSTANTS.sub(_in_order, data) if name.endswith(".py") else data
        for name, data in records.items()
        if not name.endswith(left_out)
    }


def _in_order(constants: re.Match[bytes]) -> bytes:
    """Constants of a class by their names: torch writes them in the order of a set, another one in each process."""
    return b"".join(sorted(constants[0].splitlines(keepends=True)))


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


def spare_fusion() -> None:
    """Compile no kernels at run time, in this process.

    On a GPU that takes seconds for each method, form and number of rows, when it is first met; what fused kernels would
    save is mostly the launching of the single ones, which a recorded graph saves, too.
    """
    torch._C._jit_set_texpr_fuser_enabled(False)


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


def multiply_rows(frozen: Program, methods: list[str]) -> Program:
    """Compute a frozen program's convolutions as products of matrices: the same where all images have one pixel.

    oneDNN's convolutions take up to four times as long for such images. In place.
    """
    for name in methods:
        graph = getattr(frozen, name).graph
        torch._C._jit_pass_custom_pattern_based_rewrite_graph(_CONVOLUTION, _PRODUCT, graph)
        torch._C._jit_pass_constant_propagation(graph)  # of the weights' shapes
    return frozen


_CONVOLUTION = """
graph(%x, %weight, %bias, %stride, %padding, %dilation, %groups):
  %y = aten::conv2d(%x, %weight, %bias, %stride, %padding, %dilation, %groups)
  return (%y)"""
_PRODUCT = """
graph(%x, %weight, %bias, %stride, %padding, %dilation, %groups):
  %first : int = prim::Constant[value=1]()
  %last : int = prim::Constant[value=-1]()
  %rows = aten::flatten(%x, %first, %last)
  %matrix = aten::flatten(%weight, %first, %last)
  %products = aten::linear(%rows, %matrix, %bias)
  %columns = aten::unsqueeze(%products, %last)
  %y = aten::unsqueeze(%columns, %last)
  return (%y)"""


def pack_weights(frozen: Program, methods: list[str]) -> Program:
    """Let oneDNN do a frozen program's matrix products and large convolutions, and relus behind them.

    It keeps their weights in its own layout; otherwise it packs those of convolutions at every call, and torch does not
    use it at all for a single row, nor for products, in which it is up to four times as fast as what torch does use.
    Small convolutions stay: there its overhead is more than what it gains. In place; what comes out cannot be saved.
    """
    for name in methods:
        graph = getattr(frozen, name).graph
        for node in graph.findAllNodes("aten::conv2d", True):
            _, weight, _, stride, padding, dilation, groups = node.inputs()
            constant = _constant(weight)
            if constant is not None and constant[0].numel() >= PACKED_FAN_IN:
                geometry = [padding, stride, dilation, groups]
                packed = torch.ops.mkldnn._reorder_convolution_weight(
                    constant, *(value.toIValue() for value in geometry), None
                )
                _replace(graph, node, "mkldnn::_convolution_pointwise", packed, geometry)
        for node in graph.findAllNodes("aten::linear", True):
            constant = _constant(list(node.inputs())[1])
            if constant is not None:
                packed = torch.ops.mkldnn._reorder_linear_weight(constant)
                _replace(graph, node, "mkldnn::_linear_pointwise", packed, [])
    return frozen


def _constant(value: torch._C.Value) -> torch.Tensor | None:
    node = value.node()
    return node.t("value") if node.kind() == "prim::Constant" else None


def _replace(
    graph: torch._C.Graph, node: torch._C.Node, kind: str, weight: torch.Tensor, geometry: list[torch._C.Value]
) -> None:
    """Replace a node, and a relu that alone uses its output, by oneDNN's own operator."""
    x, _, bias = list(node.inputs())[:3]
    users = [use.user for use in node.output().uses()]
    relu = users[0] if len(users) == 1 and users[0].kind() in ("aten::relu", "aten::relu_") else None
    packed = graph.create("prim::Constant", [], 1)
    packed.t_("value", weight)
    no_scalars = graph.create("prim::ListConstruct", [], 1)
    no_scalars.output().setType(torch._C.ListType(torch._C.OptionalType(torch._C.NumberType.get())))
    for made in (packed, no_scalars):
        made.insertBefore(node)
    with graph.insert_point_guard(node):
        activation = graph.insertConstant("relu" if relu else "none")  # type: ignore[attr-defined]
        algorithm = graph.insertConstant("")  # type: ignore[attr-defined]
    inputs = [x, packed.output(), bias, *geometry, activation, no_scalars.output(), algorithm]
    made = graph.create(kind, inputs, 1)
    made.insertBefore(node)
    if relu:
        relu.output().replaceAllUsesWith(made.output())
        relu.destroy()
    node.output().replaceAllUsesWith(made.output())
    node.destroy()


class _quietly(warnings.catch_warnings):
    """Silence the notice that TorchScript is deprecated."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..* is deprecated", category=DeprecationWarning)
