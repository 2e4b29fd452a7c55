"""The run: read, score, keep, and write the whole at once in the end."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import re
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from common.cli import (
    DONE,
    INTERRUPTED,
    SOME_REJECTED,
    WRONG_USE,
    Parser,
    Progress,
    check_output,
    count,
    note,
    seconds,
    share,
    tell,
)
from common.errors import UsageError
from service.files import Batch, RowFile, image_files, open_rows
from service.flows import check_level
from service.machine import peak_bytes
from service.options import score_names
from service.score.sinks import SINKS, Sink, check_ids, sink_of
from service.score.spool import REASON, ROW, Spool, folder_of, rejected_of
from service.score.targets import CONCURRENCY, PATIENCE_S, Array, EngineTarget, ServiceTarget, Target
from service.scores import benjamini_hochberg_threshold

AHEAD = 4  # batches that wait for a free thread of the target while others are read and written
PART_ROWS = 2**17  # of the output that are written at once, at least; a row group of Parquet
FORMAT = "1"  # to be raised where a run of an older version cannot be continued

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
    check_ids(out, rows.ids, [*target.answers, *([] if target.num_calibration is None else [_FLAG]), ROW, REASON])
    run = {
        "format": FORMAT,
        "input": _describe(source),
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
        if _describe(source) != run["input"]:
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


def _describe(source: Path) -> str:
    """Which file it is, as far as can be told without reading it."""
    if source.is_dir():
        files = image_files(source)
        about = [f"{path.relative_to(source)}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files]
        digest = hashlib.sha256("\n".join(about).encode(errors="surrogateescape")).hexdigest()
        return f"{source.resolve()}, {len(files)} images {digest[:12]}"
    about_file = source.stat()
    modified = datetime.fromtimestamp(about_file.st_mtime_ns // 10**9, UTC).isoformat(" ")
    return f"{source.resolve()}, {about_file.st_size} bytes of {modified} ({about_file.st_mtime_ns % 10**9})"


def _score_all(target: Target, rows: RowFile, spool: Spool) -> None:
    """Bring the spool to the end of the file; what an exception leaves of it is complete up to some row."""
    pool = ThreadPoolExecutor(target.concurrency, "score")
    try:
        with Progress("scored", rows.num_rows, done=spool.rows) as progress:
            for batch, answer in _answered(rows.batches(spool.rows), target, pool):
                spool.append(batch.num_rows, _scored(batch, answer), _rejected(batch))
                progress.update(batch.num_rows)
    except BaseException:
        target.close()  # or its threads might go on asking for minutes
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        spool.checkpoint()


def _answered(
    batches: Iterator[Batch], target: Target, pool: ThreadPoolExecutor
) -> Iterator[tuple[Batch, dict[str, Array]]]:
    """Batches with their answers, in order; some are read ahead, so that the target never waits."""
    waiting: deque[tuple[Batch, Future[dict[str, Array]] | None]] = deque()
    for batch in itertools.chain(batches, itertools.repeat(None)):
        if batch is not None:
            waiting.append((batch, pool.submit(target.score, batch.rows) if len(batch.rows) else None))
            if len(waiting) < target.concurrency + AHEAD:
                continue
        if not waiting:
            return
        first, future = waiting.popleft()
        yield first, {} if future is None else future.result()


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


def parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        "glow-score",
        "Score every row of a file, of any size, and write scores and p-values beside the columns that identify it. "
        "The same command goes on where an interrupted one stopped; rejected rows stand in OUT.rejected.csv with the "
        "reason.",
        examples=[
            "glow-score service/artifacts/breast-cancer.pt patients.csv scores.csv",
            "glow-score service/artifacts/breast-cancer.pt patients.parquet scores.parquet --fdr 0.1 --json",
            "glow-score service/artifacts/fashion-mnist.pt photographs/ scores.csv --scores all --alpha 0.001",
            "glow-score http://localhost:8000 patients.csv scores.csv --model breast-cancer",
        ],
        outcome=Summary,
        codes=(DONE, WRONG_USE, SOME_REJECTED, INTERRUPTED),
    )
    parser.add_argument("target", metavar="ARTIFACT_OR_URL", help="a file, or the address of a running service")
    parser.add_argument(
        "source", metavar="IN", type=Path, help=".parquet, .csv, .npy or .npz, or a folder of PNG and JPEG images"
    )
    parser.add_argument(
        "out", metavar="OUT", type=Path, help=f"a file: {', '.join(SINKS)}; written, or replaced, when all is scored"
    )
    parser.add_argument(
        "--id",
        nargs="+",
        action="extend",
        metavar="COLUMN",
        help="columns of IN to keep (default: all that are not the model's)",
    )
    parser.add_argument(
        "--alpha", type=share, metavar="P", help="flag p-values of at most this, in 0..1 (default: the artifact's own)"
    )
    parser.add_argument(
        "--fdr", type=share, metavar="Q", help="flag by Benjamini-Hochberg at this level over the whole file instead"
    )
    parser.add_argument("--scores", type=_scores, metavar="NAME,...", help="more scores by name, or all")
    parser.add_argument("--reproducible", action="store_true", help="same bits whatever the batches, somewhat slower")
    parser.add_argument("--restart", action="store_true", help="discard what an unfinished run has left")
    service = parser.add_argument_group("of a running service")
    service.add_argument("--model", metavar="NAME", help="which model (default: the service's own)")
    service.add_argument("--concurrency", type=count, metavar="N", help=f"requests in flight (default: {CONCURRENCY})")
    service.add_argument(
        "--patience",
        type=seconds,
        dest="patience_s",
        metavar="S",
        help=f"seconds to ask again for (default: {PATIENCE_S:g})",
    )
    return parser


def main(argv: list[str]) -> None:
    """Run the command; ends with exit code 3 where rows were rejected."""
    args = parser().parse_args(argv)
    is_url = args.target.startswith(("http://", "https://"))
    if not is_url and re.fullmatch(r"[\w.-]+:\d+/?", args.target) and not Path(args.target).exists():
        raise UsageError(f"{args.target}: is no file; the address of a service begins with http://")
    for path in (args.out, rejected_of(args.out)):
        check_output(path, {"data": args.source} | ({} if is_url else {"artifact": Path(args.target)}))
    sink_of(args.out)
    target: Target
    of_service = {name: getattr(args, name) for name in ("model", "concurrency", "patience_s")}
    of_service = {name: value for name, value in of_service.items() if value is not None}
    if is_url:
        target = ServiceTarget(args.target, scores=args.scores, reproducible=args.reproducible, **of_service)
    elif of_service:
        option = next(iter(of_service)).removesuffix("_s")
        raise UsageError(f"--{option}: is for a service; an artifact holds one model, which runs in this process")
    elif Path(args.target).is_dir():
        raise UsageError(f"{args.target}: is a folder; expected one artifact or the address of a service")
    else:
        target = EngineTarget(Path(args.target), folder_of(args.out), args.scores, args.reproducible)
    options = {"scores": args.scores or "the default", "reproducible": str(args.reproducible).lower()}
    try:
        with closing(target):
            summary = score_file(
                target,
                args.source,
                args.out,
                ids=args.id,
                alpha=args.alpha,
                fdr=args.fdr,
                options=options,
                restart=args.restart,
            )
    except KeyboardInterrupt:
        note("interrupted; the same command goes on from here")
        raise
    tell(summary, args.json)
    if summary.rejected:
        raise SystemExit(SOME_REJECTED)


def _scores(text: str) -> str:
    try:
        score_names(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text
