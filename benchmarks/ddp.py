"""What a second process adds to training: ``python -m benchmarks.ddp``.

Steps a second of one process and of several, one thread each, with the flow of recipe fashion-mnist and 128 images a
step (random ones: pixels do not change the time), in turns of one torchrun job: while one process trains, the others
wait. The third row exchanges gradients by torch's DistributedDataParallel, the fourth draws the noise of a batch and
does nothing else. CPU time is the leading process's, and does not depend on what else the machine does. Ends with 1
where several processes take fewer steps a second than promised.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.arguments import at_least
from common.cli import DONE, FAILED, Parser, count, run_command
from model.data import Array, Dataset
from model.distributed import Processes, join
from model.recipe import Splits, read_recipe
from model.trainer import Trainer, generator_of

RECIPE = Path(__file__).parents[1] / "model" / "recipes" / "fashion-mnist.toml"
NUM_IMAGES = 4096


class Bucketed(Processes):
    """Leaves gradients to DistributedDataParallel, which has averaged them in the backward pass."""

    def average(self, tensors: list[Tensor]) -> None:
        super().average(tensors[:1])


def random_images() -> Splits:
    """Splits of images of 28x28 that hold noise."""
    x = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 1, 28, 28), np.uint8)
    held_out = Dataset(x[:256], [])
    return Splits(fit=Dataset(x, []), validation=held_out, calibration=held_out, test=None)


def runs_of(overrides: list[str], processes: Processes) -> dict[str, Callable[[], object]]:
    """What takes turns: one step of each, in every process."""
    recipe, splits = read_recipe(RECIPE, ["training.batch_size=128", *overrides]), random_images()
    alone, together = Trainer(recipe, splits), Trainer(recipe, splits, processes=processes)
    bucketed = Trainer(recipe, splits, processes=Bucketed(processes.rank, processes.size))
    bucketed.flow = DistributedDataParallel(bucketed.flow, forward_sync_buffers=False)  # type: ignore[assignment]
    batch = torch.zeros(recipe.training.batch_size, 1, 28, 28)

    def alone_step() -> object:
        return alone.train_step() if processes.leads else None

    def noise() -> object:
        return alone.noisy(batch, generator_of(0, 0)) if processes.leads else None

    return {
        "one process": alone_step,
        f"{processes.size} processes": together.train_step,
        f"{processes.size} processes, DistributedDataParallel": bucketed.train_step,
        "noise of a batch": noise,
    }


def measure(runs: dict[str, Callable[[], object]], steps: int, rounds: int) -> dict[str, Array]:
    """Seconds a step of each run, and of CPU time, in turns of so many steps: (rounds, 2). A first round warms up."""
    times: dict[str, list[Array]] = {name: [] for name in runs}
    for _ in range(1 + rounds):
        for name, run in runs.items():
            distributed.barrier()
            started = np.array([time.perf_counter(), time.process_time()])
            for _ in range(steps):
                run()
            used = time.process_time()
            distributed.barrier()
            times[name].append((np.array([time.perf_counter(), used]) - started) / steps)
    return {name: np.stack(values[1:]) for name, values in times.items()}


def main(argv: list[str]) -> None:
    """Start itself under torchrun, and print a table there."""
    parser = Parser("python -m benchmarks.ddp", __doc__)
    parser.add_argument("--processes", type=count, default=2)
    parser.add_argument("--steps", type=count, default=4, help="of a turn")
    parser.add_argument("--rounds", type=count, default=15)
    parser.add_argument(
        "--least", type=at_least(float, 0), default=1.6, help="ratio of steps a second that is promised"
    )
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change the recipe")
    args = parser.parse_args(argv)
    if "RANK" not in os.environ:
        launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={args.processes}", "-m", "benchmarks.ddp"]
        os.execv(sys.executable, [sys.executable, "-W", "ignore", "-m", *launch, *argv])  # noqa: S606 (torchrun, in our place)
    torch.set_num_threads(1)
    processes = join()
    times = measure(runs_of(args.set, processes), args.steps, args.rounds)
    if not processes.leads:
        processes.finish(DONE)
    alone, several, *_ = times.values()
    print("| | ms a step | steps/s | times those of one process, in the same round | CPU ms a step |")
    print("|---|---|---|---|---|")
    for name, values in times.items():
        seconds, used = np.median(values, 0)
        ratio = np.median(alone[:, 0] / values[:, 0])
        print(f"| {name} | {1e3 * seconds:.2f} | {1 / seconds:.2f} | {ratio:.2f} | {1e3 * used:.2f} |")
    processes.finish(DONE if np.median(alone[:, 0] / several[:, 0]) >= args.least else FAILED)


if __name__ == "__main__":
    run_command(main)
