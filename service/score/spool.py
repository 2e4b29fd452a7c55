"""Scored rows on their way to OUT, in a folder beside it, ``OUT.partial``, that survives whatever ends the run.

``rows.arrow`` is an Arrow stream of the scored rows and ``rejected.csv`` a table of the others, both only ever appended
to; ``state.json`` says of what run they are and how much of them counts. Every so often both are synced to the disk and
then the state replaced as a whole: bytes behind those that it counts are of rows that will be scored again, and are cut
off first. So after a crash at any moment no row is lost and none is there twice.
"""

from __future__ import annotations

import csv
import fcntl
import io
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import UsageError
from common.files import naming, write_whole

ROW, REASON = "row", "reason"  # columns of the rejected rows that are no ids
CHECKPOINT_S = 1.0  # of work that a crash costs


class _State(BaseModel):
    """What ``state.json`` holds."""

    model_config = ConfigDict(extra="forbid")

    run: dict[str, str]  # what the answers depend on, in words
    rows: int = 0  # of the input that have been read
    scored: int = 0
    rejected: int = 0
    scored_bytes: int = 0
    rejected_bytes: int = 0


class Spool(AbstractContextManager["Spool"]):
    """The folder of one run, begun or resumed. Raises UsageError where it is of another run, or in use."""

    def __init__(self, out: Path, run: Mapping[str, str], id_names: Sequence[str], restart: bool = False) -> None:
        self.folder = folder_of(out)
        self._out = out
        self._state = _State(run=dict(run))
        try:
            self.folder.mkdir()
        except FileExistsError:
            _check_own(self.folder)
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UsageError(f"{out}: is being written by another run") from None
        for left_over in self.folder.glob("*.partial"):  # of a run that was killed
            left_over.unlink()
        try:
            if not restart:
                self._state = self._resumed(run)
            self._scored = _cut(self.folder / "rows.arrow", self._state.scored_bytes)
            self._rejected = _cut(self.folder / "rejected.csv", self._state.rejected_bytes)
        except UsageError:
            self._lock.close()
            raise
        if not self._state.rejected_bytes:
            self._rejected.write(_csv_line([ROW, *id_names, REASON]))
        self.begun_at = self._state.rows  # what an earlier run has done
        self._checked = 0.0
        self.checkpoint()
        sync_folder(self.folder)

    def _resumed(self, run: Mapping[str, str]) -> _State:
        """The state that was left behind, if any."""
        path = self.folder / "state.json"
        try:
            state = _State.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return self._state
        except ValidationError:
            raise UsageError(f"{path}: is damaged; --restart begins afresh") from None
        if not state.rows:  # nothing is lost with it
            return self._state
        changed = [name for name in {**run, **state.run} if run.get(name) != state.run.get(name)]
        if changed:
            differences = "; ".join(
                f"{name} was {state.run.get(name, 'none')}, now is {run.get(name, 'none')}" for name in changed
            )
            raise UsageError(f"{self._out}: an unfinished run differs: {differences}; --restart discards it")
        return state

    @property
    def rows(self) -> int:
        """Rows of the input that are done with."""
        return self._state.rows

    @property
    def scored(self) -> int:
        """Those that have answers."""
        return self._state.scored

    @property
    def rejected(self) -> int:
        """Those that the model does not take."""
        return self._state.rejected

    def append(self, num_rows: int, scored: pa.RecordBatch | None, rejected: Sequence[Sequence[Any]]) -> None:
        """Add the next rows of the input: those scored, in a table, and the others, each ``[row, *ids, reason]``."""
        state = self._state.model_copy()
        with naming(self.folder):
            if scored is not None:
                if not state.scored_bytes:
                    state.scored_bytes += self._scored.write(scored.schema.serialize())
                state.scored_bytes += self._scored.write(scored.serialize())
                state.scored += scored.num_rows
            if rejected:
                self._rejected.write(b"".join(map(_csv_line, rejected)))
        state.rejected_bytes = self._rejected.tell()
        state.rejected += len(rejected)
        state.rows += num_rows
        self._state = state  # at once, so that an interrupt leaves it either before or after
        if time.monotonic() - self._checked >= CHECKPOINT_S:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Make what has been appended outlast a loss of power."""
        with naming(self.folder):
            for file in (self._scored, self._rejected):
                file.flush()
                os.fsync(file.fileno())
        text = self._state.model_dump_json()
        write_whole(self.folder / "state.json", lambda path: path.write_text(text))
        self._checked = time.monotonic()

    def schema(self) -> pa.Schema:
        """Columns of the scored rows; some must be there."""
        with self._stream() as reader:
            return reader.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The scored rows, in order, as they were appended."""
        with self._stream() as reader:
            yield from reader

    def _stream(self) -> pa.RecordBatchStreamReader:
        with naming(self.folder):
            self._scored.flush()
        return pa.ipc.open_stream(pa.OSFile(str(self.folder / "rows.arrow"), "rb"))

    def write(self, fill: Callable[[Path], object]) -> None:
        """Let ``fill`` write the output, which is then whole, or what it was before."""
        self._put(self._out, fill)

    def finish(self) -> Path | None:
        """Put the rejected rows beside the output; returns their path, or None where there are none."""
        path = rejected_of(self._out)
        if self.rejected:  # a copy: what the state counts stays until there is no state
            self._put(path, lambda copy: shutil.copyfile(self.folder / "rejected.csv", copy))
            return path
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
        return None

    def _put(self, path: Path, fill: Callable[[Path], object]) -> None:
        """Write a file in the folder, where a run that is killed may leave it, and move it."""
        whole = self.folder / "whole"
        write_whole(whole, fill)
        whole.replace(path)
        sync_folder(path.parent)

    def discard(self) -> None:
        """Remove the folder, the state first: without it the rest counts for nothing."""
        (self.folder / "state.json").unlink()
        sync_folder(self.folder)
        shutil.rmtree(self.folder)

    def __exit__(self, *_: object) -> None:
        for file in (self._scored, self._rejected, self._lock):
            with suppress(OSError):  # a full disk; what was counted is on it
                file.close()


def folder_of(out: Path) -> Path:
    """Where a run keeps what it has done."""
    return out.with_name(f"{out.name}.partial")


def rejected_of(out: Path) -> Path:
    """Where a run puts the rows that the model does not take; what is there before goes."""
    return out.with_name(f"{out.name}.rejected.csv")


def sync_folder(folder: Path) -> None:
    """Make new and renamed files outlast a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_own(folder: Path) -> None:
    """Refuse what somebody else may have prepared, with links in it to files that we would write over."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise UsageError(f"{folder}: is no folder of this user; remove it, or write elsewhere")


def _cut(path: Path, num_bytes: int) -> io.BufferedRandom:
    """Open a file to be appended to, without what stands behind so many bytes."""
    path.touch()
    if path.stat().st_size < num_bytes:
        raise UsageError(f"{path}: is damaged; --restart begins afresh")
    file = path.open("r+b")
    file.truncate(num_bytes)
    file.seek(num_bytes)
    return file


def _csv_line(values: Sequence[Any]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue().encode()
