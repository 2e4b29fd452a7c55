"""GlowDetector: the flow as an outlier detector of scikit-learn, with PyOD's attributes.

It needs no files: ``fit`` takes an array or a data frame and ``save`` writes the artifact that the service serves.
"""

from __future__ import annotations

import copy
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from model.checkpoint import Checkpoint
from model.data import Array, Dataset, Selection, unnamed_columns
from model.evaluate import BATCH, log_prob
from model.export import CHECKED_ROWS, write_artifact
from model.fold import lowest_if_not_finite
from model.glow import Glow
from model.recipe import Recipe, Splits, parse_recipe
from model.tables import array_table, arrow_table, read_table
from model.trainer import Trainer
from service.artifact import Manifest
from service.scores import (
    FloatArray,
    OutlierMethod,
    highest_normal_score,
    negative_log_likelihood,
    outlier_share,
    p_values,
    score_summary,
    smallest_p_value,
)

RECIPE = Path(__file__).parent / "recipes" / "table.toml"
FOLDS = 5
FEWEST_HELD_OUT = 200  # rows of a calibration set; where the recipe's share is fewer, all rows calibrate by folds
_FULL_SCHEDULE_ROWS = 1_000  # with fewer rows to fit, the recipe's schedule is shortened in proportion
_SHORTEST = 0.02  # of the schedule
_FASTEST = 0.2  # the learning rate is raised as steps are fewer, up to where they are this share of the schedule's
_FOLD_EVALUATIONS = 40  # of a whole schedule; the mean over all rows is steady enough to stop early by
_FOLD_PATIENCE = 5


class GlowDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Outlier detection by the exact log-likelihood of a flow that is trained on normal rows.

    Rows are arrays (N, D) or data frames (pandas, polars, pyarrow), D >= 2; columns of text hold categories, and whole
    numbers and constants are found as in a recipe's table. A frame's columns are known by their names, and later frames
    must have the same in the same order. Missing values are refused.

    Calibration. Where a tenth of the rows is at least 200, a tenth chooses the best step, another tenth, never trained
    on, calibrates, and P(p <= alpha) <= alpha holds for normal rows. Of fewer rows none can be spared: K flows, each
    trained on all folds but one, give every row a score from a flow that has not seen it, the mean of these scores
    chooses the number of steps, and a last flow is trained so long on all rows. Its scores of new rows are like those
    of the K flows or slightly lower: alpha then holds in practice, without the proof (``approximate_``).

    Parameters:
        alpha: share of false alarms among normal rows that is accepted, in (0, 1). It stands in place of the
            ``contamination`` of others, but speaks of new normal rows, not of the rows of ``fit``.
        folds: K; 0 holds rows out whatever their number; None takes 5 or, where there are enough rows, 0.
        categorical: names of columns of numbers that are names of categories (x0, x1, ... of an array).
        model, training: values of recipe ``table`` to be changed, such as ``{"width": 64}`` and ``{"steps": 500}``.
            With fewer than 1,000 rows to fit, steps, warm-up and averaging are shortened in proportion and the learning
            rate is raised; what is given here is taken as it is.
        random_state: as everywhere in scikit-learn; a number makes ``fit`` repeatable.

    Attributes:
        offset_: what ``score_samples`` is compared with: minus ``threshold_``, nats.
        decision_scores_: -log p of the rows of ``fit``, (N,) nats, higher = more abnormal: PyOD's sign.
        threshold_: rows that score above it are outliers; the highest calibration score with a p-value over alpha.
        labels_: 1 for the rows of ``fit`` above the threshold, else 0.
        calibration_scores_: the scores of rows by flows that have not seen them, ascending, (m,) nats.
        approximate_: whether these come from K flows.
        columns_: what each column was taken for.
        n_steps_: steps that the flow was trained for.
        n_features_in_: as everywhere in scikit-learn; so is ``feature_names_in_``.

    Wrong parameters and rows raise ValueError.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        *,
        folds: int | None = None,
        categorical: Sequence[str] = (),
        model: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.alpha = alpha
        self.folds = folds
        self.categorical = categorical
        self.model = model
        self.training = training
        self.random_state = random_state

    def fit(self, X: object, y: object = None) -> GlowDetector:
        """Train and calibrate on normal rows; ``y`` is ignored."""
        data = self._read(X, fitting=True)
        total = len(data.x)
        folds = self._folds(total)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        order = np.random.default_rng(seed).permutation(total)
        with torch.random.fork_rng(devices=[]):  # a trainer seeds torch's own generator
            if folds:
                fitted = self._fit_folds(data, np.array_split(order, folds), seed)
            else:
                fitted = self._fit_held_out(data, order, seed)
            self._flow = _exact(fitted.checkpoint)
        self._fitted = fitted
        self.approximate_ = folds > 0
        self.columns_ = fitted.checkpoint.columns
        self.n_steps_ = fitted.checkpoint.step
        self.calibration_scores_ = np.sort(negative_log_likelihood(fitted.log_likelihoods))
        self.threshold_ = highest_normal_score(self.calibration_scores_, self.alpha)
        self.offset_ = -self.threshold_
        self.decision_scores_ = negative_log_likelihood(log_likelihoods_of(self._flow, data.x))
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(np.int64)
        return self

    def score_samples(self, X: object) -> FloatArray:
        """Return log p of each row, (N,) nats per unit of the rows' units: higher is more normal."""
        check_is_fitted(self)
        return log_likelihoods_of(self._flow, self._read(X).x)

    def decision_function(self, X: object) -> FloatArray:
        """Return ``score_samples(X) - offset_``: negative for outliers, (N,) nats.

        This is the sign that scikit-learn prescribes, and the opposite of PyOD's ``decision_function``, which is
        ``-score_samples(X)`` here and comparable with ``decision_scores_`` and ``threshold_``.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: object) -> Array:
        """Return -1 for outliers, the rows with a p-value of at most alpha, and 1 for all others: (N,)."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def p_values(self, X: object) -> FloatArray:
        """Return the share of calibration scores that are at least a row's own, (1 + #{s_i >= s}) / (m + 1): (N,)."""
        return p_values(negative_log_likelihood(self.score_samples(X)), self.calibration_scores_)

    def predict_proba(self, X: object, method: OutlierMethod = "linear") -> FloatArray:
        """Return PyOD's [P(normal), P(outlier)] of each row, (N, 2).

        P(outlier) is, by ``method``, the score's place between the lowest and the highest one (linear), or erf((s -
        mean) / (sqrt(2) std)) (unify), both clipped to [0, 1]: PyOD's formulas, with ``calibration_scores_`` for the
        scores of the rows trained on, which are too low to compare with. Either puts rows in order on a scale from 0 to
        1; neither is the probability that a row is an outlier, for which one would have to know how frequent outliers
        are. What is calibrated are ``p_values``, and 1 - p is not that probability either.
        """
        scores = negative_log_likelihood(self.score_samples(X))
        return outlier_share(scores, score_summary(self.calibration_scores_), method)

    def save(
        self, path: str | Path, *, name: str | None = None, description: str = "", licence: str = "unstated"
    ) -> Manifest:
        """Write the flow and its calibration as an artifact, verified, that the service serves as ``name``.

        By default that is the file's name without its suffix. Its answers are the detector's within 1e-3 nats + 1e-6 of
        the log-likelihood. Raises UsageError for a file that cannot be written or does not end in
        .pt, and RecipeError for a wrong name.
        """
        check_is_fitted(self)
        path = Path(path)
        fitted = self._fitted
        values = fitted.checkpoint.recipe.model_dump()
        values["artifact"] |= {"description": description, "licence": licence}
        recipe = parse_recipe({**values, "name": path.stem if name is None else name}, "GlowDetector.save")
        cross_validated = fitted.log_likelihoods if self.approximate_ else None
        return write_artifact(replace(fitted.checkpoint, recipe=recipe), fitted.splits, path, cross_validated)

    def _read(self, X: object, fitting: bool = False) -> Dataset:
        """Check rows and take them for a table; in ``fit``, find out what its columns are."""
        if hasattr(X, "__arrow_c_stream__"):  # a frame, of which scikit-learn checks the names
            validate_data(self, X, reset=fitting, skip_check_array=True)
            frame = pa.Table.from_pandas(X, preserve_index=False) if hasattr(X, "iloc") else pa.table(X)
            table = arrow_table("X", frame.rename_columns(self._names()))
        else:
            table = array_table("X", validate_data(self, X, dtype=np.float64, reset=fitting), self._names())
        if fitting and self.n_features_in_ < 2:
            raise ValueError("GlowDetector needs at least 2 columns: X has 1 feature(s)")
        known = None if fitting else {column.name: column.categories for column in self.columns_}
        return read_table(table, Selection(categorical=list(self.categorical), known=known))

    def _names(self) -> list[str]:
        return [str(name) for name in getattr(self, "feature_names_in_", unnamed_columns(self.n_features_in_))]

    def _folds(self, total: int) -> int:
        """Number of folds, 0 to hold rows out. Raises ValueError where the rows are too few."""
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must lie between 0 and 1, got {self.alpha}")
        folds = self.folds
        if folds is None:
            folds = FOLDS if total // 10 < FEWEST_HELD_OUT else 0
        if folds != 0 and not 2 <= folds <= total:
            raise ValueError(f"folds must be 0, or 2 up to the rows (n_samples={total}), got {folds}")
        smallest = smallest_p_value(total if folds else total // 10)
        if self.alpha < smallest:
            raise ValueError(
                f"alpha must be at least {smallest:.3g}, the smallest p-value of the calibration rows "
                f"(n_samples={total}, folds={folds}), got {self.alpha}"
            )
        return int(folds)

    def _fit_folds(self, data: Dataset, folds: list[Array], seed: int) -> _Fitted:
        """Train K flows, each without one fold, and then one for as many steps on all rows."""
        without = [np.concatenate([*folds[:i], *folds[i + 1 :]]) for i in range(len(folds))]
        recipe = self._recipe(seed, min(map(len, without)), (1, len(data.x)), by_folds=True)
        checkpoints = train_side_by_side(
            [
                Trainer(recipe, _splits(data.take(rows), data.take(fold)))
                for rows, fold in zip(without, folds, strict=True)
            ]
        )
        log_likelihoods = [
            log_likelihoods_of(_exact(checkpoint), data.x[fold])
            for checkpoint, fold in zip(checkpoints, folds, strict=True)
        ]
        last = Trainer(recipe, _splits(data, data))
        last.advance(checkpoints[0].step)
        shown = data.take(slice(0, CHECKED_ROWS))
        return _Fitted(last.checkpoint(), _splits(shown, shown), np.concatenate(log_likelihoods))

    def _fit_held_out(self, data: Dataset, order: Array, seed: int) -> _Fitted:
        """Train one flow; a tenth of the rows chooses its best step, another one calibrates."""
        tenth = len(order) // 10
        validation, calibration, rows = (data.take(part) for part in np.split(order, [tenth, 2 * tenth]))
        recipe = self._recipe(seed, len(rows.x), (tenth, tenth), by_folds=False)
        splits = Splits(fit=rows, validation=validation, calibration=calibration, test=None)
        (checkpoint,) = train_side_by_side([Trainer(recipe, splits)])
        return _Fitted(checkpoint, splits, log_likelihoods_of(_exact(checkpoint), calibration.x))

    def _recipe(self, seed: int, num_rows: int, held_out: tuple[int, int], by_folds: bool) -> Recipe:
        """Fit recipe ``table`` to so many rows."""
        values = tomllib.loads(RECIPE.read_text())
        training = values["training"]
        if by_folds:
            training |= {"evaluate_every": training["steps"] // _FOLD_EVALUATIONS, "patience": _FOLD_PATIENCE}
        share = min(1.0, max(_SHORTEST, num_rows / _FULL_SCHEDULE_ROWS))
        training |= {
            name: max(1, round(share * training[name])) for name in ("steps", "warmup_steps", "evaluate_every")
        }
        training["ema_decay"] = max(0.0, 1 - (1 - training["ema_decay"]) / share)
        training["learning_rate"] /= max(share, _FASTEST)
        training["batch_size"] = min(training["batch_size"], num_rows)
        training |= {"seed": seed, **(self.training or {})}
        values["model"] |= self.model or {}
        values["artifact"]["alpha"] = self.alpha
        values["data"] = {
            "train": "GlowDetector.fit",
            "validation": held_out[0],
            "calibration": held_out[1],
            "categorical": list(self.categorical),
        }
        return parse_recipe(values, "GlowDetector")


@dataclass(frozen=True)
class _Fitted:
    """What a fit leaves: the flow, rows to make its artifact with, and log-likelihoods of rows not trained on."""

    checkpoint: Checkpoint
    splits: Splits
    log_likelihoods: FloatArray


def train_side_by_side(trainers: list[Trainer]) -> list[Checkpoint]:
    """Train until the mean validation loss of all trainers no longer improves; the checkpoints of the best step.

    The step is the same for all, and may be 0: the flow as it was initialised from its rows, which of a few dozen rows
    is often the best. So the validation rows choose one number and no more. All have one recipe, whose ``patience``
    counts evaluations.
    """
    training = trainers[0].recipe.training
    best, waited, kept = math.inf, 0, [trainer.checkpoint() for trainer in trainers]
    for step in [*range(0, training.steps, training.evaluate_every), training.steps]:
        for trainer in trainers:
            trainer.advance(step)
        loss = float(
            np.average([trainer.evaluate() for trainer in trainers], weights=[len(t.validation) for t in trainers])
        )
        if loss < best:
            best, waited, kept = loss, 0, [copy.deepcopy(trainer.checkpoint()) for trainer in trainers]
        elif (waited := waited + 1) == training.patience:
            break
    return kept


def log_likelihoods_of(flow: Glow, x: Array) -> FloatArray:
    """Log p of rows (N, D): (N,) nats, the lowest finite number where it overflows."""
    values: FloatArray = lowest_if_not_finite(log_prob(flow, torch.split(torch.from_numpy(x), BATCH))).numpy()
    return values


def _exact(checkpoint: Checkpoint) -> Glow:
    """The averaged flow in float64, in which a row's score depends on its batch by rounding alone."""
    return checkpoint.averaged_flow().double()


def _splits(fit: Dataset, validation: Dataset) -> Splits:
    return Splits(fit=fit, validation=validation, calibration=validation, test=None)
