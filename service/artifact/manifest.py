"""The manifest: what an artifact says of itself."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from service.artifact.scoring import Scoring
from service.columns import Column
from service.scores import CALIBRATED, COMPLEXITY, LOG_PROB, FloatArray, ScoreName, smallest_p_value

Kind = Literal["image", "vector"]
Unit = Literal["bits/dim", "nats"]
# statistics has the log-likelihood in its first column, and log_prob_map, of images, what it is by pixel
Operation = Literal["statistics", "encode", "decode", "log_prob_map"]
OPERATIONS: tuple[Operation, ...] = ("statistics", "encode", "decode")  # of every model


def operations_of(kind: Kind) -> tuple[Operation, ...]:
    """What is asked of a model."""
    return (*OPERATIONS, "log_prob_map") if kind == "image" else OPERATIONS


def methods_of(kind: Kind) -> list[str]:
    """What the program of an artifact must offer."""
    return [*operations_of(kind), "log_prob"]


def unit_of_likelihood(kind: Kind) -> Unit:
    """What likelihoods of rows are published in: bits per dimension (lower is better) or nats (higher is)."""
    return "bits/dim" if kind == "image" else "nats"


def as_published(value: float, standard_error: float | None, unit: Unit) -> str:
    """A likelihood as it is published."""
    error = "" if standard_error is None else f" +- {standard_error:.3f}"
    return f"{value:.3f}{error} {unit}"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LatentPart(_Part):
    """Where one level's part of the latent code lies in z, and its shape (C, H, W) before it was flattened."""

    offset: int = Field(ge=0)
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]


class TestResult(_Part):
    """Likelihood of rows never trained on: bits per dimension of images (uniform noise), mean nats of vectors."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    bits_per_dim: float | None = None
    nats: float | None = None
    standard_error: float
    rows: int = Field(ge=2)

    @model_validator(mode="after")
    def _one_unit(self) -> TestResult:
        if (self.bits_per_dim is None) == (self.nats is None):
            raise ValueError("one of bits_per_dim and nats must be given")
        return self

    @property
    def figure(self) -> str:
        """The result as it is published."""
        if self.bits_per_dim is not None:
            return as_published(self.bits_per_dim, self.standard_error, "bits/dim")
        assert self.nats is not None
        return as_published(self.nats, self.standard_error, "nats")


class Calibration(_Part):
    """Scores of held-out rows by name, each ascending; higher = more anomalous.

    ``approximate`` says that they are cross-validated: each is of a flow that was trained without that row, but not the
    one in the artifact, which was trained on all rows. Alphas then hold in practice, without the proof.
    """

    alpha: float = Field(gt=0, lt=1)  # default threshold of p-values
    scores: dict[ScoreName, list[float]] = Field(min_length=1)
    approximate: bool = False

    @cached_property
    def arrays(self) -> dict[ScoreName, FloatArray]:
        """The scores as arrays."""
        return {name: np.asarray(values, np.float64) for name, values in self.scores.items()}

    @property
    def num_rows(self) -> int:
        """How many rows were scored: m."""
        return len(next(iter(self.scores.values())))

    @model_validator(mode="after")
    def _consistent(self) -> Calibration:
        if len({len(values) for values in self.scores.values()}) != 1 or not self.num_rows:
            raise ValueError("scores must all be of the same rows, at least one")
        if any(np.any(np.diff(values) < 0) for values in self.arrays.values()):
            raise ValueError("scores must be ascending")
        smallest = smallest_p_value(self.num_rows)
        if self.alpha < smallest:
            raise ValueError(f"alpha must be at least {smallest:.3g}, the smallest p-value of {self.num_rows} rows")
        return self


class Golden(_Part):
    """Inputs and the answers that the exporting machine gave; a loader must reproduce them."""

    inputs: list[list[float]]  # rows, flattened
    statistics: list[list[float]]
    latents: list[list[float]]
    codec_bytes: list[int] = []  # of each row as a picture, where scores depend on it


class Signature(_Part):
    """What a model takes, and its name: all that reading rows for it needs to know."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: str = Field(pattern=r"^[0-9a-f]{12}$")
    kind: Kind
    shape: tuple[int, ...]
    columns: list[Column] = []  # vectors: one per dimension
    value_range: tuple[float, float] | None = None  # images: lowest and highest pixel value

    @model_validator(mode="after")
    def _of_its_kind(self) -> Signature:
        if len(self.shape) != (3 if self.kind == "image" else 1) or min(self.shape) < 1:
            raise ValueError(f"shape must be (C, H, W) of images or (D,) of vectors, got {list(self.shape)}")
        if (self.kind == "image") != (self.value_range is not None):
            raise ValueError("images have a value_range, vectors have none")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range must go up, got {list(self.value_range)}")
        if self.kind == "vector" and len(self.columns) != self.num_dims:
            raise ValueError(f"columns must name each of {self.num_dims} dimensions, got {len(self.columns)}")
        names = [column.name for column in self.columns]
        if len(set(names)) != len(names):
            raise ValueError("columns must have different names")
        for i, column in enumerate(self.columns):
            if column.duplicate_of is not None and column.duplicate_of not in names[:i]:
                raise ValueError(f"column {column.name!r} must repeat one before it, not {column.duplicate_of!r}")
        return self

    @cached_property
    def num_dims(self) -> int:
        return math.prod(self.shape)

    @property
    def is_picture(self) -> bool:
        """Whether PNG and JPEG can carry an input: grey or RGB images."""
        return self.kind == "image" and self.shape[0] in (1, 3)

    @cached_property
    def row_shapes(self) -> list[tuple[int, ...]]:
        """Shapes that an input may come in."""
        shapes = [self.shape, (self.num_dims,)]
        if self.kind == "image" and self.shape[0] == 1:
            shapes.append(self.shape[1:])
        return list(dict.fromkeys(shapes))

    @cached_property
    def categorical(self) -> list[int]:
        """Which columns hold codes of categories."""
        return [j for j, column in enumerate(self.columns) if column.type == "categorical"]

    @property
    def input_dtype(self) -> npt.DTypeLike:
        return np.float32 if self.kind == "image" else np.float64


