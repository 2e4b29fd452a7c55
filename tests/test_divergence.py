"""Divergence: a ruined run goes back to where it was sound, by itself and reproducibly, and a sound one never does."""

import math
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_checkpoint
from model.divergence import DivergedError
from model.train import train
from model.trainer import Trainer
from tests.conftest import tiny_recipe, tiny_table, with_training


def test_a_run_whose_weights_are_ruined_goes_back_and_finishes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both ways to diverge: gradients that are not finite, and a loss that rises by more than a nat per dimension."""
    for ruin in (math.nan, 30.0):
        recipe = with_training(tiny_recipe("a"), steps=80, evaluate_every=20, checkpoint_every=20)
        trainer = Trainer(recipe, tiny_table())
        ruin_weights_after(trainer, 45, ruin)
        out = tmp_path / str(ruin)
        assert train(trainer, out)
        assert (trainer.step, trainer.rollbacks) == (80, 1)
        assert "going back to step 20, learning rate halved" in capsys.readouterr().err
        assert [entry["step"] for entry in trainer.history] == [20, 40, 60, 80]
        assert abs(trainer.history[-1]["validation"] - trainer.history[1]["validation"]) < 1
        assert load_checkpoint(out / "last.pt").rollbacks == 1


def ruin_weights_after(trainer: Trainer, step: int, factor: float, times: int = 1) -> None:
    """Multiply the flow's parameters when the run comes to a step, as so many hardware and numerical faults do."""
    take_step, left = trainer.train_step, [times]

    def step_or_ruin(stop: bool = False) -> tuple[dict[str, float], bool]:
        if trainer.step == step and left[0]:
            left[0] -= 1
            for parameter in trainer.flow.parameters():
                parameter.data *= factor
        return take_step(stop)

    trainer.train_step = step_or_ruin  # type: ignore[method-assign]


def test_a_run_that_diverges_again_and_again_ends_with_its_last_sound_state(tmp_path: Path) -> None:
    recipe = with_training(tiny_recipe("a"), steps=80, evaluate_every=20, checkpoint_every=20)
    trainer = Trainer(recipe, tiny_table())
    ruin_weights_after(trainer, 25, math.nan, times=100)
    with pytest.raises(DivergedError, match=r"step 35: 10 steps in a row .* gone back 5 times already"):
        train(trainer, tmp_path)
    last = load_checkpoint(tmp_path / "last.pt")
    assert last.step == 20
    assert all(torch.isfinite(value).all() for value in last.flow.values())


def test_an_attempt_after_going_back_draws_other_rows_at_half_the_rate() -> None:
    trainer = Trainer(tiny_recipe("a"), tiny_table())
    trainer.train_step()
    rate, rows = trainer.optimizer.param_groups[0]["lr"], trainer._batch_rows()
    trainer.roll_back("a test")
    assert (trainer.step, trainer.rollbacks) == (0, 1)
    trainer.train_step()
    assert trainer.optimizer.param_groups[0]["lr"] == rate / 2
    assert not torch.equal(trainer._batch_rows(), rows)


@pytest.mark.parametrize("ruin", [math.nan, 30.0])
@pytest.mark.parametrize("step", [41, 50, 57, 59, 60])
def test_a_state_that_is_already_ruined_is_never_gone_back_to(tmp_path: Path, step: int, ruin: float) -> None:
    """Wherever between two checkpoints the ruin begins, also just before one, which then holds ruined weights."""
    trainer = Trainer(with_training(tiny_recipe("a"), steps=80, evaluate_every=40, checkpoint_every=20), tiny_table())
    ruin_weights_after(trainer, step, ruin)
    assert train(trainer, tmp_path, progress=False)
    assert (trainer.step, trainer.rollbacks) == (80, 1)
    assert all(torch.isfinite(value).all() for value in load_checkpoint(tmp_path / "last.pt").flow.values())


def test_skipped_steps_are_counted_on_all_attempts(tmp_path: Path) -> None:
    trainer = Trainer(with_training(tiny_recipe("a"), steps=80, evaluate_every=20, checkpoint_every=20), tiny_table())
    ruin_weights_after(trainer, 45, math.nan)
    train(trainer, tmp_path, progress=False)
    assert trainer.skipped == load_checkpoint(tmp_path / "last.pt").skipped == 10


def test_a_run_resumed_after_going_back_is_that_of_an_uninterrupted_one(tmp_path: Path) -> None:
    recipe = with_training(tiny_recipe("a"), steps=80, evaluate_every=30, checkpoint_every=20)
    whole, first = (Trainer(recipe, tiny_table()) for _ in range(2))
    for trainer in (whole, first):
        ruin_weights_after(trainer, 25, math.nan)
    train(whole, tmp_path / "whole", progress=False)
    stop_after(first, 47)
    assert not train(first, tmp_path / "first", progress=False)
    resumed = Trainer(recipe, tiny_table(), load_checkpoint(tmp_path / "first" / "last.pt"))
    assert resumed.step == 47
    train(resumed, tmp_path / "first", progress=False)
    for name, value in whole.flow.state_dict().items():
        assert torch.equal(value, resumed.flow.state_dict()[name]), name
    told = [[{**entry, "rows_per_s": 0} for entry in trainer.history] for trainer in (whole, resumed)]
    assert told[0] == told[1]
    assert whole.skipped == resumed.skipped


def stop_after(trainer: Trainer, step: int) -> None:
    """Ask a run to stop when it comes to a step."""
    take_step = trainer.train_step

    def step_or_stop(stop: bool = False) -> tuple[dict[str, float], bool]:
        figures, stopping = take_step(stop)
        return figures, stopping or trainer.step == step

    trainer.train_step = step_or_stop  # type: ignore[method-assign]


def test_a_sound_run_never_goes_back(tmp_path: Path) -> None:
    trainer = Trainer(with_training(tiny_recipe("a"), steps=60, learning_rate=2e-2), tiny_table())
    train(trainer, tmp_path, progress=False)
    assert trainer.rollbacks == 0
