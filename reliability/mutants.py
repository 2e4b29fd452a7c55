"""Mutants: the code changed in one place at a time, and how many of the changes the tests notice.

``reliability/mutants.toml`` says which files make a group, which tests are to notice, and which of cosmic-ray's
operators change the code. Mutants that no test could notice, since they do the same, count as survivors. A mutant is
written into a copy of the tree and tested in a forked process that has the libraries imported already: a fraction of a
second instead of the three that importing torch takes.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from tqdm import tqdm

from benchmarks.arguments import at_least
from common.cli import DONE, FAILED, WRONG_USE, Parser, run_command
from common.errors import UsageError
from reliability import record

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
OURS = ("benchmarks", "common", "docs", "model", "reliability", "service", "tests")  # imported anew by each process
NEEDED = (*OURS, "pyproject.toml")  # of the tree, in a copy
MEMORY = 16 * 2**30  # bytes that a mutant may have
PROMISED = 0.85  # of the mutants of each group are noticed
KILLED, TIMEOUT, SURVIVED = "killed", "timeout", "survived"


class Batch(NamedTuple):
    """Files of a group, and the tests that are to notice changes of them, the quickest first."""

    group: str
    files: list[str]
    tests: list[str]


@dataclass(frozen=True)
class Mutant:
    """A file that is changed in one place."""

    group: str
    file: str
    operator: str
    line: int
    code: str
    tests: tuple[str, ...]
    timeout_s: int

    @property
    def id(self) -> str:
        """The same as long as the file is."""
        return hashlib.sha256(f"{self.file}\n{self.code}".encode()).hexdigest()[:16]

    def diff(self, source: str) -> str:
        return "\n".join(difflib.unified_diff(source.splitlines(), self.code.splitlines(), self.file, n=1, lineterm=""))


@dataclass(frozen=True)
class Result:
    """What became of a mutant."""

    id: str
    group: str
    file: str
    line: int
    operator: str
    outcome: str
    seconds: float
    diff: str


def batches(group: str) -> list[Batch]:
    """The files of a group."""
    return [Batch(group, entry["files"], entry["tests"]) for entry in CONFIG["groups"][group]]


def changes(file: str, operator: str) -> list[tuple[int, str]]:
    """Line and code of each change of a file by an operator, those that compile."""
    source, mutate = (ROOT / file).read_text(), get_operator(f"core/{operator}")()
    places = [start[0] for node in ast_nodes(get_ast(source)) for start, _ in mutate.mutation_positions(node)]
    found = []
    for occurrence, line in enumerate(places):
        # SyntaxError: the "*" of a signature; AttributeError: cosmic-ray knows no "except module.Error".
        with suppress(SyntaxError, AttributeError):
            code = mutate_code(source, mutate, occurrence)
            compile(code, file, "exec")
            if code != source:
                found.append((line, code))
    return found


def mutants_of(batch: Batch, timeout_s: int, jobs: int) -> list[Mutant]:
    """All changes of a batch's files, each once."""
    files = [path.relative_to(ROOT).as_posix() for pattern in batch.files for path in sorted(ROOT.glob(pattern))]
    kinds = list(itertools.product(files, CONFIG["operators"]))
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        found = pool.starmap(changes, kinds, chunksize=1)
    mutants = [
        Mutant(batch.group, file, operator, line, code, tuple(batch.tests), timeout_s)
        for (file, operator), changed in zip(kinds, found, strict=True)
        for line, code in changed
    ]
    return list({mutant.id: mutant for mutant in mutants}.values())


