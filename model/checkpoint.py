"""Checkpoints: everything a run needs to continue exactly, written whole or not at all."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.glow import Glow, Shape, build_glow
from model.recipe import Recipe, parse_recipe
from service.artifact import Column

FORMAT = 1


class CheckpointError(ValueError):
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

    def averaged_flow(self) -> Glow:
        """Build the flow with the averaged weights, which are the ones to evaluate and export."""
        flow = build_glow(self.shape, self.recipe.model)
        flow.load_state_dict(
            {name.removeprefix("module."): value for name, value in self.averaged.items() if name != "n_averaged"}
        )
        return flow.eval().requires_grad_(False)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write beside the target, then rename: an interrupted write leaves the previous checkpoint as it was."""
    values = {
        **vars(checkpoint),
        "recipe": checkpoint.recipe.model_dump(),
        "columns": [column.model_dump() for column in checkpoint.columns],
    }
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, **values}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises CheckpointError."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: not a checkpoint file, or a damaged one") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of format {FORMAT}")
    recipe = parse_recipe(values.pop("recipe"), str(path))
    columns = [Column(**column) for column in values.pop("columns")]
    return Checkpoint(recipe=recipe, columns=columns, **values)
