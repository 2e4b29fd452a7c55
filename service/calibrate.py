"""Recalibrate an artifact on your own normal data: ``python -m service.calibrate ARTIFACT DATA OUT.pt``.

The flow stays as it is, and so does its version; p-values then tell how unusual a row is among yours. Scores are those
of reproducible passes, so that they depend neither on the kind of file nor on its order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from service.artifact import Calibration, Manifest, read_records, save_artifact
from service.catalog import open_catalog
from service.cli import Parser, Progress, UsageError, check_output, run_command
from service.engine import Engine, Model
from service.files import FileError, RowFile, open_rows
from service.plans import finish
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
    check_output(out, artifact=source, data=data)
    if alpha is not None and not 0 < alpha < 1:
        raise UsageError(f"--alpha must be between 0 and 1, got {alpha}")
    catalog = open_catalog(Engine(settings_for(source, plan="auto", cache_dir=None)))
    model = catalog.default
    manifest = model.manifest
    old = manifest.calibration
    if alpha is None:
        alpha = DEFAULT_ALPHA if old is None else old.alpha
    rows = open_rows(data, manifest)
    if rows.num_rows is not None:
        _check_alpha(alpha, rows.num_rows, data)
    finish(catalog.warm_up(reproducible_only=True))
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


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = Parser(
        "python -m service.calibrate",
        "Recalibrate an artifact on your own normal data: the same flow, other p-values.",
        "python -m service.calibrate service/artifacts/breast-cancer.pt normal.parquet mine.pt --alpha 0.01",
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("data", type=Path, help=".parquet, .csv, .npy or .npz, or a folder of PNG and JPEG images")
    parser.add_argument("out", type=Path, help="the new artifact")
    parser.add_argument(
        "--alpha", type=float, help=f"share of false alarms to accept; the artifact's own, or {DEFAULT_ALPHA}"
    )
    args = parser.parse_args(argv)
    manifest = calibrate(args.artifact, args.data, args.out, args.alpha)
    calibration = manifest.calibration
    assert calibration is not None
    default, alpha = manifest.scoring.default, calibration.alpha
    values = calibration.arrays[default]
    print(
        f"{args.out}: {manifest.name}@{manifest.version}, {len(values)} rows, alpha {alpha:g}: "
        f"median {default.replace('_', ' ')} {np.median(values):.3f}, "
        f"anomalies above {highest_normal_score(values, alpha):.3f}"
    )


if __name__ == "__main__":
    run_command(main)
