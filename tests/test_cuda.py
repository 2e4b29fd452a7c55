"""A CUDA device: whatever runs there answers as the CPU does, whose sums are in float64."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.artifact import (
    OPERATIONS,
    ROUND_TRIP_TOLERANCE,
    Operation,
    golden_rows,
    open_artifact,
    within_tolerance,
)
from service.engine import Engine, PassKey
from service.plans import warm_up
from service.runner import CUDA_FORMS, Form, Plan, Runner
from service.scores import p_values, smallest_p_value
from service.settings import Settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")

MODELS = ["tiny-images", "tiny-table", "tiny-mixed"]
SIZES = (1, 2, 7, 33)
GRAPH = Plan("cuda_graph")


@pytest.fixture(autouse=True)
def full_precision() -> None:
    """As the engine sets it."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@dataclass(frozen=True)
class Pair:
    """One model on both devices; opened twice, since a runner moves what it is given."""

    gpu: Runner
    cpu: Runner

    def rows(self, operation: Operation, num_rows: int, seed: int) -> Any:
        """Random rows, all of them likely ones."""
        random = np.random.default_rng(seed)
        z = random.normal(size=(num_rows, self.cpu.manifest.num_dims)).astype(np.float32)
        return z if operation == "decode" else np.ascontiguousarray(self.cpu.run("decode", Plan("frozen"), z)[0])

    def assert_alike(self, operation: Operation, plan: Plan, rows: Any) -> None:
        """Both answer these rows alike."""
        answers = self.gpu.run(operation, plan, rows)
        expected = self.cpu.run(operation, Plan("frozen"), rows)
        assert [(part.shape, part.dtype) for part in answers] == [(part.shape, part.dtype) for part in expected]
        if operation == "decode":
            errors = np.abs(answers[0] - expected[0]) / self.cpu.manifest.unit
            assert errors.max() <= ROUND_TRIP_TOLERANCE
        else:
            assert answers[-1].dtype == np.float64
            assert within_tolerance(answers[-1], expected[-1])
        if operation == "encode":
            np.testing.assert_allclose(answers[0], expected[0], rtol=0, atol=1e-3)


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest, models_dir: Path) -> Pair:
    path = models_dir / f"{request.param}.pt"
    return Pair(Runner(open_artifact(path), torch.device("cuda")), Runner(open_artifact(path), torch.device("cpu")))


@pytest.mark.parametrize("form", CUDA_FORMS)
def test_every_form_answers_the_golden_case(pair: Pair, form: Form) -> None:
    for operation, num_rows in itertools.product(OPERATIONS, (1, 2, 4, 16)):
        assert warm_up(pair.gpu, operation, Plan(form), num_rows) is None
        pair.assert_alike(operation, Plan(form), golden_rows(pair.gpu.manifest, operation, num_rows))


@pytest.mark.parametrize("form", CUDA_FORMS)
def test_every_form_answers_random_rows_as_the_cpu_does(pair: Pair, form: Form) -> None:
    for operation, num_rows in itertools.product(OPERATIONS, SIZES):
        for seed in range(4):  # what the compiler makes of the first calls must not differ from the rest
            pair.assert_alike(operation, Plan(form), pair.rows(operation, num_rows, seed))


def test_a_graph_replays_on_new_rows_and_leaves_the_answers_to_older_ones(pair: Pair) -> None:
    for operation, num_rows in itertools.product(OPERATIONS, SIZES):
        first, second = (pair.rows(operation, num_rows, seed) for seed in (0, 1))
        answers = pair.gpu.run(operation, GRAPH, first)
        copies = [answer.copy() for answer in answers]
        recorded = pair.gpu._graphs[operation, num_rows]
        pair.assert_alike(operation, GRAPH, second)
        assert pair.gpu._graphs[operation, num_rows] is recorded
        for answer, copy in zip(answers, copies, strict=True):
            np.testing.assert_array_equal(answer, copy)
        pair.assert_alike(operation, GRAPH, first)


def test_graphs_share_one_pool_and_answer_in_any_order(pair: Pair) -> None:
    passes = list(itertools.product(OPERATIONS, SIZES))
    for operation, num_rows in passes:
        pair.gpu.run(operation, GRAPH, pair.rows(operation, num_rows, 0))
    graphs = pair.gpu._graphs
    assert set(graphs) == set(passes)
    assert len({graph.pool for graph in graphs.values()}) == 1
    random = np.random.default_rng(0)
    for seed in range(1, 4):
        for index in random.permutation(len(passes)):
            operation, num_rows = passes[index]
            pair.assert_alike(operation, GRAPH, pair.rows(operation, num_rows, seed))


def test_graphs_that_are_kept_outlive_the_others_and_the_program(pair: Pair) -> None:
    passes = list(itertools.product(OPERATIONS, SIZES))
    for operation, num_rows in passes:
        pair.gpu.run(operation, GRAPH, pair.rows(operation, num_rows, 0))
    kept = passes[1::3]
    pair.gpu.keep({(operation, num_rows, GRAPH) for operation, num_rows in kept})
    assert set(pair.gpu._graphs) == set(kept)
    torch.cuda.empty_cache()
    torch.full((2**22,), float("nan"), device="cuda")  # takes what was freed, if it was freed too early
    for operation, num_rows in kept:
        pair.assert_alike(operation, GRAPH, pair.rows(operation, num_rows, 1))


def test_scores_and_p_values_are_those_of_the_cpu(settings: Settings) -> None:
    gpu, cpu = (Engine(settings.model_copy(update={"device": device})) for device in ("cuda", "cpu"))
    for engine in (gpu, cpu):
        engine.warm_up()
    for name, manifest in cpu.manifests.items():
        z = np.random.default_rng(0).normal(size=(70, manifest.num_dims)).astype(np.float32)
        (x,) = cpu.run(PassKey(name, "decode", reproducible=True), z)
        (expected,) = cpu.run(PassKey(name, "statistics", reproducible=True), x)
        assert manifest.calibration is not None
        calibration = manifest.calibration.arrays["negative_log_likelihood"]
        expected_p = p_values(-expected[:, 0], calibration)
        for reproducible in (False, True):
            (values,) = gpu.run(PassKey(name, "statistics", reproducible), x)
            assert within_tolerance(values, expected)
            moved = np.abs(p_values(-values[:, 0], calibration) - expected_p)
            assert moved.max() <= 1.001 * smallest_p_value(len(calibration))  # past one calibration score at most
