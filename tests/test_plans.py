"""Plans: whatever is chosen answers rightly, covers every row once, and is remembered."""

from __future__ import annotations

import gc
import itertools
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service import plans
from service.artifact import (
    OPERATIONS,
    Artifact,
    ArtifactError,
    Operation,
    golden_rows,
    open_artifact,
    within_tolerance,
)
from service.machine import peak_bytes
from service.plans import Bucket, Measured, Schedule, finish
from service.runner import CPU_FORMS, Form, Plan, Runner

CPU = torch.device("cpu")


@pytest.fixture(params=["tiny-images", "tiny-table"])
def artifact(request: pytest.FixtureRequest, models_dir: Path) -> Artifact:
    return open_artifact(models_dir / f"{request.param}.pt")


@pytest.fixture
def runner(artifact: Artifact) -> Runner:
    return Runner(artifact, CPU)


class Faulty(Runner):
    """Answers wrongly by one form, too late to be seen in anything but the golden case."""

    wrong: tuple[Form, ...] = ()

    def run(self, operation: Operation, plan: Plan, rows: Any) -> tuple[Any, ...]:
        outputs = super().run(operation, plan, rows)
        return tuple(output + 1 for output in outputs) if plan.form in self.wrong else outputs


def measured(runner: Runner, **changes: Any) -> plans.Schedules:
    wanted: dict[str, Any] = {"forms": CPU_FORMS, "threads": 1, "max_rows": 8, "cache_dir": None, "seconds": 60.0}
    wanted |= changes
    seconds = wanted.pop("seconds")
    return finish(Measured(**wanted).schedules_of(runner, seconds))


def schedule(*seconds: float) -> Schedule:
    return Schedule(
        buckets=[
            Bucket(rows=2**i, form="frozen", threads=1, seconds=value, memory=2**i) for i, value in enumerate(seconds)
        ]
    )


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=8), st.integers(1, 1000))
def test_buckets_cover_every_row_and_only_the_last_is_filled_up(seconds: list[float], num_rows: int) -> None:
    cover = schedule(*seconds).cover(num_rows)
    total = sum(bucket.rows for bucket in cover)
    assert total - cover[-1].rows < num_rows <= total


@given(st.lists(st.floats(1e-3, 10), min_size=1, max_size=4), st.integers(1, 8))
def test_no_other_choice_of_buckets_takes_less_time(seconds: list[float], num_rows: int) -> None:
    buckets = schedule(*seconds)
    num_rows = min(num_rows, buckets.largest)
    cost = sum(bucket.seconds + plans.OVERHEAD_S for bucket in buckets.cover(num_rows))
    assert buckets.begin(num_rows) == buckets.cover(num_rows)[0].rows
    for length in range(1, num_rows + 1):
        for other in itertools.combinations_with_replacement(buckets.buckets, length):
            if sum(bucket.rows for bucket in other) >= num_rows:
                assert cost <= sum(bucket.seconds + plans.OVERHEAD_S for bucket in other) * (1 + 1e-9)


def test_a_row_is_filled_up_to_a_larger_bucket_where_that_is_faster() -> None:
    assert [bucket.rows for bucket in schedule(3.0, 1.0).cover(1)] == [2]


def test_without_its_larger_half_a_schedule_still_has_its_smallest_bucket() -> None:
    assert schedule(1.0, 1.5, 2.0).below(4).largest == 2
    assert schedule(1.0).below(1).largest == 1


@pytest.mark.parametrize("form", CPU_FORMS)
def test_every_form_answers_as_the_program_does(runner: Runner, artifact: Artifact, form: Form) -> None:
    random = np.random.default_rng(0)
    for num_rows in (1, 2, 7, 33):
        x = random.permuted(golden_rows(artifact.manifest, "encode", num_rows), axis=0)
        z, _ = artifact.program.encode(torch.from_numpy(x))
        for _ in range(4):  # what the compiler makes of the first calls must not differ from the rest
            values, codes = runner.run("statistics", Plan(form), x)[0], runner.run("encode", Plan(form), x)[0]
            decoded = runner.run("decode", Plan(form), z.numpy())[0]
        assert within_tolerance(values, artifact.program.statistics(torch.from_numpy(x)).numpy())
        np.testing.assert_allclose(codes, z, rtol=0, atol=1e-3)
        np.testing.assert_allclose(decoded, artifact.program.decode(z), rtol=0, atol=1e-2)


