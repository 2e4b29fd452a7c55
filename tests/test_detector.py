"""The detector: scikit-learn's rules, PyOD's attributes, calibration by folds, and the same answers from a service."""

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from benchmarks.false_alarms import rates_of_few, rates_of_many
from common.errors import UsageError
from model.detector import GlowDetector, train_side_by_side
from model.trainer import Trainer
from service import headers
from service.app import create_app
from service.artifact import open_artifact, within_tolerance
from service.client import Busy, GlowClient
from service.detector_client import RemoteDetector
from service.oip import codec
from service.oip.codec import Output
from service.scores import outlier_share, score_summary
from service.settings import Settings
from tests.conftest import OnLoop, divide, tiny_recipe, tiny_table, with_training

QUICK = {"steps": 40, "evaluate_every": 10, "patience": 2}


@parametrize_with_checks([GlowDetector()])  # type: ignore[untyped-decorator]
def test_it_passes_the_checks_of_scikit_learn(estimator: GlowDetector, check: Callable[[GlowDetector], None]) -> None:
    check(estimator)


def normal_rows(num: int, seed: int) -> Any:
    """Two dependent columns and one of whole numbers."""
    random = np.random.default_rng(seed)
    a = random.normal(size=num)
    return np.stack([a, 100 + 5 * a + random.normal(size=num), random.integers(0, 6, num)], 1)


def mixed_frame(num: int, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    color = random.integers(0, 3, num)
    names = np.array(["blue", "green", "red"])[color]
    return pa.table(
        {"color": names, "size": color + 0.2 * random.normal(size=num), "count": random.integers(0, 9, num)}
    )


@pytest.fixture(scope="module")
def by_folds() -> GlowDetector:
    return GlowDetector(folds=3, training=QUICK, random_state=0).fit(normal_rows(120, 0))


@pytest.fixture(scope="module")
def held_out() -> GlowDetector:
    return GlowDetector(folds=0, training=QUICK, random_state=0).fit(normal_rows(1000, 0))


@pytest.fixture(scope="module")
def of_frame() -> GlowDetector:
    return GlowDetector(folds=2, training=QUICK, random_state=0).fit(mixed_frame(120))


def test_outliers_are_the_rows_with_a_p_value_of_at_most_alpha(by_folds: GlowDetector, held_out: GlowDetector) -> None:
    for detector in (by_folds, held_out):
        x = np.concatenate([normal_rows(300, 1), normal_rows(20, 2) * [3, 1, 1]])
        outliers = detector.predict(x) == -1
        np.testing.assert_array_equal(outliers, detector.p_values(x) <= detector.alpha)
        np.testing.assert_array_equal(outliers, detector.decision_function(x) < 0)
        np.testing.assert_array_equal(outliers, -detector.score_samples(x) > detector.threshold_)
        assert detector.predict([[0, 200, 3], [1e300, -1e300, 1e9]]).tolist() == [-1, -1]


def test_attributes_are_pyods_of_the_rows_of_fit(by_folds: GlowDetector) -> None:
    x = normal_rows(120, 0)
    np.testing.assert_allclose(by_folds.decision_scores_, -by_folds.score_samples(x))
    np.testing.assert_array_equal(by_folds.labels_, by_folds.decision_scores_ > by_folds.threshold_)
    np.testing.assert_array_equal(by_folds.labels_ == 1, by_folds.predict(x) == -1)
    assert by_folds.offset_ == -by_folds.threshold_
    assert by_folds.n_features_in_ == 3
    assert [column.type for column in by_folds.columns_] == ["continuous", "continuous", "integer"]


def test_all_rows_of_few_calibrate_by_folds_and_a_tenth_of_many_is_held_out(
    by_folds: GlowDetector, held_out: GlowDetector
) -> None:
    assert (by_folds.approximate_, len(by_folds.calibration_scores_)) == (True, 120)
    assert (held_out.approximate_, len(held_out.calibration_scores_)) == (False, 100)
    assert [GlowDetector()._folds(num) for num in (9, 1999, 2000)] == [5, 5, 0]


def test_fresh_normal_rows_are_flagged_about_as_often_as_alpha_says(
    by_folds: GlowDetector, held_out: GlowDetector
) -> None:
    """Of 100 calibration rows the rate has a standard deviation of 0.03 by itself."""
    for detector in (by_folds, held_out):
        assert 0.02 < np.mean(detector.predict(normal_rows(5000, 3)) == -1) < 0.2


def test_scores_that_calibrate_are_of_flows_that_have_not_seen_the_row() -> None:
    """One wild row among equal ones: the flow of its fold did not learn from it, the last one did."""
    x = normal_rows(60, 0)
    x[7] = [30, 400, 3]
    detector = GlowDetector(folds=3, training={**QUICK, "evaluate_every": 40}, random_state=0).fit(x)
    assert detector.calibration_scores_[-1] > detector.decision_scores_[7] > detector.threshold_


def test_probabilities_put_rows_in_order_between_the_lowest_and_the_highest_score(held_out: GlowDetector) -> None:
    x = normal_rows(200, 4)
    scores = -held_out.score_samples(x)
    known = held_out.calibration_scores_
    for method, share in (
        ("linear", (scores - known[0]) / (known[-1] - known[0])),
        ("unify", torch.erf(torch.from_numpy((scores - known.mean()) / known.std() / np.sqrt(2))).numpy()),
    ):
        answer = held_out.predict_proba(x, method)  # type: ignore[arg-type]
        np.testing.assert_allclose(answer[:, 1], share.clip(0, 1), atol=1e-12)
        np.testing.assert_allclose(answer.sum(1), 1)
    lowest = np.array([np.finfo(np.float64).max])
    for method in ("linear", "unify"):
        assert outlier_share(lowest, score_summary(known), method)[0, 1] == 1  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="method must be 'linear' or 'unify', got 'min-max'"):
        held_out.predict_proba(x, "min-max")  # type: ignore[arg-type]


