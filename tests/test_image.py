"""Pictures: pixel bytes stand for a model's values, whole or an error, and contributions show where they are high."""

import base64
import io
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from service.codecs import image
from service.errors import BadRequest, TooLarge, Unprocessable
from tests.wire import outcome, read_png

BYTES = (0.0, 255.0)


def picture(pixels: Any, mode: str | None = None, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    made = Image.fromarray(np.asarray(pixels, np.uint8))
    (made.convert(mode) if mode else made).save(stream, kind)
    return stream.getvalue()


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5))))
def test_a_grey_picture_is_read_as_its_pixels(pixels: Any) -> None:
    read = image.read(picture(pixels), (1, *pixels.shape), BYTES, "x")
    np.testing.assert_array_equal(read, pixels[None].astype(np.float32), strict=True)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 4), st.just(3))))
def test_a_colour_picture_is_read_as_three_planes(pixels: Any) -> None:
    read = image.read(picture(pixels), (3, *pixels.shape[:2]), BYTES, "x")
    np.testing.assert_array_equal(read, pixels.transpose(2, 0, 1).astype(np.float32), strict=True)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_eight_bits_is_read(mode: str) -> None:
    pixels = np.array([[0, 255, 0], [255, 0, 255]])
    for channels in (1, 3):
        read = image.read(picture(pixels, mode), (channels, 2, 3), BYTES, "x")
        np.testing.assert_array_equal(read, np.broadcast_to(pixels, (channels, 2, 3)))


def test_a_jpeg_is_read_nearly_as_it_was() -> None:
    pixels = np.add.outer(np.arange(16), np.arange(24)) * 5
    assert np.abs(image.read(picture(pixels, kind="JPEG"), (1, 16, 24), BYTES, "x")[0] - pixels).max() < 8


def test_pixel_bytes_stand_for_whole_values_of_the_range() -> None:
    """Byte 0 is the lowest value, 255 the highest, and what lies between is rounded to whole ones."""
    read = image.read(picture([[0, 17, 24, 26, 255]]), (1, 1, 5), (3.0, 18.0), "x")
    assert read.flatten().tolist() == [3, 4, 4, 5, 18]


def test_base64_pictures_come_as_one_array() -> None:
    pixels = [np.full((2, 3), value) for value in (5, 7)]
    texts = [base64.b64encode(picture(each)).decode() for each in pixels]
    np.testing.assert_array_equal(image.read_base64(texts, (1, 2, 3), BYTES)[:, 0], pixels)
    for wrong in ("%%%%", "é", texts[0][:-1]):
        with pytest.raises(BadRequest, match=r"inputs\[1\] is not base64"):
            image.read_base64([texts[0], wrong], (1, 2, 3), BYTES)
    with pytest.raises(BadRequest, match=r"inputs\[1\] is not a readable PNG or JPEG"):
        image.read_base64([texts[0], "AAAA"], (1, 2, 3), BYTES)


