"""Training and exporting in one command: it goes on where it stopped, and exports what is finished alone."""

from pathlib import Path

import numpy as np
import pytest

from common.errors import UsageError
from model import train
from model.pipeline import main
from model.recipe import RecipeError
from service.artifact import open_artifact

RECIPE = """
name = "tiny"
[data]
train = "rows.npy"
validation = 100
calibration = 100
[model]
num_steps = 1
width = 8
[training]
steps = 6
checkpoint_every = 2
"""


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(400, 3)))
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "models").mkdir()
    folders = [f"--data-dir={tmp_path}", f"--runs={tmp_path / 'runs'}", f"--models={tmp_path / 'models'}"]
    return [str(tmp_path / "tiny.toml"), *folders]


def test_it_trains_and_exports_and_goes_on_when_run_again(arguments: list[str], tmp_path: Path) -> None:
    main(arguments)
    artifact = tmp_path / "models" / "tiny.pt"
    first = open_artifact(artifact).manifest.version
    main(arguments)  # nothing is left to do
    assert open_artifact(artifact).manifest.version == first
    main([*arguments, "--set=training.steps=12"])
    assert open_artifact(artifact).manifest.recipe["training"]["steps"] == 12
    assert [path.name for path in artifact.parent.iterdir()] == ["tiny.pt"]


def test_a_run_that_is_stopped_exports_nothing(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train.train
    monkeypatch.setattr(train, "train", lambda trainer, out: whole(trainer, out) and False)
    with pytest.raises(SystemExit, match="130"):
        main(arguments)
    assert (tmp_path / "runs" / "tiny" / "last.pt").exists()
    assert list((tmp_path / "models").iterdir()) == []


def test_what_cannot_be_exported_is_told_before_anything_is_trained(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--models: .*nowhere must be a folder that user \d+ may write to"):
        main([*arguments, f"--models={tmp_path / 'nowhere'}"])
    with pytest.raises(RecipeError):
        main([str(tmp_path / "missing.toml"), *arguments[1:]])
    assert not (tmp_path / "runs").exists()
