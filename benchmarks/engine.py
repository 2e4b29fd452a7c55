"""How near the machine's limit the engine runs: ``python -m benchmarks.engine``.

One core, everything taking turns, medians over rounds; each side in a process of its own, so that none profits or
suffers from what another has left in the allocator. The engine runs as the service runs it (plans measured at start,
NumPy arrays in and out). Beside it:

* the same flow scripted as it was trained, without folding, in inference mode and warmed;
* this core's peak: the best of 3x3 convolutions of 64, 128 and 256 channels, 14x14, 64 images, float32, either layout;
* for a table, NumPy matrix products of the same floating-point operations as a flow of 8 affine couplings of width 128.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.serving.bodies import table_rows, write_body
from benchmarks.serving.servers import glow, running
from benchmarks.timing import Run, interleaved_processes
from common.cli import Parser, run_command
from common.machine import processor
from model.data import Array, Dataset, unnamed_columns
from model.export import export
from model.fold import fold
from model.glow import Glow, GlowConfig, build_glow
from model.recipe import Splits, parse_recipe
from model.trainer import Trainer
from service.artifact import Manifest, compile_module, open_artifact
from service.catalog import warm_catalog
from service.settings import EMBEDDED_ARTIFACTS, Settings

IMAGES = "fashion-mnist"
TABLE = "breast-cancer"
BATCH = 64
TABLE_ROWS = 100_000
COLUMNS, COUPLINGS, WIDTH = 30, 8, 128
PEAKS = {
    f"{channels} channels, {layout}": (channels, layout)
    for channels in (64, 128, 256)
    for layout in (torch.contiguous_format, torch.channels_last)
}


def flop_of(flow: Glow) -> int:
    """Floating-point operations of one row under the folded flow, a multiplication and an addition being two."""
    folded = fold(flow)
    with FlopCounterMode(display=False) as counter:
        folded.encode(torch.zeros(1, *flow.shape))
    return int(counter.get_total_flops())


def unfolded(manifest: Manifest) -> Glow:
    """A flow as the artifact's recipe builds it; the speed of a flow does not depend on its weights."""
    torch.manual_seed(0)
    flow = build_glow(manifest.shape, GlowConfig(**manifest.recipe["model"]))
    for parameter in flow.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    return flow.eval().requires_grad_(False)


def pictures(manifest: Manifest) -> Array:
    """A batch of images."""
    return np.random.default_rng(0).integers(0, 256, (BATCH, *manifest.shape)).astype(np.float32)


def latents(manifest: Manifest) -> Array:
    """A batch of latent codes."""
    return np.random.default_rng(0).normal(size=(BATCH, manifest.num_dims)).astype(np.float32)


def peak_convolutions() -> dict[str, Run]:
    """Convolutions to measure the core's peak with."""
    runs: dict[str, Run] = {}
    for name, (channels, layout) in PEAKS.items():
        convolution = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=layout)  # type: ignore[call-overload]
        runs[name] = partial(convolution, torch.randn(BATCH, channels, 14, 14).contiguous(memory_format=layout))
    return runs


def table_artifact(folder: Path) -> Path:
    """Export a flow of the size that the benchmark names; it is hardly trained."""
    recipe = parse_recipe(
        {
            "name": "table",
            "data": {"train": "unused", "validation": 100, "calibration": 100},
            "model": {"num_steps": COUPLINGS, "width": WIDTH},
            "training": {"steps": 3},
        },
        "benchmark",
    )
    x = np.random.default_rng(0).normal(size=(2000, COLUMNS))
    parts = [Dataset(part, unnamed_columns(COLUMNS)) for part in np.split(x, [1700, 1800, 1900])]
    splits = Splits(*parts)
    trainer = Trainer(recipe, splits)
    for _ in range(recipe.training.steps):
        trainer.train_step()
    export(trainer.checkpoint(), splits, folder / "table.pt")
    return folder / "table.pt"


def matrix_products() -> Run:
    """NumPy products of the shapes in a coupling: its mixing and the layers of its network, for each coupling."""
    random = np.random.default_rng(0)
    half = COLUMNS // 2
    shapes = [(COLUMNS, COLUMNS), (half, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 2 * half)]
    weights = [random.normal(size=shape).astype(np.float32) for shape in shapes]
    inputs = [random.normal(size=(TABLE_ROWS, shape[0])).astype(np.float32) for shape in shapes]

    def run() -> None:
        for _ in range(COUPLINGS):
            for x, weight in zip(inputs, weights, strict=True):
                x @ weight

    return run


