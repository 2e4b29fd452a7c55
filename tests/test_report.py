"""The report: promised figures as valid JSON, the same for a reader with pictures, and warnings of unbeaten floors."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.checkpoint import save_checkpoint
from model.data import Dataset
from model.export import export
from model.plots import save_latents, save_marginals
from model.recipe import Splits
from model.report import write_report
from model.trainer import Trainer
from tests.conftest import divide, tiny_images, tiny_recipe, tiny_table

KEYS = {"likelihood", "floors", "warnings", "best_step", "recipe", "unit", "validation", "rows", "data_digest"} | {
    *("columns", "num_parameters", "seed", "steps", "rollbacks", "skipped_steps", "seconds", "rows_per_s", "hardware"),
    *("torch_version", "history"),
}


def report_of(splits: Splits, out: Path, steps: int = 0, **model: object) -> tuple[dict[str, Any], str]:
    """Report on a flow of so many steps: report.json and report.md."""
    trainer = Trainer(tiny_recipe("tiny", **model), splits)
    for _ in range(steps):
        trainer.train_step()
    save_checkpoint(trainer.checkpoint(), out / "best.pt")
    write_report(trainer, splits, out)

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((out / "report.json").read_text(), parse_constant=refuse), (out / "report.md").read_text()


def test_a_flow_that_was_not_trained_is_said_not_to_beat_its_floor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, text = report_of(tiny_table(), tmp_path)
    gaussian = report["floors"]["gaussian"]
    assert not gaussian["beaten"]
    assert gaussian["flow"] < gaussian["value"]
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "beat gaussian" in line)
    assert line.startswith("WARNING: the flow does not beat gaussian (one Gaussian of full covariance")
    assert f"{gaussian['flow']:.3f} against {gaussian['value']:.3f} nats on the same 100 test rows" in line
    assert line.removeprefix("WARNING: ") in report["warnings"]
    assert f"> **WARNING:** {line.removeprefix('WARNING: ')}" in text


def test_a_flow_that_beats_every_floor_is_not_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "model.report.log_prob", lambda flow, rows: torch.zeros(sum(map(len, rows)), dtype=torch.float64)
    )
    report, text = report_of(tiny_images(), tmp_path, bits=4)  # a probability of 1, so to say
    assert all(floor["beaten"] for floor in report["floors"].values())
    assert report["warnings"] == []
    assert "WARNING" not in capsys.readouterr().err + text


@pytest.mark.parametrize("kind", ["image", "vector"])
def test_the_report_has_the_promised_figures_and_pictures(kind: str, tmp_path: Path) -> None:
    images = kind == "image"
    splits = tiny_images() if images else tiny_table()
    model: dict[str, object] = {"num_levels": 2, "bits": 4} if images else {}
    report, text = report_of(splits, tmp_path, steps=3, **model)
    assert report.keys() == KEYS
    assert (report["steps"], report["seed"], report["skipped_steps"]) == (3, 0, 0)
    assert report["rows"] == {"fit": 100, "validation": 100, "calibration": 100, "test": 100}
    assert report["hardware"].keys() == {"device", "cpu", "cores", "threads", "processes"}
    assert list(report["floors"]) == ["gaussian", "mixture", *(["png", "webp"] if images else [])]
    for figures in (report["likelihood"], *report["floors"].values()):
        assert (figures["rows"], figures["unit"]) == (100, "bits/dim" if images else "nats")
        assert f"{figures['value']:.3f} +- {figures['standard_error']:.3f} {figures['unit']}" in text
    assert [column["treatment"].partition(";")[0] for column in report["columns"]] == (
        [] if images else ["real numbers"] * 2 + ["whole numbers: uniform noise in bins of width 1"]
    )
    pictures = {"latents.png", "temperatures.png" if images else "samples.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == pictures
    for name in pictures:
        assert f"]({name})" in text
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200


def test_the_likelihood_is_that_of_the_artifact_exported_from_the_best_checkpoint(tmp_path: Path) -> None:
    splits = tiny_table()
    report, _ = report_of(splits, tmp_path, steps=3)
    trainer = Trainer(tiny_recipe("tiny"), splits)
    for _ in range(3):
        trainer.train_step()
    published = export(trainer.checkpoint(), splits, tmp_path / "tiny.pt").test
    assert published is not None
    assert report["likelihood"]["value"] == pytest.approx(published.nats, abs=1e-3)
    assert report["likelihood"]["standard_error"] == pytest.approx(published.standard_error, abs=1e-3)


def test_without_test_rows_the_validation_rows_are_measured_and_named(tmp_path: Path) -> None:
    report, text = report_of(replace(tiny_table(), test=None), tmp_path)
    assert report["likelihood"]["split"] == "validation"
    assert "100 validation rows" in text


def test_a_single_held_out_row_has_a_likelihood_without_an_error(tmp_path: Path) -> None:
    splits = tiny_table()
    report, _ = report_of(replace(splits, validation=splits.validation.take(np.arange(1)), test=None), tmp_path)
    assert math.isfinite(report["likelihood"]["value"])
    assert report["likelihood"]["standard_error"] is None


def test_figures_that_are_not_finite_are_null_and_beat_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.report.log_prob", lambda flow, rows: torch.full((sum(map(len, rows)),), -torch.inf))
    report, text = report_of(tiny_table(), tmp_path)
    assert report["likelihood"]["value"] is None
    assert not any(floor["beaten"] for floor in report["floors"].values())
    assert "not finite against" in report["warnings"][0]
    assert "**not finite +- not finite nats**" in text


def test_names_of_columns_cannot_break_the_tables_or_the_pictures(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    names = ["a|b\nc", r"$\nonsense{$"]
    _, text = report_of(divide(Dataset(random.normal(size=(80, 2)), names)), tmp_path)
    assert r"| a\|b c | real numbers; " in text
    assert (tmp_path / "samples.png").exists()


def test_pictures_take_values_that_are_huge_equal_or_not_finite(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(200, 3))
    wild = values.copy()
    wild[:4, 0] = [np.inf, -np.inf, np.nan, 1e30]
    save_latents(wild.astype(np.float32), [2, 1], tmp_path / "latents.png")
    data = np.stack([values[:, 0], np.full(200, 3.0), 1e12 + values[:, 2]], 1)
    save_marginals(data, wild, ["a", "b", "c"], tmp_path / "samples.png")
    assert {path.name for path in tmp_path.iterdir()} == {"latents.png", "samples.png"}
