"""The comparison of kinds of models: the laws its figures rest on, and its table."""

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.corruptions import corruptions
from benchmarks.why_a_flow.__main__ import main
from benchmarks.why_a_flow.autoregressive import ORDERS, PixelCNN
from benchmarks.why_a_flow.logistics import NUM_COMPONENTS, LogisticMixture, log_mass
from benchmarks.why_a_flow.two_sample import squared_mmd
from benchmarks.why_a_flow.vae import LATENT, VAE
from common.cli import run_command

ROWS, COLUMNS = 4, 6
POSITIONS = np.arange(ROWS * COLUMNS)
RANKS = {  # when each pixel is read
    "rows": POSITIONS.reshape(ROWS, COLUMNS),
    "columns": POSITIONS.reshape(COLUMNS, ROWS).T,
    "rows reversed": POSITIONS[::-1].reshape(ROWS, COLUMNS),
    "columns reversed": POSITIONS[::-1].reshape(COLUMNS, ROWS).T,
}


def test_every_corruption_changes_images_and_leaves_their_shape() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 28, 28), np.uint8)
    made = corruptions(images)
    assert len(made) == 19
    for name, other in made.items():
        assert other.shape == images.shape, name
        assert (other != images).any(), name
        np.testing.assert_array_equal(other, corruptions(images)[name])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values_of(num_values: int) -> torch.Tensor:
    return torch.arange(num_values).float()[:, None, None, None]


def test_the_mmd_of_two_samples_of_one_distribution_is_zero_on_average_and_otherwise_not() -> None:
    generator = seeded()
    same, moved = [], []
    for _ in range(400):
        x, y = torch.randn(2, 8, 3, generator=generator)
        same.append(squared_mmd(x, y, bandwidth=2.0))
        moved.append(squared_mmd(x, y + 1, bandwidth=2.0))
    standard_error = np.std(same) / len(same) ** 0.5
    assert abs(np.mean(same)) < 3 * standard_error < 0.02
    assert np.mean(moved) > 10 * standard_error


@pytest.mark.parametrize("num_values", [2, 32, 256])
def test_the_probabilities_of_all_pixel_values_sum_to_one(num_values: int) -> None:
    generator = seeded()
    for spread in (0.1, 1.0, 20.0):  # the last far beyond what is clamped
        parameters = spread * torch.randn(1, 3 * NUM_COMPONENTS, 2, 3, generator=generator)
        x = values_of(num_values).expand(-1, 1, 2, 3)
        total = log_mass(parameters.expand(num_values, -1, -1, -1), x, num_values).exp().sum(0)
        torch.testing.assert_close(total, torch.ones(2, 3), atol=1e-4, rtol=0)


def test_pixel_values_are_drawn_as_often_as_their_probability_says() -> None:
    torch.manual_seed(0)
    mixture = LogisticMixture(width=5, num_values=8)
    features = 20 * torch.randn(1, 5, 1, 1)
    with torch.no_grad():
        drawn = mixture.sample(features.expand(20000, -1, -1, -1), seeded()).long().flatten()
        expected = mixture.log_prob(features.expand(8, -1, -1, -1), values_of(8)).exp()
    torch.testing.assert_close(drawn.bincount(minlength=8) / 20000, expected.float(), atol=0.015, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
def test_what_a_pixel_is_given_depends_on_its_neighbours_before_it_and_on_no_later_pixel(order: str) -> None:
    torch.manual_seed(0)
    model, ranks = PixelCNN((1, ROWS, COLUMNS), order, num_values=16), RANKS[order]

    def features(x: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            return model.from_reading_order(model.features(model.in_reading_order(x)))[0].numpy()

    x = torch.randint(16, (1, 1, ROWS, COLUMNS), generator=seeded()).float()
    before = features(x)
    for row, column in np.ndindex(ROWS, COLUMNS):
        changed = x.clone()
        changed[0, 0, row, column] = 15 - x[0, 0, row, column]
        moved = (np.abs(features(changed) - before) > 1e-6).any(0)
        rank = ranks[row, column]
        assert not moved[ranks <= rank].any()
        beside = np.abs(np.indices(ranks.shape) - [[[row]], [[column]]]).sum(0) == 1
        assert moved[beside & (ranks > rank)].all()


@pytest.mark.parametrize("order", ORDERS)
def test_the_probabilities_of_all_images_sum_to_one(order: str) -> None:
    torch.manual_seed(0)
    model = PixelCNN((1, 2, 3), order, num_values=2)
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6))).reshape(-1, 1, 2, 3)
    with torch.no_grad():
        assert model.log_prob(images).exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_images_are_drawn_as_often_as_their_probability_says(order: str) -> None:
    torch.manual_seed(0)
    model = PixelCNN((1, 2, 2), order, num_values=2)
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
    with torch.no_grad():
        model.head.parameters_of.weight.mul_(100)  # so that the pixels depend on each other
        expected = model.log_prob(images.reshape(16, 1, 2, 2)).exp().float()
    drawn = model.sample(5000, seeded()).flatten(1) @ torch.tensor([8.0, 4.0, 2.0, 1.0])
    torch.testing.assert_close(drawn.long().bincount(minlength=16) / 5000, expected, atol=0.025, rtol=0)


def test_the_many_draws_of_the_vae_average_to_the_probability_of_an_image() -> None:
    torch.manual_seed(0)
    model, draws = VAE((1, 4, 4), num_values=16), 500
    x = torch.randint(16, (1, 1, 4, 4), generator=seeded()).float()
    with torch.no_grad():
        model.head.parameters_of.weight.mul_(20)  # so that the code matters
        of_prior = model.head.log_prob(model.decoder(torch.randn(draws, LATENT, generator=seeded(1))), x)
    bits = model.bits(x, draws, seeded(2)).item()
    assert -16 * math.log(2) * bits == pytest.approx(of_prior.logsumexp(0).item() - math.log(draws), abs=0.2)
    assert model.bits(x.expand(draws, -1, -1, -1), 1, seeded(3)).mean() > bits + 0.001


def test_the_command_prints_and_writes_a_row_for_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "why.md"
    main(["--seconds=0.1", "--seeds=1", "--rows=32", f"--out={out}"])
    text = out.read_text()
    assert text == capsys.readouterr().out
    header, _, *rows = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|"))
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    names = ["real images", "flow", "VAE", "PixelCNN", "GAN"]
    assert [name.partition(" by ")[0] for name in table] == names
    real, flow, vae, pixels, gan = table.values()
    for row in (flow, vae, pixels):  # but for chance, averages of more draws are lower
        assert 0 < float(row["bits/dim, K = 64"]) <= float(row["bits/dim"]) + 0.01 < 10
    assert gan["bits/dim"] == "none"
    assert pixels["passes a draw"] == "64"
    assert all(order in text for order in ORDERS)
    assert abs(float(real["MMD² x 1000"].split(" +- ")[0])) < min(float(row["MMD² x 1000"]) for row in (flow, vae, gan))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds=0"], "must be a number of at least 0.1, got 0"),
        (["--seconds=inf"], "must be a number of at least 0.1, got inf"),
        (["--data=nowhere"], "no such file or folder"),
    ],
)
def test_wrong_use_ends_with_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["why_a_flow", *arguments])
    with pytest.raises(SystemExit) as raised:
        run_command(main)
    assert raised.value.code == 2
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.count("\n") == 1