def in_child(work: Callable[[], int], timeout_s: int = 0) -> int:
    """Run in a forked process, to its exit code; minus the number of the signal that ended it, SIGALRM for the time."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setpgid(0, 0)
            signal.alarm(timeout_s)
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            code = work()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it has started
    return os.waitstatus_to_exitcode(status)


def run_tests(arguments: list[str], *plugins: object, keep_bytecode: bool = False) -> int:
    """Run pytest in this process, a forked one, on the tree in its folder; what it prints goes to a file there."""
    printed = os.open("printed", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(printed, descriptor)
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
    sys.path[:] = [os.getcwd(), *(entry for entry in sys.path if entry not in ("", str(ROOT), os.getcwd()))]
    sys.dont_write_bytecode = not keep_bytecode
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    from hypothesis import Phase, settings

    # An example that fails is enough; and the same ones come to every mutant, that no chance tells two apart.
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutants", phases=phases, database=None, derandomize=True, deadline=None)
    named = [option for plugin in CONFIG["plugins"] for option in ("-p", plugin)]
    fixed = ["-q", "--tb=no", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]
    options = [*fixed, *named, "--hypothesis-profile=mutants", "-o", "addopts="]
    return int(pytest.main([*options, *arguments], plugins=plugins))


class Baseline:
    """A plugin of pytest that notes what fails without a mutant."""

    def __init__(self) -> None:
        self.failed: set[str] = set()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def _note(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)


def import_libraries(tests: list[str]) -> None:
    """Import here what the tests import and is not ours, so that forked processes have it."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "modules"

        def tell() -> int:
            code = run_tests(["--collect-only", *tests], keep_bytecode=True)
            told.write_text("\n".join(sys.modules))
            return code

        in_child(tell)
        for name in told.read_text().splitlines():
            if name.split(".")[0] not in OURS:
                with suppress(Exception):
                    importlib.import_module(name)


_folder = Path()  # of this worker


def enter(folders: multiprocessing.SimpleQueue[str]) -> None:
    """Make a process of the pool one that works in a copy of its own."""
    global _folder
    _folder = Path(folders.get())
    os.chdir(_folder)


def test(work: tuple[Mutant, float]) -> Result | None:
    """Test a mutant, unless it is too late to begin."""
    mutant, deadline = work
    if time.time() > deadline:
        return None
    path = _folder / mutant.file
    source, status = path.read_text(), path.stat()
    bytecode = Path(importlib.util.cache_from_source(str(path)))
    bytecode.unlink(missing_ok=True)
    started = time.monotonic()
    path.write_text(mutant.code)
    try:
        code = in_child(lambda: run_tests(["-x", *mutant.tests]), mutant.timeout_s)
    finally:
        path.write_text(source)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    outcome = SURVIVED if code == 0 else TIMEOUT if code == -signal.SIGALRM else KILLED
    seconds = round(time.monotonic() - started, 2)
    return Result(
        mutant.id, mutant.group, mutant.file, mutant.line, mutant.operator, outcome, seconds, mutant.diff(source)
    )


def prepare(folder: Path, groups: list[str], jobs: int) -> tuple[list[Mutant], list[str]]:
    """Copy the tree, run the tests as they are, and list the mutants; also the tests that fail without any."""
    for name in NEEDED:
        source, ignore = ROOT / name, shutil.ignore_patterns("__pycache__", "images", "*.partial")
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy2(source, folder / name)
    os.chdir(folder)
    found: list[Mutant] = []
    left_out: set[str] = set()
    for batch in itertools.chain.from_iterable(map(batches, groups)):
        import_libraries(batch.tests)
        told = folder / "failed"

        def baseline(batch: Batch = batch, told: Path = told) -> int:
            plugin = Baseline()
            code = run_tests(batch.tests, plugin, keep_bytecode=True)
            told.write_text("\n".join(sorted(plugin.failed)))
            return code

        started = time.monotonic()
        code = in_child(baseline)
        seconds = time.monotonic() - started
        failed = told.read_text().split("\n") if told.stat().st_size else []
        if code not in (0, 1):
            raise UsageError(f"the tests of {batch.files} cannot be run, {code}:\n{(folder / 'printed').read_text()}")
        left_out |= set(failed)
        tests = [*batch.tests, *(f"--deselect={name}" for name in failed)]
        found += mutants_of(batch._replace(tests=tests), math.ceil(5 + 3 * seconds), jobs)
    return found, sorted(left_out)


def wilson(killed: int, run: int) -> list[float]:
    """95 % interval of a share of which ``run`` were drawn (Wilson 1927)."""
    z, p = 1.96, killed / run
    centre, half = p + z * z / (2 * run), z * math.sqrt(p * (1 - p) / run + z * z / (4 * run * run))
    return [round((centre + sign * half) / (1 + z * z / run), 4) for sign in (-1, 1)]


