"""Which column was spoiled? Ways to explain a row of a table, beside each other: ``python -m benchmarks.explanations``.

Test rows of an artifact, drawn again and again, are spoiled in three ways: one column is moved by 3 standard deviations
up or down; one gets the value of another row, which is common by itself and only contradicts the others; three are
moved at once. Prints for each way of explaining the per cent of spoiled columns among the one or three that contribute
most, and the rows that it runs through the model to explain one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.arguments import at_least
from common.cli import Parser, run_command
from common.errors import UsageError
from model.data import Array
from model.recipe import load_splits, parse_recipe
from service import explanations, noise
from service.artifact import Artifact, open_artifact
from service.settings import EMBEDDED_ARTIFACTS

NUM_PATHS = 4
SPOILED = {"one moved": 1, "one swapped": 1, "three moved": 3}  # columns

Explain = Callable[[Array], Array]  # rows (B, D) -> contributions (B, D)


class Explainers:
    """Ways to explain rows of an artifact, which count the rows that they run through it."""

    def __init__(self, artifact: Artifact) -> None:
        self.num_passes = 0
        self._artifact = artifact
        columns = artifact.manifest.columns
        center = np.array([column.center for column in columns])
        self._scale = np.array([column.scale for column in columns])
        self._reference = np.where(artifact.manifest.quantized, np.round(center), center)
        eps = noise.latent_noise(0, explanations.NUM_DRAWS, len(columns))
        draws = artifact.program.decode(torch.from_numpy(eps)).numpy()
        self._values = explanations.alternatives(draws, artifact.manifest)

    @property
    def all(self) -> dict[str, Explain]:
        return {
            "repair (the service)": self.repair,
            "ablation": self.ablation,
            f"{NUM_PATHS} paths from the medians": self.paths,
            "distance from the median": self.distance,
        }

    def nats(self, x: Array) -> Array:
        """Return -log p of rows (N, D)."""
        self.num_passes += len(x)
        parts = torch.split(torch.from_numpy(np.ascontiguousarray(x)), 1024)
        nats: Array = np.concatenate([-self._artifact.program.log_prob(part).numpy() for part in parts])
        return nats

    def repair(self, x: Array) -> Array:
        """Explain as the service does."""

        async def score(rows: Array) -> Array:
            return -self.nats(rows)

        return asyncio.run(explanations.explain(x, -self.nats(x), self._values, score, block_rows=1024))

    def ablation(self, x: Array) -> Array:
        """Set one column at a time to its median: what that takes off -log p. It sums to nothing in particular."""
        replaced = np.repeat(x[:, None], x.shape[1], 1)
        columns = np.arange(x.shape[1])
        replaced[:, columns, columns] = self._reference
        return self.nats(x)[:, None] - self.nats(replaced.reshape(-1, x.shape[1])).reshape(x.shape)

    def paths(self, x: Array) -> Array:
        """Go from the medians to x a column at a time, in random orders and their reverses: Shapley values, sampled."""
        random = np.random.default_rng(0)
        orders = [random.permutation(x.shape[1]) for _ in range(NUM_PATHS // 2)]
        contributions = np.zeros(x.shape)
        for order in [*orders, *(order[::-1] for order in orders)]:
            taken = np.arange(x.shape[1] + 1)[:, None] > np.argsort(order)
            steps = np.where(taken, x[:, None], self._reference).reshape(-1, x.shape[1])
            contributions[:, order] += np.diff(self.nats(steps).reshape(len(x), -1)) / NUM_PATHS
        return contributions

    def distance(self, x: Array) -> Array:
        """Distance from the median in scales: no model at all."""
        distances: Array = np.abs(x - self._reference) / self._scale
        return distances


def spoil(x: Array, others: Array, how: str, random: np.random.Generator) -> tuple[Array, Array]:
    """Spoil columns of each row, chosen at random; returns rows and columns (B, 1 or 3)."""
    columns = np.stack([random.permutation(x.shape[1])[: SPOILED[how]] for _ in x])
    rows = np.arange(len(x))[:, None]
    spoiled = x.copy()
    if how == "one swapped":
        spoiled[rows, columns] = others[random.integers(len(others), size=columns.shape), columns]
    else:
        spoiled[rows, columns] += 3 * others.std(0)[columns] * random.choice([-1, 1], columns.shape)
    return spoiled, columns


def share_found(contributions: Array, columns: Array) -> float:
    """Per cent of the spoiled columns among as many that contribute most."""
    ranks = (-contributions).argsort(1).argsort(1)
    return 100 * float((np.take_along_axis(ranks, columns, 1) < columns.shape[1]).mean())


def main(argv: list[str]) -> None:
    """Print a table: one line a way of explaining."""
    parser = Parser(prog="python -m benchmarks.explanations", description=__doc__)
    parser.add_argument("artifact", type=Path, nargs="?", default=EMBEDDED_ARTIFACTS / "breast-cancer.pt")
    parser.add_argument("--data-dir", type=Path, default=Path())
    parser.add_argument("--rows", type=at_least(int, 1), default=400)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    artifact = open_artifact(args.artifact)
    splits = load_splits(parse_recipe(artifact.manifest.recipe, str(args.artifact)).data, args.data_dir)
    if artifact.manifest.kind != "vector" or splits.test is None:
        raise UsageError(f"{args.artifact}: must be of a table with test rows")
    random = np.random.default_rng(0)
    x = splits.test.x[random.integers(len(splits.test.x), size=args.rows)]
    cases = [spoil(x, splits.fit.x, how, random) for how in SPOILED]
    explainers = Explainers(artifact)
    print(f"| | {' | '.join(SPOILED)} | passes a row |\n|{'---|' * (len(SPOILED) + 2)}")
    with torch.inference_mode():
        for name, explain in explainers.all.items():
            explainers.num_passes = 0
            found = [share_found(explain(rows), columns) for rows, columns in cases]
            passes = explainers.num_passes / (len(cases) * args.rows)
            print(f"| {name} | {' | '.join(f'{share:.0f}' for share in found)} | {passes:.0f} |", flush=True)


if __name__ == "__main__":
    run_command(main)
