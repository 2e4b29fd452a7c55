"""What a conditioner costs where it will be served: ``python -m benchmarks.conditioners``.

Folds and scripts one conditioner of each width, as an artifact holds it, and measures on this machine, interleaved over
rounds, its GFLOP/s and microseconds an input (medians) at a large batch and at batch 1. Choose a recipe's width from
this table before training anything long: a narrow network leaves the machine idle, a wide one costs more than it gains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import Run, interleaved
from common.cli import Parser, count, run_command
from model.fold import fold_convolutions
from model.nets import ConvNet, ResidualMLP
from service.artifact import compile_module
from service.artifact.torchscript import channels_last, freeze, pack_weights

BATCHES = (64, 1)


@dataclass(frozen=True)
class Case:
    """A conditioner and the shape (C, H, W) of what it sees."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]


def cases(widths: list[int]) -> list[Case]:
    """The places where the shipped recipes have a conditioner."""
    found = []
    for width in widths:
        for channels, side in ((2, 14), (4, 7)):
            for attention in (False, True):
                build = partial(ConvNet, channels, 2 * channels, (side, side), width, 1, attention)
                name = f"{channels}x{side}x{side}, width {width}{', attention' if attention else ''}"
                found.append(Case(name, build, (channels, side, side)))
        found.append(Case(f"15 features, width {width}", partial(ResidualMLP, 15, 30, width, 1), (15, 1, 1)))
    return found


def packed(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network as the engine runs it: folded, scripted, frozen and, but for so few vectors, packed."""
    holder = nn.Sequential(net)
    fold_convolutions(holder)
    program = compile_module(holder.eval().requires_grad_(False), [])
    frozen = freeze(channels_last(program), [])
    return frozen if isinstance(net, ResidualMLP) else pack_weights(frozen, ["forward"])


def flop_of(net: nn.Module, x: Tensor) -> int:
    """Floating-point operations of one forward pass, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter:
        net(x)
    return int(counter.get_total_flops())


def main(argv: list[str]) -> None:
    """Print one line a conditioner."""
    parser = Parser(prog="python -m benchmarks.conditioners", description=__doc__)
    parser.add_argument("--widths", type=count, nargs="+", default=[32, 48, 64, 96, 128])
    parser.add_argument("--threads", type=count, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    flop: dict[str, int] = {}
    runs: dict[str, Run] = {}
    for case in cases(args.widths):
        net = case.build()
        flop[case.name] = flop_of(net, torch.randn(1, *case.shape))
        for batch in BATCHES:
            runs[f"{case.name}, {batch}"] = partial(packed(net), torch.randn(batch, *case.shape))
    seconds = interleaved(runs)
    heads = [f"{what} at batch {batch}" for batch in BATCHES for what in ("GFLOP/s", "us an input")]
    print(f"| conditioner | MFLOP | {' | '.join(heads)} |\n|---|---|{'---|' * len(heads)}")
    for name, operations in flop.items():
        figures = []
        for batch in BATCHES:
            took = seconds[f"{name}, {batch}"]
            figures += [f"{batch * operations / took / 1e9:.0f}", f"{took / batch * 1e6:.0f}"]
        print(f"| {name} | {operations / 1e6:.2f} | {' | '.join(figures)} |")
    print(f"\n{args.threads} thread(s), float32, torch {torch.__version__}")


if __name__ == "__main__":
    run_command(main)