class Manifest(Signature):
    """What an artifact says of itself, as one JSON object; unknown keys are refused."""

    format_version: Literal[2] = 2
    description: str
    latent_layout: list[LatentPart]
    statistics: Annotated[list[str], Field(min_length=1)]  # log_prob, then whatever else the program tells of a row
    temperature: float = Field(ge=0)  # default of sampling
    recipe: dict[str, Any]
    data_digest: str
    test: TestResult | None
    scoring: Scoring
    calibration: Calibration | None
    golden: Golden
    torch_version: str
    licence: str

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        self._check_scoring()
        golden = self.golden
        sizes = {len(row) for row in [*golden.inputs, *golden.latents]}
        if not (len(golden.inputs) == len(golden.statistics) == len(golden.latents) >= 1) or sizes != {self.num_dims}:
            raise ValueError(
                f"golden must hold as many statistics and latents as inputs, of {self.num_dims} dimensions"
            )
        if {len(row) for row in golden.statistics} != {len(self.statistics)}:
            raise ValueError(f"golden statistics must be the {len(self.statistics)} of {self.statistics}")
        if len(golden.codec_bytes) != (len(golden.inputs) if self.scoring.codec else 0):
            raise ValueError("golden must hold codec_bytes of every input if there is a codec, and none else")
        ends = [part.offset + int(np.prod(part.shape)) for part in self.latent_layout]
        if [part.offset for part in self.latent_layout] != [0, *ends][:-1] or ends[-1:] != [self.num_dims]:
            raise ValueError(f"latent_layout must cover {self.num_dims} dimensions without a gap")
        return self

    def _check_scoring(self) -> None:
        scoring = self.scoring
        if self.statistics[0] != LOG_PROB or len(set(self.statistics)) != len(self.statistics):
            raise ValueError(f"statistics must be different, {LOG_PROB} the first")
        if scoring.codec is not None and not self.is_picture:
            raise ValueError(f"only grey and RGB images have a picture's codec, got {scoring.codec!r}")
        known = {*self.statistics, COMPLEXITY} if scoring.codec else {*self.statistics}
        if scoring.density is not None and not known.issuperset(scoring.density.statistics):
            raise ValueError(f"scoring.density.statistics must be among {', '.join(sorted(known))}")
        if scoring.default not in scoring.names or scoring.default not in CALIBRATED:
            raise ValueError(f"scoring.default must be one of its scores with a direction, got {scoring.default!r}")
        if self.calibration is not None and self.calibration.scores.keys() != self.calibrated_scores:
            raise ValueError(f"calibration.scores must be those of {', '.join(sorted(self.calibrated_scores))}")

    @property
    def calibrated_scores(self) -> set[ScoreName]:
        """Scores that have p-values once the artifact is calibrated: those with a direction."""
        return set(CALIBRATED) & set(self.scoring.names)

    @cached_property
    def quantized(self) -> npt.NDArray[np.bool_]:
        """Which dimensions hold whole numbers or codes, each the centre of a bin of width 1: (D,)."""
        if self.kind == "image":
            return np.ones(self.num_dims, np.bool_)
        return np.array([column.quantized for column in self.columns])

    @property
    def unit(self) -> npt.NDArray[np.float64]:
        """What errors of inputs are measured in: one pixel value, or the scale of each column."""
        return np.array([column.scale for column in self.columns]) if self.columns else np.ones(())

    @property
    def operations(self) -> tuple[Operation, ...]:
        """What is asked of the model."""
        return operations_of(self.kind)

    @property
    def methods(self) -> list[str]:
        """What the program must offer."""
        return methods_of(self.kind)
