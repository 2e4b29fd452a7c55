"""Export a checkpoint as a verified artifact: ``python -m model.export CHECKPOINT OUT.pt``."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.cli import Parser, check_output, run_command, tell
from model.checkpoint import Checkpoint, load_checkpoint
from model.cli import add_data_dir
from model.columns import treatment, unit_of
from model.data import DataError, Dataset
from model.density import fit_scoring
from model.evaluate import as_inputs, batches, likelihood, round_trip_error
from model.fold import fold, statistics_names
from model.glow import Glow
from model.pixels import fit_pixel_mixture
from model.recipe import Splits, load_splits
from service import artifact
from service.artifact import (
    ROUND_TRIP_TOLERANCE,
    ArtifactError,
    Calibration,
    Column,
    Golden,
    LatentPart,
    Manifest,
    Program,
    Unit,
    as_published,
    unit_of_likelihood,
)
from service.scores import CALIBRATED, COMPLEXITY, DEFAULT_CODEC, LOG_PROB, Codec, FloatArray, codec_bytes, complexity

GOLDEN_ROWS = 4
CHECKED_ROWS = 64


def export(checkpoint: Checkpoint, splits: Splits, out: Path) -> Manifest:
    """Fold, script, verify against the eager flow, calibrate on held-out rows, and write the artifact.

    Raises ArtifactError where the exported module does not answer as the flow did; then no file is left.
    """
    if splits.fit.digest != checkpoint.data_digest:
        raise DataError(f"{checkpoint.recipe.data.train}: not the data that the checkpoint was trained on")
    return write_artifact(checkpoint, splits, out)


def write_artifact(
    checkpoint: Checkpoint, splits: Splits, out: Path, cross_validated: FloatArray | None = None
) -> Manifest:
    """Do the same, whatever the fit rows are called.

    Given ``cross_validated`` log-likelihoods (m,), nats, each of a row under a flow that was trained without it, these
    fit the scores and calibrate them, marked as approximate; validation and calibration rows may then be any.
    """
    check_output(out, {}, [".pt"])
    flow = checkpoint.averaged_flow()
    kind, recipe = splits.fit.kind, checkpoint.recipe
    highest = 2.0**recipe.model.bits - 1
    folded = fold(flow, fit_pixel_mixture(splits.fit.x, highest) if kind == "image" else None)
    records = artifact.save(artifact.compile_module(folded, artifact.methods_of(kind)))
    module = artifact.load_records(records)
    held_out = as_inputs(splits.calibration)
    verify(module, flow, held_out[:CHECKED_ROWS], checkpoint.columns)
    names = statistics_names(folded)
    codec = DEFAULT_CODEC if kind == "image" and checkpoint.shape[0] in (1, 3) else None
    if cross_validated is None:
        fit = held_out_statistics(module, names, splits.validation, codec)
        known = held_out_statistics(module, names, splits.calibration, codec)
    else:
        fit = known = {LOG_PROB: cross_validated}
    scoring = fit_scoring(fit, recipe.artifact.score, codec)
    if scoring.default not in scoring.names:
        there = ", ".join(name for name in scoring.names if name in CALIBRATED)
        raise ArtifactError(f"artifact.score is {scoring.default!r}, but {recipe.name} has {there}")
    offsets = np.cumsum([0, *flow.latent_sizes])
    manifest = Manifest(
        name=recipe.name,
        version=artifact.version_of(records),
        description=recipe.artifact.description,
        kind=kind,
        shape=checkpoint.shape,
        columns=[
            column.model_copy(update={"treatment": treatment(column, recipe.training.noise)})
            for column in checkpoint.columns
        ],
        value_range=(0.0, highest) if kind == "image" else None,
        latent_layout=[
            LatentPart(offset=int(offset), shape=tuple(shape))
            for offset, shape in zip(offsets, flow.latent_shapes, strict=False)
        ],
        statistics=names,
        temperature=recipe.artifact.temperature,
        recipe=recipe.model_dump(mode="json"),
        data_digest=checkpoint.data_digest,
        test=None if splits.test is None else likelihood(module, splits.test, checkpoint.columns),
        scoring=scoring,
        calibration=Calibration(
            alpha=recipe.artifact.alpha,
            scores=scoring.calibrate(known, held_out[0].numel()),
            approximate=cross_validated is not None,
        ),
        golden=golden_case(module, held_out[:GOLDEN_ROWS], codec),
        torch_version=torch.__version__,
        licence=recipe.artifact.licence,
    )
    artifact.save_artifact(out, records, manifest)
    return manifest


def verify(module: Program, flow: Glow, x: Tensor, columns: list[Column]) -> None:
    """Compare the exported module with the eager flow on rows x and on draws from the prior. Raises ArtifactError.

    Rows so extreme that the flow itself overflows are left out: the module answers them with finite stand-ins.
    """
    draws = torch.randn(CHECKED_ROWS, math.prod(x.shape[1:]), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected_z, _ = flow(x)
        expected = flow.log_prob(x)
        expected_x, _ = flow.inverse(draws)
        z, values = module.encode(x)
        decoded = module.decode(draws)
    kept = torch.isfinite(expected)
    if not torch.isfinite(expected_x).all():
        raise ArtifactError("decoding draws from the prior gives values that are not finite")
    if not artifact.within_tolerance(values[kept].numpy(), expected[kept].numpy()):
        difference = (values - expected)[kept].abs().max()
        raise ArtifactError(f"exported log_prob differs from the flow's by {difference:.3g} nats")
    unit = unit_of(columns)
    for what, error in (
        ("latents differ from the flow's", relative_error(z[kept], expected_z[kept])),
        ("decoded draws differ from the flow's", relative_error(decoded / unit, expected_x / unit)),
        ("decode(encode(x)) differs from x", round_trip_error(module, x[kept], columns)),
    ):
        if not error <= ROUND_TRIP_TOLERANCE:
            raise ArtifactError(f"exported {what} by {error:.3g}, more than {ROUND_TRIP_TOLERANCE}")


def relative_error(values: Tensor, expected: Tensor) -> float:
    """Largest |difference| / max(1, |expected| / 1000): what float32 leaves of large values is not an error."""
    return ((values - expected).abs() / (expected.abs() / 1000).clamp_min(1)).max().item()


def held_out_statistics(module: Program, names: list[str], rows: Dataset, codec: Codec | None) -> dict[str, FloatArray]:
    """What scores are made of, by name, each (N,): the program's statistics and, given a codec, the complexity."""
    x = as_inputs(rows)
    with torch.inference_mode():
        values = torch.cat([module.statistics(batch) for batch in batches(x)])
    statistics = dict(zip(names, values.numpy().T, strict=True))
    return statistics if codec is None else {**statistics, COMPLEXITY: complexity(codec, x.numpy())}


