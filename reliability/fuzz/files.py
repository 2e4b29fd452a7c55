"""Files of rows: those that glow-score and the commands beside it read, and those that a training reads."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from common.dialect import column_separator
from common.errors import UsageError
from model.data import load
from model.dataset import Dataset, Selection
from reliability.fuzz.bodies import npy_bytes, npy_seeds, repair_npy, table_of_rows
from reliability.fuzz.pictures import picture_bytes, repair_png
from reliability.fuzz.target import IMAGES, MIXED, NAMES, Target, as_file
from service.artifact import Signature
from service.files import FileError, open_rows


def read_rows(suffix: str, manifest: Signature, data: bytes) -> None:
    """Every row of a file is one that the model takes or is refused with a reason, whatever stands beside it."""
    file = open_rows(as_file(data, suffix), manifest, None)
    at = 0
    for batch in file.batches():
        assert batch.start == at
        at += batch.num_rows
        assert len(batch.positions) == len(batch.rows) == batch.num_rows - len(batch.refused)
        assert sorted([*batch.positions.tolist(), *batch.refused]) == list(range(batch.start, at))
        assert batch.rows.shape[1:] == manifest.shape
        assert batch.rows.dtype == manifest.input_dtype
        assert np.isfinite(batch.rows).all()
        assert batch.ids.num_rows == (batch.num_rows if file.ids.names else 0)
        assert batch.ids.schema == file.ids
    assert file.num_rows in (None, at)


def read_data(suffix: str, data: bytes) -> None:
    """Rows that a training takes are finite numbers, and codes of categories are those of the names."""
    path = as_file(data, suffix)
    _check_data(load(path.name, path.parent))
    with suppress(UsageError):
        _check_data(load(path.name, path.parent, Selection("count", ignored=["fixed"], categorical=["size"])))


def _check_data(found: Dataset) -> None:
    assert len(found.x) > 0
    assert np.isfinite(found.x).all()
    if found.kind == "image":
        assert found.x.dtype == np.uint8
        return
    assert found.x.shape[1:] == (len(found.columns),)
    for name, categories in found.categories.items():
        assert len(set(categories)) == len(categories)
        assert np.isin(found.x[:, found.columns.index(name)], np.arange(len(categories))).all()


def read_image_folder(data: bytes) -> None:
    """A folder of images holds images."""
    path = as_file(data, ".none").with_name("images")
    path.mkdir(exist_ok=True)
    (path / "one.png").write_bytes(data)
    found = load(path.name, path.parent)
    assert found.x.dtype == np.uint8
    assert found.x.shape[1] in (1, 3)


def read_dialect(data: bytes) -> None:
    """Columns are separated by one of three signs."""
    assert column_separator(as_file(data, ".csv")) in (",", ";", "\t")


def csv_seeds() -> Iterator[bytes]:
    """Rows with commas, semicolons and tabs, quotes, gaps and ragged lines."""
    heading = ",".join(NAMES)
    yield f"{heading}\ngreen,0.5,3,7,0.5\nred,1e3,4,7,1e3\n".encode()
    yield f'{heading},id\r\n1,0.5,3,7,0.5,a\r\nred,,NA,nan,x,"b,""c"\r\n1,2\r\n'.encode()
    yield "\ufeff{}\nblau;0,5;3;7;0,5\nred;1.5;-3;7;1,5\n".format(";".join(NAMES)).encode()
    yield "{}\nblue\t5\ttrue\t7\t5".format("\t".join(reversed(NAMES))).encode()


def parquet_seeds() -> Iterator[bytes]:
    """One row group and several, plain and with dictionaries, compressed and not."""
    table = table_of_rows()
    for options in ({"compression": "none"}, {"row_group_size": 1, "use_dictionary": False, "write_statistics": False}):
        sink = pa.BufferOutputStream()
        parquet.write_table(table.append_column("id", [["a", "b", "b"]]), sink, store_schema=False, **options)
        yield bytes(sink.getvalue())
    sink = pa.BufferOutputStream()
    categories = table.set_column(0, "color", table["color"].dictionary_encode())
    parquet.write_table(categories.drop_columns("copy"), sink, compression="snappy", data_page_version="2.0")
    yield bytes(sink.getvalue())


def npz_seeds() -> Iterator[bytes]:
    """Archives with and without labels."""
    for arrays in ({"X": np.ones((3, 5)), "y": np.arange(3)}, {"a": np.asfortranarray(np.ones((3, 5), np.int8))}):
        for write in (np.savez, np.savez_compressed):
            stream = io.BytesIO()
            write(stream, **arrays)
            yield stream.getvalue()
    stream = io.BytesIO()
    np.savez_compressed(stream, images=np.ones((2, 8, 8), np.uint8))
    yield stream.getvalue()


def idx_seeds() -> Iterable[bytes]:
    """Images in the format of MNIST."""
    return [b"\0\0\x08\3" + struct.pack(">III", 2, 4, 4) + bytes(32), b"\0\0\x08\1" + struct.pack(">I", 2) + b"ab"]


def folder_seeds() -> Iterator[bytes]:
    """Pictures that a training reads."""
    for mode, kind in (("L", "PNG"), ("RGB", "PNG"), ("P", "BMP"), ("RGB", "WEBP"), ("L", "JPEG"), ("P", "PNG")):
        yield picture_bytes(mode, kind)


def _both(kind: str, seeds: Iterable[bytes], **about: object) -> Iterator[Target]:
    """A kind of file as glow-score and as a training reads it."""
    held = list(seeds)
    manifest = IMAGES if kind == "npy" else MIXED
    yield Target(f"score_{kind}", partial(read_rows, f".{kind}", manifest), lambda: held, (FileError,), **about)  # type: ignore[arg-type]
    yield Target(f"train_{kind}", partial(read_data, f".{kind}"), lambda: held, (UsageError,), **about)  # type: ignore[arg-type]


_CSV_WORDS = (
    *(name.encode() for name in NAMES),
    b'"',
    b'""',
    b"\r\n",
    b";",
    b"\t",
    b"NA",
    b"null",
    b"1e999",
    b"\xef\xbb\xbf",
)
TARGETS = [
    *_both("csv", csv_seeds(), words=_CSV_WORDS),
    *_both("npy", [*npy_seeds(), npy_bytes(np.full((2, 8, 8), 3.0))], repair=repair_npy, words=(b"'shape': (3, 5), ",)),
    *_both("npz", npz_seeds(), words=(b"PK\3\4", b"PK\1\2", b"PK\5\6", b"X.npy", b"y.npy")),
    *_both("parquet", parquet_seeds(), words=(b"PAR1",)),
    Target("train_idx", partial(read_data, ".idx"), idx_seeds, (UsageError,)),
    Target("train_idx_gz", partial(read_data, ".idx.gz"), lambda: [*map(gzip.compress, idx_seeds())], (UsageError,)),
    Target("train_images", read_image_folder, folder_seeds, (UsageError,), (b"RIFF", b"WEBPVP8 ", b"BM"), repair_png),
    Target("dialect", read_dialect, csv_seeds, (ValueError,), _CSV_WORDS),
]
