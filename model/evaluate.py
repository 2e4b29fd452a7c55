"""Measure an artifact on data: ``python -m model.evaluate ARTIFACT DATA``."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.cli import Parser, Progress, count, listing, run_command, tell
from model.columns import add_column_noise, unit_of
from model.data import DataError, Dataset, Selection, load
from model.dataset import release_pages
from model.glow import Glow
from model.likelihood import dequantize, mean_likelihood
from service.artifact import Artifact, Column, Manifest, Program, TestResult, Unit, as_published, open_artifact

BATCH = 256
NOISE_SEED = 0


def log_prob(module: Program | Glow, rows: Iterable[Tensor]) -> Tensor:
    """Log-likelihoods of any number of rows that come in batches: (B, *shape) each -> (N,) nats."""
    with torch.inference_mode():
        return torch.cat([module.log_prob(batch) for batch in rows])


def batches(x: Tensor, what: str = "scored") -> Iterator[Tensor]:
    """Cut rows into batches, and tell the progress."""
    with Progress(what, len(x)) as progress:
        for batch in torch.split(x, BATCH):
            yield batch
            progress.update(len(batch))


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
            for batch in batches(x, "sent round")
        ]
    return max(errors)


def prior_draws(module: Program, num: int, num_dims: int) -> Tensor:
    """Decode so many draws z ~ N(0, I), always the same: (num, *shape). Every one has to be finite."""
    z = torch.randn(num, num_dims, generator=torch.Generator().manual_seed(NOISE_SEED))
    with torch.inference_mode():
        return torch.cat([module.decode(batch) for batch in batches(z, "decoded")])


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


@dataclass(frozen=True)
class Outcome:
    """What was measured."""

    artifact: str
    model: str
    version: str
    data: str
    rows: int
    unit: Unit  # of the likelihood: bits/dim of images (lower is better), nats of tables (higher is better)
    likelihood: float
    standard_error: float  # of the likelihood
    scale: str  # unit of the round trips
    round_trip: float  # largest |decode(encode(x)) - x|
    draws: int  # from the prior
    finite_draws: int  # that decode to finite values; all should
    round_trip_of_draws: float
    rows_per_second: float  # of log_prob
    threads: int

    def __str__(self) -> str:
        finite = "all finite" if self.finite_draws == self.draws else f"ONLY {self.finite_draws} FINITE"
        facts = {
            "artifact": f"{self.model}@{self.version}",
            "rows": self.rows,
            "likelihood": as_published(self.likelihood, self.standard_error, self.unit),
            "round trip": f"{self.round_trip:.2e} {self.scale}",
            "draws": f"{self.round_trip_of_draws:.2e} {self.scale}, {finite} of {self.draws}",
            "speed": f"{self.rows_per_second:.0f} rows/s ({self.threads} threads)",
        }
        return listing(facts)


def measure(artifact: Artifact, data: Dataset, num_draws: int, path: str = "", source: str = "") -> Outcome:
    """Measure everything."""
    manifest, x = artifact.manifest, as_inputs(data)
    result = mean_likelihood(log_prob(artifact.program, noisy_batches(data, manifest.columns)), data.shape)
    draws = prior_draws(artifact.program, num_draws, manifest.num_dims)
    return Outcome(
        artifact=path,
        model=manifest.name,
        version=manifest.version,
        data=source,
        rows=result.rows,
        unit=result.unit,
        likelihood=result.value,
        standard_error=result.standard_error,
        scale="pixel units" if data.kind == "image" else "scales of a column",
        round_trip=round_trip_error(artifact.program, x, manifest.columns),
        draws=num_draws,
        finite_draws=int(torch.isfinite(draws).flatten(1).all(1).sum()),
        round_trip_of_draws=round_trip_error(artifact.program, draws, manifest.columns),
        rows_per_second=rows_per_second(artifact.program, x),
        threads=torch.get_num_threads(),
    )


def parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        "python -m model.evaluate",
        "Measure an artifact on data: likelihood, round trips through the latent code, and speed.",
        examples=[
            "python -m model.evaluate my-table.pt new.csv",
            "python -m model.evaluate service/artifacts/breast-cancer.pt sklearn:breast-cancer --json",
        ],
        outcome=Outcome,
    )
    parser.add_argument("artifact", metavar="ARTIFACT", type=Path)
    parser.add_argument(
        "data",
        metavar="DATA",
        help="a file (.csv, .parquet, .npy, .npz, idx), a folder of images or of Parquet, or sklearn:NAME",
    )
    parser.add_argument(
        "--draws", type=count, default=1000, metavar="N", help="draws from the prior, decoded and sent round"
    )
    return parser


def main(argv: list[str]) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    artifact = open_artifact(args.artifact)
    data = load_for(artifact.manifest, args.data)
    tell(measure(artifact, data, args.draws, str(args.artifact), args.data), args.json)


if __name__ == "__main__":
    run_command(main)
