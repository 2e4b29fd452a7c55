"""Reading data: files, folders and scikit-learn's small sets become rows of one kind."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from common.errors import UsageError
from common.folders import rows_in
from common.formats import EIGHT_BIT_MODES, IMAGE_SUFFIXES, NPZ_NAMES
from model.dataset import Array, DataError, Dataset, Kind, Selection, release_pages
from model.distributed import ALONE, Processes
from model.scratch import read_once, scratch
from model.tables import array_table, csv_table, parquet_table, read_table

__all__ = ["Array", "DataError", "Dataset", "Kind", "Selection", "load", "unnamed_columns"]

MAX_PIXELS = 2**24  # of an image of a folder; what claims to have more is broken, or hostile
SKLEARN_SETS = {"sklearn:digits": "load_digits", "sklearn:breast-cancer": "load_breast_cancer"}
_ALL = Selection()


def unnamed_columns(num: int) -> list[str]:
    """Names of columns that have none."""
    return [f"x{i}" for i in range(num)]


def load(source: str, base: Path = Path(), wanted: Selection = _ALL, processes: Processes = ALONE) -> Dataset:
    """Read what is wanted of a data set, by the form of its name.

    ``*.idx``, ``*ubyte``, either with ``.gz`` (the MNIST format); ``.npy``; ``.npz`` (array ``X`` or ``x``, labels
    ``y``, else its only array); ``.csv`` and ``.parquet`` (columns of numbers, and of text that names categories); a
    folder of images of one size, or of Parquet files with the same columns, in the order of their paths (names that
    begin with "_" or "." do not count);
    ``sklearn:digits`` and ``sklearn:breast-cancer``. Arrays of two dimensions are vectors, those of three (N, H, W) or
    four (N, C, H, W) are images of whole numbers 0..255. Columns of arrays have no names: those that are wanted are
    taken by position where there are as many. Rows of folders and of Parquet files come mapped from a scratch file, not
    in memory, and several processes of a host share the reading and the file; of other sources the first of them reads
    for all. Raises DataError.
    """
    path = base / source
    try:
        if source in SKLEARN_SETS:
            return read_once(lambda: _load_sklearn(source, wanted), source, processes)
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        if path.is_dir():
            return _read_folder(path, wanted, processes)
        if path.suffix == ".parquet":
            return read_table(parquet_table(str(path), [path]), wanted, processes=processes)
        return read_once(lambda: _read_file(path, wanted), str(path), processes)
    except UsageError:
        raise
    except Exception as error:  # the readers raise nearly anything on files that are not what their name says
        raise DataError(f"{path}: cannot be read: {str(error).strip() or type(error).__name__}") from error


def _read_file(path: Path, wanted: Selection) -> Dataset:
    labels: Array | None = None
    if path.suffix == ".csv":
        return read_table(csv_table(path), wanted)
    if path.name.removesuffix(".gz").endswith((".idx", "ubyte")):
        x = _read_idx(path)
    elif path.suffix == ".npy":
        x = np.load(path, allow_pickle=False)
    elif path.suffix == ".npz":
        x, labels = _read_npz(path)
    else:
        raise DataError(
            f"{path}: unknown kind of file; expected idx, npy, npz, csv, parquet or a folder of images or of Parquet"
        )
    return _from_array(str(path), x, labels, wanted)


def _from_array(
    name: str, x: Array, labels: Array | None, wanted: Selection, columns: list[str] | None = None
) -> Dataset:
    if not isinstance(x, np.ndarray) or x.ndim == 0:
        raise DataError(f"{name}: expected an array of rows")
    if x.dtype.kind not in "biuf":
        raise DataError(f"{name}: expected numbers, got values of type {x.dtype}")
    if len(x) == 0 or x.size == 0:
        raise DataError(f"{name}: holds no rows")
    if labels is not None and labels.shape != (len(x),):
        raise DataError(f"{name}: expected one label per row, got {labels.shape} labels for {len(x)} rows")
    if x.ndim == 2:
        if columns is None:
            known = list(wanted.known or ())
            columns = known if len(known) == x.shape[1] else unnamed_columns(x.shape[1])
        return read_table(array_table(name, x, columns), wanted, labels)
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim == 4 and x.shape[1] not in (1, 3):
        raise DataError(f"{name}: images must have 1 or 3 channels, got shape {x.shape}; expected (N, C, H, W)")
    if x.ndim != 4:
        raise DataError(f"{name}: expected vectors (N, D) or images (N, H, W) or (N, C, H, W), got shape {x.shape}")
    for i, image in enumerate(x if x.dtype != np.uint8 else ()):
        wrong = ~((image >= 0) & (image <= 255) & (image == np.floor(image)))
        if wrong.any():
            raise DataError(f"{name}: image {i} holds {image[wrong][0]}; pixels must be whole numbers 0..255")
    _check_columns_of_images(name, wanted)
    rows = np.arange(len(x)) if wanted.normal_label is None else np.flatnonzero(wanted.is_normal(labels, name))
    return Dataset(x[rows[wanted.order(len(rows))]].astype(np.uint8, copy=False), [])


def _read_idx(path: Path) -> Array:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 8 or raw[3] == 0 or raw[:3] != b"\0\0\x08":
        raise DataError(
            f"{path}: not an idx file of bytes: it starts with {raw[:4].hex() or 'nothing'}, expected 000008"
        )
    dims = struct.unpack_from(f">{raw[3]}I", raw, 4)
    start = 4 + 4 * len(dims)
    if len(raw) - start != np.prod(dims):
        raise DataError(f"{path}: its header announces {'x'.join(map(str, dims))} bytes, but {len(raw) - start} follow")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(dims)


def _read_npz(path: Path) -> tuple[Array, Array | None]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:  # which it may leave open
        names = archive.files
        name = next((name for name in NPZ_NAMES if name in names), None)
        if name is None:
            if len(names) != 1:
                raise DataError(f"{path}: expected an array {' or '.join(NPZ_NAMES)}, got {', '.join(names) or 'none'}")
            name = names[0]
        return archive[name], archive["y"].ravel() if "y" in names and name != "y" else None


def _read_folder(path: Path, wanted: Selection, processes: Processes) -> Dataset:
    images, tables = rows_in(path)
    if images and tables:
        raise DataError(f"{path}: holds both images ({images[0].name}) and Parquet files ({tables[0].name})")
    if tables:
        return read_table(parquet_table(str(path), tables), wanted, processes=processes)
    if not images:
        raise DataError(f"{path}: holds neither images ({', '.join(IMAGE_SUFFIXES)}) nor Parquet files")
    return _read_images(path, images, wanted, processes)


def _read_images(path: Path, files: list[Path], wanted: Selection, processes: Processes) -> Dataset:
    """Decode images of one size straight into their places."""
    _check_columns_of_images(str(path), wanted)
    if wanted.normal_label is not None:
        wanted.is_normal(None, str(path))
    shape = _read_image(files[0]).shape
    x = scratch((len(files), *shape), np.uint8, str(path), processes)
    places = np.argsort(wanted.order(len(files)))  # read in the order of their paths

    def fill() -> None:
        for number, i in processes.local_share(list(enumerate(places))):
            image = _read_image(files[number])
            if image.shape != shape:
                raise DataError(
                    f"{files[number]}: every image must be of one size, got {image.shape} after {shape} (C, H, W)"
                )
            x[i] = image
        release_pages(x)

    processes.together(fill)
    return Dataset(x, [])


def _read_image(file: Path) -> Array:
    """Decode an image: (C, H, W) uint8."""
    try:
        with Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{file}: is {image.width}x{image.height} pixels; {MAX_PIXELS} in all are the most")
            if image.mode not in EIGHT_BIT_MODES:
                raise DataError(f"{file}: is of mode {image.mode}, expected 8 bits per channel")
            grey = image.mode in ("1", "L", "LA")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{file}: cannot be read as an image: {error}") from error
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _check_columns_of_images(name: str, wanted: Selection) -> None:
    if wanted.categorical:
        raise DataError(f"{name}: no column {wanted.categorical[0]!r}; it holds images")


def _load_sklearn(source: str, wanted: Selection) -> Dataset:
    from sklearn import datasets

    bunch = getattr(datasets, SKLEARN_SETS[source])()
    if source == "sklearn:digits":
        return _from_array(source, bunch.images, bunch.target, wanted)
    return _from_array(source, bunch.data, bunch.target, wanted, [str(name) for name in bunch.feature_names])
