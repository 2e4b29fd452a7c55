"""Break the service on purpose, and keep what came of it: ``python -m reliability.chaos``, a few minutes a round."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

from benchmarks.arguments import at_least
from common.cli import DONE, FAILED, WRONG_USE, Parser, run_command
from reliability.record import keep

SUITE = Path(__file__).parent


def main(argv: list[str]) -> None:
    """Run the suite with one seed after the other until the time is over; exit code 1 at the first promise broken."""
    parser = Parser("python -m reliability.chaos", __doc__ or "", codes=(DONE, FAILED, WRONG_USE))
    parser.add_argument("--seconds", type=at_least(float, 0), default=0.0, help="after which no other round begins")
    parser.add_argument("--seed", type=at_least(int, 0), help="of the first round (default: a random one)")
    args = parser.parse_args(argv)
    begun, rounds, failed, seed = time.monotonic(), 0, False, args.seed
    with tempfile.TemporaryDirectory() as folder:
        totals = Path(folder, "totals.json")
        while not failed and (not rounds or time.monotonic() - begun < args.seconds):
            seed = random.randrange(2**32) if seed is None else seed
            command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(SUITE)]
            failed = subprocess.run([*command, "--seed", str(seed), "--totals", str(totals)]).returncode != 0
            rounds, seed = rounds + 1, None
        seconds = time.monotonic() - begun
        faults = orjson.loads(totals.read_bytes())
    path = keep(
        "chaos",
        {
            "profile": "long" if args.seconds else "short",
            "seconds": round(seconds),
            "rounds": rounds,
            "failed": failed,
            "faults": faults,
        },
    )
    print(f"{rounds} rounds in {seconds:.0f} s; figures in {path}")
    raise SystemExit(failed)


if __name__ == "__main__":
    run_command(main)
