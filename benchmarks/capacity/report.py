"""Write the tables of docs/capacity.md from what was measured: ``python -m benchmarks.capacity.report``.

The line of docs/benchmarks.md, too. Loads are planned anew, which takes a minute.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.capacity.inputs import Inputs, read_inputs
from benchmarks.capacity.plan import Answer, ask, most_of_one, on_device
from benchmarks.capacity.system import Deployment, Load, Network
from benchmarks.capacity.validate import TOLERANCE, VALIDATED, Check, Checks, table
from common.cli import Parser, run_command
from docs import tables

PAGE = Path(__file__).parents[2] / "docs" / "capacity.md"
BENCHMARKS = PAGE.with_name("benchmarks.md")
CORES = {"cpu": 2.0, "cuda": 16.0}
PRICES = {"cpu": 0.10, "cuda": 4.00}  # of an hour: assumptions, named in the page
LINK = Network(latency_s=0.0001, bytes_per_s=10e9 / 8)
P99_S = 0.5
RATES = (1_000, 100_000)
BODIES = (("json", 1), ("npy", 1), ("npy", 32))
HEADINGS = "requests/s | model | body | device | machines | p99 ms | Gbit/s | breaks first | hours a million | cost"


def costs(inputs: Inputs) -> str:
    """Costs of a request on the event loop, and of passes."""
    lines = ["| model | body | event loop, ms | request bytes | answer bytes |", "|---" * 5 + "|"]
    for model, of in inputs.models.items():
        for media, bodies in of.bodies.items():
            for one in bodies:
                lines.append(
                    f"| `{model}` | {one.rows} {media} | {1e3 * one.loop_s:.3f} | {one.request_bytes:,.0f} | "
                    f"{one.answer_bytes:,.0f} |"
                )
    told = f"{inputs.machine}, {inputs.date}. CPUs that others kept busy meanwhile: median {inputs.foreign_cpus:.2f}."
    return "\n".join([*lines, "", told])


def passes(inputs: Inputs) -> str:
    """Seconds of passes by rows."""
    lines = ["| model | rows of a pass | flow, ms | scores, ms | rows/s |", "|---" * 5 + "|"]
    for model, of in inputs.models.items():
        for one in of.passes:
            seconds = inputs.engine_pass_s + one.flow_s + one.scores_s
            lines.append(
                f"| `{model}` | {one.rows:,} | {1e3 * one.flow_s:.2f} | {1e3 * one.scores_s:.2f} | "
                f"{one.rows / seconds:,.0f} |"
            )
    return "\n".join(lines)


def ray(inputs: Inputs) -> str:
    """What Ray Serve adds to a request."""
    lines = [
        "| ingress | one at a time, p50 ms | its CPU, ms | proxy, ms | replica beside the service, ms | waiting, ms | "
        "bound of one proxy, requests/s |",
        "|---" * 7 + "|",
        f"| none, uvicorn | {1e3 * inputs.plain_p50_s:.2f} | {1e3 * inputs.plain_cpu_s:.2f} | | | | |",
    ]
    for name, one in inputs.ingresses.items():
        proxy = one.proxy_s + one.proxy_beside_s
        replica = one.replica_s + one.replica_beside_s
        lines.append(
            f"| {name} | {1e3 * one.p50_s:.2f} | {1e3 * one.cpu_s:.2f} | {1e3 * proxy:.2f} | {1e3 * replica:.2f} | "
            f"{1e3 * one.wait_s:.2f} | {one.proxy_threads / one.proxy_s:,.0f} |"
        )
    return "\n".join(lines)


def line(rate: float, load: Load, device: str, found: Answer) -> str:
    """One load of the answers."""
    cells = [
        f"{rate:,.0f}",
        f"`{load.model}`",
        f"{load.rows} {load.media}",
        {"cpu": "CPU", "cuda": "GPU"}[device],
        f"{found.replicas:,}",
        f"{1e3 * found.p99:.0f}",
        f"{found.gbit:.2f}",
        found.bound_by,
        f"{found.machine_hours:.3f}",
        f"${found.cost:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def answer(inputs: Inputs, rate: float, load: Load, device: str) -> str:
    """Plan a load and write its line."""
    what = Deployment(cores=CORES[device], balance="least", network=LINK)
    return line(rate, load, device, ask(inputs, what, load, device, p99_s=P99_S, price=PRICES[device]))


def loads(inputs: Inputs, rates: Sequence[float] = RATES) -> list[tuple[float, Load, str]]:
    """Those of the answers."""
    return [
        (rate, Load(model, media, rows, rate=rate), device)
        for rate in rates
        for model in inputs.models
        for media, rows in BODIES
        for device in CORES
    ]


def answers(inputs: Inputs) -> str:
    """What the loads take."""
    lines = [f"| {HEADINGS} |", "|---" * (HEADINGS.count("|") + 1) + "|"]
    return "\n".join(lines + [answer(inputs, *one) for one in loads(inputs)])


def bounds(inputs: Inputs) -> str:
    """What one machine answers at most, and by what it is bound, behind each ingress."""
    lines = ["| model, body | device | ingress | most requests/s of a machine | bound by |", "|---" * 5 + "|"]
    for model in inputs.models:
        for media, rows in BODIES:
            for device, ingress in [("cpu", None), *(("cpu", name) for name in inputs.ingresses), ("cuda", None)]:
                what = Deployment(cores=CORES[device], ingress=ingress, network=LINK)
                found = most_of_one(on_device(inputs, device), what, Load(model, media, rows))
                lines.append(
                    f"| `{model}`, {rows} {media} | {'GPU' if device == 'cuda' else 'CPU'} | {ingress or 'none'} | "
                    f"{found.throughput:,.0f} | {found.bound_by} |"
                )
    return "\n".join(lines)


def checks(_: Inputs) -> str:
    """What was predicted, and what came."""
    seen = read_checks()
    foreign = statistics.median(one.foreign_cpus for one in seen)
    return f"{table(seen)}\n\n{summary()}. CPUs that others kept busy meanwhile: median {foreign:.2f}."


def read_checks() -> list[Check]:
    """What ``benchmarks.capacity.validate`` has left."""
    return Checks.model_validate_json(VALIDATED.read_bytes()).checks


def summary() -> str:
    """How often the model was right, for docs/benchmarks.md."""
    seen = read_checks()
    return f"{sum(one.holds for one in seen)} of {len(seen)} throughputs within {100 * TOLERANCE:.0f} %"


TABLES: dict[str, Callable[[Inputs], str]] = {
    "checks": checks,
    "costs": costs,
    "passes": passes,
    "ray": ray,
    "answers": answers,
    "bounds": bounds,
}


def main(argv: list[str]) -> None:
    """Write the page's tables."""
    parser = Parser(prog="python -m benchmarks.capacity.report", description=__doc__)
    parser.parse_args(argv)
    inputs = read_inputs()
    tables.write(PAGE, {name: table_of(inputs) for name, table_of in TABLES.items()})
    BENCHMARKS.write_text(re.sub(r"\d+ of \d+ throughputs within \d+ %", summary(), BENCHMARKS.read_text()))


if __name__ == "__main__":
    run_command(main)
