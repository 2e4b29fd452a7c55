"""Images that are not like the training data, by every score: ``python -m benchmarks.anomalies ARTIFACT DATA``.

DATA holds ``fashion-mnist`` and ``mnist``; the one that the artifact was not trained on is foreign, and so are noise,
constants and drawn strokes. Normal are the official test images, which nothing was chosen, fitted or calibrated by.
Corrupted ones (``benchmarks.corruptions``) are what scores may be chosen by, so they are made of one half of the
calibration images and compared with the other. Beside the artifact's scores stand what
needs no flow: the picture's size alone, and on the pixels of the artifact's training images a Gaussian, the distance to
the fifth nearest neighbour and an isolation forest. AUROC with a bootstrap interval of 95 %, and the share of normal
images that are flagged where 95 % of the foreign ones are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from benchmarks.arguments import at_least
from benchmarks.corruptions import corruptions
from common.cli import Parser, run_command
from common.errors import UsageError
from model.data import Array, Selection, load
from model.recipe import load_splits, parse_recipe
from service.catalog import warm_catalog
from service.engine import Model
from service.scorer import score_pass, scoring_key, unpack
from service.settings import read_settings

FILES = {"fashion-mnist": "fashion-mnist/t10k-images-idx3-ubyte.gz", "mnist": "mnist/t10k-images-idx3-ubyte.gz"}
NUM_NEIGHBOURS = 5
FIT_ROWS = 20_000  # of the densities on pixels
RESAMPLES = 100
CHUNK = 512

FloatArray = npt.NDArray[np.float64]
Scores = dict[str, FloatArray]


def image_sets(name: str, data_dir: Path, num: int) -> tuple[Array, dict[str, Array]]:
    """Normal images, and foreign ones by name: (N, 1, 28, 28) uint8 each."""
    random = np.random.default_rng(0)
    tests = {other: load(path, data_dir, Selection()).x[:num] for other, path in FILES.items()}
    normal = tests.pop(name)
    foreign = {
        **tests,
        "strokes": strokes(min(num, 2000), random),
        "uniform noise": random.integers(0, 256, (min(num, 1000), 1, 28, 28), np.uint8),
        "constant": np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 1, 28, 28)).copy(),
    }
    return normal, foreign


def strokes(num: int, random: np.random.Generator) -> Array:
    """Two to five curved white strokes on black, as a pen would draw them."""
    images = []
    t = np.linspace(0, 1, 30)[:, None]
    for _ in range(num):
        image = Image.new("L", (112, 112))
        for _ in range(random.integers(2, 6)):
            a, b, c, d = random.uniform(10, 102, (4, 2))
            points = (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t * t * (1 - t) * c + t**3 * d
            ImageDraw.Draw(image).line(
                [(x, y) for x, y in points.tolist()], fill=255, width=int(random.integers(4, 12))
            )
        images.append(np.asarray(image.resize((28, 28), Image.Resampling.BOX)))
    return np.stack(images)[:, None]


def flow_scores(model: Model, images: Array) -> Scores:
    """Every score of the artifact, and the size of the picture turned round, since small ones are the suspects."""
    manifest = model.manifest
    key = scoring_key(model, manifest.scoring.names, reproducible=True)
    x = images.astype(np.float32)
    parts = [unpack(key, score_pass(key, x[start : start + CHUNK])).scores for start in range(0, len(x), CHUNK)]
    scores = {str(name): np.concatenate([part[name] for part in parts]) for name in manifest.scoring.names}
    size = scores.pop("complexity")
    return {**scores, "-complexity": -size}


def pixel_scores(fit: Array) -> dict[str, Callable[[Array], FloatArray]]:
    """What needs no flow, fitted to images: higher is more anomalous."""
    chosen = fit[np.random.default_rng(0).permutation(len(fit))[:FIT_ROWS]]
    rows = chosen.reshape(len(chosen), -1) / 255.0
    mean = rows.mean(0)
    precision = np.linalg.inv(np.cov(rows.T) + 1e-3 * np.eye(rows.shape[1]))
    neighbours = NearestNeighbors(n_neighbors=NUM_NEIGHBOURS).fit(rows.astype(np.float32))
    forest = IsolationForest(random_state=0).fit(rows)
    return {
        "Gaussian": lambda x: np.einsum("ni,ij,nj->n", x - mean, precision, x - mean, optimize=True),
        "nearest neighbours": lambda x: neighbours.kneighbors(x.astype(np.float32))[0][:, -1],
        "isolation forest": lambda x: -forest.score_samples(x),
    }


def figures(normal: FloatArray, other: FloatArray) -> tuple[float, tuple[float, float], float]:
    """AUROC, its interval, and the share of normal images flagged where 95 % of the others are."""
    random = np.random.default_rng(0)

    def auroc(a: FloatArray, b: FloatArray) -> float:
        return float(roc_auc_score(np.repeat([0, 1], [len(a), len(b)]), np.concatenate([a, b])))

    again = [auroc(random.choice(normal, len(normal)), random.choice(other, len(other))) for _ in range(RESAMPLES)]
    low, high = np.quantile(again, [0.025, 0.975])
    return auroc(normal, other), (float(low), float(high)), float(np.mean(normal >= np.quantile(other, 0.05)))


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = Parser(prog="python -m benchmarks.anomalies", description="Tell foreign images from normal ones.")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=at_least(int, 100), default=10_000, help="images of each set, at most")
    args = parser.parse_args(argv)
    settings = read_settings(models=[args.artifact], default_model=None, workers=1, cache_dir=None)
    model = warm_catalog(settings, reproducible_only=True).default
    manifest = model.manifest
    if manifest.name not in FILES:
        raise UsageError(f"{args.artifact}: must be a model of {' or '.join(FILES)}, got {manifest.name!r}")
    recipe = parse_recipe(manifest.recipe, str(args.artifact))
    normal, foreign = image_sets(manifest.name, args.data, args.rows)
    splits = load_splits(recipe.data, args.data)
    of_pixels = pixel_scores(splits.fit.x)
    clean, spoiled = splits.calibration.x[: args.rows : 2], splits.calibration.x[1 : args.rows : 2]

    def scores(images: Array) -> Scores:
        rows = images.reshape(len(images), -1) / 255.0
        return flow_scores(model, images) | {name: compute(rows) for name, compute in of_pixels.items()}

    of_normal = scores(normal)
    print(f"{manifest.name}@{manifest.version}, default score {manifest.scoring.default}: {len(normal)} normal images")
    print("AUROC [95 % interval] / share of normal images flagged where 95 % of the others are, per cent")
    print("| images |", " | ".join(of_normal), "|")
    print("|---|", "---|" * len(of_normal), sep="")
    for beside, sets in ((of_normal, foreign), (scores(clean), corruptions(spoiled))):
        means = []
        for name, images in sets.items():
            found = {score: figures(beside[score], values) for score, values in scores(images).items()}
            means.append([auroc for auroc, _, _ in found.values()])
            cells = [
                f"{100 * auroc:.2f} [{100 * low:.2f}, {100 * high:.2f}] / {100 * flagged:.1f}"
                for auroc, (low, high), flagged in found.values()
            ]
            print(f"| {name} |", " | ".join(cells), "|", flush=True)
        print("| mean of these |", " | ".join(f"{100 * mean:.2f}" for mean in np.mean(means, 0)), "|")


if __name__ == "__main__":
    run_command(main)
