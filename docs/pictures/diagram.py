"""Boxes and arrows as SVG."""

from __future__ import annotations

from html import escape
from pathlib import Path

from docs.pictures.style import BLUE, FONTS, GREY, INK, PAPER

_STYLE = f"""\
text {{ font: 14px {FONTS}; fill: {INK}; }}
.title {{ font-weight: bold; }}
.note {{ font-size: 12.5px; fill: #4A4F55; }}
.arrow {{ stroke: {INK}; stroke-width: 1.6; fill: none; marker-end: url(#head); }}"""


class Diagram:
    """Lengths are in pixels of a drawing ``width`` wide; boxes are tinted in a colour of the style."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img">\n<title>{escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n'
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>\n'
            f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>\n'
        )
        self._parts: list[str] = []

    def area(self, x: float, y: float, width: float, height: float, title: str, indent: float = 12) -> None:
        """A dashed frame around other things."""
        self._rect(x, y, width, height, f'fill="none" stroke="{GREY}" stroke-dasharray="5 4"', 8)
        self.text(x + indent, y + 20, title, "title", "start")

    def box(self, x: float, y: float, width: float, height: float, title: str, *notes: str, colour: str = BLUE) -> None:
        """A box with a title, and smaller lines under it."""
        self._rect(x, y, width, height, f'fill="{colour}" fill-opacity="0.14" stroke="{colour}" stroke-width="1.5"', 6)
        top = y + height / 2 - 8.5 * len(notes) + 5
        for line, text in enumerate((title, *notes)):
            self.text(x + width / 2, top + 17 * line, text, "note" if line else "title")

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """A filled rectangle, such as a row of numbers."""
        self._rect(x, y, width, height, f'fill="{colour}"', 2)

    def text(self, x: float, y: float, text: str, kind: str = "note", anchor: str = "middle") -> None:
        """A line of text; ``kind`` is note or title."""
        self._parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>')

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through points, with a head at the last."""
        path = " L".join(f"{x:g},{y:g}" for x, y in points)
        self._parts.append(f'<path class="arrow" d="M{path}"/>')

    def save(self, path: Path) -> None:
        path.write_text(self._head + "\n".join(self._parts) + "\n</svg>\n")

    def _rect(self, x: float, y: float, width: float, height: float, looks: str, radius: int) -> None:
        self._parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" {looks}/>')
