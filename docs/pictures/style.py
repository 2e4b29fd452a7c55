"""One look for all charts: sizes, and colours that people with any colour vision tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

# Okabe and Ito 2008 (Color Universal Design).
BLUE, ORANGE, GREEN, RED, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#6B6B6B"
INK, PAPER = "#1F2328", "#FFFFFF"  # on a page of any colour
WIDTH = 7.2  # inches, of a page's column
FONTS = "'DejaVu Sans', Verdana, sans-serif"  # of the same widths; a reader has one of them

_STYLE = Path(__file__).with_name("chart.mplstyle")


@contextmanager
def chart(path: Path, height: float, columns: int = 1) -> Iterator[list[Axes]]:
    """Axes side by side, saved to ``path`` (.svg or .png) when they are drawn."""
    with style.context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield list(figure.subplots(1, columns, squeeze=False).flat)
        _save(figure, path)


@contextmanager
def panels(path: Path, height: float, rows: int, columns: int) -> Iterator[list[list[Axes]]]:
    """A table of axes without frames, for pictures: rows of columns."""
    with style.context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for one in axes.flat:
            one.set(xticks=[], yticks=[])
            one.spines[:].set_visible(False)
        yield axes.tolist()
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    if path.suffix == ".svg":
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        lines = (line.rstrip() for line in text.getvalue().replace("'DejaVu Sans'", FONTS).splitlines())
        path.write_text("\n".join(lines) + "\n")
    else:
        pixels = BytesIO()
        figure.savefig(pixels, format="png", dpi=150)
        Image.open(pixels).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
