"""Telling when a run has diverged, so that it can go back."""

from __future__ import annotations

import math
import statistics

MAX_SKIPPED = 10
WINDOW = 20


class DivergedError(RuntimeError):
    """A run that diverges again and again, wherever it goes back to."""


class Watch:
    """The losses of the last steps, and what they were when the run was last known to be sound.

    A run has diverged when ``MAX_SKIPPED`` steps in a row were skipped, or when the median loss of the last ``WINDOW``
    steps lies more than ``margin`` over that at the last sound state (at first, over that of the first such window).
    ``recent`` holds one loss a step, oldest first, NaN for a skipped one.
    """

    def __init__(self, margin: float, recent: list[float] | None = None) -> None:
        self.margin = margin
        self.recent = list(recent or [])
        self.sound = _median(self.recent)

    def observe(self, loss: float, skipped: bool) -> str | None:
        """Take note of a step; returns what diverged, if it did."""
        self.recent = [*self.recent, math.nan if skipped else loss][-WINDOW:]
        if len(self.recent) >= MAX_SKIPPED and all(map(math.isnan, self.recent[-MAX_SKIPPED:])):
            return f"{MAX_SKIPPED} steps in a row had a gradient that is not finite"
        median = _median(self.recent)
        if self.sound is None:
            self.sound = median
        if median is not None and self.sound is not None and not median <= self.sound + self.margin:
            return f"the loss rose from {self.sound:.4g} to {median:.4g}"
        return None

    @property
    def alarmed(self) -> bool:
        """Whether the last step was skipped, or its loss alone would be a divergence."""
        last = self.recent[-1] if self.recent else 0.0
        return math.isnan(last) or (self.sound is not None and last > self.sound + self.margin)

    def trust(self, recent: list[float]) -> None:
        """Compare with the losses of a state that has turned out to be sound from now on."""
        median = _median(recent)
        self.sound = self.sound if median is None else median


def _median(recent: list[float]) -> float | None:
    """Median of the steps taken in a full window."""
    taken = [loss for loss in recent if not math.isnan(loss)]
    return statistics.median(taken) if len(recent) == WINDOW and taken else None
