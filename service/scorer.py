"""What a forward pass says of rows: likelihoods, scores and p-values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from service.artifact import Manifest
from service.engine import Model, PassKey
from service.errors import Unprocessable
from service.row_queue import Array, Arrays
from service.scores import COMPLEXITY, ScoreName, bits_per_dim, complexity, p_value_column, p_values


@dataclass(frozen=True)
class Scored:
    """Figures of rows, each (B,): nats, bits, and by name scores and, of those that are calibrated, p-values."""

    log_likelihood: Array
    bits_per_dim: Array
    scores: dict[ScoreName, Array]
    p_values: dict[ScoreName, Array]

    def columns(self, default: ScoreName, names: Iterable[ScoreName]) -> dict[str, Array]:
        """One column for each figure, as a table of answers has them: the default score, and those asked for."""
        columns = {"log_likelihood": self.log_likelihood, "bits_per_dim": self.bits_per_dim}
        if default in self.p_values:
            columns |= {"score": self.scores[default], "p_value": self.p_values[default]}
        return {**columns, **named_columns(self.scores, self.p_values, names)}


def named_columns(
    scores: Mapping[ScoreName, Array], p_values: Mapping[ScoreName, Array], names: Iterable[ScoreName]
) -> dict[str, Array]:
    """Scores and p-values by the names that their columns have."""
    names = list(names)
    of_p_values = {p_value_column(name): p_values[name] for name in names if name in p_values}
    return {**{name: scores[name] for name in names}, **of_p_values}


def scoring_key(model: Model, names: Iterable[ScoreName] = (), reproducible: bool = False) -> PassKey:
    """The pass that gives so many of a model's scores; its default one whenever it is calibrated."""
    manifest = model.manifest
    wanted = {*names, manifest.scoring.default} if manifest.calibration else set(names)
    scores = tuple(name for name in manifest.scoring.names if name in wanted)
    return PassKey(model, "statistics", reproducible, scores)


def chosen_scores(manifest: Manifest, wanted: Literal["all"] | list[ScoreName] | None) -> list[ScoreName]:
    """Resolve ``all``. Raises Unprocessable for a score that the model does not have."""
    known = manifest.scoring.names
    names = known if wanted == "all" else wanted or []
    for name in names:
        if name not in known:
            raise Unprocessable(f"scores: model {manifest.name} has no {name!r}; it has {', '.join(known)}")
    return list(dict.fromkeys(names))


def score_pass(key: PassKey, rows: Array) -> Arrays:
    """Run a pass of ``scoring_key`` over rows (B, *shape): the arrays that ``unpack`` names."""
    manifest = key.model.manifest
    (values,) = key.model.run(key.operation, rows, key.reproducible)
    statistics = dict(zip(manifest.statistics, np.ascontiguousarray(values.T), strict=True))
    scoring = manifest.scoring
    if scoring.codec and scoring.needs_codec(key.scores):
        statistics[COMPLEXITY] = complexity(scoring.codec, rows)
    log_likelihood = values[:, 0]
    scores = scoring.compute(key.scores, statistics, manifest.num_dims)
    known = manifest.calibration.arrays if manifest.calibration else {}
    return (
        log_likelihood,
        bits_per_dim(log_likelihood, manifest.num_dims),
        *scores.values(),
        *(p_values(scores[name], known[name]) for name in scores if name in known),
    )


def unpack(key: PassKey, outputs: Arrays) -> Scored:
    """Name the arrays of ``score_pass``."""
    manifest = key.model.manifest
    log_likelihood, bits, *rest = outputs
    known = manifest.calibration.scores if manifest.calibration else {}
    return Scored(
        log_likelihood,
        bits,
        dict(zip(key.scores, rest, strict=False)),
        dict(zip((name for name in key.scores if name in known), rest[len(key.scores) :], strict=True)),
    )