def test_what_is_no_picture_of_the_size_and_depth_is_refused_and_named() -> None:
    whole = picture(np.eye(30))
    for data in (b"", b"GIF89a", whole[: len(whole) // 2], picture(np.eye(30), kind="GIF")):
        with pytest.raises(BadRequest, match="x is not a readable PNG or JPEG"):
            image.read(data, (1, 30, 30), BYTES, "x")
    for shape in ((1, 3, 2), (1, 2, 2), (1, 3, 3)):
        with pytest.raises(Unprocessable, match=f"x is 3x2 pixels, expected {shape[2]}x{shape[1]}"):
            image.read(picture(np.zeros((2, 3))), shape, BYTES, "x")
    stream = io.BytesIO()
    Image.fromarray(np.zeros((1, 1), np.uint16)).save(stream, "PNG")
    with pytest.raises(Unprocessable, match="x is of mode I;16, expected 8 bits per channel"):
        image.read(stream.getvalue(), (1, 1, 1), BYTES, "x")


@given(st.binary(max_size=30), st.integers(0, 60))
def test_any_bytes_are_a_picture_or_an_error_of_the_service(patch: bytes, start: int) -> None:
    data = picture([[1, 2], [3, 4]])
    outcome(lambda: image.read(data[:start] + patch + data[start + len(patch) :], (1, 2, 2), BYTES, "x"))


def test_a_comment_that_unpacks_to_more_than_it_may_is_refused() -> None:
    """A picture that a body of some hundred bytes holds may not ask for a megabyte of memory."""
    from PIL.PngImagePlugin import PngInfo

    for size, fits in ((2**16 - 100, True), (2**16 + 100, False)):
        comment = PngInfo()
        comment.add_text("a", "a" * size, zip=True)
        stream = io.BytesIO()
        Image.fromarray(np.zeros((1, 1), np.uint8)).save(stream, "PNG", pnginfo=comment)
        if fits:
            image.read(stream.getvalue(), (1, 1, 1), BYTES, "x")
        else:
            with pytest.raises(BadRequest):
                image.read(stream.getvalue(), (1, 1, 1), BYTES, "x")


@pytest.mark.parametrize(
    ("num", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (5, 2, 3), (7, 3, 3), (10, 3, 4)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_each_image_once_in_rows_and_is_black_behind_the_last(
    num: int, rows: int, columns: int, channels: int
) -> None:
    images = np.random.default_rng(0).integers(1, 256, (num, channels, 4, 5))
    grid = read_png(image.write_grid(images, BYTES)).reshape(4 * rows, 5 * columns, channels)
    for i in range(rows * columns):
        row, column = divmod(i, columns)
        tile = grid[4 * row : 4 * row + 4, 5 * column : 5 * column + 5].transpose(2, 0, 1)
        np.testing.assert_array_equal(tile, images[i] if i < num else 0)


def test_values_of_a_range_are_written_as_the_bytes_that_are_read_as_them_and_others_are_clamped() -> None:
    values = np.array([[[[-4.0, -1.0, -0.6, 2.0, 3.0, 6.0, 60.0]]]])
    assert read_png(image.write_grid(values, (-1.0, 6.0))).tolist() == [[0, 0, 15, 109, 146, 255, 255]]


def test_pixels_of_an_overlay_are_repeated_until_they_can_be_seen() -> None:
    scales = {side: image.overlay_scale(side, 1) for side in (1, 8, 28, 32, 33, 500)}
    assert scales == {1: 128, 8: 16, 28: 4, 32: 4, 33: 4, 500: 4}
    assert image.overlay_scale(2, 16) == image.overlay_scale(16, 2) == 8


def test_overlays_may_have_so_many_pixels_and_no_more() -> None:
    most = 2**24 // (128 * 64)  # of images of 16x8, eight times as large
    image.check_overlays((most, 1, 16, 8))
    with pytest.raises(
        TooLarge, match=f"a PNG of {most + 1} explanations has {(most + 1) * 8192} pixels; .* of {most} im"
    ):
        image.check_overlays((most + 1, 1, 16, 8))


def overlay(contributions: Any, level: float = 100.0, channels: int = 1) -> Any:
    """The overlay of one image of one grey, a pixel of it a pixel."""
    height, width = np.shape(contributions)
    images = np.full((1, channels, height, width), level)
    scale = image.overlay_scale(height, width)
    pixels = read_png(image.write_overlays(images, np.array([contributions], float), BYTES))
    assert pixels.shape == (height * scale, width * scale, 3)
    np.testing.assert_array_equal(pixels, pixels[::scale, ::scale].repeat(scale, 0).repeat(scale, 1))
    return pixels[::scale, ::scale].astype(int)


def test_an_overlay_shows_the_image_where_contributions_are_at_most_their_median() -> None:
    pixels = overlay([[-9.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    assert (pixels.reshape(-1, 3)[:5] == 100).all()
    assert overlay(np.zeros((2, 2)), 70.0, channels=3).tolist() == [[[70, 70, 70]] * 2] * 2  # none is higher


def test_the_highest_contributions_are_in_the_brightest_colour_through_which_the_image_is_still_seen() -> None:
    ramp = np.linspace(0, 1, 400).reshape(20, 20)
    for level in (0.0, 200.0):
        pixels = overlay(ramp, level).reshape(-1, 3)
        assert pixels[-1].tolist() == np.round(0.85 * np.array([252, 255, 164]) + 0.15 * level).tolist()
        assert (pixels[-2:] == pixels[-1]).all()  # beyond the quantile 0.995 all are alike
        assert not (pixels[-4] == pixels[-1]).all()


def test_colours_of_an_overlay_are_those_of_inferno_the_denser_the_higher() -> None:
    """At the median the first of eight colours, of which nothing is seen, and in equal steps to the last."""
    colours = np.round(matplotlib.colormaps["inferno"](np.linspace(0, 1, 8))[:, :3] * 255)
    contributions = np.zeros((100, 100))
    contributions.flat[-60:] = 7  # so that the quantile 0.995 is 7
    contributions.flat[:8] = np.arange(8)
    for level in (0.0, 100.0):
        opacity = 0.85 * np.arange(8)[:, None] / 7
        expected = np.round((1 - opacity) * level + opacity * colours)
        np.testing.assert_array_equal(overlay(contributions, level)[0, :8], expected)
    between = overlay(np.where(contributions == 3, 3.5, contributions), 0.0)[0, 3]
    np.testing.assert_allclose(between, 0.85 * 0.5 * colours[3:5].mean(0), atol=0.5)


def test_an_overlay_is_of_the_mean_of_the_channels() -> None:
    images = np.stack([np.full((1, 2, 2), value) for value in (30.0, 60.0, 120.0)], 1)
    pixels = read_png(image.write_overlays(images, np.zeros((1, 2, 2)), BYTES))
    assert (pixels == 70).all()
