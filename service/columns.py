"""The columns of a table, as the manifest describes them."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

NOISE_FLOOR = 1e-3  # std of what gives a constant its width, relative to its value, and a duplicate, to its scale
LARGEST_BIN = 2.0**40  # whole constants beyond it have too few binary digits left for noise in a bin of width 1


class Column(BaseModel):
    """One column of a table, in the user's units: the flow sees (value - center) / scale.

    Whole numbers are the centres of bins of width 1, and so are the codes of categories: k for the k-th name. A
    constant, and a column that repeats another, have a density only by noise, which gives them some width.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    type: Literal["continuous", "integer", "categorical", "constant", "duplicate"]
    center: float
    scale: float = Field(gt=0)
    categories: list[str] = []  # categorical columns: sorted
    duplicate_of: str | None = None  # duplicates: the column that they repeat
    treatment: str = ""  # what it became in training, in words

    @model_validator(mode="after")
    def _of_its_type(self) -> Column:
        if (self.type == "categorical") != bool(self.categories):
            raise ValueError("categorical columns have categories, no others do")
        if self.categories != sorted(set(self.categories)):
            raise ValueError("categories must be sorted and different")
        if (self.type == "duplicate") != (self.duplicate_of is not None):
            raise ValueError("duplicates name the column they repeat, no others do")
        return self

    @property
    def quantized(self) -> bool:
        """Whether its values are the centres of bins of width 1."""
        whole = self.center.is_integer() and abs(self.center) < LARGEST_BIN
        return self.type in ("integer", "categorical") or (self.type == "constant" and whole)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the Gaussian noise without which it had no density; 0 where it has one."""
        if self.type == "duplicate":
            return NOISE_FLOOR * self.scale
        return self.scale if self.type == "constant" and not self.quantized else 0.0

    @cached_property
    def codes(self) -> dict[str, int]:
        """Code of each category."""
        return {name: code for code, name in enumerate(self.categories)}


def listed_categories(names: list[str]) -> str:
    """Up to 20 names of categories, each of up to 30 characters, for a message."""
    listed = [name if len(name) <= 30 else f"{name[:27]}..." for name in names[:20]]
    return ", ".join([*listed, "..."] if len(names) > 20 else listed)
