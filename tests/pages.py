"""Pages of the documentation and the code in them: found by a parser of Markdown, run as a reader would run it.

The blocks of a page are run in order in one folder, which holds the project's packages. Those in Python share one
namespace, those of the shell what they export. ``localhost:8000`` is a server of the shipped artifacts, or the one that
a block ``python -m service ...`` starts. A block ``text`` behind one that ran is what that one printed, where ``...``
may be anything. A block whose first line is ``# NAME`` is also a file of that name. A comment ``<!-- not run: REASON
-->`` directly before a block excuses it.
"""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import yaml
from latex2mathml.converter import convert
from markdown_it import MarkdownIt

from model.recipe import parse_recipe
from tests.kustomize import build
from tests.test_server import server

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = "bash"
# What a page may ask for that is not here, in a folder of its own without a network.
ABSENT = re.compile(r"\b(docker|helm|kubectl|make|pip|ray_app|RAY_\w+|serve run|torchrun|tensorboard|DATA|PID)\b")
NUM_STEPS = 20  # of a training, whatever the page says


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: Path
    line: int  # of its first line of code, from 1
    language: str
    code: str
    excuse: str | None  # why it is not run

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def serves(self) -> bool:
        """Whether it starts a server and nothing else."""
        return (
            self.language == SHELL and re.fullmatch(r"(GLOW_\w+=\S+ )*python -m service( .*)?\n", self.code) is not None
        )


@cache
def blocks(page: Path) -> list[Block]:
    """All blocks but those that Sphinx itself runs, ``{directive}``; indented ones have no language."""
    found: list[Block] = []
    before = None
    for token in MarkdownIt("commonmark").parse(page.read_text()):
        if token.type in ("fence", "code_block") and token.map and not token.info.startswith("{"):
            start = token.map[0]
            touches = before is not None and before.map is not None and before.map[1] == start
            excuse = re.fullmatch(r"<!-- not run: (.+) -->\n", before.content) if before and touches else None
            found.append(Block(page, start + 2, token.info, token.content, excuse and excuse[1]))
        before = token
    return found


class Reader:
    """Somebody who does what a page says, in a folder, beside a server that runs."""

    def __init__(self, folder: Path, address: Callable[[], str]) -> None:
        self.folder = folder
        self.servers = contextlib.ExitStack()
        self._address = address
        self._namespace: dict[str, Any] = {}
        self._printed: str | None = None  # by the block before
        for name in ("common", "model", "service"):
            (folder / name).symlink_to(ROOT / name)
        (folder / ".curlrc").write_text("fail-with-body\n")
        (folder / ".exported").touch()
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "CURL_HOME": str(folder),
            "OMP_NUM_THREADS": "1",
            "GLOW_THREADS": "1",
            "GLOW_PLAN": "frozen",  # measuring which is fastest takes seconds
        }

    def read(self, block: Block) -> None:
        """Run or validate a block. Raises what is wrong with it."""
        printed, self._printed = self._printed, None
        if block.serves:
            self._serve(block)
        elif block.language in (SHELL, "python"):
            self._printed = self._bash(block) if block.language == SHELL else self._python(block)
        elif block.language == "text":
            assert printed is not None or block.excuse, f"{block}: no block that printed something stands before it"
            if printed is not None:
                shown = re.sub(r"([\[*?])", r"[\1]", block.code.strip()).replace("...", "*")
                assert fnmatchcase(printed.strip(), shown), f"{block}: it printed\n{printed}"
        else:
            VALIDATORS[block.language](block.code)
            name = re.match(r"# ([\w.-]+)\n", block.code)
            if name:
                (self.folder / name[1]).write_text(fewer_steps(block.code))

    def _serve(self, block: Block) -> None:
        words = shlex.split(block.code)
        start = words.index("python")
        environment: dict[str, Any] = dict(word.split("=", 1) for word in words[:start])
        started = server(*words[start + 3 :], GLOW_PLAN="frozen", **environment)
        url, _ = self.servers.enter_context(started)
        self._address = lambda: url

    def _here(self, code: str) -> str:
        return (
            code.replace("localhost:8000", self._address().removeprefix("http://"))
            if "localhost:8000" in code
            else code
        )

    def _python(self, block: Block) -> str:
        """Run it in this process, with the lines that it has in its page."""
        code = compile("\n" * (block.line - 1) + fewer_steps(self._here(block.code)), str(block.page), "exec")
        if block.excuse:
            return ""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, self._namespace)  # noqa: S102 (our own pages' code)
        return printed.getvalue()

    def _bash(self, block: Block) -> str:
        if block.excuse:
            command = ["bash", "-n", "-c", block.code]
        else:
            script = f". ./.exported\n{fewer_steps(self._here(block.code))}\nexport -p > .exported"
            command = ["bash", "-eu", "-o", "pipefail", "-c", script]
        result = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, f"{block}: {result.stdout[-2000:]}{result.stderr[-2000:]}"
        return result.stdout


def fewer_steps(code: str) -> str:
    """The same training in a moment, in recipes, on command lines and of detectors."""
    code = re.sub(r"(\bsteps\"?(?: = |: ))\d+", rf"\g<1>{NUM_STEPS}", code)
    code = re.sub(r"(\bsteps=)\d+", rf"\g<1>{2 * NUM_STEPS}", code)  # of a run that goes on
    return re.sub(r"(\bevaluate_every = )\d+", rf"\g<1>{NUM_STEPS}", code)


def _recipe(code: str) -> None:
    parse_recipe(tomllib.loads(code), "the block")


def _manifests(code: str) -> None:
    for document in yaml.safe_load_all(code):
        if "kind" in document:
            kubernetes_validate.validate(document, "1.37", strict=True)
        else:  # a kustomization, beside a clone of this project
            found: list[dict[str, Any]] = []
            for name in [*document["resources"], *document["components"]]:
                build(ROOT / name.removeprefix("../glow-service/"), found)


VALIDATORS: dict[str, Callable[[str], object]] = {
    "toml": _recipe,
    "json": json.loads,
    "yaml": _manifests,
    "promql": promql_parser.parse,
    "math": convert,
}
RUN = {SHELL, "python", "text"}  # "text" being what was printed


@contextlib.contextmanager
def reader(folder: Path, address: Callable[[], str]) -> Iterator[Reader]:
    """A reader, whose servers end with it."""
    one = Reader(folder, address)
    with one.servers:
        yield one
