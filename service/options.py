"""Options of the routes: members of a JSON body or, where the body has no place for them, query parameters."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema

from common.errors import line_of
from service.errors import Unprocessable
from service.noise import MAX_SEED
from service.scores import DEFINITIONS, ScoreName

Format = Literal["json", "npy", "arrow", "png"]
ArrayFormat = Literal["json", "npy", "arrow"]
Guarantee = Literal["marginal", "conditional"]


class Options(BaseModel):
    """Options of every route that runs a model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str | None = Field(None, max_length=200, description="Name of the model; the default one if absent.")
    format: Format | None = Field(None, description="Media type of the answer, over the Accept header.")


class ExampleOptions(BaseModel):
    """Options of /models/{name}/example."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int = Field(1, ge=1, le=1000, description="Number of inputs, if the model has so many examples.")
    format: Format | None = Field(None, description="Media type of the answer, over the Accept header.")


class RowOptions(Options):
    """Options of the routes that take rows."""

    reproducible: bool = Field(
        False, description="Give each row the same bits whatever it is batched with, at some cost in throughput."
    )


class EncodeOptions(RowOptions):
    """Options of /encode."""

    format: ArrayFormat | None = Field(None, description="Media type of the answer, over the Accept header.")


class Dequantization(BaseModel):
    """Average the likelihood over uniform noise, as published figures do."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    samples: int = Field(ge=1, le=1_000_000, description="Noisy copies K of each row: log mean_k p(x + u_k).")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Seed of the noise.")
    first: int = Field(
        0,
        ge=0,
        le=MAX_SEED,
        description="Row of the seed's noise that is the first input's: where this request is a part of a whole.",
    )


def score_names(value: object) -> Literal["all"] | list[ScoreName]:
    """Read names with commas between them, or a list of them. Raises ValueError."""
    names = value.split(",") if isinstance(value, str) else value
    if names == ["all"]:
        return "all"
    if not isinstance(names, list) or not all(isinstance(name, str) and name in DEFINITIONS for name in names):
        raise ValueError(f"must be 'all' or some of {', '.join(DEFINITIONS)}")
    return names


ScoreNames = Annotated[
    Literal["all"] | list[ScoreName],
    PlainValidator(score_names),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "const": "all"}, {"type": "array", "items": {"enum": [*DEFINITIONS]}}]}
    ),
]


class ScoreOptions(RowOptions):
    """Options of /log-likelihood."""

    alpha: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Rows with a p-value of at most this are anomalies; the service's (GLOW_ALPHA) or the "
        "artifact's own if absent.",
    )
    fdr: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Flag by Benjamini-Hochberg over the rows of the request, not by alpha: of the flagged rows, at "
        "most this share is expected to be normal.",
    )
    guarantee: Guarantee | None = Field(
        None,
        description="What alpha bounds: the share of normal rows that is flagged on average over calibration sets "
        "(marginal, the default), or for 95 % of all calibration sets (conditional: flags fewer).",
    )
    scores: ScoreNames | None = Field(
        None, description="Further scores to answer, each with its p-value: `all`, or names (in a query, with commas)."
    )
    dequantization: Dequantization | None = Field(
        None,
        description="Average the likelihood over uniform noise on whole numbers; score and p-value are not affected.",
    )
    explain: bool = Field(
        False,
        description="Add contributions, nats that sum to -log_likelihood, by pixel or by column; implies reproducible.",
    )


class SampleOptions(Options):
    """Options of /sample."""

    n: int = Field(16, ge=1, le=1_000_000, description="Number of samples.")
    temperature: float | None = Field(
        None, ge=0, le=100, description="Standard deviation of the latent noise; the model's own if absent."
    )
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Same seed, same samples; drawn and returned if absent."
    )
    first: int = Field(
        0,
        ge=0,
        le=MAX_SEED,
        description="Which of the seed's samples is the first here: those from 4 on follow those of n = 4.",
    )


_NESTED = "dequantization_"
_MAX_OPTIONS = 32  # of a query
_REMEMBERED = 256  # bytes of a query that is worth it

AnyOptions = TypeVar("AnyOptions", bound=BaseModel)


def read_options(kind: type[AnyOptions], query: bytes, body: dict[str, Any] | None = None) -> AnyOptions:
    """Validate options; those of the body are JSON and mean what they say, those of the query are text to be read.

    ``dequantization_samples`` and ``dequantization_seed`` are the query's spelling of the nested option. An option
    given twice is refused. Raises Unprocessable naming the option.
    """
    from_query: AnyOptions = (_read_query_again if len(query) <= _REMEMBERED else _read_query)(kind, query)
    if not body:
        return from_query
    from_body = _validate(kind, body, strict=True)
    for name in from_body.model_fields_set & from_query.model_fields_set:
        raise Unprocessable(f"{name} is given more than once")
    values = {name: getattr(from_body, name) for name in from_body.model_fields_set}
    return from_query.model_copy(update=values)


def _read_query(kind: type[AnyOptions], query: bytes) -> AnyOptions:
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_OPTIONS)
    except ValueError as error:
        raise Unprocessable(f"the query has more than {_MAX_OPTIONS} options") from error
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise Unprocessable(f"{name[:100]} is given more than once")
    return _validate(kind, _nest(dict(pairs)), strict=False)


_read_query_again = lru_cache(1024)(_read_query)  # callers repeat themselves, and options do not change


def read_parameters(kind: type[AnyOptions], parameters: dict[str, Any]) -> AnyOptions:
    """Validate options that are parameters of the Open Inference Protocol, JSON of which nothing is nested.

    Model and format are not among them: the path and the wanted outputs say those. Raises Unprocessable.
    """
    return _validate(kind, _nest(parameters), strict=True, without=("model", "format"))


def _nest(values: dict[str, Any]) -> dict[str, Any]:
    """Spell the nested option as it is where nothing is nested."""
    nested = {name.removeprefix(_NESTED): value for name, value in values.items() if name.startswith(_NESTED)}
    if not nested:
        return values
    plain = {name: value for name, value in values.items() if not name.startswith(_NESTED)}
    return {_NESTED[:-1]: nested, **plain}


def _validate(
    kind: type[AnyOptions], values: dict[str, Any], strict: bool, without: tuple[str, ...] = ()
) -> AnyOptions:
    for name in values.keys() & set(without):
        raise _unknown(kind, name, without)
    try:
        return kind.model_validate(values, strict=strict)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            raise _unknown(kind, str(first["loc"][0])[:100], without) from error
        raise Unprocessable(line_of(first, quote=lambda value: repr(str(value)[:100]))) from error


def _unknown(kind: type[BaseModel], name: str, without: tuple[str, ...]) -> Unprocessable:
    known = [field for field in kind.model_fields if field not in without]
    return Unprocessable(f"unknown option {name!r}; known are {', '.join(known)}")
