"""What the benchmarks measure with: densities that are normalised, the protocol of anomaly detection, wrong use."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import adbench, conditioners, engine_cuda, plane
from common.cli import run_command

DATA = Path(__file__).parents[2] / "shared" / "data" / "adbench"


@pytest.mark.parametrize("name", plane.DENSITIES)
def test_densities_of_the_plane_integrate_to_one_and_their_draws_follow_them(name: str) -> None:
    density = plane.DENSITIES[name]
    centres = np.arange(-6, 6, 0.05) + 0.025
    grid = np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2)
    mass = np.exp(density.log_prob(grid)) * 0.05**2
    assert mass.sum() == pytest.approx(1, abs=1e-3)
    draws = density.sample(np.random.default_rng(0), 20_000)
    np.testing.assert_allclose(draws.mean(0), mass @ grid, atol=0.06)
    np.testing.assert_allclose((draws**2).mean(0), mass @ grid**2, rtol=0.03)


def test_the_one_class_split_trains_on_half_of_the_normal_rows_and_tests_on_the_rest(tmp_path: Path) -> None:
    x, y = np.arange(4000.0).reshape(2000, 2), np.zeros(2000, int)
    y[::10] = 1
    np.savez(tmp_path / "1_set.npz", X=x, y=y)
    train, test, labels = adbench.one_class_split(tmp_path / "1_set.npz", seed=3)
    assert (len(train), len(test), labels.sum()) == (900, 1100, 200)
    assert set(map(tuple, train)).isdisjoint(map(tuple, test))
    np.testing.assert_array_equal(train, x[y == 0][:900])


def test_neighbours_score_by_the_distance_to_the_fifth(tmp_path: Path) -> None:
    train = np.array([[float(i), 0.0] for i in range(10)])
    (score,) = adbench.neighbour_scores(train, np.array([[9.0, 0.0]]), seed=0)
    assert score == pytest.approx(4 / train[:, 0].std())


def test_a_gaussian_scores_by_the_distance_in_which_its_training_rows_are_spherical() -> None:
    random = np.random.default_rng(0)
    train = random.normal(size=(20_000, 3)) @ random.normal(size=(3, 3))
    assert adbench.gaussian_scores(train, train, seed=0).mean() == pytest.approx(3, rel=0.01)
    constant = np.column_stack([train, np.ones(len(train))])  # of no variance, but for the ridge
    assert np.isfinite(adbench.gaussian_scores(constant, constant, seed=0)).all()


def test_figures_are_those_of_their_definitions() -> None:
    labels, scores = np.repeat([0, 1], [100, 20]), np.concatenate([np.arange(100), np.full(20, 89.5)])
    auroc, aupr, fpr = adbench.figures(labels, scores)
    assert (auroc, fpr) == pytest.approx((90, 10))
    assert aupr == pytest.approx(100 * 20 / 30)
    assert adbench.figures(labels, labels.astype(float)) == pytest.approx([100, 100, 0])


def test_intervals_cover_sets_and_seeds() -> None:
    assert adbench.interval(np.full((4, 3), 7.0)) == "7.00 [7.00, 7.00]"
    values = np.random.default_rng(1).normal(50, 10, size=(400, 1)).repeat(3, 1)  # seeds that agree add nothing
    mean, low, high = (float(part.strip("[],")) for part in adbench.interval(values).split())
    assert mean == pytest.approx(values.mean(), abs=0.01)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


@pytest.mark.skipif(not DATA.exists(), reason="the sets of ADBench are not beside the project")
def test_every_set_has_published_figures() -> None:
    names = [path.stem for path in sorted(DATA.glob("*.npz"))]
    for name in names:
        for table in adbench.PUBLISHED.values():
            assert adbench.published_means(DATA / "published" / table, [name]), name


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (adbench.main, ["/nowhere"], "/nowhere: holds no set"),
        (plane.main, ["--only", "torus"], "invalid choice: 'torus'"),
        (conditioners.main, ["--widths", "wide"], "must be a whole number of at least 1, got wide"),
        (engine_cuda.main, ["now"], "unrecognized arguments: now"),
    ],
)
def test_wrong_use_of_a_benchmark_ends_with_one_line(
    main: Callable[[list[str]], None],
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit) as raised:
        run_command(main)
    error = capsys.readouterr().err
    assert (raised.value.code, error.count("\n")) == (2, 1)
    assert message in error
