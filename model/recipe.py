"""Recipes: what to train, on what, and how, in one TOML file."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from common.cli import did_you_mean
from common.errors import UsageError, line_of
from model.data import DataError, Dataset, Selection, load
from model.distributed import ALONE, Processes
from model.glow import GlowConfig
from service.scores import CALIBRATED, ScoreName, smallest_p_value

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # as pydantic calls a key that is not there


class RecipeError(UsageError):
    """A recipe that cannot be used; the message names the key, the rule and the value."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _part(least: int, or_source: bool = False) -> PlainValidator:
    """Take a number of rows, or a share of all, without pydantic's one complaint for each kind."""

    def check(value: object) -> object:
        count = type(value) is int and value >= least
        share = type(value) is float and 0 < value < 1
        if not (count or share or (or_source and (value is None or isinstance(value, str)))):
            source = "another source, " if or_source else ""
            raise ValueError(f"must be {source}a number of rows, at least {least}, or a share of them between 0 and 1")
        return value

    return PlainValidator(check)


def _num_rows(part: float, total: int, least: int) -> int:
    """Rows of a part: its number, or its share of all rows, rounded up."""
    return part if isinstance(part, int) else max(least, math.ceil(Fraction(str(part)) * total))


class DataRecipe(_Table):
    """Where the rows come from and how they are divided. Rows are shuffled once by ``split_seed``.

    A part is a number of rows or a share of all rows of ``train``, rounded up.
    """

    train: str  # a source as model.data.load names them, relative to --data-dir
    test: Annotated[str | int | float | None, _part(2, or_source=True)] = None  # another source, or a part of train
    validation: Annotated[int | float, _part(1)]  # rows that decide which checkpoint is best
    calibration: Annotated[int | float, _part(1)]  # rows that calibrate the exported scores; never trained on
    label_column: str | None = None  # csv, parquet: a column that is not a feature
    ignored: list[str] = []  # csv, parquet: more of them, such as the id of a row
    categorical: list[str] = []  # columns of numbers that are names; those of text are categorical anyway
    normal_label: int | None = None  # train, validate, calibrate and test on rows with this label only
    split_seed: int = Field(0, ge=0)


