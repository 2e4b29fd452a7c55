"""Checkpoints: everything a run needs to continue exactly, written whole or not at all."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.errors import UsageError
from common.files import write_whole
from model.glow import Glow, Shape, build_glow
from model.recipe import Recipe, parse_recipe
from service.artifact import Column

FORMAT = 3


class CheckpointError(UsageError):
    """A file that is not a usable checkpoint."""


@dataclass
class Checkpoint:
    """The state of a run after ``step`` steps."""

    recipe: Recipe
    shape: Shape
    columns: list[Column]
    data_digest: str
    step: int
    seconds: float  # spent training, over all resumptions
    flow: dict[str, Any]
    averaged: dict[str, Any]
    optimizer: dict[str, Any]
    history: list[dict[str, float]]
    best: float  # lowest validation loss so far
    recent: list[float]  # losses of the last steps, by which divergence is told
    rollbacks: int  # times that the run went back to an earlier checkpoint
    figures: list[dict[str, float]]  # of every step since the last evaluation
    skipped: int  # steps that changed nothing, on all attempts

    def averaged_flow(self) -> Glow:
        """Build the flow with the averaged weights, which are the ones to evaluate and export."""
        flow = build_glow(self.shape, self.recipe.model)
        flow.load_state_dict(
            {name.removeprefix("module."): value for name, value in self.averaged.items() if name != "n_averaged"}
        )
        return flow.eval().requires_grad_(False)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint; an interrupted write leaves the previous one as it was."""
    recipe, columns = checkpoint.recipe.model_dump(), [column.model_dump() for column in checkpoint.columns]
    values = {**vars(checkpoint), "format": FORMAT, "recipe": recipe, "columns": columns}

    def write(partial: Path) -> None:
        try:
            with partial.open("wb") as file:
                torch.save(values, file)
        except RuntimeError as error:  # by which torch hides that its file could not be written
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    write_whole(path, write)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and see that its flow can be built. Raises CheckpointError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # by which torch tells at length that an artifact is one
            values = torch.load(path, map_location="cpu", weights_only=True)
        if values.pop("format") != FORMAT:
            raise CheckpointError(f"{path}: not a checkpoint of format {FORMAT}")
        recipe = parse_recipe(values.pop("recipe"), str(path))
        columns = [Column(**column) for column in values.pop("columns")]
        checkpoint = Checkpoint(recipe=recipe, columns=columns, **values)
        checkpoint.averaged_flow()
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except CheckpointError:
        raise
    except Exception as error:  # torch's reader raises nearly anything on bytes that it did not write
        raise CheckpointError(
            f"{path}: not a checkpoint file, or a damaged one; python -m model.train leaves runs/NAME/best.pt"
        ) from error
    return checkpoint
