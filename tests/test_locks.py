"""The lock files are what pyproject.toml asks for: nothing missing, nothing out of range, every line hashed."""

import importlib.metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from reliability.supply import BY_DEVICE, ROOT, asked, locked

EXTRAS = ("serve", "ray", "train", "fuzz", "test")
PYTHONS = ("3.11", "3.12", "3.13")


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", EXTRAS)
def test_a_lock_has_all_that_its_extra_asks_for(extra: str, python: str) -> None:
    """Make lock mends it. What packages ask for in their turn is checked where the locked release is installed."""
    pins, seen = locked(extra), set()
    waiting = [Requirement(f"glow-service[{extra}]")]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if str(requirement) in seen or BY_DEVICE.fullmatch(name):
            continue
        seen.add(str(requirement))
        if name == "glow-service":
            waiting += asked(requirement, python)
            continue
        assert name in pins, f"requirements/{extra}.txt has no {requirement}: run make lock"
        assert requirement.specifier.contains(pins[name], prereleases=True), f"{requirement}: run make lock"
        if installed(name) == pins[name]:
            waiting += asked(requirement, python)


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@pytest.mark.parametrize("name", [*EXTRAS, "image"])
def test_a_lock_names_no_host_and_nothing_that_the_device_decides(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert "://" not in text
    assert "\n--" not in text  # no option
    assert [package for package in locked(name) if BY_DEVICE.fullmatch(package)] == []


def test_what_ships_is_what_is_tested() -> None:
    for name in ("serve", "ray", "train"):
        assert locked(name).items() <= locked("test").items()


def test_the_images_tools_are_locked() -> None:
    lines = (ROOT / "requirements" / "image.in").read_text().splitlines()
    for requirement in (Requirement(line) for line in lines if not line.startswith("#")):
        assert requirement.specifier.contains(locked("image")[canonicalize_name(requirement.name)])
