"""Drift: do the rows that are served still come from where the calibration rows came from?

Let s_1, ..., s_m be the calibration scores, and let served scores follow. The hypothesis is that all of them are
exchangeable, which is what p-values rest on. A p-value against the m calibration scores alone is valid for each row,
but not for a bet on each row: the calibration set is reused for ever, its rows err in the same direction, and the bets
add up (of 200 calibration rows, one set in ten raises a false alarm of a level of 1 % within 10,000 rows). Therefore
every row is ranked among the calibration scores *and all rows before it*.

**The law of ranks.** Among m + n exchangeable scores without ties, the rank of the last is uniform and independent of
the order of the others. The line of scores is cut at some calibration scores into cells, cell g of which spans w_g of
the m + 1 gaps between calibration scores; when N_g rows have fallen into it, it spans w_g + N_g of the m + n gaps. So

    P(row n falls into cell g | cells of the rows before) = (w_g + N_g) / (m + n),

Polya's urn, exactly, whatever the distribution of scores; calibration rows are few in the beginning and matter less
and less. No more than the counts N_g need to be kept. Ties, and what rounding makes of them, are broken by a noise on
all scores, calibrating and served, that is small beside their spread.

**Bets.** Let u be the share of gaps above a row (its p-value in the limit of fine cells). The bet on higher scores,
eps u^(eps - 1), pays in cell g its mean over the cell's share of [0, 1], ((b^eps - a^eps) / (b - a)); the bet on lower
scores is its mirror image. Payments e(g) are fixed for a block of rows, in which the urn goes on: with T = m + 1 + the
rows before the block, and cells g_1, g_2, ... in it, what row j of the block may expect is

    (T + e(g_1) + ... + e(g_(j - 1))) / (T + j - 1),

exactly, by the law above, and divides its payment. So each product of payments is a martingale that begins at 1.

**Wealth.** The initial capital of 1 waits; block b = 1, 2, ... puts 1 / (b (b + 1)) of it into bets that run
from then on, the same on each eps. So what is lost on rows without drift is little of it, and a drift after n rows
finds bets that begin with it, of a capital that falls like 1 / log(n)^2 while blocks grow with n, like 1 / n^2 later.
Wealth is a nonnegative martingale of mean 1. By Ville's inequality P(it ever reaches 2 / delta) <= delta / 2, over
calibration sets and rows, at any time however often one looks; one martingale for each direction makes it delta. An
alarm therefore stays until a reset, which starts a new test with a delta of its own.

**What it tells.** Rows are not exchangeable with the calibration rows: their distribution moved, or they depend on each
other, such as one row sent again and again. Rows that have moved become part of what later ones are ranked among: a
small shift from the first row on, over few calibration rows, may never be told from an odd calibration set, since m
rows cannot tell it. The window beside it compares the last rows with the calibration rows alone: the Kolmogorov-Smirnov
statistic of two samples, with a p-value of that window that says nothing of a watch that looks often.

Sources: Vovk, Nouretdinov and Gammerman 2003 (Testing exchangeability on-line); Ville 1939; power martingales and their
mixtures, Vovk, Gammerman and Shafer 2005 (Algorithmic Learning in a Random World), section 7.1; finite-sample
correction of the Kolmogorov distribution, Stephens 1970.
"""

from __future__ import annotations

import logging
import math
import time
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from service.scores import FloatArray
from service.shared import shared_record

Tail = Literal["higher", "lower"]
TAILS: tuple[Tail, ...] = get_args(Tail)

EXPONENTS = np.array([[0.8], [0.5]])  # of bets: for a small shift and for a large one
_MAX_CELLS = 256
_MIN_BLOCK, _MAX_BLOCK = 8, 1024  # rows
_BLOCK_SHARE = 32  # a block has one row for so many ranked before it
_MAX_PENDING = 4096  # rows
_NOISE = 1e-3  # of the calibration scores' interquartile range; and
_RELATIVE_NOISE = 1e-6  # of the largest of them, as much as passes of different sizes may differ

_LARGEST = 1e300  # score: noise on a larger one may overflow

