"""The artifacts that ship: they open, hold what their manifests promise, and tell normal from not."""

import math
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from model.data import Selection, load
from model.evaluate import as_inputs, prior_draws, round_trip_error
from model.likelihood import dequantize
from model.recipe import load_splits, parse_recipe
from service.artifact import Artifact, open_artifact
from service.scores import p_values
from service.settings import EMBEDDED_ARTIFACTS

ROOT = Path(__file__).parents[1]
FASHION_TEST = "fashion-mnist/t10k-images-idx3-ubyte.gz"
DATA = ROOT.parent / "shared" / "data"
NUM_IMAGES = 500


@pytest.fixture(scope="module")
def fashion() -> Artifact:
    return open_artifact(EMBEDDED_ARTIFACTS / "fashion-mnist.pt")


@pytest.fixture(scope="module")
def cancer() -> Artifact:
    return open_artifact(EMBEDDED_ARTIFACTS / "breast-cancer.pt")


def test_what_ships_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in EMBEDDED_ARTIFACTS.glob("*.pt")}
    assert sizes.keys() == {"fashion-mnist.pt", "breast-cancer.pt"}
    assert sizes["fashion-mnist.pt"] <= 6e6
    assert sizes["breast-cancer.pt"] < 1e6


def test_manifests_are_those_of_the_recipes(fashion: Artifact, cancer: Artifact) -> None:
    for artifact in (fashion, cancer):
        path = ROOT / "model" / "recipes" / f"{artifact.manifest.name}.toml"
        recipe = parse_recipe(tomllib.loads(path.read_text()), str(path))
        assert recipe == parse_recipe(artifact.manifest.recipe, "manifest")


def header(recipe: str) -> str:
    text = (ROOT / "model" / "recipes" / f"{recipe}.toml").read_text()
    return text.partition("\nname = ")[0]


def test_published_likelihoods_are_the_manifests(fashion: Artifact, cancer: Artifact) -> None:
    """The recipe's header and the README repeat the figure of the manifest."""
    for artifact in (fashion, cancer):
        test = artifact.manifest.test
        assert test is not None
        assert test.figure in header(artifact.manifest.name)
        assert test.figure in (ROOT / "README.md").read_text()


def test_published_figures_of_recipes_are_those_of_their_headers() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    likelihoods = page.partition("\n## Likelihood\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w-]+)` \| (.*)", likelihoods, re.MULTILINE)
    assert [name for name, _ in rows] == ["fashion-mnist", "mnist", "digits", "breast-cancer"]
    for name, row in rows:
        for figure in re.findall(r"\d+\.\d+|\d+ (?:min|s)\b", row):
            assert figure in header(name)
    for detector in ("flow", "fifth nearest neighbour"):
        figures = re.findall(rf"^\| {detector} \| \**([\d.]+)\** [^|]*\| \**([\d.]+)\** ", page, re.MULTILINE)
        assert [" / ".join(pair) in header("table") for pair in figures] == [True], detector


def test_fashion_mnist_reaches_its_mark(fashion: Artifact) -> None:
    test, calibration = fashion.manifest.test, fashion.manifest.calibration
    assert test is not None
    assert calibration is not None
    assert test.bits_per_dim is not None
    assert test.bits_per_dim <= 3.0
    assert (test.rows, calibration.num_rows) == (10_000, 5_000)


def test_uniform_noise_is_far_less_likely_than_any_calibration_image(fashion: Artifact) -> None:
    noise = torch.rand(16, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 255
    calibration = fashion.manifest.calibration
    assert calibration is not None
    scores = -fashion.program.log_prob(noise)
    assert scores.min() > 1.2 * calibration.scores["negative_log_likelihood"][-1]


def test_prior_draws_decode_to_images_in_range_that_encode_to_them(fashion: Artifact) -> None:
    z = torch.randn(1000, 784, generator=torch.Generator().manual_seed(0))
    x = fashion.program.decode(z)
    assert x.min() >= -0.5
    assert x.max() <= 255.5
    again = fashion.program.decode(fashion.program.encode(x)[0])
    assert (again - x).abs().max() <= 0.01


def test_prior_draws_of_the_table_encode_to_themselves(cancer: Artifact) -> None:
    draws = prior_draws(cancer.program, 10_000, 30)
    assert torch.isfinite(draws).all()
    assert round_trip_error(cancer.program, draws, cancer.manifest.columns) <= 1e-3


def test_malignant_rows_are_anomalies_and_held_out_benign_ones_are_not(cancer: Artifact) -> None:
    recipe = parse_recipe(cancer.manifest.recipe, "manifest")
    splits = load_splits(recipe.data, Path())
    assert splits.fit.digest == cancer.manifest.data_digest
    assert splits.test is not None
    malignant = load("sklearn:breast-cancer", wanted=Selection(normal_label=0))
    calibration = cancer.manifest.calibration
    assert calibration is not None
    known = calibration.arrays["negative_log_likelihood"]
    flagged = [
        np.mean(p_values(-cancer.program.log_prob(as_inputs(rows)).numpy(), known) <= 0.05)
        for rows in (malignant, splits.test)
    ]
    assert flagged[0] > 0.6
    assert flagged[1] < 0.2


@pytest.mark.skipif(not (DATA / FASHION_TEST).exists(), reason="the Fashion-MNIST files are not beside the project")
def test_fashion_mnist_measures_what_its_manifest_says(fashion: Artifact) -> None:
    images = load(FASHION_TEST, DATA).take(np.arange(NUM_IMAGES))
    x = as_inputs(images)
    noisy = dequantize(x, torch.Generator().manual_seed(1))
    bits = -torch.cat([fashion.program.log_prob(part) for part in torch.split(noisy, 100)]) / (784 * math.log(2))
    test = fashion.manifest.test
    assert test is not None
    assert bits.mean().item() == pytest.approx(test.bits_per_dim, abs=5 * bits.std().item() / math.sqrt(NUM_IMAGES))
    assert round_trip_error(fashion.program, x, []) <= 0.01
