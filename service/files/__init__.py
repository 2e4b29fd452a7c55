"""Files of rows, read in batches of bounded size: what the commands that score files share.

Tables (.parquet, a folder of such files, .csv) give their columns by name, in any order, and may have others beside
them, which can come along to identify rows; arrays (.npy, .npz) give them by position; a folder may as well hold PNG
and JPEG images, which come in the order of their paths and are identified by these. Rows are counted from 0, without a
heading, and checked as those of a request are.

``row_file`` is what all kinds have in common, ``tables``, ``arrays`` and ``folders`` are the kinds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from service.artifact import Signature
from service.files.arrays import open_npy, open_npz
from service.files.folders import files_of, open_folder
from service.files.row_file import Batch as Batch
from service.files.row_file import FileError as FileError
from service.files.row_file import RowFile as RowFile
from service.files.row_file import Span as Span
from service.files.row_file import guarded
from service.files.tables import open_csv, open_parquet

_OPENERS = {".parquet": open_parquet, ".csv": open_csv, ".npy": open_npy, ".npz": open_npz}


def open_rows(path: Path, manifest: Signature, ids: Sequence[str] | None = ()) -> RowFile:
    """Open a file for a model; columns ``ids`` come along, for None all that are not the model's.

    Raises FileError where it is not one of rows that the model could take, or lacks such a column.
    """
    if not path.exists():
        raise FileError(f"{path}: no such file or folder")
    opener = open_folder if path.is_dir() else _OPENERS.get(path.suffix)
    if opener is None:
        raise FileError(
            f"{path}: unknown kind of file; expected {', '.join(_OPENERS)}, or a folder of images or of .parquet files"
        )
    with guarded(path):
        opened = opener(path, manifest, ids)
    if opened.num_rows == 0:
        raise FileError(f"{path}: holds no rows")
    return opened


def describe(path: Path) -> str:
    """Which file or folder it is, as far as can be told without reading it."""
    if path.is_dir():
        files = files_of(path)
        about = [f"{file.relative_to(path)}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
        digest = hashlib.sha256("\n".join(about).encode(errors="surrogateescape")).hexdigest()
        return f"{path.resolve()}, {len(files)} files {digest[:12]}"
    about_file = path.stat()
    modified = datetime.fromtimestamp(about_file.st_mtime_ns // 10**9, UTC).isoformat(" ")
    return f"{path.resolve()}, {about_file.st_size} bytes of {modified} ({about_file.st_mtime_ns % 10**9})"
