"""Batches of rows to what the spool keeps of them, in order, whoever scores them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from service.files import Batch
from service.score.spool import ROW

AHEAD = 4  # batches that wait for a free thread while others are read and written

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Result:
    """What has come of the rows of a batch."""

    num_rows: int
    scored: pa.RecordBatch | None  # ids and answers; None where no row is scored
    rejected: list[list[Any]]  # position, ids and reason of each row that was refused


def results_of(
    batches: Iterator[Batch], score: Callable[[Array], dict[str, Array]], concurrency: int
) -> Generator[Result, None, None]:
    """Score batches by so many threads; some are read ahead, so that these never wait."""
    pool = ThreadPoolExecutor(concurrency, "score")
    waiting: deque[tuple[Batch, Future[dict[str, Array]] | None]] = deque()
    try:
        for batch in itertools.chain(batches, itertools.repeat(None)):
            if batch is not None:
                waiting.append((batch, pool.submit(score, batch.rows) if len(batch.rows) else None))
                if len(waiting) < concurrency + AHEAD:
                    continue
            if not waiting:
                return
            first, future = waiting.popleft()
            answer = {} if future is None else future.result()
            yield Result(first.num_rows, _scored(first, answer), _rejected(first))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # what is under way may take minutes to give up


def _scored(batch: Batch, answer: dict[str, Array]) -> pa.RecordBatch | None:
    """Ids and answers of a batch's rows; None where it has none."""
    if not answer:
        return None
    ids = batch.ids.take(batch.positions - batch.start) if batch.refused else batch.ids
    columns: dict[str, Any] = dict(zip(ids.schema.names, ids.columns, strict=True)) or {ROW: batch.positions}
    return pa.record_batch(columns | answer)


def _rejected(batch: Batch) -> list[list[Any]]:
    """Position, ids and reason of each row that was refused."""
    if not batch.refused:
        return []
    ids = batch.ids.take(np.fromiter(batch.refused, np.int64) - batch.start)
    columns = [column.to_pylist() for column in ids.columns]
    return [
        [position, *(column[i] for column in columns), reason]
        for i, (position, reason) in enumerate(batch.refused.items())
    ]
