"""Measure an artifact on data: ``python -m model.evaluate ARTIFACT DATA``."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from model.cli import Parser, UsageError, run_command
from model.columns import add_column_noise, unit_of
from model.data import DataError, Dataset, Selection, load
from model.dataset import release_pages
from model.glow import Glow
from model.likelihood import dequantize, mean_likelihood
from service.artifact import Artifact, Column, Manifest, Program, TestResult, open_artifact

BATCH = 256
NOISE_SEED = 0


def log_prob(module: Program | Glow, rows: Iterable[Tensor]) -> Tensor:
    """Log-likelihoods of any number of rows that come in batches: (B, *shape) each -> (N,) nats."""
    with torch.inference_mode():
        return torch.cat([module.log_prob(batch) for batch in rows])


def batches(x: Tensor, what: str = "scoring") -> Iterable[Tensor]:
    """Cut rows into batches, with a progress bar on a terminal."""
    return tqdm(torch.split(x, BATCH), desc=what, unit="batch", leave=False, disable=None)


def as_inputs(data: Dataset) -> Tensor:
    """Rows as an artifact takes them, without noise: float32 images, float64 vectors."""
    return torch.from_numpy(data.x).float() if data.kind == "image" else torch.from_numpy(data.x)


def noisy_batches(data: Dataset, columns: list[Column]) -> Iterator[Tensor]:
    """Rows as their published likelihood is measured: images and integer columns under uniform noise, always the same.

    Made batch by batch, so that the rows of a mapped file never come to lie in memory together.
    """
    generator = torch.Generator().manual_seed(NOISE_SEED)
    for rows in batches(torch.from_numpy(data.x)):
        yield (
            dequantize(rows.float(), generator)
            if data.kind == "image"
            else add_column_noise(rows, columns, 0.0, generator)
        )
        release_pages(data.x)


def noisy(data: Dataset, columns: list[Column]) -> Tensor:
    """The same, all rows at once."""
    return torch.cat(list(noisy_batches(data, columns)))


def likelihood(module: Program, data: Dataset, columns: list[Column]) -> TestResult:
    """Mean likelihood of data in its published form, and its standard error over the rows.

    Images: bits per dimension under uniform dequantization noise, a lower bound of the probability of the integers.
    Vectors: nats; integer columns carry uniform noise, as in training.
    """
    mean = mean_likelihood(log_prob(module, noisy_batches(data, columns)), data.shape)
    bits, nats = (mean.value, None) if mean.unit == "bits/dim" else (None, mean.value)
    return TestResult(bits_per_dim=bits, nats=nats, standard_error=mean.standard_error, rows=mean.rows)


def round_trip_error(module: Program, x: Tensor, columns: list[Column]) -> float:
    """Largest |decode(encode(x)) - x|, in pixel units or in scales of a column."""
    unit = unit_of(columns)
    with torch.inference_mode():
        errors: list[float] = [
            ((module.decode(module.encode(batch)[0]) - batch).abs() / unit).max().item()
            for batch in batches(x, "round trip")
        ]
    return max(errors)


def prior_draws(module: Program, num: int, num_dims: int) -> Tensor:
    """Decode so many draws z ~ N(0, I), always the same: (num, *shape). Every one has to be finite."""
    z = torch.randn(num, num_dims, generator=torch.Generator().manual_seed(NOISE_SEED))
    with torch.inference_mode():
        return torch.cat([module.decode(batch) for batch in batches(z, "decoding")])


def rows_per_second(module: Program, x: Tensor) -> float:
    """Median throughput of log_prob at the batch size of evaluation."""
    batch = x[:BATCH]
    times = []
    for _ in range(8):
        started = time.perf_counter()
        log_prob(module, [batch])
        times.append(time.perf_counter() - started)
    return len(batch) / sorted(times[3:])[2]


def load_for(manifest: Manifest, source: str) -> Dataset:
    """Load rows as an artifact takes them: a table's columns by name, with the categories that it knows.

    Raises DataError where rows are not of its kind, shape and range.
    """
    data = load(source, wanted=Selection(known={column.name: column.categories for column in manifest.columns} or None))
    if data.shape != manifest.shape:
        raise DataError(f"{source}: rows of shape {data.shape}, but {manifest.name} takes {manifest.shape}")
    if manifest.value_range is not None:
        data.check_pixels(manifest.value_range[1], source)
    if len(data.x) < 2:
        raise DataError(f"{source}: one row has no standard error; at least 2 are needed")
    return data


def report(artifact: Artifact, data: Dataset, num_draws: int) -> list[tuple[str, str]]:
    """Measure everything: rows of a table (what, figure)."""
    manifest, x = artifact.manifest, as_inputs(data)
    result = likelihood(artifact.program, data, manifest.columns)
    draws = prior_draws(artifact.program, num_draws, manifest.num_dims)
    finite = "all finite" if torch.isfinite(draws).all() else "NOT ALL FINITE"
    scale_unit = "pixel units" if data.kind == "image" else "scales of a column"
    return [
        ("artifact", f"{manifest.name}@{manifest.version}"),
        ("rows", str(result.rows)),
        ("likelihood", result.figure),
        ("round trip", f"{round_trip_error(artifact.program, x, manifest.columns):.2e} {scale_unit}"),
        (
            "draws",
            f"{round_trip_error(artifact.program, draws, manifest.columns):.2e} {scale_unit}, {finite} of {num_draws}",
        ),
        ("speed", f"{rows_per_second(artifact.program, x):.0f} rows/s ({torch.get_num_threads()} threads)"),
    ]


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = Parser(prog="python -m model.evaluate", description="Measure an artifact on data.")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("data", help="a file, folder or sklearn: name, as in a recipe")
    parser.add_argument("--draws", type=int, default=1000, help="draws from the prior, decoded and sent round (1000)")
    args = parser.parse_args(argv)
    if args.draws < 1:
        raise UsageError(f"--draws must be at least 1, got {args.draws}")
    artifact = open_artifact(args.artifact)
    data = load_for(artifact.manifest, args.data)
    for what, figure in report(artifact, data, args.draws):
        print(f"{what:<12} {figure}")


if __name__ == "__main__":
    run_command(main)
