"""What the benchmarks measure with: densities that are normalised, the protocol of anomaly detection, wrong use."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import adbench, conditioners, engine_cuda, plane
from model.cli import run_command

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
    (score,) = adbench.neighbour_scores(train, np.array([[9.0, 0.0]]))
    assert score == pytest.approx(4 / train[:, 0].std())


@pytest.mark.skipif(not DATA.exists(), reason="the sets of ADBench are not beside the project")
def test_every_set_has_published_figures() -> None:
    names = [path.stem for path in sorted(DATA.glob("*.npz"))]
    for name in names:
        assert adbench.published_means(DATA / "published" / "dte_semi_aucroc.csv", [name]), name


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (adbench.main, ["/nowhere"], "/nowhere: holds no set"),
        (plane.main, ["--only", "torus"], "invalid choice: 'torus'"),
        (conditioners.main, ["--widths", "wide"], "invalid int value: 'wide'"),
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
