"""Fuzz readers of bytes from outside: ``python -m reliability.fuzz [TARGET ...] --seconds 10``."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common.cli import DONE, FAILED, WRONG_USE, Parser, count, did_you_mean, listing, run_command, seconds, tell
from common.errors import UsageError
from common.extras import require
from reliability import record
from reliability.fuzz.code import ROOT, digest_of
from reliability.fuzz.limits import HANG_S, MAX_BYTES, MAX_GROWTH_MB, MAX_RSS_MB, MAX_SECONDS
from reliability.fuzz.table import CORPUS, kept, module_of, targets

WORK = ROOT / "build" / "fuzz"
MAX_KEPT = 64  # inputs of a target
_OF_CONTENT = re.compile("[0-9a-f]{16}")  # names of those that are kept for what they reach


@dataclass(frozen=True)
class Campaign:
    """What fuzzing a target came to."""

    target: str
    inputs: int
    seconds: float
    inputs_per_s: int
    findings: int  # inputs that broke a promise, ended the process or never ended
    peak_rss_mb: int
    slowest_ms: float  # input, of the processor
    code: str  # digest of what was fuzzed

    def __str__(self) -> str:
        return listing(vars(self))

    def plus(self, before: dict[str, Any]) -> Campaign:
        """This and what campaigns before it came to."""
        inputs, seconds = self.inputs + before["inputs"], self.seconds + before["seconds"]
        return replace(
            self,
            inputs=inputs,
            seconds=seconds,
            inputs_per_s=round(inputs / seconds),
            peak_rss_mb=max(self.peak_rss_mb, before["peak_rss_mb"]),
            slowest_ms=max(self.slowest_ms, before["slowest_ms"]),
        )


def parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        "python -m reliability.fuzz",
        "Fuzz readers of bytes from outside, one after the other, and keep the figures. What breaks a promise is left "
        "in build/fuzz/TARGET/findings, and read again by the next campaign.",
        examples=["python -m reliability.fuzz", "python -m reliability.fuzz json npy --seconds 600 --add"],
        outcome=Campaign,
        codes=(DONE, FAILED, WRONG_USE),
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"some of {', '.join(targets())} (default: all)")
    parser.add_argument("--seconds", type=seconds, default=10.0, metavar="S", help="of each target")
    parser.add_argument("--runs", type=count, metavar="N", help="inputs of each target, at most")
    parser.add_argument("--add", action="store_true", help="add to the figures of earlier campaigns over the same code")
    parser.add_argument("--minimize", action="store_true", help="keep a small corpus of what was found, and fuzz not")
    return parser


def main(argv: list[str]) -> None:
    """Run campaigns, and keep their figures; exit code 1 where anything was found."""
    require("fuzz", "atheris")
    from reliability.fuzz import campaign

    campaign.load()
    logging.disable(logging.WARNING)  # of the readers
    args = parser().parse_args(argv)
    found = 0
    for name in args.targets or targets():
        if name not in targets():
            raise UsageError(f"no target {name!r}{did_you_mean(name, targets())}")
        if args.minimize:
            minimize(name)
            keep(None)
            continue
        figures = fuzz(name, args.seconds, args.runs)
        tell(figures, args.json)
        keep(figures, args.add)
        found += figures.findings
    raise SystemExit(FAILED if found else DONE)


def fuzz(name: str, for_s: float, runs: int | None) -> Campaign:
    """Fuzz a target, from its seeds, its kept corpus and what earlier campaigns found on."""
    corpus, findings = WORK / name / "corpus", WORK / name / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for found in findings.iterdir():
        found.replace(corpus / found.name) if found.suffix != ".txt" else found.unlink()
    for i, seed in enumerate(targets()[name].seeds()):
        (corpus / f"seed-{i}").write_bytes(seed)
    words = WORK / name / "words"
    escaped = ("\\x" + word.hex(" ").replace(" ", "\\x") for word in targets()[name].words)
    words.write_text("".join(f'"{word}"\n' for word in escaped))
    options = [f"-max_total_time={math.ceil(for_s)}", *([f"-runs={runs}"] if runs else [])]
    options += [f"-dict={words}"] if targets()[name].words else []
    told = _libfuzzer(name, options, [corpus, *([CORPUS / name] if kept(name) else [])])
    inputs = int(_figure(told, r"stat::number_of_executed_units: +(\d+)"))
    taken_s = _figure(told, r"Done \d+ runs in (\d+) second")
    return Campaign(
        target=name,
        inputs=inputs,
        seconds=taken_s,
        inputs_per_s=round(inputs / max(1.0, taken_s)),
        findings=len([path for path in findings.iterdir() if path.suffix != ".txt"]),
        peak_rss_mb=int(_figure(told, r"stat::peak_rss_mb: +(\d+)")),
        slowest_ms=_figure(told, r"slowest_ms: ([\d.]+)"),
        code=digest_of(module_of(name)),
    )


def keep(campaign: Campaign | None, add: bool = False) -> None:
    """Keep the figures of a campaign beside those of other targets; ``add`` to its own where its code is the same.

    And how many inputs are kept of each.
    """
    figures: dict[str, Any] = {}
    with suppress(FileNotFoundError):
        figures = record.read("fuzz")["targets"]
    if campaign is not None:
        before = figures.get(campaign.target)
        if add and before is not None and before["code"] == campaign.code:
            campaign = campaign.plus(before)
        figures[campaign.target] = asdict(campaign)
        del figures[campaign.target]["target"]
    figures = {name: {**figures[name], "corpus": len(kept(name))} for name in targets() if name in figures}
    totals = {name: sum(each[name] for each in figures.values()) for name in ("inputs", "findings", "corpus")}
    limits: dict[str, float] = {"max_input_bytes": MAX_BYTES, "max_rss_mb": MAX_RSS_MB, "hang_s": HANG_S}
    limits |= {"max_input_s": MAX_SECONDS, "max_input_growth_mb": MAX_GROWTH_MB}
    record.keep("fuzz", {**totals, "limits": limits, "targets": figures})


def minimize(name: str) -> None:
    """Keep few of all inputs of a target that were found, with those that have names of their own."""
    from reliability.fuzz.cover import smallest

    of_content = [path for path in kept(name) if _OF_CONTENT.fullmatch(path.name)]
    found = [path.read_bytes() for path in (*of_content, *(WORK / name / "corpus").glob("*"))]
    chosen = smallest(targets()[name], (data for data in found if len(data) <= MAX_BYTES))
    for path in of_content:
        path.unlink()
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    for data in chosen[:MAX_KEPT]:
        (CORPUS / name / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def _libfuzzer(name: str, options: list[str], folders: list[Path]) -> str:
    """Run libFuzzer in a process of its own, which has all that this one has imported; returns what it told."""
    from reliability.fuzz import campaign

    findings, log = WORK / name / "findings", WORK / name / "log"
    arguments = [
        *(f"-artifact_prefix={findings}/", f"-max_len={MAX_BYTES}", f"-rss_limit_mb={MAX_RSS_MB}"),
        *(f"-timeout={HANG_S}", "-print_final_stats=1", *options, *map(str, folders)),
    ]
    sys.stdout.flush()
    process = os.fork()
    if not process:
        try:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            campaign.fuzz(targets()[name], findings, arguments)
        finally:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(process, 0)
    told = log.read_text(errors="replace")
    if status and not any(findings.iterdir()):
        raise UsageError(f"{log}: the campaign broke off: {told[-300:]}")
    return told


def _figure(told: str, pattern: str) -> float:
    """The last number of a kind that was told; 0 where none was."""
    return float((re.findall(pattern, told) or [0])[-1])


if __name__ == "__main__":
    run_command(main)