def figures(mutants: list[Mutant], results: dict[str, Result]) -> dict[str, Any]:
    """Of each group: mutants, those that were run, and what became of them."""
    told = {}
    for group in dict.fromkeys(mutant.group for mutant in mutants):
        ids = {mutant.id for mutant in mutants if mutant.group == group}
        outcomes = Counter(results[name].outcome for name in ids if name in results)
        run, noticed = outcomes.total(), outcomes[KILLED] + outcomes[TIMEOUT]
        told[group] = {
            "mutants": len(ids),
            "run": run,
            "killed": outcomes[KILLED],
            "timeout": outcomes[TIMEOUT],
            "survived": outcomes[SURVIVED],
            "share": round(noticed / run, 4) if run else None,
            "interval_95": wilson(noticed, run) if 0 < run < len(ids) else None,
        }
    return told


def main(argv: list[str]) -> None:
    """Test mutants, and keep what share of them was noticed; ends with 1 where one is below what is promised."""
    names = list(CONFIG["groups"])
    parser = Parser(prog="python -m reliability.mutants", description=__doc__, codes=(DONE, FAILED, WRONG_USE))
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--jobs", type=at_least(int, 1), default=1, help="copies of the tree that are tested at once")
    parser.add_argument("--sample", type=at_least(int, 1), help="mutants of each group, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn, and of the order")
    parser.add_argument("--seconds", type=at_least(float, 0), default=math.inf, help="begin no mutant later than this")
    parser.add_argument("--out", type=Path, default=Path("build/mutants.jsonl"), help="results; those noticed stay so")
    parser.add_argument("--keep", type=Path, help="where figures are kept (default: reliability/figures/mutants.json)")
    arguments = parser.parse_args(argv)
    groups = arguments.groups or names
    for group in groups:
        if group not in names:
            raise UsageError(f"GROUP must be one of {', '.join(names)}, got {group!r}")
    deadline = time.time() + arguments.seconds
    out = arguments.out.resolve()
    keep = arguments.keep and arguments.keep.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    known = [Result(**json.loads(line)) for line in out.read_text().splitlines()] if out.exists() else []
    results = {result.id: result for result in known}
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        first = Path(scratch) / "0"
        first.mkdir()
        mutants, left_out = prepare(first, groups, arguments.jobs)
        order = random.Random(arguments.seed)
        chosen: list[list[Mutant]] = []
        for group in groups:
            of_group = [mutant for mutant in mutants if mutant.group == group]
            chosen.append(order.sample(of_group, min(len(of_group), arguments.sample or len(of_group))))
        # One of each group in turn, so that what time is left for is a sample of each.
        turns = [mutant for turn in itertools.zip_longest(*chosen) for mutant in turn if mutant is not None]
        noticed = {name for name, result in results.items() if result.outcome != SURVIVED}
        waiting = [mutant for mutant in turns if mutant.id not in noticed]
        folders: multiprocessing.SimpleQueue[str] = multiprocessing.SimpleQueue()
        for job in range(arguments.jobs):
            folder = Path(scratch) / str(job)
            if job:
                shutil.copytree(first, folder)
            folders.put(str(folder))
        context = multiprocessing.get_context("fork")
        with out.open("a") as file, context.Pool(arguments.jobs, enter, (folders,)) as pool:
            done = pool.imap_unordered(test, ((mutant, deadline) for mutant in waiting))
            for result in tqdm(done, total=len(waiting), mininterval=10):
                if result is not None:
                    results[result.id] = result
                    file.write(json.dumps(asdict(result)) + "\n")
                    file.flush()
        os.chdir(ROOT)
    told = figures(mutants, results)
    before = record.read("mutants")["groups"] if keep is None and (record.FIGURES / "mutants.json").exists() else {}
    figures_of = {
        "promised": PROMISED,
        "tool": f"cosmic-ray {version('cosmic-ray')}, {len(CONFIG['operators'])} of its operators",
        "groups": {**before, **told},  # those of other runs too
        "tests_left_out": left_out,
    }
    record.keep("mutants", figures_of, keep)
    run = [results[mutant.id] for mutant in mutants if mutant.id in results]
    for result in sorted(run, key=lambda result: (result.file, result.line)):
        if result.outcome == SURVIVED:
            print(result.diff)
    print(json.dumps(figures_of, indent=2))
    shares = [group["share"] for group in told.values() if group["run"]]
    raise SystemExit(DONE if all(share >= PROMISED for share in shares) else FAILED)


if __name__ == "__main__":
    run_command(main)
