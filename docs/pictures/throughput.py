"""Requests a second of this service and of its peers, read from the table that publishes them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from docs.pictures.style import BLUE, GREEN, ORANGE, SKY, chart

IMAGE = "throughput.svg"
DATA: tuple[str, ...] = ()

UNIT = ": requests/s"
PAGES = Path(__file__).parents[1]


def published() -> tuple[list[str], dict[str, list[int]]]:
    """Servers, and of each load the requests a second of every one, from whichever page has the table."""
    for page in sorted(PAGES.glob("*.md")):
        if header := re.search(r"^\| load \| (.*) \|$", page.read_text(), re.MULTILINE):
            rows = re.findall(rf"^\| (.*){UNIT} \| (.*) \|$", page.read_text(), re.MULTILINE)
            figures = {load: [int(cell.replace(",", "")) for cell in cells.split(" | ")] for load, cells in rows}
            return header[1].split(" | "), figures
    raise ValueError(f"a page of {PAGES} must have a table that begins with | load |")


def draw(path: Path, data_dir: Path) -> None:
    servers, loads = published()
    places, height = np.arange(len(loads)), 0.8 / len(servers)
    with chart(path, 4.2) as (axes,):
        for i, (server, colour) in enumerate(zip(servers, (BLUE, SKY, ORANGE, GREEN), strict=True)):
            bars = axes.barh(
                places + i * height, [rates[i] for rates in loads.values()], height * 0.92, color=colour, label=server
            )
            axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        names = [
            load.replace("single rows, JSON, ", "one row a request,\n").replace(" in JSON, ", " a request,\n")
            for load in loads
        ]
        axes.set_yticks(places + 0.4 - height / 2, names)
        axes.invert_yaxis()
        axes.set_xlabel("requests a second, each server alone on the same two cores")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="lower right")
        axes.grid(axis="x")
        axes.set_axisbelow(True)