def test_a_number_makes_fit_repeatable_and_leaves_torchs_generator_alone(by_folds: GlowDetector) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = GlowDetector(**by_folds.get_params()).fit(normal_rows(120, 0))
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(again.decision_scores_, by_folds.decision_scores_)
    np.testing.assert_array_equal(again.calibration_scores_, by_folds.calibration_scores_)
    other = GlowDetector(folds=3, training=QUICK, random_state=1).fit(normal_rows(120, 0))
    assert not np.array_equal(other.decision_scores_, by_folds.decision_scores_)


def test_a_pickled_detector_answers_alike(by_folds: GlowDetector) -> None:
    x = normal_rows(10, 5)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(by_folds)).p_values(x), by_folds.p_values(x))  # noqa: S301 (what was pickled here)


def test_columns_of_a_frame_are_known_by_name_and_text_holds_categories(of_frame: GlowDetector) -> None:
    assert of_frame.feature_names_in_.tolist() == ["color", "size", "count"]
    assert [column.type for column in of_frame.columns_] == ["categorical", "continuous", "integer"]
    rows = pa.table({"color": ["red", "red"], "size": [2.0, 0.0], "count": [3, 3]})
    likely, odd = of_frame.score_samples(rows)
    assert likely > odd + 1
    with pytest.raises(ValueError, match="Feature names must be in the same order"):
        of_frame.predict(rows.select(["size", "color", "count"]))
    with pytest.raises(
        ValueError, match="row 1, column 'color' is 'pink', not one of its categories: blue, green, red"
    ):
        of_frame.predict(rows.set_column(0, "color", pa.array(["red", "pink"])))
    as_views = rows.set_column(0, "color", rows["color"].cast(pa.string_view()))  # what polars hands out
    np.testing.assert_array_equal(of_frame.score_samples(as_views), [likely, odd])
    with pytest.raises(ValueError, match="row 0, column 'size' is missing"):
        of_frame.predict(rows.set_column(1, "size", pa.array([None, 1.0])))


