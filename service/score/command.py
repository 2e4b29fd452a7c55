"""The command and its arguments."""

from __future__ import annotations

import argparse
import re
from contextlib import closing
from pathlib import Path

from common.cli import (
    DONE,
    INTERRUPTED,
    SOME_REJECTED,
    WRONG_USE,
    Parser,
    check_output,
    count,
    note,
    seconds,
    share,
    tell,
)
from common.errors import UsageError
from common.extras import require
from service.options import score_names
from service.score.run import Summary, score_file
from service.score.sinks import SINKS, sink_of
from service.score.spool import folder_of, rejected_of
from service.score.targets import CONCURRENCY, PATIENCE_S, EngineTarget, ServiceTarget, Target

ENGINES = ("local", "ray")
SCHEMES = ("http://", "https://")
OF_SERVICE, OF_RAY = ("model", "concurrency", "patience_s"), ("address", "actors")  # options


def parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        "glow-score",
        "Score every row of a file, of any size, and write scores and p-values beside the columns that identify it. "
        "The same command goes on where an interrupted one stopped; rejected rows stand in OUT.rejected.csv with the "
        "reason.",
        examples=[
            "glow-score service/artifacts/breast-cancer.pt patients.csv scores.csv",
            "glow-score service/artifacts/fashion-mnist.pt photographs/ scores.csv --scores all --fdr 0.1 --json",
            "glow-score http://localhost:8000 patients.csv scores.csv --model breast-cancer",
            "glow-score service/artifacts/breast-cancer.pt /shared/patients scores.parquet --engine ray --address auto",
        ],
        outcome=Summary,
        codes=(DONE, WRONG_USE, SOME_REJECTED, INTERRUPTED),
    )
    parser.add_argument("target", metavar="ARTIFACT_OR_URL", help="a file, or the address of a running service")
    parser.add_argument(
        "source",
        metavar="IN",
        type=Path,
        help=".parquet, .csv, .npy or .npz, or a folder of PNG and JPEG images or of .parquet files",
    )
    parser.add_argument(
        "out", metavar="OUT", type=Path, help=f"a file: {', '.join(SINKS)}; written, or replaced, when all is scored"
    )
    parser.add_argument(
        "--id",
        nargs="+",
        action="extend",
        metavar="COLUMN",
        help="columns of IN to keep (default: all that are not the model's)",
    )
    parser.add_argument(
        "--alpha", type=share, metavar="P", help="flag p-values of at most this, in 0..1 (default: the artifact's own)"
    )
    parser.add_argument(
        "--fdr", type=share, metavar="Q", help="flag by Benjamini-Hochberg at this level over the whole file instead"
    )
    parser.add_argument("--scores", type=_scores, metavar="NAME,...", help="more scores by name, or all")
    parser.add_argument("--reproducible", action="store_true", help="same bits whatever the batches, somewhat slower")
    parser.add_argument("--restart", action="store_true", help="discard what an unfinished run has left")
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default=ENGINES[0],
        help="where an artifact runs: in this process, or in actors of a Ray cluster, with the same output as "
        "--reproducible gives",
    )
    cluster = parser.add_argument_group("of --engine ray")
    cluster.add_argument(
        "--address", metavar="HOST:PORT", help="the cluster (default: RAY_ADDRESS, or one of this machine for the run)"
    )
    cluster.add_argument("--actors", type=count, metavar="N", help="loaded models (default: one a GPU, or a core)")
    service = parser.add_argument_group("of a running service")
    service.add_argument("--model", metavar="NAME", help="which model (default: the service's own)")
    service.add_argument("--concurrency", type=count, metavar="N", help=f"requests in flight (default: {CONCURRENCY})")
    service.add_argument(
        "--patience",
        type=seconds,
        dest="patience_s",
        metavar="S",
        help=f"seconds to ask again for (default: {PATIENCE_S:g})",
    )
    return parser


def _target(args: argparse.Namespace) -> Target:
    """What scores. Raises UsageError for options of another."""
    is_url = args.target.startswith(SCHEMES)
    given = {name: value for name in (*OF_SERVICE, *OF_RAY) if (value := getattr(args, name)) is not None}
    for name in given:
        option = name.removesuffix("_s")
        if name in OF_SERVICE and not is_url:
            raise UsageError(f"--{option}: is for a service; an artifact holds one model, which this command runs")
        if name in OF_RAY and args.engine != "ray":
            raise UsageError(f"--{option}: is for actors of a cluster, which --engine ray starts")
    if is_url:
        if args.engine == "ray":
            raise UsageError("--engine: is for an artifact; a service runs its models itself")
        return ServiceTarget(args.target, scores=args.scores, reproducible=args.reproducible, **given)
    artifact = Path(args.target)
    if artifact.is_dir():
        raise UsageError(f"{args.target}: is a folder; expected one artifact or the address of a service")
    if args.engine == "ray":
        require("ray", "ray")
        from service.score.ray_target import RayTarget

        return RayTarget(artifact, args.scores, **given)
    return EngineTarget(artifact, folder_of(args.out), args.scores, args.reproducible)


def main(argv: list[str]) -> None:
    """Run the command; ends with exit code 3 where rows were rejected."""
    args = parser().parse_args(argv)
    is_url = args.target.startswith(SCHEMES)
    if not is_url and re.fullmatch(r"[\w.-]+:\d+/?", args.target) and not Path(args.target).exists():
        raise UsageError(f"{args.target}: is no file; the address of a service begins with http://")
    for path in (args.out, rejected_of(args.out)):
        check_output(path, {"data": args.source} | ({} if is_url else {"artifact": Path(args.target)}))
    sink_of(args.out)
    target = _target(args)
    reproducible = args.reproducible or args.engine == "ray"
    options = {"scores": args.scores or "the default", "reproducible": str(reproducible).lower()}
    try:
        with closing(target):
            summary = score_file(
                target,
                args.source.absolute() if args.engine == "ray" else args.source,  # nodes have folders of their own
                args.out,
                ids=args.id,
                alpha=args.alpha,
                fdr=args.fdr,
                options=options,
                restart=args.restart,
            )
    except KeyboardInterrupt:
        note("interrupted; the same command goes on from here")
        raise
    tell(summary, args.json)
    if summary.rejected:
        raise SystemExit(SOME_REJECTED)


def _scores(text: str) -> str:
    try:
        score_names(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text
