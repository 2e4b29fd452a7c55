"""Divergence of trained flows from densities of the plane that are known: ``python -m benchmarks.plane``.

For each density, draws 200,000 points, trains the recipe ``model/recipes/plane.toml`` on them and estimates
KL(p || q) = E_p[log p(x) - log q(x)] over 100,000 further draws, with its standard error, nats.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ive, logsumexp

from common.cli import Parser, run_command
from model.checkpoint import load_checkpoint
from model.recipe import load_splits, read_recipe
from model.train import train
from model.trainer import Trainer

Points = npt.NDArray[np.float64]  # (N, 2)
Values = npt.NDArray[np.float64]  # (N,)
RECIPE = Path(__file__).parents[1] / "model" / "recipes" / "plane.toml"
TRAINING_DRAWS = 200_000
TEST_DRAWS = 100_000

MOON_NOISE = 0.1
RING_RADII = np.array([1.0, 2.0, 3.0])
RING_NOISE = 0.1
GAUSSIAN_RADIUS, GAUSSIAN_STD = 4 / math.sqrt(2), 0.5 / math.sqrt(2)


@dataclass(frozen=True)
class Density:
    """A density of the plane that can be drawn from and evaluated exactly."""

    sample: Callable[[np.random.Generator, int], Points]
    log_prob: Callable[[Points], Values]


def sample_moons(random: np.random.Generator, num: int) -> Points:
    """Two interleaved half circles of radius 1, blurred."""
    angle, lower = random.uniform(0, np.pi, num), random.integers(0, 2, num)
    return moon(angle, lower) + MOON_NOISE * random.normal(size=(num, 2))


def moon(angle: Values, lower: npt.NDArray[np.int64]) -> Points:
    """Points of the half circles: the upper one about (0, 0), the lower one about (1, 1/2)."""
    sign = 1 - 2 * lower
    return np.stack([lower + sign * np.cos(angle), 0.5 * lower + sign * np.sin(angle)], -1)


def moons_log_prob(x: Points) -> Values:
    """Mean of the noise's density over both arcs, by the midpoint rule: 500 nodes an arc, a sixteenth of the noise."""
    nodes = (np.arange(500) + 0.5) * np.pi / 500
    centres = np.concatenate([moon(nodes, np.full(500, lower)) for lower in (0, 1)])
    return np.concatenate([mixture_log_prob(part, centres, MOON_NOISE) for part in np.array_split(x, 100)])


def mixture_log_prob(x: Points, centres: Points, std: float) -> Values:
    """Log-density of an equal mixture of round Gaussians."""
    squared = ((x[:, None] - centres) ** 2).sum(-1)
    values: Values = logsumexp(-squared / (2 * std**2), axis=1)
    return values - math.log(len(centres)) - math.log(2 * math.pi * std**2)


def sample_rings(random: np.random.Generator, num: int) -> Points:
    """Three concentric circles, equally likely, blurred."""
    return random.choice(RING_RADII, (num, 1)) * unit(random.uniform(0, 2 * np.pi, num)) + (
        RING_NOISE * random.normal(size=(num, 2))
    )


def unit(angle: Values) -> Points:
    """Points of the unit circle."""
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def rings_log_prob(x: Points) -> Values:
    """Gaussian noise about a circle of radius R: exp(-(r - R)^2 / 2 s^2) I0e(r R / s^2) / (2 pi s^2), r = |x|."""
    r = np.linalg.norm(x, axis=1)[:, None]
    variance = RING_NOISE**2
    logs = -((r - RING_RADII) ** 2) / (2 * variance) + np.log(ive(0, r * RING_RADII / variance))
    values: Values = logsumexp(logs, axis=1)
    return values - math.log(len(RING_RADII)) - math.log(2 * math.pi * variance)


GAUSSIAN_CENTRES = GAUSSIAN_RADIUS * unit(np.arange(8) * np.pi / 4)


def sample_gaussians(random: np.random.Generator, num: int) -> Points:
    """Eight Gaussians on a circle."""
    return GAUSSIAN_CENTRES[random.integers(0, 8, num)] + GAUSSIAN_STD * random.normal(size=(num, 2))


def sample_checkerboard(random: np.random.Generator, num: int) -> Points:
    """Uniform on the black squares, of side 2, of a 4x4 board on [-4, 4)^2."""
    row, half = random.integers(0, 4, num), random.integers(0, 2, num)
    corner = np.stack([2 * half + row % 2, row], -1)
    return 2 * (corner + random.uniform(size=(num, 2))) - 4


def checkerboard_log_prob(x: Points) -> Values:
    """-log 32 on a black square, else minus infinity."""
    square = np.floor((x + 4) / 2)
    black = (square.sum(1) % 2 == 0) & ((square >= 0) & (square < 4)).all(1)
    return np.where(black, -math.log(32), -np.inf)


DENSITIES = {
    "moons": Density(sample_moons, moons_log_prob),
    "rings": Density(sample_rings, rings_log_prob),
    "gaussians": Density(sample_gaussians, lambda x: mixture_log_prob(x, GAUSSIAN_CENTRES, GAUSSIAN_STD)),
    "checkerboard": Density(sample_checkerboard, checkerboard_log_prob),
}


def divergence(name: str, folder: Path, changes: list[str]) -> tuple[float, float, float]:
    """Train on draws from a density: KL(p || q) and its standard error, nats, and the seconds of training."""
    density = DENSITIES[name]
    np.save(folder / f"{name}.npy", density.sample(np.random.default_rng(0), TRAINING_DRAWS))
    recipe = read_recipe(RECIPE, [f"data.train={name}.npy", *changes])
    trainer = Trainer(recipe, load_splits(recipe.data, folder))
    train(trainer, folder / name, progress=False)
    flow = load_checkpoint(folder / name / "best.pt").averaged_flow()
    x = density.sample(np.random.default_rng(1), TEST_DRAWS)
    with torch.inference_mode():
        log_q = torch.cat([flow.log_prob(part) for part in torch.split(torch.from_numpy(x), 10_000)]).numpy()
    gaps = density.log_prob(x) - log_q
    return float(gaps.mean()), float(gaps.std() / math.sqrt(len(gaps))), trainer.seconds


def main(argv: list[str]) -> None:
    """Print one line a density."""
    parser = Parser(prog="python -m benchmarks.plane", description=__doc__)
    parser.add_argument("--only", choices=DENSITIES, action="append")
    parser.add_argument("--out", type=Path, help="folder that keeps draws and runs")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    args = parser.parse_args(argv)
    print("| density | KL(p, q), nats | training, s |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        started = time.monotonic()
        for name in args.only or DENSITIES:
            kl, error, seconds = divergence(name, args.out or Path(temporary), args.set)
            print(f"| {name} | {kl:.4f} +- {error:.4f} | {seconds:.0f} |", flush=True)
    print(f"\n{time.monotonic() - started:.0f} s in all, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    run_command(main)