@pytest.mark.parametrize(
    ("parameters", "rows", "message"),
    [
        ({"alpha": 0.05}, 10, r"alpha must be at least 0.0909, .* \(n_samples=10, folds=5\), got 0.05"),
        ({"alpha": 0.05, "folds": 0}, 100, r"alpha must be at least 0.0909, .* \(n_samples=100, folds=0\), got 0.05"),
        ({"alpha": 1.5}, 20, "alpha must lie between 0 and 1, got 1.5"),
        ({"folds": 1}, 20, r"folds must be 0, or 2 up to the rows \(n_samples=20\), got 1"),
        ({"training": {"stepps": 3}}, 20, "unknown key 'training.stepps'"),
        ({"model": {"width": 0}}, 20, r"width must lie in \[1, 8192\], got 0"),
        ({"categorical": ["zip"]}, 20, "no column 'zip'; it has x0, x1, x2"),
    ],
)
def test_what_cannot_be_is_refused(parameters: dict[str, Any], rows: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GlowDetector(**parameters).fit(normal_rows(rows, 0))


def test_a_single_column_is_refused_in_a_frame_too() -> None:
    with pytest.raises(ValueError, match="at least 2 columns"):
        GlowDetector().fit(pa.table({"a": np.arange(20.0)}))


def test_flows_side_by_side_stop_at_the_step_of_the_best_mean() -> None:
    recipe = with_training(tiny_recipe("t"), steps=30, evaluate_every=5, patience=2, warmup_steps=1)
    trainers = [Trainer(with_training(recipe, seed=seed), divide(tiny_table().fit)) for seed in (0, 1)]
    means: list[float] = []
    for trainer in trainers:
        trainer.evaluate = _watched(trainer.evaluate, means)  # type: ignore[method-assign]
    kept = train_side_by_side(trainers)
    losses = np.mean(np.reshape(means, (-1, 2)), 1)
    assert {checkpoint.step for checkpoint in kept} == {5 * int(losses.argmin())}
    assert len(losses) in (losses.argmin() + 3, 7)


def _watched(evaluate: Callable[[], float], into: list[float]) -> Callable[[], float]:
    def watched() -> float:
        into.append(evaluate())
        return into[-1]

    return watched


async def test_a_service_answers_as_the_detector_that_was_saved(
    by_folds: GlowDetector, held_out: GlowDetector, of_frame: GlowDetector, tmp_path: Path
) -> None:
    by_folds.save(tmp_path / "by-folds.pt")
    held_out.save(tmp_path / "other.pt", name="held-out", description="Three columns.", licence="MIT")
    of_frame.save(tmp_path / "frame.pt")
    assert open_artifact(tmp_path / "other.pt").manifest.licence == "MIT"
    app = create_app(Settings(models=[tmp_path], device="cpu", threads=1, plan="frozen", max_batch_rows=64))
    async with app.router.lifespan_context(app):
        service = httpx.Client(base_url="http://test", transport=OnLoop(app))
        x = np.concatenate([normal_rows(30, 6), normal_rows(5, 7) * 1.5])
        for name, detector, rows in (
            ("by-folds", by_folds, x),
            ("held-out", held_out, x),
            ("frame", of_frame, mixed_frame(20, 1)),
        ):
            await asyncio.to_thread(check_same_answers, service, name, detector, rows)
        await asyncio.to_thread(check_remote_frames_and_errors, service, of_frame)


def check_same_answers(service: httpx.Client, name: str, detector: GlowDetector, rows: Any) -> None:
    remote = RemoteDetector(service, name)
    assert (remote.alpha, remote.approximate_) == (detector.alpha, detector.approximate_)
    assert within_tolerance(remote.score_samples(rows), detector.score_samples(rows))
    np.testing.assert_allclose(remote.offset_, detector.offset_, atol=1e-3)
    np.testing.assert_allclose(remote.decision_function(rows), detector.decision_function(rows), atol=3e-3)
    np.testing.assert_array_equal(remote.predict(rows), detector.predict(rows))
    np.testing.assert_array_equal(remote.predict(rows) == -1, remote.p_values(rows) <= remote.alpha)
    for method in ("linear", "unify"):
        answer, expected = (each.predict_proba(rows, method) for each in (remote, detector))
        np.testing.assert_allclose(answer, expected, atol=1e-3)


def check_remote_frames_and_errors(service: httpx.Client, of_frame: GlowDetector) -> None:
    frame = mixed_frame(20, 1)
    by_name = RemoteDetector(service, "frame").score_samples(frame.select(["count", "size", "color"]))
    assert within_tolerance(by_name, of_frame.score_samples(frame))
    with pytest.raises(ValueError, match=r"x must be of shape \(B, 3\) for model held-out, got \(4, 2\)"):
        RemoteDetector(service, "held-out").predict(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="no model 'none'; served are by-folds@"):
        RemoteDetector(service, "none")


def test_a_detector_is_saved_under_a_name_that_can_be_served(by_folds: GlowDetector, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"GlowDetector.save: name: .*, got 'My Table'"):
        by_folds.save(tmp_path / "My Table.pt")
    with pytest.raises(UsageError, match="must be a file name in a folder that exists"):
        by_folds.save(tmp_path / "none" / "table.pt")
    assert not list(tmp_path.iterdir())


CALIBRATION = {
    "alpha": 0.1,
    "approximate": False,
    "threshold": 5.0,
    "summary": {"lowest": 0.0, "highest": 10.0, "mean": 4.0, "std": 2.0},
}


def stub(answers: list[httpx.Response], paths: list[str] | None = None) -> httpx.Client:
    """A service that describes its model, then gives these answers; ``paths`` are what it was asked for."""

    def handle(request: httpx.Request) -> httpx.Response:
        if paths is not None:
            paths.append(request.url.path)
        if request.url.path == "/models":
            return httpx.Response(200, json={"default": "m"})
        about = {"name": "m", "calibration": CALIBRATION}
        return httpx.Response(200, json=about) if request.method == "GET" else answers.pop(0)

    return httpx.Client(base_url="http://test", transport=httpx.MockTransport(handle))


def scores(*values: float) -> httpx.Response:
    """What a service answers of rows of these scores."""
    tensors = [
        Output(name, np.array(values), binary=True) for name in ("log_likelihood", "bits_per_dim", "score", "p_value")
    ]
    parts, size = codec.write({"model_name": "m", "model_version": "0" * 12}, tensors)
    return httpx.Response(200, headers={headers.JSON_SIZE: str(size)}, content=b"".join(parts))


def test_a_busy_service_is_asked_again_when_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("threading.Event.wait", lambda _, seconds: waited.append(seconds))
    busy = [httpx.Response(429, headers={"retry-after": "3"}), httpx.Response(503, headers={"retry-after": "7"})]
    detector = RemoteDetector(stub([*busy, scores(4.0, 6.0)]))
    assert detector.predict(np.zeros((2, 3))).tolist() == [1, -1]
    assert waited == [3, 7]
    with pytest.raises(Busy, match="Too Many Requests"):
        RemoteDetector(stub([httpx.Response(429)] * 3), retries=2).predict(np.zeros((1, 3)))


def test_the_version_that_a_client_is_bound_to_is_kept_to() -> None:
    paths: list[str] = []
    detector = RemoteDetector(GlowClient(stub([scores(4.0)], paths), model="m@1234"))
    assert detector.model == "m"
    assert detector.predict(np.zeros((1, 3))).tolist() == [1]
    assert paths == ["/models/m@1234", "/v2/models/m/versions/1234/infer"]


def test_an_error_of_what_stands_before_the_service_is_told_by_its_status() -> None:
    detector = RemoteDetector(stub([httpx.Response(413, text="<html>")]))
    with pytest.raises(ValueError, match=r"^Request Entity Too Large$"):
        detector.predict(np.zeros((1, 3)))


def test_connections_are_closed_but_those_of_a_client_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    http = stub([])
    with RemoteDetector(http):
        pass
    assert not http.is_closed
    closed: list[GlowClient] = []
    monkeypatch.setattr(GlowClient, "close", lambda self: closed.append(self))
    own = GlowClient(http)
    with RemoteDetector(own):
        pass
    assert not closed
    with RemoteDetector(http) as detector:
        pass
    assert closed == [detector._client]


def test_a_model_without_a_calibration_is_no_detector() -> None:
    client = httpx.Client(base_url="http://t", transport=httpx.MockTransport(lambda _: httpx.Response(200, json={})))
    with pytest.raises(ValueError, match="model m is not calibrated"):
        RemoteDetector(client, "m")


def test_the_benchmark_of_false_alarms_tells_right_p_values_from_wrong_ones() -> None:
    random = np.random.default_rng(0)
    for rates, num in ((rates_of_many, 3000), (rates_of_few, 80)):
        calibration, test = np.sort(random.normal(size=num)), random.normal(size=num)
        assert all(rate.inside for rate in rates(calibration, test))
    shifted = list(rates_of_many(np.sort(random.normal(size=3000)), random.normal(1.0, size=3000)))
    assert not any(rate.inside for rate in shifted)
