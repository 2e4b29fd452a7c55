"""What all commands share: help with examples, exit codes, errors of one line, outcomes and progress."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from tqdm import tqdm

from common.errors import Explained, UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DONE, FAILED, WRONG_USE, SOME_REJECTED, INTERRUPTED, NO_READER, TERMINATED = 0, 1, 2, 3, 130, 141, 143
EXIT_CODES = {
    DONE: "done",
    FAILED: "training diverged, a measured promise does not hold, or the program has a defect",
    WRONG_USE: "wrong use, or a file or service that fails; standard error tells in one line",
    SOME_REJECTED: "done, but rows that the model does not take were rejected",
    INTERRUPTED: "interrupted by Ctrl-C (SIGINT); what can go on, goes on from there",
    NO_READER: "whoever read the output has left, as head does",
    TERMINATED: "ended by SIGTERM; what can go on, goes on from there",
}
Number = TypeVar("Number", int, float)

_REPORT_S = 5.0  # between lines where there is no terminal


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, and whose help tells defaults and ends with examples.

    Commands that come to an ``outcome``, a dataclass, take ``--json`` to print it for a program: see ``tell``.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        examples: Sequence[str] = (),
        outcome: type[DataclassInstance] | None = None,
        codes: Iterable[int] = (DONE, WRONG_USE, INTERRUPTED),
    ) -> None:
        self.examples, self.codes = examples, sorted(codes)
        self.outcome_fields = [field.name for field in dataclasses.fields(outcome)] if outcome else []
        parts = {
            "examples": examples,
            "exit codes": [f"{code:<4} {EXIT_CODES[code]}" for code in self.codes],
        }
        epilog = "\n\n".join("\n  ".join([f"{title}:", *lines]) for title, lines in parts.items() if lines)
        super().__init__(prog, description=description, epilog=epilog, formatter_class=_Help)
        self.add_argument("--version", action="version", version=f"glow-service {version('glow-service')}")
        if outcome:
            self.add_argument(
                "--json",
                action="store_true",
                help="print the outcome as one JSON object, and nothing else, to standard output; its fields are "
                + ", ".join(self.outcome_fields),
            )

    def error(self, message: str) -> NoReturn:
        _, found, unknown = message.partition("unrecognized arguments: ")
        hint = did_you_mean(unknown.partition(" ")[0], self._option_string_actions) if found else ""
        raise UsageError(f"{message}{hint} (--help tells more)")


class _Help(argparse.HelpFormatter):
    """Wraps prose, leaves paragraphs with indented lines as they are, and tells the defaults of options."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        fill = super()._fill_text
        return "\n\n".join(part if "\n  " in f"\n{part}" else fill(part, width, indent) for part in paragraphs)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if not action.option_strings or default in (None, False, argparse.SUPPRESS) or default == []:
            return action.help
        shown = " ".join(map(str, default)) if isinstance(default, list) else f"{default}"
        return f"{action.help} (default: {shown.replace('%', '%%')})"


def did_you_mean(name: str, known: Iterable[str], question: str = "did you mean") -> str:
    """Ask for the known name that is nearest to a wrong one, as the end of an error; nothing where none is near."""
    nearest = difflib.get_close_matches(name, list(known), 1)
    return f"; {question} {nearest[0]!r}?" if nearest else ""


def check_output(out: Path, inputs: Mapping[str, Path], suffixes: Sequence[str] = ()) -> None:
    """Raise UsageError for what is no file name in a folder that exists, is one of the inputs, or has another suffix.

    Inputs are given by what each is.
    """
    if not out.parent.is_dir() or out.is_dir() or not out.name:
        raise UsageError(f"{out}: must be a file name in a folder that exists")
    for what, path in inputs.items():
        if out.exists() and path.exists() and out.samefile(path):
            raise UsageError(f"{out}: is the {what} itself, which is not overwritten; name another file")
    if suffixes and out.suffix not in suffixes:
        raise UsageError(f"{out}: must end in {' or '.join(suffixes)}")


