"""How many replicas a load takes, and what breaks first: ``python -m benchmarks.capacity --rate 1000``.

Simulates the service from costs measured by ``python -m benchmarks.capacity.measure``; docs/capacity.md tells how.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from benchmarks.arguments import at_least
from benchmarks.capacity.arrivals import BALANCES, PROCESSES
from benchmarks.capacity.inputs import MEASURED, read_inputs
from benchmarks.capacity.plan import DEVICES, Answer, ask
from benchmarks.capacity.system import Deployment, Load, Network
from common.cli import Parser, listing, run_command, tell

GBIT_BYTES = 1e9 / 8


def parser() -> Parser:
    """The command line."""
    one = Parser(
        prog="python -m benchmarks.capacity",
        description=__doc__ or "",
        examples=[
            "python -m benchmarks.capacity --rate 1000 --p99 0.05",
            "python -m benchmarks.capacity --rate 1000 --model fashion-mnist --body npy --replicas 8 --price 0.1",
        ],
        outcome=Answer,
    )
    one.add_argument("--rate", type=at_least(float, 0.01), required=True, help="requests a second")
    one.add_argument("--model", default="breast-cancer", help="of those measured")
    one.add_argument("--body", default="json", choices=["json", "npy"], help="of the requests")
    one.add_argument("--rows", type=at_least(int, 1), default=1, help="of a request")
    one.add_argument("--device", default="cpu", choices=DEVICES, help="that runs the model")
    one.add_argument("--replicas", type=at_least(int, 1), help="machines with one each (default: the fewest that do)")
    one.add_argument("--cores", type=at_least(float, 1), default=2, help="of a machine")
    one.add_argument("--p99", type=at_least(float, 0), default=0.1, help="seconds that 99 %% may take at most")
    one.add_argument("--process", default="poisson", choices=PROCESSES, help="by which requests come")
    one.add_argument("--balance", default="least", choices=BALANCES, help="how a replica is chosen")
    one.add_argument("--ingress", choices=["proxy", "haproxy"], help="of Ray Serve (default: a balancer without cost)")
    one.add_argument("--latency", type=at_least(float, 0), default=0.0, help="of the network, seconds one way")
    one.add_argument("--gbit", type=at_least(float, 0.001), default=10, help="a second, of a machine's network")
    one.add_argument("--price", type=at_least(float, 0), default=0.0, help="of a machine for an hour")
    one.add_argument("--seconds", type=at_least(float, 0.1), help="to simulate (default: what 4,000 requests take)")
    one.add_argument("--seed", type=at_least(int, 0), default=0, help="of arrivals and choices")
    one.add_argument("--inputs", type=Path, default=MEASURED, help="what was measured")
    return one


def main(argv: list[str]) -> None:
    """Print what the load takes."""
    args = parser().parse_args(argv)
    load = Load(args.model, args.body, args.rows, rate=args.rate, process=args.process)
    what = Deployment(
        cores=args.cores,
        balance=args.balance,
        ingress=args.ingress,
        network=Network(args.latency, args.gbit * GBIT_BYTES),
    )
    found = ask(
        read_inputs(args.inputs), what, load, args.device, args.replicas, args.p99, args.price, args.seconds, args.seed
    )
    if args.json:
        tell(found, as_json=True)
    else:
        print(listing(dataclasses.asdict(found)))


if __name__ == "__main__":
    run_command(main)