def golden_case(module: Program, x: Tensor, codec: Codec | None) -> Golden:
    """Record the answers of this machine to a few held-out rows."""
    with torch.inference_mode():
        return Golden(
            inputs=x.flatten(1).tolist(),
            statistics=module.statistics(x).tolist(),
            latents=module.encode(x)[0].tolist(),
            codec_bytes=codec_bytes(codec, x.numpy()).tolist() if codec else [],
        )


@dataclass(frozen=True)
class Outcome:
    """What was written."""

    out: str
    model: str
    version: str
    bytes: int
    unit: Unit  # of the likelihood: bits/dim of images (lower is better), nats of tables (higher is better)
    test_likelihood: float | None  # None without test rows
    test_standard_error: float | None
    alpha: float  # default share of false alarms
    calibration_rows: int

    def __str__(self) -> str:
        test = "no test set"
        if self.test_likelihood is not None:
            test = f"test {as_published(self.test_likelihood, self.test_standard_error, self.unit)}"
        out = shlex.quote(self.out)
        return (
            f"{self.out}: {self.model}@{self.version}, {self.bytes / 1e6:.2f} MB, {test}\n"
            f"next: python -m service --models {out}\n"
            f"  or: glow-score {out} IN OUT  (files of rows, such as rows.csv scores.csv)"
        )


def parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        "python -m model.export",
        "Make an artifact of a checkpoint: one file that the service serves, verified against the trained flow and "
        "calibrated on held-out rows.",
        examples=[
            "python -m model.export runs/my-table/best.pt my-table.pt",
            "python -m model.export runs/my-table/best.pt my-table.pt --data-dir data --json",
        ],
        outcome=Outcome,
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help="of python -m model.train: runs/NAME/best.pt"
    )
    parser.add_argument("out", metavar="OUT.pt", type=Path, help="the artifact; replaced when the new one is verified")
    add_data_dir(parser)
    return parser


def run(checkpoint: Checkpoint, splits: Splits, out: Path) -> Outcome:
    """Export a checkpoint. Raises UsageError and ArtifactError."""
    manifest = export(checkpoint, splits, out)
    test, calibration = manifest.test, manifest.calibration
    assert calibration is not None
    return Outcome(
        out=str(out),
        model=manifest.name,
        version=manifest.version,
        bytes=out.stat().st_size,
        unit=unit_of_likelihood(manifest.kind),
        test_likelihood=None if test is None else test.nats if test.bits_per_dim is None else test.bits_per_dim,
        test_standard_error=None if test is None else test.standard_error,
        alpha=calibration.alpha,
        calibration_rows=calibration.num_rows,
    )


def main(argv: list[str]) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    check_output(args.out, {"checkpoint": args.checkpoint}, [".pt"])
    checkpoint = load_checkpoint(args.checkpoint)
    tell(run(checkpoint, load_splits(checkpoint.recipe.data, args.data_dir), args.out), args.json)


if __name__ == "__main__":
    run_command(main)
