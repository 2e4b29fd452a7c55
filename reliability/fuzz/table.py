"""All targets by name."""

from __future__ import annotations

from pathlib import Path

from reliability.fuzz import answers, artifacts, bodies, files, oip, options, pictures, wire

TARGETS = {
    target.name: target
    for module in (bodies, pictures, oip, options, files, artifacts, answers, wire)
    for target in module.TARGETS
}
CORPUS = Path(__file__).with_name("corpus")


def kept(name: str) -> list[Path]:
    """Inputs of a target that are kept: those that reached code that no other did, and those that broke something."""
    return sorted(path for path in (CORPUS / name).glob("*") if path.is_file())
