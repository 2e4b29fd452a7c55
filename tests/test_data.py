"""Reading data: every documented source, and one-line errors that name file, rule and value."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data import DataError, Selection, load
from model.recipe import DataRecipe, load_splits

PIXELS = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(path: Path, content: bytes | str) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_idx_files_plain_or_gzipped_are_images(tmp_path: Path) -> None:
    for source in (
        write(tmp_path / "a.idx", idx(PIXELS)),
        write(tmp_path / "images-idx3-ubyte.gz", gzip.compress(idx(PIXELS))),
    ):
        data = load(source)
        assert data.kind == "image"
        assert np.array_equal(data.x[:, 0], PIXELS)


def test_npy_and_npz_are_images_or_vectors_by_their_dimensions(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(3))
    assert load(str(tmp_path / "a.npy")).kind == "vector"
    np.savez(tmp_path / "a.npz", X=PIXELS[:, None].repeat(3, 1), y=np.array([0, 1]))
    assert load(str(tmp_path / "a.npz")).shape == (3, 4, 4)
    second = load(str(tmp_path / "a.npz"), wanted=Selection(normal_label=1))
    assert np.array_equal(second.x, PIXELS[1:, None].repeat(3, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_source_of_images_holds_them_grey_or_coloured(tmp_path: Path, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, channels, 4, 6)).astype(np.uint8)
    (tmp_path / "images.idx.gz").write_bytes(gzip.compress(idx(images)))
    np.save(tmp_path / "images.npy", images.astype(np.float32))
    np.savez(tmp_path / "images.npz", images=images)
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(tmp_path / "folder" / f"{i}.png")
    for source in ("images.idx.gz", "images.npy", "images.npz", "folder"):
        data = load(source, tmp_path)
        assert data.x.dtype == np.uint8
        assert np.array_equal(data.x, images), source


def test_a_folder_of_images_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    assert np.array_equal(load(str(tmp_path)).x[:, 0], PIXELS)


def test_a_grey_image_stays_grey_with_an_opacity(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).convert("LA").save(tmp_path / "a.png")
    assert np.array_equal(load(str(tmp_path)).x, PIXELS[:1, None])


def test_grey_and_coloured_images_in_one_folder_are_refused(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    Image.fromarray(PIXELS[0]).convert("RGB").save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png: every image must be of one size, got \(3, 4, 4\) after \(1, 4, 4\)"):
        load(str(tmp_path))


def test_a_folder_of_images_comes_mapped_from_a_scratch_file(tmp_path: Path) -> None:
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    data = load(str(tmp_path), wanted=Selection(shuffle_seed=5))
    assert isinstance(data.x, np.memmap)
    assert np.array_equal(data.x[:, 0], PIXELS[np.random.default_rng(5).permutation(2)])


def test_a_folder_with_images_and_tables_is_refused(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    (tmp_path / "b.parquet").touch()
    with pytest.raises(DataError, match=r"holds both images \(a\.png\) and Parquet files \(b\.parquet\)"):
        load(str(tmp_path))


def test_scikit_learn_sets_are_named() -> None:
    assert load("sklearn:digits").shape == (1, 8, 8)
    data = load("sklearn:breast-cancer")
    assert data.shape == (30,)
    assert data.columns[0] == "mean radius"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "cannot be read"),
        ("a.csv", "x,y\n", "holds no rows"),
        ("a.csv", "x,y\n1\n", "cannot be read"),
        ("a.parquet", "not parquet", "cannot be read"),
        ("a.npy", b"\x93NUMPY\x01\x00", "cannot be read"),
        ("a.npz", b"PK", "cannot be read"),
        ("a.npz", b"PK\3\4", "cannot be read"),  # and closed
        ("a.idx", idx(PIXELS)[:-3], "its header announces 2x4x4 bytes, but 29 follow"),
        ("a.idx", b"\0\0\x09\x01", "not an idx file of bytes"),
        ("a.idx", b"", "it starts with nothing"),
        ("a.idx", b"\0\0\x08\0\0\0\0\0", "not an idx file of bytes"),
        ("a-ubyte.gz", gzip.compress(idx(PIXELS), mtime=0)[:-9], "cannot be read"),
        ("a.txt", "1", "unknown kind of file"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, name: str, content: bytes | str, message: str) -> None:
    source = write(tmp_path / name, content)
    with pytest.raises(DataError) as raised:
        load(source)
    assert message in str(raised.value)
    assert source in str(raised.value)
    assert "\n" not in str(raised.value)


def test_unusable_arrays_are_named(tmp_path: Path) -> None:
    for array, message in (
        (np.full((2, 4, 4), 300), "image 0 holds 300; pixels must be whole numbers 0..255"),
        (np.full((2, 4, 4), np.nan), "image 0 holds nan"),
        (np.zeros((2, 5, 4, 4)), "images must have 1 or 3 channels"),
        (np.zeros(()), "expected an array of rows"),
        (np.zeros(3), "expected vectors (N, D) or images"),
        (np.array([["a"]]), "expected numbers"),
        (np.zeros((0, 3)), "holds no rows"),
    ):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(DataError) as raised:
            load(str(tmp_path / "a.npy"))
        assert message in str(raised.value)


def test_an_image_of_more_pixels_than_any_needs_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (8192, 4096)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is 8192x4096 pixels; 16777216 in all are the most"):
        load(str(tmp_path))


def test_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    Image.fromarray(PIXELS[0][:2]).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png: every image must be of one size, got \(1, 2, 4\) after \(1, 4, 4\)"):
        load(str(tmp_path))


@pytest.mark.parametrize(("total", "counts"), [(569, (513, 4, 29, 23)), (100, (90, 1, 5, 4)), (10, (6, 1, 1, 2))])
def test_parts_may_be_shares_of_the_rows_rounded_up(tmp_path: Path, total: int, counts: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.arange(2.0 * total).reshape(total, 2))
    recipe = DataRecipe(train="a.npy", validation=0.007, calibration=0.05, test=0.04)
    splits = load_splits(recipe, tmp_path)
    assert splits.test is not None
    sizes = [len(part.x) for part in (splits.fit, splits.validation, splits.calibration, splits.test)]
    assert tuple(sizes) == counts


def test_the_parts_are_views_of_one_array() -> None:
    splits = load_splits(DataRecipe(train="sklearn:breast-cancer", validation=40, calibration=0.1), Path())
    assert splits.fit.x.base is splits.validation.x.base is splits.calibration.x.base is not None


def test_splits_are_disjoint_and_the_same_every_time() -> None:
    recipe = DataRecipe(train="sklearn:breast-cancer", normal_label=1, validation=40, calibration=80, test=57)
    first, second = load_splits(recipe, Path()), load_splits(recipe, Path())
    assert first.test is not None
    rows = np.concatenate([first.fit.x, first.validation.x, first.calibration.x, first.test.x])
    assert len(rows) == 357
    assert len(np.unique(rows, axis=0)) == 357
    assert first.fit.digest == second.fit.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": 600}, "rows held out of 569 leave none to fit"),
        ({"normal_label": 9}, "no row is labelled 9"),
        ({"test": "sklearn:digits"}, "rows of shape (1, 8, 8), expected (30,)"),
        ({"train": "nothing.csv"}, "nothing.csv: no such file"),
    ],
)
def test_impossible_splits_are_named(changes: dict[str, object], message: str) -> None:
    values = {"train": "sklearn:breast-cancer", "validation": 40, "calibration": 80, **changes}
    with pytest.raises(DataError) as raised:
        load_splits(DataRecipe.model_validate(values), Path())
    assert message in str(raised.value)


def test_value_probabilities_are_nine_tenths_frequency_and_one_tenth_uniform(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 4)))
    data = load(str(tmp_path / "a.npy"))
    probabilities = data.value_probabilities(16)
    assert probabilities.tolist() == pytest.approx([0.9 + 0.1 / 16, *[0.1 / 16] * 15])
    np.save(tmp_path / "a.npy", np.full((2, 4, 4), 99))
    with pytest.raises(DataError, match="here: holds pixel 99, over 15, the most that the model takes"):
        load(str(tmp_path / "a.npy")).check_pixels(15, "here")


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 4000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is of mode I;16, expected 8 bits per channel"):
        load(str(tmp_path))