logger = logging.getLogger(__name__)


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TailReading(_Figures):
    """The martingale of one direction."""

    log_e_value: float = Field(description="Log of the wealth of bets on this direction, nats; begins at 0.")
    highest: float = Field(description="The highest that it ever was.")
    threshold: float = Field(description="log(2 / delta): where it raises the alarm.")
    alarm_row: int | None = Field(None, description="The row that did, counted from 1.")


class Window(_Figures):
    """The last rows beside the calibration rows."""

    rows: int = Field(description="The last ones, at most GLOW_DRIFT_WINDOW; without any, the rest is absent.")
    ks: float | None = Field(
        None, description="Kolmogorov-Smirnov statistic of these and the calibration rows, two-sided."
    )
    ks_p_value: float | None = Field(
        None, description="Its p-value, of this one look: who looks often will see small ones without drift."
    )
    mean_p_value: float | None = Field(None, description="0.5 without drift; low where scores rose.")


class Reading(_Figures):
    """What is known of a model's drift."""

    since: datetime = Field(description="When the watch began, or was last reset.")
    rows: int = Field(description="Rows that /log-likelihood answered since then, by all workers.")
    calibration_rows: int
    alarm: bool = Field(description="Whether either direction ever raised it; stays until a reset.")
    direction: Literal["higher", "lower", "both"] | None = Field(
        None, description="Of an alarm: where scores went; higher is more anomalous."
    )
    delta: float = Field(description="Probability of ever raising a false alarm (GLOW_DRIFT_DELTA).")
    approximate: bool = Field(
        description="Whether the calibration is by folds: its scores are of other flows than those of served rows, so "
        "delta is no bound."
    )
    tails: dict[Tail, TailReading]
    window: Window


EXAMPLE = Reading(
    since=datetime(2026, 1, 31, 12, tzinfo=UTC),
    rows=1520,
    calibration_rows=5000,
    alarm=True,
    direction="higher",
    delta=0.01,
    approximate=False,
    tails={
        "higher": TailReading(log_e_value=41.7, highest=41.9, threshold=5.3, alarm_row=1433),
        "lower": TailReading(log_e_value=-3.2, highest=0.4, threshold=5.3),
    },
    window=Window(rows=1000, ks=0.14, ks_p_value=7.6e-15, mean_p_value=0.41),
)