class TrainingRecipe(_Table):
    """How the likelihood is maximised: Adam, warm-up then cosine decay, clipped gradients, averaged weights."""

    steps: int = Field(ge=1, le=10**9)
    batch_size: int = Field(64, ge=1, le=2**20)  # rows of a step, over all processes
    accumulation: int = Field(1, ge=1, le=2**20)  # parts in which a process's rows of a step go through the flow
    learning_rate: float = Field(1e-3, gt=0)
    final_learning_rate: float = Field(0.02, ge=0, le=1)  # as a fraction of learning_rate
    warmup_steps: int = Field(200, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(2.0, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)  # of the averaged weights, which are what is validated and exported
    noise: float = Field(0.1, ge=0)  # vectors: std of Gaussian smoothing noise, in scales of a column
    precision: Literal["float32", "bfloat16"] = "float32"  # images: of the conditioners' features, in training alone
    patience: int = Field(0, ge=0)  # evaluations without a better one that end the run; 0: never (for small tables)
    evaluate_every: int = Field(500, ge=1)  # steps
    checkpoint_every: int = Field(500, ge=1)  # steps
    seed: int = Field(0, ge=0, lt=2**31)
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto takes a GPU if there is one; random draws are the CPU's


def _with_direction(score: ScoreName | None) -> ScoreName | None:
    if score is not None and score not in CALIBRATED:
        raise ValueError(f"must be one of {', '.join(CALIBRATED)}")
    return score


class ArtifactRecipe(_Table):
    """What the exported artifact says of itself."""

    temperature: float = Field(1.0, ge=0)  # default of /sample
    alpha: float = Field(0.01, gt=0, lt=1)  # default threshold of p-values
    score: Annotated[ScoreName | None, AfterValidator(_with_direction)] = None  # unset: see model.density
    licence: str = "unstated"
    description: str = ""


class Recipe(_Table):
    """A whole training run; written into its checkpoint and its artifact."""

    model_config = ConfigDict(strict=False)  # strict would want a GlowConfig, not the table that makes one

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    data: DataRecipe
    model: GlowConfig = GlowConfig()
    training: TrainingRecipe
    artifact: ArtifactRecipe = ArtifactRecipe()

    @model_validator(mode="after")
    def _calibrated(self) -> Recipe:
        if isinstance(self.data.calibration, int):
            self.check_calibration(self.data.calibration)
        return self

    def check_calibration(self, rows: int) -> None:
        """Raise RecipeError where no p-value of so many calibration rows could be as small as artifact.alpha."""
        smallest = smallest_p_value(rows)
        if self.artifact.alpha < smallest:
            raise RecipeError(
                f"artifact.alpha must be at least {smallest:.3g}, the smallest p-value of {rows} rows "
                f"(data.calibration = {self.data.calibration}), got {self.artifact.alpha}"
            )


def read_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe; ``overrides`` are ``table.key=value`` with the value in TOML (or a bare word).

    Raises RecipeError.
    """
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error
    for override in overrides or []:
        _override(values, override)
    return parse_recipe(values, str(path))


def parse_recipe(values: dict[str, Any], origin: str) -> Recipe:
    """Validate a recipe's values. Raises RecipeError naming the first wrong key."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        # A key that is misspelt explains one that is missing.
        first = min(error.errors(), key=lambda found: found["type"] not in _UNKNOWN)
        key = ".".join(map(str, first["loc"]))
        if first["type"] in _UNKNOWN:
            raise RecipeError(f"{origin}: unknown key {key!r}{did_you_mean(key, _keys())}") from error
        raise RecipeError(f"{origin}: {line_of(first)}") from error


def _keys() -> list[str]:
    """All keys of recipes, and their tables."""
    return [
        *Recipe.model_fields,
        *(f"data.{key}" for key in DataRecipe.model_fields),
        *(f"model.{field.name}" for field in fields(GlowConfig)),
        *(f"training.{key}" for key in TrainingRecipe.model_fields),
        *(f"artifact.{key}" for key in ArtifactRecipe.model_fields),
    ]


def _override(values: dict[str, Any], override: str) -> None:
    key, found, text = override.partition("=")
    if not found:
        raise RecipeError(f"--set {override}: expected table.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    *tables, name = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise RecipeError(f"--set {override}: {table!r} is not a table")
    values[name] = value


@dataclass(frozen=True)
class Splits:
    """The disjoint sets of rows of a run."""

    fit: Dataset
    validation: Dataset
    calibration: Dataset
    test: Dataset | None

    def check_pixels(self, highest: int, processes: Processes = ALONE) -> None:
        """Raise DataError where an image of any set holds a value over the highest that the model knows.

        Several processes look at a part of the images each.
        """

        def check() -> None:
            for name, data in vars(self).items():
                if data is not None:
                    data.take(processes.part(len(data.x))).check_pixels(highest, f"the {name} rows")

        processes.together(check)


def load_splits(recipe: DataRecipe, data_dir: Path, processes: Processes = ALONE) -> Splits:
    """Load a recipe's data and divide it; the parts of one source are views of one array. Raises DataError."""
    wanted = Selection(recipe.label_column, recipe.normal_label)
    of_train = replace(wanted, categorical=recipe.categorical, ignored=recipe.ignored, shuffle_seed=recipe.split_seed)
    data = load(recipe.train, data_dir, of_train, processes)
    total = len(data.x)
    num_test = _num_rows(recipe.test, total, 2) if isinstance(recipe.test, int | float) else 0
    ends = [_num_rows(recipe.validation, total, 1)]
    ends.append(ends[0] + _num_rows(recipe.calibration, total, 1))
    ends.append(ends[1] + num_test)
    if ends[2] >= total:
        raise DataError(f"{recipe.train}: {ends[2]} rows held out of {total} leave none to fit")
    test = data.take(slice(ends[1], ends[2])) if num_test else None
    if isinstance(recipe.test, str):
        test = load(recipe.test, data_dir, replace(wanted, known=data.known or None), processes)
        if test.shape != data.shape:
            raise DataError(f"{recipe.test}: rows of shape {test.shape}, expected {data.shape} as in {recipe.train}")
    return Splits(
        fit=data.take(slice(ends[2], None)),
        validation=data.take(slice(0, ends[0])),
        calibration=data.take(slice(ends[0], ends[1])),
        test=test,
    )
