"""The run: read, score, keep, and write the whole at once in the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from common.cli import Progress
from common.errors import UsageError
from service.files import RowFile, describe, open_rows
from service.levels import check_level
from service.machine import peak_bytes
from service.score.sinks import Sink, check_ids, sink_of
from service.score.spool import REASON, ROW, Spool
from service.score.targets import Target
from service.scores import benjamini_hochberg_threshold

PART_ROWS = 2**17  # of the output that are written at once, at least; a row group of Parquet
FORMAT = "2"  # to be raised where a run of an older version cannot be continued

_FLAG = "is_anomaly"


@dataclass(frozen=True)
class Summary:
    """What a run has done."""

    out: str
    model: str
    version: str
    rows: int
    scored: int
    rejected: int
    rejected_file: str | None
    anomalies: int | None  # None where the model has no p-values
    alpha: float | None  # None with fdr
    fdr: float | None
    p_value_threshold: float | None  # the highest p-value of what is flagged may be; None where nothing is
    resumed_at: int  # row; 0 for a run from the start
    seconds: float  # of this run, without its start
    rows_per_second: float
    peak_bytes: int  # of memory

    def __str__(self) -> str:
        if self.anomalies is None:
            flagged = "not calibrated"
        else:
            level = f"alpha {self.alpha:g}" if self.fdr is None else f"fdr {self.fdr:g}"
            flagged = f"{self.anomalies} anomalies at {level}"
        resumed = f", from row {self.resumed_at} on" if self.resumed_at else ""
        rejected = f", {self.rejected} rejected ({self.rejected_file})" if self.rejected else ""
        return (
            f"{self.out}: {self.model}@{self.version}, {self.scored} rows scored, {flagged}{rejected}; "
            f"{self.seconds:.1f} s, {self.rows_per_second:.0f} rows/s{resumed}"
        )


def score_file(
    target: Target,
    source: Path,
    out: Path,
    *,
    ids: list[str] | None = None,
    alpha: float | None = None,
    fdr: float | None = None,
    options: dict[str, str] | None = None,
    restart: bool = False,
) -> Summary:
    """Score every row of ``source`` that the target's model takes, and write ``out`` when all are.

    The columns ``ids`` of the file, for None all that are not the model's, stand before the answers; ``row`` where
    there are none. ``options`` are what else the answers depend on. Raises UsageError and ServiceError.
    """
    sink = sink_of(out)
    check_level(target.signature.name, target.num_calibration, alpha=alpha, fdr=fdr)
    alpha = (target.alpha if alpha is None else alpha) if fdr is None else None
    if ids is None and out.suffix == ".npy":
        ids = []
    rows = open_rows(source, target.signature, ids)
    target.check(rows)
    check_ids(out, rows.ids, [*target.answers, *([] if target.num_calibration is None else [_FLAG]), ROW, REASON])
    run = {
        "format": FORMAT,
        "input": describe(source),
        "model": f"{target.signature.name}@{target.signature.version}",
        "calibration": target.calibration,
        "ids": ", ".join(rows.ids.names) or ROW,
        "alpha": repr(alpha),
        "fdr": repr(fdr),
        **(options or {}),
    }
    with Spool(out, run, rows.ids.names, restart) as spool:
        target.prepare()
        started = time.monotonic()
        _score_all(target, rows, spool)
        if describe(source) != run["input"]:
            raise UsageError(f"{source}: has changed while it was read; --restart begins afresh")
        if not spool.scored:
            rejected_file = spool.finish()
            spool.discard()
            raise UsageError(f"{source}: none of {spool.rows} rows can be scored; {rejected_file or 'it is empty'}")
        threshold = _threshold(spool, alpha, fdr)
        anomalies = _write(sink, spool, out, threshold)
        rejected_file = spool.finish()
        spool.discard()
        seconds = time.monotonic() - started
        return Summary(
            out=str(out),
            model=target.signature.name,
            version=target.signature.version,
            rows=spool.rows,
            scored=spool.scored,
            rejected=spool.rejected,
            rejected_file=None if rejected_file is None else str(rejected_file),
            anomalies=anomalies,
            alpha=alpha,
            fdr=fdr,
            p_value_threshold=threshold if threshold is not None and np.isfinite(threshold) else None,
            resumed_at=spool.begun_at,
            seconds=seconds,
            rows_per_second=(spool.rows - spool.begun_at) / seconds,
            peak_bytes=peak_bytes(torch.device("cpu")),
        )


def _score_all(target: Target, rows: RowFile, spool: Spool) -> None:
    """Bring the spool to the end of the file; what an exception leaves of it is complete up to some row."""
    results = target.results(rows, spool.rows)
    try:
        with Progress("scored", rows.num_rows, done=spool.rows) as progress:
            for result in results:
                spool.append(result.num_rows, result.scored, result.rejected)
                progress.update(result.num_rows)
    except BaseException:
        target.close()  # or its threads might go on asking for minutes
        raise
    finally:
        results.close()
        spool.checkpoint()


def _threshold(spool: Spool, alpha: float | None, fdr: float | None) -> float | None:
    """The highest p-value that is flagged; -inf for none of all, None where there are no p-values."""
    if fdr is None:
        return alpha
    counts: Counter[float] = Counter()
    for batch in spool.batches():
        values, numbers = np.unique(batch.column("p_value").to_numpy(), return_counts=True)
        counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    distinct = np.array(sorted(counts))
    return benjamini_hochberg_threshold(distinct, np.array([counts[value] for value in distinct]), fdr)


def _write(sink: Sink, spool: Spool, out: Path, threshold: float | None) -> int | None:
    """Write the output, whole or not at all; returns the number of anomalies."""
    schema = spool.schema()
    flags: list[int] = []

    def tables() -> Iterator[pa.Table]:
        for table in _parts(spool.batches()):
            if threshold is not None:
                flagged = table["p_value"].to_numpy() <= threshold
                flags.append(int(flagged.sum()))
                table = table.append_column(_FLAG, pa.array(flagged))
            yield table

    if threshold is not None:
        schema = schema.append(pa.field(_FLAG, pa.bool_()))
    try:
        spool.write(lambda path: sink(path, schema, spool.scored, tables()))
    except pa.ArrowException as error:
        raise UsageError(f"{out}: cannot be written: {error}") from error
    return None if threshold is None else sum(flags)


def _parts(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in fewer pieces."""
    group: list[pa.RecordBatch] = []
    num_rows = 0
    for batch in batches:
        group.append(batch)
        num_rows += batch.num_rows
        if num_rows >= PART_ROWS:
            yield pa.Table.from_batches(group)
            group, num_rows = [], 0
    if group:
        yield pa.Table.from_batches(group)
