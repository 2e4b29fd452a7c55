"""Training: it learns, resumes exactly, stops cleanly, and names what is wrong in one line."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from common.cli import run_command
from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.recipe import RecipeError, TrainingRecipe, parse_recipe, read_recipe
from model.train import main, train
from model.trainer import EVALUATION_SEED, Trainer, learning_rate, stream_of
from tests.conftest import tiny_images, tiny_recipe, tiny_table, with_training

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "model" / "recipes" / "digits.toml"
QUICK = [f"--set={change}" for change in ("training.steps=6", "model.width=8", "model.num_steps=1")]


def command(*arguments: object, cwd: Path, module: str = "model.train") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        text=True,
        capture_output=True,
        timeout=120,
    )


def test_training_lowers_the_loss_of_images_and_of_tables() -> None:
    for trainer in (
        Trainer(tiny_recipe("a", num_levels=2, bits=4), tiny_images()),
        Trainer(tiny_recipe("b"), tiny_table()),
    ):
        trainer.averaged.update_parameters(trainer.flow)
        before = trainer.evaluate()
        for _ in range(12):
            trainer.train_step()
        assert trainer.evaluate() < before - 0.05


def test_the_loss_is_the_mean_in_the_unit_that_is_published() -> None:
    log_prob = torch.tensor([-10.0, -30.0])
    images, table = Trainer(tiny_recipe("a", bits=4), tiny_images()), Trainer(tiny_recipe("b"), tiny_table())
    assert images.loss(log_prob).item() == pytest.approx(20 / (64 * math.log(2)))
    assert table.loss(log_prob).item() == pytest.approx(20)


def test_a_resumed_run_takes_exactly_the_steps_of_an_uninterrupted_one(tmp_path: Path) -> None:
    recipe, splits = tiny_recipe("a", dropout=0.2), tiny_table()
    whole = Trainer(recipe, splits)
    for _ in range(6):
        whole.train_step()
    half = Trainer(recipe, splits)
    for _ in range(3):
        half.train_step()
    save_checkpoint(half.checkpoint(), tmp_path / "last.pt")
    resumed = Trainer(recipe, splits, load_checkpoint(tmp_path / "last.pt"))
    for _ in range(3):
        resumed.train_step()
    for name, value in whole.checkpoint().averaged.items():
        assert torch.equal(value, resumed.checkpoint().averaged[name]), name


def test_seeds_steps_attempts_and_purposes_have_random_streams_of_their_own() -> None:
    streams = [
        stream_of(seed, index, attempt, purpose)
        for seed in (*range(8), EVALUATION_SEED)
        for index in (*range(64), 4096, 10**6)
        for attempt in range(3)
        for purpose in range(3)
    ]
    assert len(set(streams)) == len(streams)
    draws = {tuple(torch.rand(2, generator=torch.Generator().manual_seed(stream)).tolist()) for stream in streams}
    assert len(draws) == len(streams)  # torch takes what tells them apart for a seed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(RecipeError, match=r"training\.device is 'cuda', but torch finds no GPU"):
        Trainer(with_training(tiny_recipe("a"), device="cuda"), tiny_table())


def test_another_seed_is_another_run() -> None:
    batches = []
    for seed in range(3):
        trainer = Trainer(with_training(tiny_recipe("a"), seed=seed), tiny_table())
        batches.append(tuple(trainer._batch_rows().tolist()))
    assert len(set(batches)) == 3


def test_every_epoch_sees_every_row_once() -> None:
    recipe = tiny_recipe("a")
    trainer = Trainer(recipe, tiny_table())
    rows = []
    for trainer.step in range(25):  # 25 batches of 32 are 8 epochs of 100 rows
        rows.append(trainer._batch_rows())
    epochs = torch.cat(rows).reshape(8, 100)
    assert (epochs.sort(1).values == torch.arange(100)).all()
    assert not torch.equal(epochs[0], epochs[1])


def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing_but_the_count() -> None:
    trainer = Trainer(tiny_recipe("a"), tiny_table())
    trainer.train_step()
    before = {name: value.clone() for name, value in trainer.flow.state_dict().items()}
    trainer.fit = trainer.fit * torch.inf
    figures, _ = trainer.train_step()
    assert figures["skipped"] == 1
    assert trainer.step == 2
    for name, value in trainer.flow.state_dict().items():
        assert torch.equal(value, before[name])


def test_learning_rate_warms_up_and_then_falls_to_its_final_fraction() -> None:
    training = TrainingRecipe(steps=1000, learning_rate=1.0, warmup_steps=100, final_learning_rate=0.1)
    assert learning_rate(0, training) == pytest.approx(0.01, rel=0.01)
    assert learning_rate(99, training) == pytest.approx(1.0, rel=0.05)
    assert learning_rate(1000, training) == pytest.approx(0.1)
    rates = [learning_rate(step, training) for step in range(100, 1001)]
    assert rates == sorted(rates, reverse=True)


def test_the_command_writes_checkpoints_pictures_and_a_report_and_resumes(tmp_path: Path) -> None:
    first = command(DIGITS, *QUICK, "--set=training.evaluate_every=3", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    out = tmp_path / "runs" / "digits"
    checkpoints, pictures = {"last.pt", "best.pt"}, {"curves.png", "samples.png", "temperatures.png", "latents.png"}
    assert {path.name for path in out.iterdir()} == {*checkpoints, *pictures, "report.json", "report.md", "tensorboard"}
    report = json.loads((out / "report.json").read_text())
    assert report["steps"] == 6
    assert [entry["step"] for entry in report["history"]] == [3, 6]
    assert {"log_normal", "log_det", "validation"} <= report["history"][0].keys()
    again = command(DIGITS, *QUICK, cwd=tmp_path)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "already holds a run" in again.stderr
    longer = command(DIGITS, *QUICK, "--set=training.steps=8", "--resume", cwd=tmp_path)
    assert longer.returncode == 0, longer.stderr
    assert load_checkpoint(out / "last.pt").step == 8
    exported = command(out / "best.pt", tmp_path / "digits.pt", cwd=tmp_path, module="model.export")
    assert exported.returncode == 0, exported.stderr
    evaluated = command(tmp_path / "digits.pt", "sklearn:digits", cwd=tmp_path, module="model.evaluate")
    assert "bits/dim" in evaluated.stdout
    assert "round trip" in evaluated.stdout


def test_a_folder_with_the_best_checkpoint_of_another_run_is_not_trained_into(tmp_path: Path) -> None:
    (tmp_path / "best.pt").touch()
    refused = command(DIGITS, *QUICK, "--out", tmp_path, cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "already holds a run" in refused.stderr


def test_a_run_is_resumed_as_the_artifact_that_it_began_as() -> None:
    recipe = tiny_recipe("a")
    checkpoint = Trainer(recipe, tiny_table()).checkpoint()
    renamed = recipe.model_copy(update={"name": "b"})
    warmer = recipe.model_copy(update={"artifact": recipe.artifact.model_copy(update={"temperature": 0.5})})
    for other in (renamed, warmer):
        with pytest.raises(RecipeError, match=r"name and \[artifact\] must be those of the checkpoint"):
            Trainer(other, tiny_table(), checkpoint)


def test_interrupting_leaves_a_usable_checkpoint(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [*QUICK, "--set=training.steps=100000", "--set=training.checkpoint_every=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "model.train", str(DIGITS), *arguments],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    last = tmp_path / "runs" / "digits" / "last.pt"
    deadline = time.monotonic() + 60
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    checkpoint = load_checkpoint(last)
    assert 0 < checkpoint.step < 100000
    assert checkpoint.averaged_flow().log_prob(torch.zeros(1, 1, 8, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.toml"], "missing.toml: No such file or directory"),
        ([DIGITS, "--set=training.step=3"], "unknown key 'training.step'"),
        ([DIGITS, "--set=model.depth=3"], "unknown key 'model.depth'"),
        ([DIGITS, "--set=training.steps=0"], "training.steps: Input should be greater than or equal to 1, got 0"),
        ([DIGITS, "--set=model.num_levels=4"], "image sides must be divisible by 2**num_levels = 16, got 8x8"),
        ([DIGITS, "--set=model.bits=3"], "the fit rows: holds pixel 16, over 7"),
        ([DIGITS, "--set=data.train=none.csv"], "none.csv: no such file or folder"),
        ([DIGITS, "--set=name"], "expected table.key=value"),
        ([DIGITS, "--set=data.test=-5"], "data.test"),
        ([DIGITS, "--set=training.steps=true"], "training.steps: Input should be a valid integer, got True"),
        ([DIGITS, "--set=training.learning_rate=inf"], "training.learning_rate: Input should be a finite number"),
        ([DIGITS, "--set=artifact.alpha=0.001"], "artifact.alpha must be at least 0.00498"),
        ([DIGITS, "--set=data.calibration=0.01"], "smallest p-value of 18 rows (data.calibration = 0.01), got 0.01"),
        ([DIGITS, "--set=data.validation=0"], "data.validation: must be a number of rows, at least 1, or a share"),
        ([DIGITS, "--set=data.calibration=1.0"], "data.calibration: must be a number of rows, at least 1, or a share"),
        ([DIGITS, "--set=data.test=1"], "data.test: must be another source, a number of rows, at least 2, or a share"),
        ([DIGITS, "--out", DIGITS], "File exists"),
        ([], "the following arguments are required: RECIPE.toml"),
        ([DIGITS, "--resume"], "last.pt does not exist"),
    ],
)
def test_wrong_use_ends_with_one_line_and_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    with pytest.raises(SystemExit) as raised:
        run_command(main)
    assert raised.value.code == 2
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    trainer = Trainer(tiny_recipe("a"), tiny_table())
    save_checkpoint(trainer.checkpoint(), path)
    whole = path.read_bytes()
    for damaged in (b"", b"hello world", whole[:-200], whole[:500] + b"???" + whole[503:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.pt: not a checkpoint file, or a damaged one"):
            load_checkpoint(path)
    result = command(path, tmp_path / "out.pt", cwd=tmp_path, module="model.export")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "out.pt").exists()


def test_a_failed_write_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tiny_recipe("a"), tiny_table())
    save_checkpoint(trainer.checkpoint(), tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(trainer.checkpoint(), tmp_path / "last.pt")
    assert (tmp_path / "last.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_run_without_a_better_evaluation_for_its_patience_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = with_training(tiny_recipe("a"), steps=12, evaluate_every=1, checkpoint_every=4, patience=3)
    trainer = Trainer(recipe, tiny_table())
    losses = iter([5.0, 4.0, 3.0, 3.5, 3.2, 3.1, 1.0])
    monkeypatch.setattr(trainer, "evaluate", lambda: next(losses))
    assert train(trainer, tmp_path, progress=False)
    assert trainer.step == 6
    assert load_checkpoint(tmp_path / "best.pt").step == 3
    resumed = Trainer(recipe, tiny_table(), load_checkpoint(tmp_path / "last.pt"))
    assert resumed.complete


def test_a_validation_that_is_not_a_number_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(with_training(tiny_recipe("a"), steps=3, evaluate_every=1, checkpoint_every=1), tiny_table())
    losses = iter([2.0, math.nan, 2.5, 3.0, 4.0])
    monkeypatch.setattr(trainer, "evaluate", lambda: next(losses))
    train(trainer, tmp_path, progress=False)
    assert load_checkpoint(tmp_path / "best.pt").step == 1
    assert trainer.rollbacks == 1
    assert [entry["validation"] for entry in trainer.history] == [2.5, 3.0, 4.0]


def test_features_in_half_precision_train_the_single_precision_flow(tmp_path: Path) -> None:
    recipe = tiny_recipe("a", num_levels=2, bits=4)
    losses = []
    for precision in ("float32", "bfloat16"):
        trainer = Trainer(with_training(recipe, precision=precision), tiny_images())
        losses.append([trainer.train_step()[0]["loss"] for _ in range(12)])
        assert {value.dtype for value in trainer.flow.parameters()} == {torch.float32}
        assert trainer.averaged_flow().log_prob(torch.zeros(1, 1, 8, 8)).isfinite().all()
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02)


def test_figures_and_samples_are_logged_for_tensorboard_once_a_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = with_training(tiny_recipe("a", num_levels=2, bits=4), steps=6, evaluate_every=2, checkpoint_every=2)
    trainer = Trainer(recipe, tiny_images())
    train(trainer, tmp_path)
    again = Trainer(with_training(recipe, steps=8), tiny_images(), load_checkpoint(tmp_path / "last.pt"))
    train(again, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = events.Scalars("validation")
    assert [event.step for event in scalars] == [2, 4, 6, 8]
    assert [event.value for event in scalars] == pytest.approx([entry["validation"] for entry in again.history])
    assert [event.step for event in events.Images("samples")] == [2, 4, 6, 8]


def test_every_recipe_in_the_repository_is_valid() -> None:
    recipes = sorted((ROOT / "model" / "recipes").glob("*.toml"))
    assert len(recipes) >= 3
    for path in recipes:
        assert read_recipe(path).name == path.stem


def test_a_recipe_can_be_changed_from_the_command_line(tmp_path: Path) -> None:
    recipe = read_recipe(DIGITS, ["training.steps=7", "model.partition=alternating", 'artifact.licence="MIT"'])
    assert (recipe.training.steps, recipe.model.partition, recipe.artifact.licence) == (7, "alternating", "MIT")
    for text in ("name = ", "name = " + "[" * 5000, "name = " + "9" * 5000):
        (tmp_path / "a.toml").write_text(text)
        with pytest.raises(RecipeError, match="not valid TOML"):
            read_recipe(tmp_path / "a.toml")
    assert read_recipe(DIGITS, ["artifact.licence=" + "9" * 5000]).artifact.licence == "9" * 5000


def test_resuming_on_other_data_or_another_model_is_refused() -> None:
    splits = tiny_table()
    checkpoint = Trainer(tiny_recipe("a"), splits).checkpoint()
    with pytest.raises(RecipeError, match="the data differ"):
        Trainer(tiny_recipe("a"), tiny_table(404), checkpoint)
    recipe = tiny_recipe("a")
    slower = recipe.model_copy(update={"training": recipe.training.model_copy(update={"learning_rate": 1e-9})})
    with pytest.raises(RecipeError, match=r"training\.learning_rate must be that of the checkpoint, 0\.005"):
        Trainer(slower, splits, checkpoint)
    with pytest.raises(RecipeError, match=r"\[model\] and \[data\] must be those of the checkpoint"):
        Trainer(tiny_recipe("a", width=16), splits, checkpoint)


def test_parse_recipe_names_a_missing_key() -> None:
    with pytest.raises(RecipeError, match="here: training: Field required"):
        parse_recipe({"name": "a", "data": {"train": "x", "validation": 1, "calibration": 1}}, "here")