def test_what_is_packed_is_onednns_own(artifact: Artifact) -> None:
    runner = Runner(artifact, CPU)
    runner.run("statistics", Plan("packed"), golden_rows(runner.manifest, "statistics"))
    packed = "_convolution_pointwise" if runner.manifest.kind == "image" else "_linear_pointwise"
    assert f"mkldnn::{packed}" in str(runner._forms["packed"].statistics.graph)


@pytest.mark.parametrize("form", CPU_FORMS)
def test_a_flow_of_vectors_runs_no_convolution(models_dir: Path, form: Form) -> None:
    runner = Runner(open_artifact(models_dir / "tiny-table.pt"), CPU)
    for operation in OPERATIONS:
        runner.run(operation, Plan(form), golden_rows(runner.manifest, operation))
        assert "conv" not in str(getattr(runner._forms[form], operation).graph)


def test_each_operation_gets_buckets_from_one_row_up_to_the_most_that_is_allowed(runner: Runner) -> None:
    schedules = measured(runner, max_rows=6)
    assert set(schedules.of) == set(OPERATIONS)
    for found in schedules.of.values():
        rows = [bucket.rows for bucket in found.buckets]
        assert rows == [2**i for i in range(len(rows))]
        assert found.largest <= 4


def test_a_plan_that_answers_wrongly_is_never_chosen(artifact: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    runner = Faulty(artifact, CPU)
    runner.wrong = ("packed", "channels_last", "optimized")
    forms = {bucket.form for found in measured(runner).of.values() for bucket in found.buckets}
    assert forms == {"frozen"}
    assert "expected" in caplog.text
    runner.wrong = CPU_FORMS
    with pytest.raises(ArtifactError, match="no plan reproduces the golden case of statistics"):
        measured(runner)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_pass_of_any_size_must_answer_every_golden_row(
    artifact: Artifact, operation: Operation, num_rows: int
) -> None:
    golden = golden_rows(artifact.manifest, operation)

    class Faulty(Runner):
        wrong = -1

        def run(self, operation: Operation, plan: Plan, rows: Any) -> tuple[Any, ...]:
            outputs = super().run(operation, plan, rows)
            for output in outputs if self.wrong >= 0 else ():
                output[(rows == golden[self.wrong]).reshape(len(rows), -1).all(1)] += 1
            return outputs

    runner = Faulty(artifact, CPU)
    assert plans.warm_up(runner, operation, Plan("frozen"), num_rows) is None
    for runner.wrong in range(len(golden)):
        assert plans.warm_up(runner, operation, Plan("frozen"), num_rows)


def test_what_won_for_one_operation_does_not_keep_a_right_plan_from_the_next(artifact: Artifact) -> None:
    class Faulty(Runner):
        def run(self, operation: Operation, plan: Plan, rows: Any) -> tuple[Any, ...]:
            outputs = super().run(operation, plan, rows)
            wrong = operation == "decode" if plan.form != "optimized" else operation != "decode"
            return tuple(output + 1 for output in outputs) if wrong else outputs

    schedules = measured(Faulty(artifact, CPU)).of
    assert {bucket.form for bucket in schedules["decode"].buckets} == {"optimized"}
    assert "optimized" not in {bucket.form for bucket in schedules["encode"].buckets}


def test_a_plan_that_fails_is_left_out(artifact: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Runner):
        def run(self, operation: Operation, plan: Plan, rows: Any) -> tuple[Any, ...]:
            if plan.form == "packed":
                raise RuntimeError("no such operator")
            return super().run(operation, plan, rows)

    schedules = measured(Failing(artifact, CPU))
    assert "packed" not in {bucket.form for found in schedules.of.values() for bucket in found.buckets}
    assert "no such operator" in caplog.text


def test_a_form_that_cannot_be_made_is_tried_once(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    def lacking(*_: object) -> None:
        tried.append(1)
        raise AttributeError("no such operator")

    monkeypatch.setattr("service.runner.pack_weights", lacking)
    schedules = measured(runner, threads=2)
    assert "packed" not in {bucket.form for found in schedules.of.values() for bucket in found.buckets}
    assert caplog.text.count("cannot be made: AttributeError: no such operator") > len(tried) == 1


@pytest.mark.parametrize("form", CPU_FORMS)
def test_what_is_kept_needs_no_program_any_more(models_dir: Path, form: Form) -> None:
    artifact = open_artifact(models_dir / "tiny-table.pt")
    runner, program = Runner(artifact, CPU), weakref.ref(artifact.program)
    del artifact
    rows = golden_rows(runner.manifest, "statistics")
    expected = runner.run("statistics", Plan(form), rows)[0]
    runner.keep({("statistics", len(rows), Plan(form))})
    gc.collect()
    assert program() is None
    assert within_tolerance(runner.run("statistics", Plan(form), rows)[0], expected)


def test_passes_grow_no_further_than_memory_allows(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "reset_peak", lambda device: 0)
    monkeypatch.setattr(plans, "peak_bytes", lambda device: 1)
    monkeypatch.setattr(plans, "available_bytes", lambda device: 3)
    assert {found.largest for found in measured(runner).of.values()} == {1}


def test_a_large_use_of_memory_before_does_not_hide_what_a_pass_takes(artifact: Artifact) -> None:
    class Hungry(Runner):
        def run(self, operation: Operation, plan: Plan, rows: Any) -> tuple[Any, ...]:
            np.ones(len(rows) * 2**22)  # 32 MiB a row
            return super().run(operation, plan, rows)

    if not peak_bytes(CPU):
        pytest.skip("the system does not tell")
    np.ones(2**26)
    for found in measured(Hungry(artifact, CPU), max_rows=2).of.values():
        assert all(bucket.memory >= bucket.rows * 2**24 for bucket in found.buckets)


def test_cached_passes_that_no_longer_fit_are_left_out(runner: Runner, tmp_path: Path) -> None:
    schedules = measured(runner)
    assert {found.largest for found in schedules.within(-1).of.values()} == {1}
    assert schedules.within(2**60) == schedules


def test_what_time_cut_short_is_told(runner: Runner, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert {found.largest for found in measured(runner, cache_dir=tmp_path, seconds=0).of.values()} == {1}
    assert "0 s were too few to try passes of more rows" in caplog.text


def test_a_pass_that_does_not_fit_ends_the_growth(artifact: Artifact) -> None:
    class Small(Runner):
        def run(self, operation: Operation, plan: Plan, rows: Any) -> tuple[Any, ...]:
            if len(rows) > 2:
                raise MemoryError
            return super().run(operation, plan, rows)

    assert all(found.largest <= 2 for found in measured(Small(artifact, CPU)).of.values())


def test_what_was_measured_is_remembered(
    runner: Runner, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "not" / "there"
    first = measured(runner, cache_dir=folder)
    monkeypatch.setattr(plans, "_measure", pytest.fail)
    assert measured(Runner(artifact, CPU), cache_dir=folder) == first


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff"])
def test_a_cache_that_cannot_be_read_is_measured_anew(
    runner: Runner, tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    measured(runner, cache_dir=tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_bytes(damage)
    again = measured(runner, cache_dir=tmp_path)
    assert "measuring again" in caplog.text
    assert path.read_text() == again.model_dump_json(indent=1)


def test_a_cached_plan_that_answers_wrongly_is_measured_anew(artifact: Artifact, tmp_path: Path) -> None:
    runner = Faulty(artifact, CPU)
    measured(runner, cache_dir=tmp_path)
    runner.wrong = ("packed", "channels_last", "optimized")
    again = measured(runner, cache_dir=tmp_path)
    assert {bucket.form for found in again.of.values() for bucket in found.buckets} == {"frozen"}


def test_another_number_of_threads_has_plans_of_its_own(runner: Runner, tmp_path: Path) -> None:
    measured(runner, cache_dir=tmp_path)
    measured(runner, cache_dir=tmp_path, threads=2)
    assert len(list(tmp_path.glob("*.json"))) == 2


@pytest.mark.parametrize("changed", [{"version": lambda name: "0.0"}, {"FORMAT": 0}])
def test_another_version_of_the_code_has_plans_of_its_own(
    runner: Runner, tmp_path: Path, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(runner, cache_dir=tmp_path)
    for name, value in changed.items():
        monkeypatch.setattr(plans, name, value)
    measured(runner, cache_dir=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_cache(
    runner: Runner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    measured(runner, cache_dir=tmp_path / "file")
    assert "GLOW_CACHE_DIR" in caplog.text


def test_threads_that_pay_at_many_rows_alone_are_still_tried_there() -> None:
    one, other, two, slow = Plan("packed", 1), Plan("frozen", 1), Plan("packed", 2), Plan("frozen", 2)
    seconds = {one: 1.0, other: 1.3, two: 3.0, slow: 3.1}
    assert plans._promising(seconds, 1.2) == [one, two]
    assert plans._promising(seconds, 1.5) == [one, other, two]


def test_passes_too_short_to_tell_calls_from_arithmetic_leave_every_plan_its_chance() -> None:
    seconds = {Plan("frozen"): 0.1 * plans.QUICK_S, Plan("packed"): 0.9 * plans.QUICK_S}
    assert plans._promising(seconds, 1.2) == [*seconds]
