"""The lock files are what pyproject.toml asks for: nothing missing, nothing out of range, every line hashed."""

import importlib.metadata
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("serve", "ray", "train", "test")
PYTHONS = ("3.11", "3.12", "3.13")
BY_DEVICE = re.compile(r"torch|triton|nvidia-.*|cuda-.*")  # which the device decides, and no lock


@cache
def locked(name: str) -> dict[str, str]:
    """Releases that a lock file pins, by package. Every pin has hashes, or this fails."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / "requirements" / f"{name}.txt").read_text(), flags=re.MULTILINE)
    pins = re.findall(r"^([a-z0-9-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n", text, re.MULTILINE)
    assert "".join(f"{package}=={release}{hashes}\n" for package, release, hashes in pins) == text.rstrip("\n") + "\n"
    return {package: release for package, release, _ in pins}


def asked(requirement: Requirement, python: str) -> list[Requirement]:
    """What an installed package asks for, with the extras that the requirement names, on Linux and such a Python."""
    name = canonicalize_name(requirement.name)
    if name == "glow-service":
        texts = [
            *PROJECT["dependencies"],
            *(t for e in requirement.extras for t in PROJECT["optional-dependencies"][e]),
        ]
    else:
        texts = importlib.metadata.requires(name) or []
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    extras = requirement.extras or {""}
    wanted = map(Requirement, texts)
    return [r for r in wanted if not r.marker or any(r.marker.evaluate({**environment, "extra": e}) for e in extras)]


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
