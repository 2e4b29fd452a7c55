"""One call of a client, whatever number of requests it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from service.client.steps import Deadline

Progress = Callable[[int, int], None]  # rows done, rows in all


class Call:
    """What is asked of which model, and what is known of it so far."""

    def __init__(
        self, deadline: Deadline, view: str, model: str | None, progress: Progress | None, options: dict[str, Any]
    ) -> None:
        self.deadline = deadline
        self.reference = model
        self.name = self.version = ""
        self.is_pinned = False  # the version is known to have been served since the call began
        self.progress = progress
        self.options = {name: value for name, value in options.items() if value is not None}
        self.first = ""  # the option that says where a part begins
        self.offset = 0
        self.weight = 1  # rows of the model for each of the call
        self.kind: tuple[object, ...] = (view,)  # of requests that may have as many rows
        self.num_answers = 0
        self._view = view

    @property
    def path(self) -> str:
        """Where the model's answers are, of the version if it is known."""
        version = f"/versions/{quote(self.version, safe='')}" if self.version else ""
        return f"/v2/models/{quote(self.name, safe='')}{self._view}{version}/infer"
