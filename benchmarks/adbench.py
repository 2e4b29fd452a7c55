"""Anomaly detection on tables beside nearest neighbours: ``python -m benchmarks.adbench FOLDER``.

FOLDER holds ADBench's sets (npz with X and y, 1 = anomaly). Every set is trained with one recipe,
``model/recipes/table.toml``, none is tuned for; the score is -log p. One-class protocol of Livernoche et al. 2024
(arXiv:2305.18593): sets under 1,000 rows are drawn with replacement to 1,000 rows and sets over 50,000 cut to 50,000,
both by the seed; the first half of the normal rows is for training (the flow takes its validation rows from there), the
other half and all anomalies are for test. Sets of a size in between do not depend on the seed but for the flow's own.
Where FOLDER/published/dte_semi_aucroc.csv exists, means of its columns over the same sets are printed too.
"""

from __future__ import annotations

import csv
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from model.checkpoint import load_checkpoint
from model.cli import Parser, UsageError, run_command
from model.data import Array, Dataset, unnamed_columns
from model.evaluate import batches, log_prob
from model.fold import fold
from model.recipe import Splits, read_recipe
from model.train import train
from model.trainer import Trainer
from service.artifact import compile_module

RECIPE = Path(__file__).parents[1] / "model" / "recipes" / "table.toml"
FEWEST, MOST = 1_000, 50_000
NUM_NEIGHBOURS = 5
VALIDATION_SHARE = 10  # one in so many training rows chooses the checkpoint


@dataclass(frozen=True)
class Result:
    """Areas under the ROC and the precision-recall curve, in per cent, of one set and seed."""

    name: str
    flow: tuple[float, float]
    neighbours: tuple[float, float]
    seconds: float


def one_class_split(path: Path, seed: int) -> tuple[Array, Array, Array]:
    """Training rows, test rows and test labels of the protocol."""
    with np.load(path, allow_pickle=False) as archive:
        x, y = archive["X"].astype(np.float64), archive["y"].ravel().astype(int)
    random = np.random.default_rng(seed)
    if not FEWEST <= len(x) <= MOST:
        rows = random.choice(len(x), min(max(len(x), FEWEST), MOST), replace=len(x) < FEWEST)
        x, y = x[rows], y[rows]
    normal = np.flatnonzero(y == 0)
    half = len(normal) // 2
    test = np.concatenate([normal[half:], np.flatnonzero(y == 1)])
    return x[normal[:half]], x[test], y[test]


def areas(labels: Array, scores: Array) -> tuple[float, float]:
    """AUROC and average precision, per cent."""
    return 100 * float(roc_auc_score(labels, scores)), 100 * float(average_precision_score(labels, scores))


def neighbour_scores(train_rows: Array, test_rows: Array) -> Array:
    """Distance to the fifth nearest training row, columns standardised."""
    mean, std = train_rows.mean(0), train_rows.std(0)
    std[std == 0] = 1
    index = NearestNeighbors(n_neighbors=NUM_NEIGHBOURS).fit((train_rows - mean) / std)
    distances: Array = index.kneighbors((test_rows - mean) / std)[0][:, -1]
    return distances


def flow_scores(train_rows: Array, test_rows: Array, seed: int, changes: list[str]) -> Array:
    """Return -log p of test rows under a flow trained by the recipe."""
    recipe = read_recipe(RECIPE, [f"training.seed={seed}", *changes])
    data = Dataset(train_rows, unnamed_columns(train_rows.shape[1]))
    order = np.random.default_rng(seed).permutation(len(train_rows))
    validation, fit = (data.take(rows) for rows in np.split(order, [len(order) // VALIDATION_SHARE]))
    splits = Splits(fit=fit, validation=validation, calibration=validation, test=None)
    with tempfile.TemporaryDirectory() as out:
        train(Trainer(recipe, splits), Path(out), progress=False)
        flow = load_checkpoint(Path(out) / "best.pt").averaged_flow()
    scores: Array = -log_prob(compile_module(fold(flow), ["log_prob"]), batches(torch.from_numpy(test_rows))).numpy()
    return scores


def measure(job: tuple[Path, int], changes: list[str]) -> Result:
    """Measure one set with one seed."""
    torch.set_num_threads(1)
    path, seed = job
    train_rows, test_rows, labels = one_class_split(path, seed)
    started = time.monotonic()
    flow = areas(labels, flow_scores(train_rows, test_rows, seed, changes))
    seconds = time.monotonic() - started
    return Result(path.stem, flow, areas(labels, neighbour_scores(train_rows, test_rows)), seconds)


def published_means(path: Path, names: list[str]) -> dict[str, float]:
    """Mean of each published column over the sets of these names."""
    with path.open() as file:
        rows = {plain(row.pop("")): row for row in csv.DictReader(file)}
    known = [rows[plain(name.partition("_")[2])] for name in names if plain(name.partition("_")[2]) in rows]
    return {method: float(np.mean([float(row[method]) for row in known])) for method in known[0]} if known else {}


def plain(name: str) -> str:
    """A set's name without case and punctuation, in which the sources differ."""
    return "".join(filter(str.isalnum, name.lower()))


def main(argv: list[str]) -> None:
    """Print a table: one line a set, then means."""
    parser = Parser(prog="python -m benchmarks.adbench", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change the recipe")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="sets whose name contains this")
    args = parser.parse_args(argv)
    paths = [
        path
        for path in sorted(args.folder.glob("*.npz"))
        if not args.only or any(plain(part) in plain(path.stem) for part in args.only)
    ]
    if not paths:
        raise UsageError(f"{args.folder}: holds no set (*.npz) of that name")
    jobs = [(path, seed) for path in paths for seed in range(args.seeds)]
    print("| set | flow AUROC | AUPR | kNN AUROC | AUPR | s |\n|---|---|---|---|---|---|")
    results: list[Result] = []
    with ProcessPoolExecutor(args.jobs) as pool:
        for result in pool.map(partial(measure, changes=args.set), jobs):
            results.append(result)
            print(row(result.name, [result]), flush=True)
    print(row(f"mean of {len(paths)}", results))
    published = args.folder / "published" / "dte_semi_aucroc.csv"
    if published.exists():
        means = published_means(published, [path.stem for path in paths])
        best = sorted(means.items(), key=lambda item: -item[1])
        print("\npublished mean AUROC: " + ", ".join(f"{method} {value:.2f}" for method, value in best))


def row(name: str, results: list[Result]) -> str:
    """A line of the table: means over results."""
    figures = np.mean([[*result.flow, *result.neighbours] for result in results], axis=0)
    seconds = np.mean([result.seconds for result in results])
    return f"| {name} | " + " | ".join(f"{figure:.2f}" for figure in figures) + f" | {seconds:.0f} |"


if __name__ == "__main__":
    run_command(main)