def seconds_to_ready(folder: Path) -> float:
    """Seconds from the start of the service's process to its first answer."""
    body = write_body(folder, table_rows(EMBEDDED_ARTIFACTS / f"{TABLE}.pt", 1), "json", model=TABLE)
    started = time.monotonic()
    with running(glow(EMBEDDED_ARTIFACTS, cache_dir=folder / "cache"), body):
        return time.monotonic() - started


def of_engine(table: Path) -> dict[str, Run]:
    """Operations of the engine, on one thread."""
    settings = Settings(models=[EMBEDDED_ARTIFACTS, table], threads=1, device="cpu")
    catalog = warm_catalog(settings)
    flow, table_flow, own = (catalog.find(name) for name in (IMAGES, TABLE, "table"))
    manifest = flow.manifest
    images, codes = pictures(manifest), latents(manifest)
    rows = np.random.default_rng(0).normal(size=(TABLE_ROWS, COLUMNS))
    return {
        "log_prob, 64": lambda: flow.run("statistics", images),
        "log_prob, 1": lambda: flow.run("statistics", images[:1]),
        "encode, 64": lambda: flow.run("encode", images),
        "decode, 64": lambda: flow.run("decode", codes),
        "sample, 64": lambda: flow.run("decode", codes, reproducible=True),
        "sample, 1": lambda: flow.run("decode", codes[:1], reproducible=True),
        "table": lambda: own.run("statistics", rows),
        TABLE: lambda: table_flow.run("statistics", rows),
    }


def of_script() -> dict[str, Run]:
    """The flow scripted as it was trained."""
    torch.set_num_threads(1)
    manifest = open_artifact(EMBEDDED_ARTIFACTS / f"{IMAGES}.pt").manifest
    script = compile_module(unfolded(manifest), ["log_prob"])
    images = torch.from_numpy(pictures(manifest))
    return {
        "script, 64": lambda: script.log_prob(images),
        "script, 1": lambda: script.log_prob(images[:1]),
    }


def of_machine() -> dict[str, Run]:
    """What the core can do: convolutions and matrix products."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    return {**peak_convolutions(), "NumPy": matrix_products()}


def main(argv: list[str]) -> None:
    """Print one table."""
    Parser(prog="python -m benchmarks.engine", description=__doc__).parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        table = table_artifact(Path(folder))
        seconds = interleaved_processes([partial(of_engine, table), of_script, of_machine])
        starts = [seconds_to_ready(Path(folder)) for _ in range(4)]
    flop = {name: 2 * BATCH * 14 * 14 * channels**2 * 9 for name, (channels, _) in PEAKS.items()}
    peak = max(flop[name] / seconds[name] for name in flop)
    manifest = open_artifact(EMBEDDED_ARTIFACTS / f"{IMAGES}.pt").manifest
    speed = BATCH * flop_of(unfolded(manifest)) / seconds["log_prob, 64"]
    lines = [
        ("batch 64, times as fast as the script", seconds["script, 64"] / seconds["log_prob, 64"], ">= 3.5"),
        ("batch 64, share of the core's peak", speed / peak, ">= 0.6"),
        ("batch 1, times as fast as the script", seconds["script, 1"] / seconds["log_prob, 1"], ">= 2"),
        ("100,000 rows of 30 columns, share of NumPy's speed", seconds["NumPy"] / seconds["table"], ">= 0.3"),
        (f"the same, {TABLE}", seconds["NumPy"] / seconds[TABLE], ""),
        ("decode / encode, batch 64", seconds["decode, 64"] / seconds["encode, 64"], "<= 1.15"),
        ("the same, in the passes of /sample", seconds["sample, 64"] / seconds["encode, 64"], ""),
        ("seconds to ready, nothing cached", starts[0], "<= 20"),
        ("seconds to ready, plans cached, median of 3", statistics.median(starts[1:]), "<= 4"),
    ]
    print("| what | measured | mark |\n|---|---|---|")
    for what, value, mark in lines:
        print(f"| {what} | {value:.2f} | {mark} |")
    milliseconds = ", ".join(f"{name} {1e3 * value:.2f}" for name, value in seconds.items() if name not in flop)
    print(f"\nms: {milliseconds}")
    print(
        f"peak {peak / 1e9:.0f} GFLOP/s, engine {speed / 1e9:.0f}; {processor()}, torch {torch.__version__}, one core"
    )


if __name__ == "__main__":
    run_command(main)
