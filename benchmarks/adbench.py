"""Anomaly detection on tables beside other detectors: ``python -m benchmarks.adbench FOLDER``.

FOLDER holds ADBench's sets (npz with X and y, 1 = anomaly). Every set is trained with one recipe,
``model/recipes/table.toml``, none is tuned for; the score is -log p. One-class protocol of Livernoche et al. 2024
(arXiv:2305.18593): sets under 1,000 rows are drawn with replacement to 1,000 rows and sets over 50,000 cut to 50,000,
both by the seed; the first half of the normal rows is for training (the flow takes its validation rows from there), the
other half and all anomalies are for test. Sets of a size in between do not depend on the seed but for the detectors'
own. Where FOLDER/published holds the tables of that paper, means of their columns over the same sets are printed too.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from common.cli import Parser, count, run_command
from common.errors import UsageError
from model.checkpoint import load_checkpoint
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
RIDGE = 1e-6  # added to the variances of standardised columns
FIGURES = ["AUROC", "AUPR", "FPR at 95 % TPR"]
PUBLISHED = {"AUROC": "dte_semi_aucroc.csv", "AUPR": "dte_semi_aucpr.csv"}
RESAMPLES = 10_000
Scorer = Callable[[Array, Array, int], Array]  # training rows, test rows, seed -> scores of the test rows


@dataclass(frozen=True)
class Result:
    """What one set and seed gave: for each detector its figures, per cent."""

    name: str
    figures: dict[str, list[float]]
    seconds: float  # the flow's training and scoring


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


def figures(labels: Array, scores: Array) -> list[float]:
    """AUROC, average precision and the false-positive rate at which 95 % of the anomalies are found, per cent."""
    false_positives, true_positives, _ = roc_curve(labels, scores)
    at_95 = false_positives[np.searchsorted(true_positives, 0.95)]
    return [
        100 * float(value) for value in (roc_auc_score(labels, scores), average_precision_score(labels, scores), at_95)
    ]


def neighbour_scores(train_rows: Array, test_rows: Array, seed: int) -> Array:
    """Distance to the fifth nearest training row, columns standardised."""
    scaler = StandardScaler().fit(train_rows)
    index = NearestNeighbors(n_neighbors=NUM_NEIGHBOURS).fit(scaler.transform(train_rows))
    distances: Array = index.kneighbors(scaler.transform(test_rows))[0][:, -1]
    return distances


def gaussian_scores(train_rows: Array, test_rows: Array, seed: int) -> Array:
    """Squared Mahalanobis distance under the full covariance of standardised columns."""
    scaler = StandardScaler().fit(train_rows)
    covariance = np.cov(scaler.transform(train_rows), rowvar=False) + RIDGE * np.eye(train_rows.shape[1])
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), scaler.transform(test_rows).T)
    distances: Array = (whitened**2).sum(0)
    return distances


def forest_scores(train_rows: Array, test_rows: Array, seed: int) -> Array:
    """Isolation Forest of 100 trees."""
    scores: Array = -IsolationForest(random_state=seed).fit(train_rows).score_samples(test_rows)
    return scores


FLOW = "flow"
OTHERS: dict[str, Scorer] = {"kNN": neighbour_scores, "Gaussian": gaussian_scores, "Isolation Forest": forest_scores}


def flow_scores(train_rows: Array, test_rows: Array, seed: int, changes: list[str], kept: Path | None) -> Array:
    """-log p of test rows under a flow trained by the recipe.

    A checkpoint that is ``kept`` is taken for the flow; where none is yet, the flow's is put there.
    """
    recipe = read_recipe(RECIPE, [f"training.seed={seed}", *changes])
    data = Dataset(train_rows, unnamed_columns(train_rows.shape[1]))
    order = np.random.default_rng(seed).permutation(len(train_rows))
    validation, fit = (data.take(rows) for rows in np.split(order, [len(order) // VALIDATION_SHARE]))
    with tempfile.TemporaryDirectory() as out:
        if kept is None or not kept.exists():
            splits = Splits(fit=fit, validation=validation, calibration=validation, test=None)
            if not train(Trainer(recipe, splits), Path(out), progress=False):
                raise KeyboardInterrupt  # a signal: the flow that is there is not the recipe's
            kept = Path(shutil.copy(Path(out) / "best.pt", kept or Path(out) / "kept.pt"))
        checkpoint = load_checkpoint(kept)
    if (checkpoint.data_digest, checkpoint.recipe) != (fit.digest, recipe):
        raise UsageError(f"{kept}: holds a flow of other data or of another recipe")
    module = compile_module(fold(checkpoint.averaged_flow()), ["log_prob"])
    scores: Array = -log_prob(module, batches(torch.from_numpy(test_rows))).numpy()
    return scores


def measure(job: tuple[Path, int], changes: list[str], flows: Path | None) -> Result:
    """Measure one set with one seed."""
    torch.set_num_threads(1)
    path, seed = job
    train_rows, test_rows, labels = one_class_split(path, seed)
    started = time.monotonic()
    kept = None if flows is None else flows / f"{path.stem}-{seed}.pt"
    scores = {FLOW: flow_scores(train_rows, test_rows, seed, changes, kept)}
    seconds = time.monotonic() - started
    scores |= {name: scorer(train_rows, test_rows, seed) for name, scorer in OTHERS.items()}
    return Result(path.stem, {name: figures(labels, values) for name, values in scores.items()}, seconds)


def interval(values: Array) -> str:
    """Mean of values (sets, seeds) and the interval that holds 95 % of the means of bootstrap resamples.

    A resample draws as many sets, and of each one of its seeds.
    """
    random = np.random.default_rng(0)
    num_sets, num_seeds = values.shape
    sets = random.integers(num_sets, size=(RESAMPLES, num_sets))
    seeds = random.integers(num_seeds, size=(RESAMPLES, num_sets))
    low, high = np.quantile(values[sets, seeds].mean(1), [0.025, 0.975])
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


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
    """Print three tables: figures by set, their means with intervals, and the published means."""
    parser = Parser(prog="python -m benchmarks.adbench", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=count, default=1)
    parser.add_argument("--jobs", type=count, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change the recipe")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="sets whose name contains this")
    parser.add_argument("--flows", type=Path, help="folder of trained flows: those there are taken, others put there")
    args = parser.parse_args(argv)
    paths = [
        path
        for path in sorted(args.folder.glob("*.npz"))
        if not args.only or any(plain(part) in plain(path.stem) for part in args.only)
    ]
    if not paths:
        raise UsageError(f"{args.folder}: holds no set (*.npz) of that name")
    if args.flows is not None:
        args.flows.mkdir(parents=True, exist_ok=True)
    jobs = [(path, seed) for path in paths for seed in range(args.seeds)]
    print_row("set", *(f"{name}, AUROC / AUPR" for name in [FLOW, *OTHERS]), "s", heading=True)
    results: list[Result] = []
    with ProcessPoolExecutor(args.jobs) as pool:
        for result in pool.map(partial(measure, changes=args.set, flows=args.flows), jobs):
            results.append(result)
            both = (f"{auroc:.2f} / {aupr:.2f}" for auroc, aupr, _ in result.figures.values())
            print_row(result.name, *both, f"{result.seconds:.0f}")
    print_means(results, len(paths))
    print_published(args.folder / "published", [path.stem for path in paths])


def print_means(results: list[Result], num_sets: int) -> None:
    """Print each detector's means over sets and seeds, and what the flow leads by, with bootstrap intervals."""
    values = np.array([list(result.figures.values()) for result in results])  # (sets * seeds, detectors, figures)
    by_set = values.reshape(num_sets, -1, *values.shape[1:])
    print()
    print_row(f"mean of {num_sets} sets, 95 % interval", *FIGURES, heading=True)
    names = [FLOW, *OTHERS]
    for i, name in enumerate(names):
        print_row(name, *map(interval, np.moveaxis(by_set[:, :, i], -1, 0)))
    for name in OTHERS:
        lead = by_set[:, :, 0] - by_set[:, :, names.index(name)]
        print_row(f"{FLOW} less {name}", *map(interval, np.moveaxis(lead, -1, 0)))


def print_published(folder: Path, names: list[str]) -> None:
    """Print the means of each published method over the same sets, the highest AUROC first, where there are any."""
    tables = {figure: folder / file for figure, file in PUBLISHED.items() if (folder / file).exists()}
    means = {figure: published_means(path, names) for figure, path in tables.items()}
    methods = {method: [columns.get(method) for columns in means.values()] for method in next(iter(means.values()), {})}
    if methods:
        print()
        print_row("published", *means, heading=True)
    for method, figures in sorted(methods.items(), key=lambda item: -(item[1][0] or 0)):
        print_row(method, *("-" if figure is None else f"{figure:.2f}" for figure in figures))


def print_row(*cells: str, heading: bool = False) -> None:
    """Print a line of a table in Markdown."""
    print("| " + " | ".join(cells) + " |" + ("\n" + "|---" * len(cells) + "|" if heading else ""), flush=True)


if __name__ == "__main__":
    run_command(main)
