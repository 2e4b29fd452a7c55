"""The system: training writes an artifact, the service loads it, requests become batches."""

from __future__ import annotations

from pathlib import Path

from docs.pictures.diagram import Diagram
from docs.pictures.style import BLUE, GREEN, ORANGE, RED, SKY

IMAGE = "architecture.svg"
DATA: tuple[str, ...] = ()


def draw(path: Path, data_dir: Path) -> None:
    diagram = Diagram(880, 520, "Training writes an artifact; the service loads it and turns requests into batches")
    diagram.area(16, 14, 848, 128, "model/: once, where the data are")
    for x, title, *notes in (
        (36, "data", "images, tables"),
        (246, "train", "recipe.toml", "maximum likelihood"),
        (456, "checkpoint", "weights, optimiser"),
        (666, "export", "fold, script,", "calibrate, verify"),
    ):
        diagram.box(x, 44, 178, 82, title, *notes, colour=GREEN)
        if x > 36:
            diagram.arrow((x - 30, 85), (x - 3, 85))
    diagram.box(
        606, 180, 238, 84, "artifact, NAME.pt", "TorchScript program", "manifest, golden case, SHA-256", colour=ORANGE
    )
    diagram.arrow((755, 128), (755, 177))
    diagram.area(16, 284, 848, 222, "service/: one process a device", indent=108)
    diagram.arrow((755, 266), (755, 331))
    diagram.text(747, 305, "digest and golden case checked", "note", "end")
    clients = ((BLUE, 2), (SKY, 1), (RED, 3), (GREEN, 1))
    diagram.text(111, 204, "clients", "title")
    for i, (colour, rows) in enumerate(clients):
        x = 28 + 44 * i
        for row in range(rows):
            diagram.bar(x, 216 + 14 * row, 34, 10, colour)
    diagram.text(216, 226, "requests of one row", "note", "start")
    diagram.text(216, 243, "or of thousands: JSON,", "note", "start")
    diagram.text(216, 260, "npy, Arrow, PNG, /v2", "note", "start")
    diagram.arrow((106, 264), (106, 331))
    diagram.box(30, 334, 152, 90, "HTTP front", "keys, limits, quotas", "bodies to rows", "event loop")
    diagram.arrow((184, 379), (222, 379))
    diagram.box(225, 334, 180, 90, "row queue", colour=SKY)
    diagram.arrow((407, 379), (445, 379))
    diagram.box(448, 334, 160, 90, "pass", colour=SKY)
    column = 0
    for colour, rows in clients:
        for _ in range(rows):
            diagram.bar(241 + 21 * column, 396, 17, 14, colour)
            diagram.bar(464 + 18.5 * column, 396, 18, 14, colour)
            column += 1
    diagram.arrow((610, 379), (660, 379))
    diagram.box(663, 334, 181, 90, "engine", "plans measured here", "CPU or GPU, one thread", colour=ORANGE)
    diagram.arrow((755, 426), (755, 474), (106, 474), (106, 427))
    diagram.text(430, 467, "densities, scores and p-values, samples, codes: cut up again, each request its rows")
    diagram.text(430, 494, "nothing waits for more: a pass takes what is there when the engine is free")
    diagram.save(path)