def tell(outcome: DataclassInstance, as_json: bool) -> None:
    """Print what a command has come to, for a person or as one JSON object on a line, null for what is not finite."""
    if as_json:
        values = json.loads(json.dumps(dataclasses.asdict(outcome)), parse_constant=lambda _: None)
        print(json.dumps(values), flush=True)
    else:
        print(outcome, flush=True)


def note(text: str) -> None:
    """Tell whoever watches what goes on, on standard error, without tearing a progress bar."""
    with tqdm.external_write_mode(sys.stderr):
        print(text, file=sys.stderr, flush=True)


def listing(facts: Mapping[str, object]) -> str:
    """Lines of aligned names and values."""
    width = max(map(len, facts)) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in facts.items())


class Progress(AbstractContextManager["Progress"]):
    """How far long work is: a bar on a terminal, else a line on standard error every few seconds."""

    def __init__(
        self,
        verb: str,
        total: int | None,
        unit: str = "row",
        done: int = 0,
        shown: bool = True,
        every_s: float = _REPORT_S,
    ) -> None:
        self._verb, self._total, self._unit = verb, total, unit
        hidden = None if shown else True  # for None, where there is no terminal
        self._bar = tqdm(total=total, initial=done, unit=unit, unit_scale=True, desc=verb, leave=False, disable=hidden)
        self._begun = self._told = time.monotonic()
        self._first = self._done = done
        self._every_s = every_s
        self._silent = not shown
        self._news = ""

    def update(self, num: int, news: str = "", at_once: bool = False) -> None:
        """So many more, or fewer where work was undone; ``news`` stay until there are others, a line comes at once."""
        self._done += num
        self._news = news or self._news
        self._bar.update(num)
        if news:
            self._bar.set_postfix_str(news, refresh=False)
        now = time.monotonic()
        if self._bar.disable and not self._silent and (at_once or now - self._told >= self._every_s):
            self._told = now
            print(self._line(now), file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        of_all, left = "", ""
        if self._total is not None:
            of_all = f" of {self._total}"
            if self._first < self._done < self._total:
                seconds = (now - self._begun) / (self._done - self._first) * (self._total - self._done)
                left = f", {tqdm.format_interval(seconds)} left"
        return f"{self._verb} {self._done}{of_all} {self._unit}s{left}{self._news and f', {self._news}'}"

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run a command's main, and end with one of EXIT_CODES; what a user can cause is one line on standard error."""
    try:
        try:
            main(sys.argv[1:])
        finally:
            sys.stdout.flush()  # what goes wrong with it shows here, and not when the interpreter ends
    except BrokenPipeError:
        code = NO_READER
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (Explained, OSError, MemoryError) as error:
        print("error:", *explanation(error).split(), file=sys.stderr)
        code = WRONG_USE
    else:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(code) from None


def explanation(error: BaseException) -> str:
    """What an error tells whoever can mend it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'standard output'}: {error.strerror}"
    return str(error) or type(error).__name__


def share(text: str) -> float:
    """Take an argument between 0 and 1."""
    return number(text, float, "between 0 and 1", lambda value: 0 < value < 1)


def seconds(text: str) -> float:
    """Take an argument in seconds."""
    return number(text, float, "a positive number of seconds", lambda value: 0 < value < math.inf)


def count(text: str) -> int:
    """Take an argument that counts things."""
    return number(text, int, "a whole number of at least 1", lambda value: value >= 1)


def number(text: str, kind: Callable[[str], Number], rule: str, holds: Callable[[Number], bool]) -> Number:
    """Take an argument of a kind that keeps a rule."""
    with suppress(ValueError):
        value = kind(text)
        if holds(value):
            return value
    raise argparse.ArgumentTypeError(f"must be {rule}, got {text}")
