"""What files of rows of all kinds have in common: spans that are read on their own, and batches of checked rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from common.errors import UsageError
from service.artifact import Signature
from service.errors import ServiceError

BATCH_VALUES = 2**20
BATCH_ROWS = 2**14
SPAN_BATCHES = 8  # seconds of work, beside which it costs little to find the place again

Array = npt.NDArray[Any]
Positions = npt.NDArray[np.int64]


class FileError(UsageError):
    """A file that cannot be read, or not for this model; the message names the file, the rule and the value."""


@dataclass(frozen=True)
class Batch:
    """Rows of a file that stand next to each other: those that the model takes, and why it does not take the others."""

    num_rows: int
    rows: Array  # (K, *shape), as the engine takes them
    positions: Positions  # of these in the file: (K,), ascending
    refused: dict[int, str]  # by position in the file, ascending: which column holds what, and the rule
    start: int  # of the first row in the file
    ids: pa.RecordBatch  # columns that came along, of all its rows


@dataclass(frozen=True)
class Span:
    """Rows that are read without those before them. No batch is of two spans, whoever reads which of them."""

    path: Path  # of the file or folder that holds them
    start: int  # row
    stop: int | None  # None where all rows are one span, since only reading from the first on leads to the others
    row_groups: range = range(0)  # of a Parquet file: those that it is in
    skipped: int = 0  # rows of these that stand before it


@dataclass(frozen=True)
class RowFile:
    """A file of rows for one model, which may be read several times, and, pickled, by other processes."""

    path: Path
    manifest: Signature
    num_rows: int | None  # None where only reading it tells
    ids: pa.Schema  # of the columns that come along; those of CSV files are text as it stands there
    spans: list[Span]  # one after the other
    read: Callable[[Span], Iterator[Part]]

    def only(self, span: Span) -> RowFile:
        """The same file, of which nothing else is read."""
        return replace(self, spans=[span])

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Read it, but for batches before a row that one begins with. Raises FileError where it breaks off."""
        at = 0
        no_batch = FileError(f"{self.path}: no batch begins with row {start}; --restart begins afresh")
        for span in self.spans:
            if span.stop is not None and span.stop <= start:
                at = span.stop
                continue
            at = span.start
            for part in self._parts(span):
                if at >= start:
                    yield self._batch(part, at)
                elif at + part.num_rows > start:
                    raise no_batch
                at += part.num_rows
            if span.stop is not None and at != span.stop:
                raise FileError(f"{span.path}: has changed while it was read; --restart begins afresh")
        if at < start:
            raise no_batch

    def _parts(self, span: Span) -> Iterator[Part]:
        with guarded(span.path):
            yield from self.read(span)

    def _batch(self, part: Part, start: int) -> Batch:
        taken, faults = _sift(part.read, without(part.num_rows, part.faults))
        faults = part.faults | faults
        refused = {start + i: text for i, text in sorted(faults.items())}
        positions = without(part.num_rows, faults)
        none = np.zeros((0, *self.manifest.shape), self.manifest.input_dtype)
        rows = taken[0] if len(taken) == 1 else np.concatenate([none, *taken])
        ids = pa.record_batch([_plain(column) for column in part.ids], schema=self.ids)
        return Batch(part.num_rows, rows, start + positions, refused, start, ids)


@dataclass(frozen=True)
class Part:
    """Some rows, numbered from 0."""

    num_rows: int
    faults: dict[int, str]  # what is known to be wrong with some
    read: Callable[[Positions], Array]  # those of such numbers, or ServiceError where the model does not take one
    ids: list[pa.Array[Any]]


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Raise FileError for whatever reading a file raises."""
    try:
        yield
    except (FileError, MemoryError):
        raise
    except ServiceError as error:
        raise FileError(f"{path}: {error}") from error
    except Exception as error:  # the readers raise nearly anything on files that are not what their name says
        raise FileError(f"{path}: cannot be read: {str(error).strip() or type(error).__name__}") from error


def without(num_rows: int, faults: Mapping[int, str]) -> Positions:
    """Numbers of rows without faults, ascending."""
    return np.delete(np.arange(num_rows), np.fromiter(faults, np.int64))


def _sift(read: Callable[[Positions], Array], candidates: Positions) -> tuple[list[Array], dict[int, str]]:
    """Rows that the model takes, in parts, and the reasons against the others, each found by halving."""
    if not len(candidates):
        return [], {}
    try:
        return [read(candidates)], {}
    except ServiceError as error:
        if len(candidates) == 1:
            return [], {int(candidates[0]): _reason(error)}
    (first, faults), (second, more) = (_sift(read, half) for half in np.array_split(candidates, 2))
    return first + second, faults | more


def _reason(error: ServiceError) -> str:
    """What an error says of the only row that it was raised for."""
    text = str(error).removeprefix("inputs[0]")
    named = re.match(r"\[(['\"].*?['\"])\] ", text)
    return f"column {named[1]} {text[named.end() :]}" if named else f"pixel {text}"


def batch_rows(manifest: Signature) -> int:
    """Rows of a batch: a power of two, as passes are, which are all full then."""
    most = BATCH_VALUES // manifest.num_dims
    return min(BATCH_ROWS, 1 << max(0, most.bit_length() - 1))


def cut(path: Path, num_rows: int, size: int) -> list[Span]:
    """Spans of rows that can be found by their numbers, so many batches of ``size`` rows each."""
    size *= SPAN_BATCHES
    return [Span(path, start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def starts(span: Span, size: int) -> Iterator[slice]:
    """Where the batches of such a span are."""
    assert span.stop is not None
    return (slice(start, min(start + size, span.stop)) for start in range(span.start, span.stop, size))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Without dictionaries, which batches need not share, and views, which cannot be taken from or written."""
    if isinstance(kind, pa.DictionaryType):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def _plain(array: pa.Array[Any]) -> pa.Array[Any]:
    kind = plain_type(array.type)
    return array if array.type == kind else array.cast(kind)
