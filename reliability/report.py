"""Write the tables of docs/reliability.md from the figures that were kept: ``python -m reliability.report``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.cli import Parser, run_command
from docs import tables
from reliability import record

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BOUND = 3.0  # times the p99 of small clients alone, beside a huge one

Figures = dict[str, Any]


def _table(headings: str, rows: Sequence[Sequence[object]]) -> str:
    lines = [f"| {headings} |", "|---" * (headings.count("|") + 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def _measured(figures: Figures) -> str:
    return f"{figures['machine']}, {figures['date']}"


def _trend(of: Sequence[float] | None, unit: str) -> str:
    return "" if of is None else f"{of[0]:+.1f} ({of[1]:+.1f} to {of[2]:+.1f}){unit}"


def _statuses(of: dict[str, int]) -> str:
    return ", ".join(f"{status}: {times:,}" for status, times in of.items()) or "none"


def promises(of: dict[str, Figures]) -> str:
    """What is promised, what holds it, and what that showed last."""
    faults, soak, mutants = of["chaos"]["faults"], of["soak"], of["mutants"]["groups"]
    sent, wrong, lost = (sum(fault[name] for fault in faults) for name in ("requests", "wrong", "lost"))
    slowest = max(fault["recovery_s"] or 0 for fault in faults)
    ends = [fault for fault in faults if fault["fault"].startswith(("SIGTERM", "an artifact is exchanged"))]
    worst = max(soak["crowds"], key=lambda one: one["times"])
    levels = {level["times"]: level for level in soak["levels"]}
    held = soak["held"]
    killed = ", ".join(f"{name} {100 * group['share']:.0f} %" for name, group in mutants.items())
    rows = [
        (
            "A request is answered once, with its own rows, or refused with a documented code, whatever fails",
            "`tests/test_batcher_states.py`, `make chaos`",
            f"{sent:,} requests around {len(faults)} kinds of fault: {wrong} wrong, {lost} lost",
        ),
        (
            "`/livez` and `/readyz` tell the truth; the service is well again by itself, or ends to be started again",
            "`make chaos`",
            f"well again, or ended, after at most {slowest:.1f} s",
        ),
        (
            "A reload and an end lose no request",
            "`tests/test_lifecycle.py`, `make chaos`, `make bench-lifecycle`",
            f"{sum(one['requests'] for one in ends):,} requests around {sum(one['rounds'] for one in ends)} of them at "
            f"random times: {sum(one['lost'] + one['ended'] for one in ends)} lost",
        ),
        (
            "A lost host of a Ray cluster makes no answer wrong and no retried call fail",
            "`tests/test_ray_app.py`, `make bench-node-loss`",
            "[Ray](ray.md#a-node-is-lost)",
        ),
        (
            "Files are written as a whole or not at all, and work goes on where it stopped, to the same bytes",
            "`tests/test_train.py`, `tests/test_bulk_resume.py`, `make chaos`",
            "the same bits after full disks and kills",
        ),
        (
            "No body, header or file ends the process, holds it up, or is answered with a 500",
            "`tests/test_fuzz.py`, `tests/test_hostile.py`, `make fuzz`",
            f"{of['fuzz']['inputs']:,} inputs, {of['fuzz']['findings']} findings left",
        ),
        (
            "A row has one score: the same bits by every transport, in any batch and order, where answers are "
            "`reproducible`, else within 1e-3 nats + 1e-6 of the value",
            "`tests/test_statistics.py`, `tests/contract/test_wire.py`",
            "the same bits",
        ),
        (
            "p-values of normal rows are uniform, so an alarm at alpha is false as often as alpha says",
            "`tests/test_statistics.py`, `make bench-false-alarms`",
            "[False alarms](benchmarks.md#false-alarms)",
        ),
        (
            "Samples of the service are those of the model",
            "`tests/test_statistics.py`",
            "not told apart (Kolmogorov-Smirnov)",
        ),
        (
            "Memory, files and threads do not grow with what was asked",
            "`make soak`",
            f"{soak['requests']:,} requests in {soak['minutes']:.0f} minutes: {held['memory_mb']['last']:.0f} MB, "
            f"{_trend(held['memory_mb']['an_hour'], ' MB an hour')}; {held['files']['last']:.0f} files",
        ),
        (
            "Above its peak the service goes on answering what it can, and refuses the rest at once",
            "`make soak`, `make bench-overload`",
            "; ".join(
                f"{100 * levels[n]['answered_of_peak']:.0f} % of the peak at {n:g} times it" for n in (2.0, 10.0)
            ),
        ),
        (
            f"One huge client does not raise the p99 of a thousand small ones above {BOUND:g} times what it is alone",
            "`tests/test_row_queue.py`, `make soak`",
            f"{sum(one['times'] <= BOUND for one in soak['crowds'])} of {len(soak['crowds'])} mixtures; the worst "
            f"{worst['times']:.1f} times (`{worst['model']}`, {worst['beside']})",
        ),
        (
            f"The tests notice {100 * of['mutants']['promised']:.0f} % of all small changes of bijections, batcher, "
            "codecs and scores",
            "`make mutants`",
            killed,
        ),
        (
            "What comes from others is pinned by its hash and has a licence that allows it",
            "`tests/test_locks.py`, `make check`, `make supply`",
            "[Dependencies](dependencies.md)",
        ),
    ]
    return _table("promise | held by | last figure", rows)


def _requests(fault: Figures) -> tuple[object, ...]:
    if not fault["requests"]:  # of a command
        return ("",) * 5
    numbers = (f"{fault['requests']:,}", f"{fault['ok']:,}")
    return *numbers, _statuses(fault["refused"]), f"{fault['ended']:,}", fault["wrong"] + fault["lost"]


def faults(of: dict[str, Figures]) -> str:
    """What was broken, how often, and what became of the requests meanwhile."""
    rows = [
        (
            fault["fault"],
            fault["promise"],
            f"{fault['rounds']:,}",
            *_requests(fault),
            "" if fault["recovery_s"] is None else f"{fault['recovery_s']:.1f}",
        )
        for fault in of["chaos"]["faults"]
    ]
    headings = "fault | promise | times | requests | answered | refused | ended | wrong or lost | well or over after, s"
    told = f"{_measured(of['chaos'])}; {of['chaos']['profile']}, {of['chaos']['seconds']:.0f} s."
    return f"{_table(headings, rows)}\n\n{told}"


def fuzz(of: dict[str, Figures]) -> str:
    """Inputs of each decoder."""
    rows = [
        (
            f"`{name}`",
            f"{target['inputs']:,}",
            f"{target['inputs_per_s']:,.0f}",
            target["corpus"],
            target["findings"],
            f"{target['peak_rss_mb']:,.0f}",
            f"{target['slowest_ms']:,.1f}",
        )
        for name, target in of["fuzz"]["targets"].items()
    ]
    headings = "decoder | inputs | a second | kept | findings left | most memory, MB | slowest, ms"
    return f"{_table(headings, rows)}\n\n{_measured(of['fuzz'])}; {of['fuzz']['inputs']:,} inputs in all."


def levels(of: dict[str, Figures]) -> str:
    """Images at so many times what can be answered."""
    rows = [
        (
            f"{level['times']:g}",
            _statuses(level["statuses"]),
            f"{100 * level['answered_of_peak']:.0f} %",
            f"{level['p50_ms']:,.0f}",
            f"{level['p99_ms']:,.0f}",
            f"{level['refusal_p99_ms']:,.0f}" if "429" in level["statuses"] else "",
            _trend(level["drift_percent_an_hour"]["p50_ms"], " %"),
            _trend(level["drift_percent_an_hour"]["p99_ms"], " %"),
        )
        for level in of["soak"]["levels"]
    ]
    headings = (
        "times | statuses | answered, of the peak | p50, ms | p99, ms | p99 of refusals, ms | p50 an hour | p99 an hour"
    )
    soak = of["soak"]
    told = (
        f"{_measured(soak)}; {soak['minutes']:.0f} minutes, {soak['rounds']} rounds, {soak['workers']} process. Peak: "
        f"{soak['peak']['first']:.1f} requests/s before, {soak['peak']['last']:.1f} after. CPUs that others kept busy "
        f"meanwhile: {soak['foreign_cpus']:.2f}."
    )
    return f"{_table(headings, rows)}\n\n{told}"


def held(of: dict[str, Figures]) -> str:
    """What the process holds when nothing is asked."""
    names = {"memory_mb": "memory, MB", "files": "open files", "threads": "threads"}
    rows = []
    for name, what in names.items():
        one = of["soak"]["held"][name]
        slope = one["an_hour"]
        week = "" if slope is None else f"{one['last'] + 168 * max(0.0, slope[0]):,.0f}"
        middle = statistics.median(one["values"])
        rows.append((what, f"{one['first']:.0f}", f"{middle:.0f}", f"{one['last']:.0f}", _trend(slope, ""), week))
    mix = of["soak"]["mix"]
    told = (
        f"The mix: {mix['requests']:,} requests, {mix['failed_connections']} failed connections, every status with the "
        f"share that is due; beside it {', '.join(f'{times:,} {what}' for what, times in mix['beside'].items())}. Its "
        f"p99 of {mix['p99_ms']:.0f} ms changes by {_trend(mix['drift_percent_an_hour'], ' % an hour')}."
    )
    headings = "held | at first | median | at last | an hour (95 %) | in a week, at that slope"
    return f"{_table(headings, rows)}\n\n{told}"


def crowds(of: dict[str, Figures]) -> str:
    """Small clients beside a huge one."""
    rows = [
        (
            f"`{one['model']}`",
            one["beside"],
            f"{one['alone_p99_ms']:.1f}",
            f"{one['p99_ms']:.1f}",
            f"{one['times']:.1f}",
        )
        for one in of["soak"]["crowds"]
    ]
    return _table("model | the huge client asks for | p99 of small ones alone, ms | beside it, ms | times", rows)


def mutants(of: dict[str, Figures]) -> str:
    """Changes of the code, and whether the tests noticed."""
    rows = [
        (
            name,
            f"{group['mutants']:,}",
            f"{group['run']:,}",
            f"{group['killed'] + group['timeout']:,}",
            group["survived"],
            f"{100 * group['share']:.1f} %",
        )
        for name, group in of["mutants"]["groups"].items()
    ]
    headings = "group | mutants | tried | noticed | not noticed | share"
    return f"{_table(headings, rows)}\n\n{_measured(of['mutants'])}; {of['mutants']['tool']}."


PARTS = ("chaos", "fuzz", "mutants", "soak")
TABLES: dict[str, Callable[[dict[str, Figures]], str]] = {
    "promises": promises,
    "faults": faults,
    "fuzz": fuzz,
    "levels": levels,
    "held": held,
    "crowds": crowds,
    "mutants": mutants,
}


def main(argv: list[str]) -> None:
    """Write the page's tables."""
    parser = Parser(prog="python -m reliability.report", description=__doc__)
    parser.parse_args(argv)
    kept = {part: record.read(part) for part in PARTS}
    tables.write(PAGE, {name: table(kept) for name, table in TABLES.items()})


if __name__ == "__main__":
    run_command(main)
