"""What the model itself costs: the engine that the service runs, and plain TorchScript, without HTTP."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from benchmarks.serving.bodies import Array
from benchmarks.timing import Run, interleaved_processes
from service.artifact import torchscript
from service.catalog import warm_catalog
from service.settings import Settings

SIZES = (1, 64, 4096)


def forward_seconds(artifact: Path, rows: Array, threads: int, cache: Path) -> dict[str, float]:
    """Median seconds by what runs and how many rows, as ``engine, 64``; each side in a process of its own."""
    builds = [partial(of_engine, artifact, rows, threads, cache), partial(of_script, artifact, rows)]
    return interleaved_processes(builds)


def of_engine(artifact: Path, rows: Array, threads: int, cache: Path) -> dict[str, Run]:
    """The service's engine, arrays in and out."""
    model = warm_catalog(Settings(models=[artifact], threads=threads, cache_dir=cache)).default
    return {f"engine, {size}": partial(model.run, "statistics", rows[:size]) for size in SIZES}


def of_script(artifact: Path, rows: Array) -> dict[str, Run]:
    """The artifact as the peers run it, on one thread."""
    torch.set_num_threads(1)
    flow, x = torchscript.load(artifact.read_bytes()), torch.from_numpy(rows)
    return {f"script, {size}": partial(flow.log_prob, x[:size]) for size in SIZES}


def log_prob_of_script(artifact: Path, rows: Array) -> list[float]:
    """What the artifact itself answers."""
    with torch.inference_mode():
        values: list[float] = torchscript.load(artifact.read_bytes()).log_prob(torch.from_numpy(rows)).tolist()
        return values
