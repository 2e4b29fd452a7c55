"""Recalibrate an artifact on your own normal data: ``python -m service.calibrate ARTIFACT DATA OUT.pt``.

The flow stays as it is, and so does its version; p-values then tell how unusual a row is among yours. Scores are those
of reproducible passes, so that they depend neither on the kind of file nor on its order.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.cli import Parser, Progress, check_output, run_command, share, tell
from common.errors import UsageError
from service.artifact import Calibration, Manifest, read_records, save_artifact
from service.catalog import open_catalog
from service.engine import Engine, Model
from service.files import FileError, RowFile, open_rows
from service.scorer import score_pass, scoring_key, unpack
from service.scores import FloatArray, ScoreName, highest_normal_score, smallest_p_value
from service.settings import settings_for

DEFAULT_ALPHA = 0.05  # where neither the caller nor the artifact has one


def calibrate(source: Path, data: Path, out: Path, alpha: float | None = None) -> Manifest:
    """Score the rows of ``data`` and write the artifact ``source`` with them as its calibration.

    Raises ArtifactError, FileError for a row that the model does not take, and UsageError for a file that would be
    overwritten and for an alpha below 1 / (m + 1), of which m rows can flag nothing.
    """
    if source.is_dir():
        raise UsageError(f"{source}: is a folder; expected one artifact")
    check_output(out, {"artifact": source, "data": data}, [".pt"])
    catalog = open_catalog(Engine(settings_for(source, plan="auto", cache_dir=None)))
    model = catalog.default
    manifest = model.manifest
    old = manifest.calibration
    if alpha is None:
        alpha = DEFAULT_ALPHA if old is None else old.alpha
    rows = open_rows(data, manifest)
    if rows.num_rows is not None:
        _check_alpha(alpha, rows.num_rows, data)
    catalog.prepare(reproducible_only=True)
    scores = score(model, rows)
    _check_alpha(alpha, len(scores[manifest.scoring.default]), data)
    ascending = {name: np.sort(values).tolist() for name, values in scores.items()}
    manifest = manifest.model_copy(update={"calibration": Calibration(alpha=alpha, scores=ascending)})
    save_artifact(out, read_records(source), manifest)
    return manifest


def score(model: Model, rows: RowFile) -> dict[ScoreName, FloatArray]:
    """Every score with a direction, of all rows: (m,) by name.

    Raises FileError for a row that the model does not take, or none.
    """
    manifest = model.manifest
    key = scoring_key(model, manifest.calibrated_scores, reproducible=True)
    parts: list[dict[ScoreName, FloatArray]] = []
    with Progress("scored", rows.num_rows) as progress:
        for batch in rows.batches():
            for position, reason in batch.refused.items():
                raise FileError(f"{rows.path}: row {position}, {reason}")
            parts.append(unpack(key, score_pass(key, batch.rows)).scores)
            progress.update(batch.num_rows)
    if not parts:
        raise FileError(f"{rows.path}: holds no rows")
    return {name: np.concatenate([part[name] for part in parts]) for name in manifest.calibrated_scores}


def _check_alpha(alpha: float, num_rows: int, data: Path) -> None:
    smallest = smallest_p_value(num_rows)
    if alpha < smallest:
        raise UsageError(f"alpha must be at least {smallest!r}, 1 / ({num_rows} + 1) of {data}'s rows, got {alpha}")


@dataclass(frozen=True)
class Outcome:
    """What the command has come to."""

    out: str
    model: str
    version: str
    rows: int  # behind the new p-values
    alpha: float
    score: str  # the default one, of which there are
    median: float
    threshold: float  # scores above it are anomalies at alpha

    def __str__(self) -> str:
        return (
            f"{self.out}: {self.model}@{self.version}, {self.rows} rows, alpha {self.alpha:g}: "
            f"median {self.score.replace('_', ' ')} {self.median:.3f}, anomalies above {self.threshold:.3f}\n"
            f"next: python -m service --models {shlex.quote(self.out)}"
        )


def parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        "python -m service.calibrate",
        "Recalibrate an artifact on your own normal data: the same flow, with p-values that tell how unusual a row is "
        "among yours.",
        examples=[
            "python -m service.calibrate service/artifacts/breast-cancer.pt normal.csv mine.pt",
            "python -m service.calibrate service/artifacts/breast-cancer.pt normal.parquet mine.pt --alpha 0.01",
        ],
        outcome=Outcome,
    )
    parser.add_argument("artifact", metavar="ARTIFACT", type=Path, help="the artifact to recalibrate, which stays")
    parser.add_argument(
        "data",
        metavar="DATA",
        type=Path,
        help="rows that are normal to you, and that the flow was not trained on: .parquet, .csv, .npy or .npz, or a "
        "folder of PNG and JPEG images",
    )
    parser.add_argument("out", metavar="OUT.pt", type=Path, help="the new artifact")
    parser.add_argument(
        "--alpha",
        type=share,
        metavar="P",
        help=f"share of false alarms to accept, in 0..1 (default: the artifact's own, or {DEFAULT_ALPHA})",
    )
    return parser


def main(argv: list[str]) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    manifest = calibrate(args.artifact, args.data, args.out, args.alpha)
    calibration = manifest.calibration
    assert calibration is not None
    default, alpha = manifest.scoring.default, calibration.alpha
    values = calibration.arrays[default]
    outcome = Outcome(
        out=str(args.out),
        model=manifest.name,
        version=manifest.version,
        rows=len(values),
        alpha=alpha,
        score=default,
        median=float(np.median(values)),
        threshold=float(highest_normal_score(values, alpha)),
    )
    tell(outcome, args.json)


if __name__ == "__main__":
    run_command(main)
