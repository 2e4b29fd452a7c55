"""How near the engine's pace files are scored: ``python -m benchmarks.bulk``.

``glow-score`` reads a Parquet file of a million of the model's own samples, with a column that identifies them, and
writes a Parquet file of scores; its rows/s are those from the first row read to the output under its name. The engine
runs over the same rows in memory, in the two ways it can use the cores: passes as the service would run them, and as
many passes of one thread at once as there are cores. Beside it the same command with ``--reproducible``, and with
``--engine ray`` on a cluster of this machine, whose outputs are compared. All take turns; figures are medians.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from benchmarks.arguments import at_least
from common.cli import Parser, run_command
from common.machine import available_cpus, processor
from service.catalog import warm_catalog
from service.engine import Model
from service.ray_environment import FAIR
from service.settings import EMBEDDED_ARTIFACTS, Settings

MODEL = "breast-cancer"
ARTIFACT = EMBEDDED_ARTIFACTS / f"{MODEL}.pt"
ON_RAY = "glow-score --engine ray"
PART = 2**16  # rows that are drawn and written at once


def warm(cache: Path, threads: int) -> Model:
    """The model, warm."""
    return warm_catalog(Settings(models=[ARTIFACT], threads=threads, device="cpu", cache_dir=cache)).default


def write_samples(path: Path, num_rows: int, source: Model) -> np.ndarray:
    """Draw rows from the model, write them as a table, and return them."""
    columns = source.manifest.columns
    random, parts = np.random.default_rng(0), []
    for start in range(0, num_rows, PART):
        codes = random.standard_normal((min(PART, num_rows - start), len(columns)), np.float32)
        parts.append(source.run("decode", codes)[0].astype(np.float64))
    rows = np.concatenate(parts)
    table = {"patient": np.arange(num_rows)} | {column.name: rows[:, j] for j, column in enumerate(columns)}
    parquet.write_table(pa.table(table), path, row_group_size=PART)
    return rows


def in_passes_of_one_thread(source: Model, rows: np.ndarray, batch_rows: int = 4096) -> None:
    """Run the engine from a thread a core."""
    with ThreadPoolExecutor(available_cpus()) as pool:
        starts = range(0, len(rows), batch_rows)
        list(pool.map(lambda start: source.run("statistics", rows[start : start + batch_rows]), starts))


def run_glow_score(source: Path, out: Path, cache: Path, *options: str) -> dict[str, float]:
    """Its summary, and the seconds of the whole process."""
    command = [sys.executable, "-W", "ignore", "-m", "service.score", str(ARTIFACT), str(source), str(out), "--json"]
    command += options
    started = time.perf_counter()
    environment = {**os.environ, **FAIR, "GLOW_CACHE_DIR": str(cache)}
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    return {**json.loads(done.stdout), "whole_seconds": time.perf_counter() - started}


def rate(run: Callable[[], object], num_rows: int) -> float:
    """Rows/s of a run."""
    started = time.perf_counter()
    run()
    return num_rows / (time.perf_counter() - started)


def main(argv: list[str]) -> None:
    """Print one table."""
    parser = Parser(prog="python -m benchmarks.bulk", description=__doc__)
    parser.add_argument("--rows", type=at_least(int, 1), default=1_000_000)
    parser.add_argument("--rounds", type=at_least(int, 1), default=5)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache, source, out = folder / "cache", folder / "samples.parquet", folder / "scores.parquet"
        of_one_thread, as_served = warm(cache, 1), warm(cache, 0)
        rows = write_samples(source, args.rows, of_one_thread)
        runs: dict[str, Callable[[], object]] = {
            "engine, passes as served": lambda: as_served.run("statistics", rows),
            "engine, passes of one thread": lambda: in_passes_of_one_thread(of_one_thread, rows),
        }
        commands = {"glow-score": (), "glow-score --reproducible": ("--reproducible",), ON_RAY: ("--engine", "ray")}
        rates: dict[str, list[float]] = {name: [] for name in [*runs, *commands]}
        summaries: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for _ in range(args.rounds):
            for name, run in runs.items():
                rates[name].append(rate(run, len(rows)))
            outputs = {}
            for name, options in commands.items():
                summaries[name].append(run_glow_score(source, out, cache, *options))
                rates[name].append(summaries[name][-1]["rows_per_second"])
                outputs[name] = out.read_bytes()
            assert outputs[ON_RAY] == outputs["glow-score --reproducible"]
    columns = ["what", "rows/s", "share of it that glow-score reaches", "whole command, s", "peak memory, MB"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, values in rates.items():
        shares = [mine / its for mine, its in zip(rates["glow-score"], values, strict=True)]
        whole, memory = "", ""
        if name in summaries:
            whole = f"{statistics.median(summary['whole_seconds'] for summary in summaries[name]):.1f}"
            memory = f"{max(summary['peak_bytes'] for summary in summaries[name]) / 1e6:.0f}"
        print(f"| {name} | {statistics.median(values):,.0f} | {statistics.median(shares):.2f} | {whole} | {memory} |")
    print(
        f"\n{len(rows):,} rows of {rows.shape[1]} columns, {args.rounds} rounds; memory of the command's process\n"
        f"{processor()}, {available_cpus()} cores"
    )


if __name__ == "__main__":
    run_command(main)
