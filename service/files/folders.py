"""Folders: of images, each of which is a row, or of Parquet files, which are one table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from common.folders import rows_in
from common.formats import IMAGE_SUFFIXES
from service.artifact import Signature
from service.codecs import image
from service.errors import ServiceError
from service.files.row_file import FileError, Part, RowFile, Span, batch_rows, cut, starts
from service.files.tables import check_ids, open_parquet

_FILE = "file"  # what identifies an image of a folder


def files_of(folder: Path) -> list[Path]:
    """Images, or Parquet files, in a folder and those below it, in the order of their paths; FileError for both."""
    images, tables = rows_in(folder)
    if images and tables:
        raise FileError(
            f"{folder}: holds images ({images[0].relative_to(folder)}) and .parquet files "
            f"({tables[0].relative_to(folder)}); expected a folder of one kind"
        )
    return images or tables


def open_folder(path: Path, manifest: Signature, ids: Sequence[str] | None) -> RowFile:
    """A folder of either kind."""
    files = files_of(path)
    if not files:
        raise FileError(f"{path}: holds no images ({', '.join(IMAGE_SUFFIXES)}) and no .parquet files")
    if files[0].suffix == ".parquet":
        return open_parquet(path, manifest, ids, files)
    ids = check_ids(path, [_FILE], [], ids)
    if not manifest.is_picture:
        raise FileError(f"{path}: is a folder of images, but {manifest.name} takes no pictures; expected a table")
    size = batch_rows(manifest)
    read = partial(_read_images, manifest, size, bool(ids), files)
    columns = pa.schema([(name, pa.string()) for name in ids])
    return RowFile(path, manifest, len(files), columns, cut(path, len(files), size), read)


def _read_images(manifest: Signature, size: int, named: bool, files: list[Path], span: Span) -> Iterator[Part]:
    assert manifest.value_range is not None
    for rows in starts(span, size):
        group = files[rows]
        names = [str(file.relative_to(span.path)) for file in group]
        pixels, faults = np.zeros((len(group), *manifest.shape), np.float32), {}
        for i, file in enumerate(group):
            try:
                pixels[i] = image.read(file.read_bytes(), manifest.shape, manifest.value_range, names[i])
            except ServiceError as error:
                faults[i] = str(error)
        yield Part(len(group), faults, pixels.__getitem__, [pa.array(names)] if named else [])