class Drift:
    """Watches the scores of one model, in constant memory; to be used from one thread at a time.

    With a ``path``, processes that give the same one share a state in that file, and each counts and reads the rows of
    all. ``random`` makes the noise that breaks ties.
    """

    def __init__(
        self,
        name: str,
        calibration: FloatArray,
        delta: float = 0.01,
        window: int = 1000,
        approximate: bool = False,
        path: Path | None = None,
        random: np.random.Generator | None = None,
    ) -> None:
        num = len(calibration)
        calibration = calibration.clip(-_LARGEST, _LARGEST)
        self._name, self._num_calibration, self._delta, self._threshold = name, num, delta, math.log(2 / delta)
        self._approximate = approximate
        spread = np.subtract(*np.quantile(calibration, [0.75, 0.25]))
        noise = _NOISE * spread + _RELATIVE_NOISE * np.abs(calibration).max() + np.finfo(np.float64).tiny
        self._noise = 2.0 ** math.floor(math.log2(noise))  # the same for nearly all calibration sets of one model
        self._random = np.random.default_rng() if random is None else random
        # The same in all processes, whose cells are the same.
        blurred = np.sort(calibration + self._noise * np.random.default_rng(0).random(num))
        # Finest at the ends, where bets pay most: shares sin^2 are spaced like the standard errors of a quantile.
        shares = np.sin(np.linspace(0, np.pi / 2, _MAX_CELLS + 1)[1:-1]) ** 2
        self._ranks = np.unique(np.rint(num * shares).clip(1).astype(np.int64))
        self._edges = blurred[self._ranks - 1]
        self._gaps = np.diff(self._ranks, prepend=0, append=num + 1)
        shape = (len(TAILS), len(EXPONENTS))
        layout = np.dtype(
            [
                ("since", "f8"),
                ("rows", "i8"),
                ("busy", "i8"),  # while a process changes what follows
                ("block", "i8"),
                ("block_start", "i8"),
                ("block_end", "i8"),
                ("counts", "i8", len(self._gaps)),  # N_g
                ("payments", "f8", (*shape, len(self._gaps))),  # e(g) of this block
                ("paid", "f8", shape),  # e(g_1) + e(g_2) + ... in this block
                ("log_capital", "f8", shape),  # in bets
                ("highest", "f8", len(TAILS)),
                ("alarm_row", "i8", len(TAILS)),  # 0: none
                ("window", "i2", window),  # cells of the last rows
                ("num_pending", "i8"),
                ("pending", "f8", _MAX_PENDING),  # scores that no bet was made on yet: many at once cost little
            ]
        )
        self._steps = np.arange(_MAX_BLOCK, dtype=np.float64)
        if path is not None:
            path = path.with_name(f"{path.name}-{zlib.crc32(calibration.tobytes()):08x}")
        self._lock, record = shared_record(layout, path)
        self._state = record[0]
        self._pending: FloatArray = self._state["pending"]
        with self._lock:
            if not self._state["since"]:
                self._forget()

    def add(self, scores: FloatArray) -> None:
        """Take the scores of served rows, in their order: (n,)."""
        with self._lock:
            start = 0
            while start < len(scores):
                begin = int(self._state["num_pending"])
                part = scores[start : start + _MAX_PENDING - begin]
                end = begin + len(part)
                self._pending[begin:end] = part
                self._state["num_pending"] = end
                start += len(part)
                if end == _MAX_PENDING:
                    self._catch_up()

    def reset(self) -> None:
        """Start a new test."""
        with self._lock:
            self._catch_up()
            state = self._state
            logger.warning(
                "drift of %s is watched anew; it had %d rows and log e-values of at most %s",
                self._name,
                state["rows"],
                ", ".join(f"{highest:.2f} ({tail})" for tail, highest in zip(TAILS, state["highest"], strict=True)),
            )
            self._forget()

    def read(self) -> Reading:
        """What is known by now."""
        with self._lock:
            self._catch_up()
            state = self._state
            log_wealth = np.logaddexp(np.logaddexp.reduce(state["log_capital"], 1), self._log_reserve)
            tails = {
                tail: TailReading(
                    log_e_value=log_wealth[i],
                    highest=state["highest"][i],
                    threshold=self._threshold,
                    alarm_row=int(state["alarm_row"][i]) or None,
                )
                for i, tail in enumerate(TAILS)
            }
            rows, since = int(state["rows"]), float(state["since"])
            cells = np.array(state["window"][:rows])
        alarmed = [tail for tail, one in tails.items() if one.alarm_row is not None]
        return Reading(
            since=datetime.fromtimestamp(since, UTC),
            rows=rows,
            calibration_rows=self._num_calibration,
            alarm=bool(alarmed),
            direction="both" if len(alarmed) == len(TAILS) else next(iter(alarmed), None),
            delta=self._delta,
            approximate=self._approximate,
            tails=tails,
            window=self._compare(cells),
        )

    def _compare(self, cells: npt.NDArray[np.int16]) -> Window:
        """The last rows with the calibration rows."""
        num = len(cells)
        if not num:
            return Window(rows=0)
        below = np.bincount(cells, minlength=len(self._gaps)).cumsum()[:-1] / num
        ks = float(np.abs(below - self._ranks / self._num_calibration).max())
        middle = 1 - (self._gaps.cumsum() - self._gaps / 2) / (self._num_calibration + 1)
        ks_p = ks_p_value(ks, num, self._num_calibration)
        return Window(rows=num, ks=ks, ks_p_value=ks_p, mean_p_value=middle[cells].mean())

    @property
    def _log_reserve(self) -> float:
        """Log of the capital that waits: 1 less what blocks have put into bets."""
        return -math.log(self._state["block"] + 1)

    def _forget(self) -> None:
        state = self._state
        state["busy"] = 1
        for field in ("rows", "block", "block_start", "block_end", "counts", "highest", "alarm_row", "num_pending"):
            state[field] = 0
        state["log_capital"] = -np.inf
        state["since"] = time.time()
        state["busy"] = 0

    def _catch_up(self) -> None:
        """Bet on the rows that wait."""
        state = self._state
        if state["busy"]:  # a process was killed in here
            logger.error("drift of %s: the shared state is damaged; it is watched anew", self._name)
            self._forget()
        num = int(state["num_pending"])
        if not num:
            return
        state["busy"] = 1
        scores = self._pending[:num].clip(-_LARGEST, _LARGEST)
        cells = np.searchsorted(self._edges, scores + self._noise * self._random.random(num))
        window = state["window"]
        last = cells[-len(window) :]
        window[(state["rows"] + num - len(last) + np.arange(len(last))) % len(window)] = last
        while len(cells):
            if state["rows"] == state["block_end"]:
                self._begin_block()
            num_now = int(state["block_end"] - state["rows"])
            self._bet(cells[:num_now])
            cells = cells[num_now:]
        state["num_pending"] = state["busy"] = 0

    def _begin_block(self) -> None:
        state = self._state
        block = state["block"] = state["block"] + 1
        ranked = int(self._num_calibration + state["rows"])
        state["block_start"] = state["rows"]
        state["block_end"] += min(_MAX_BLOCK, max(_MIN_BLOCK, ranked // _BLOCK_SHARE))
        entry = -math.log(block * (block + 1) * len(EXPONENTS))
        state["log_capital"] = np.logaddexp(state["log_capital"], entry)
        spans = self._gaps + state["counts"]
        below = np.concatenate([[0], spans.cumsum()]) / (ranked + 1)
        for tail, share in enumerate((1 - below[::-1], below)):  # from the end that is bet on
            means = np.diff(share**EXPONENTS, axis=1)
            state["payments"][tail] = (means[:, ::-1] if tail == 0 else means) * ((ranked + 1) / spans)
        state["paid"] = 0

    def _bet(self, cells: npt.NDArray[np.intp]) -> None:
        """Bet on rows of one block, (n,)."""
        state = self._state
        num, rows = len(cells), int(state["rows"])
        before = rows - int(state["block_start"])
        total = self._num_calibration + 1 + float(state["block_start"])
        payments = state["payments"].take(cells, 2)  # (tails, exponents, n)
        sums = payments.cumsum(2)
        sums += (state["paid"] + total)[..., None]
        state["paid"] = sums[..., -1] - total
        sums -= payments
        payments *= self._steps[before : before + num] + total
        payments /= sums
        log_wealth = np.log(payments, out=payments).cumsum(2)
        log_wealth += state["log_capital"][..., None]
        state["log_capital"] = log_wealth[..., -1]
        state["counts"] += np.bincount(cells, minlength=len(self._gaps))
        state["rows"] = rows + num
        self._note_highest(log_wealth, rows)

    def _note_highest(self, log_wealth: FloatArray, rows: int) -> None:
        """Look for the highest wealth, and for the row that raises the alarm: (tails, exponents, n), rows before."""
        state, reserve = self._state, self._log_reserve
        for i, most in enumerate(log_wealth.max((1, 2)).tolist()):
            most = max(most, reserve)
            if most + math.log(len(EXPONENTS) + 1) <= state["highest"][i]:
                continue
            wealth = np.exp(log_wealth[i] - most).sum(0) + math.exp(reserve - most)
            state["highest"][i] = max(state["highest"][i], most + math.log(wealth.max()))
            if state["highest"][i] >= self._threshold and not state["alarm_row"][i]:
                with np.errstate(divide="ignore"):  # nothing beside what is to come
                    first = np.argmax(np.log(wealth) + most >= self._threshold)
                row = state["alarm_row"][i] = rows + 1 + int(first)
                logger.warning("drift of %s: scores are %s than calibrated, as of row %d", self._name, TAILS[i], row)


def ks_p_value(statistic: float, num_first: int, num_second: int) -> float:
    """Probability of a Kolmogorov-Smirnov statistic at least as high for two samples of one distribution.

    2 sum_k (-1)^(k - 1) exp(-2 k^2 x^2) with x = (sqrt(n) + 0.12 + 0.11 / sqrt(n)) statistic, n the harmonic
    n_1 n_2 / (n_1 + n_2): Stephens 1970. Ties make it larger than it need be.
    """
    root = math.sqrt(num_first * num_second / (num_first + num_second))
    x = (root + 0.12 + 0.11 / root) * statistic
    if x < 0.2:  # where the sum has no end, and all but 1e-12 of it is there
        return 1.0
    terms = np.arange(1, 101)
    return float(2 * ((-1.0) ** (terms - 1) * np.exp(-2 * terms**2 * x**2)).sum().clip(0, 0.5))
