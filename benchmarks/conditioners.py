"""What a conditioner costs where it will be served: ``python -m benchmarks.conditioners``.

Folds and scripts one conditioner of each width, as an artifact holds it, and measures on this machine, interleaved over
rounds, its GFLOP/s and microseconds an input (medians) at a large batch and at batch 1. Choose a recipe's width from
this table before training anything long: a narrow network leaves the machine idle, a wide one costs more than it gains.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.fold import fold_convolutions
from model.nets import ConvNet, ResidualMLP
from service.artifact import compile_module, load_records, save
from service.artifact.torchscript import freeze

BATCHES = (64, 1)
ROUNDS = 15


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


def frozen(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network as the engine runs it: folded, scripted, saved, loaded and frozen."""
    holder = nn.Sequential(net)
    fold_convolutions(holder)
    return freeze(load_records(save(compile_module(holder.eval().requires_grad_(False), []))), [])


def flop_of(net: nn.Module, x: Tensor) -> int:
    """Floating-point operations of one forward pass, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter:
        net(x)
    return int(counter.get_total_flops())


def main() -> None:
    """Print one line a conditioner."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 48, 64, 96, 128])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs = []
    for case in cases(args.widths):
        net = case.build()
        inputs = [torch.randn(batch, *case.shape) for batch in BATCHES]
        runs.append((case, flop_of(net, inputs[1]), frozen(net), inputs))
    times: dict[tuple[str, int], list[float]] = {}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for case, _, run, inputs in runs:
                for x in inputs:
                    started = time.perf_counter()
                    run(x)
                    times.setdefault((case.name, len(x)), []).append(time.perf_counter() - started)
    heads = [f"{what} at batch {batch}" for batch in BATCHES for what in ("GFLOP/s", "us an input")]
    print(f"| conditioner | MFLOP | {' | '.join(heads)} |\n|---|---|{'---|' * len(heads)}")
    for case, flop, _, _ in runs:
        figures = []
        for batch in BATCHES:
            seconds = statistics.median(times[case.name, batch][3:])  # the first calls compile
            figures += [f"{batch * flop / seconds / 1e9:.0f}", f"{seconds / batch * 1e6:.0f}"]
        print(f"| {case.name} | {flop / 1e6:.2f} | {' | '.join(figures)} |")
    print(f"\n{args.threads} thread(s), float32, torch {torch.__version__}")


if __name__ == "__main__":
    main()
