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


class _quietly(warnings.catch_warnings):
    """Silence the notice that TorchScript is deprecated."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..* is deprecated", category=DeprecationWarning)
