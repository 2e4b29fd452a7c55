"""Planning: the most that a replica answers, the fewest replicas that a load takes, and what they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from benchmarks.capacity.inputs import Inputs, ModelCosts, Pass
from benchmarks.capacity.system import Deployment, Load, Prediction, predict
from common.errors import UsageError

DEVICES = ("cpu", "cuda")
# Seconds of a pass of log_prob on one NVIDIA H200, recorded graphs: docs/engine.md.
CUDA_FLOW_S = {
    "breast-cancer": {1: 0.30e-3, 4096: 0.43e-3},
    "fashion-mnist": {1: 1.4e-3, 64: 2.5e-3, 1024: 14.8e-3, 4096: 54.9e-3},
}
MOST_LOADED = 0.8  # share of the most that replicas answer: what is left is for what the model leaves out
MOST_SIMULATED = 12  # replicas: of more, so many get their share of the load, which others do not change
MANY_ROWS = 1024  # in a closed loop that keeps a replica busy all the time
REQUESTS, REQUESTED_ROWS = 4_000, 40_000  # that are simulated, at most of both


@dataclass(frozen=True)
class Answer:
    """What a load takes; latencies in seconds, shares from 0 to 1."""

    replicas: int
    holds: bool  # whether p99 and MOST_LOADED are kept, and nothing is refused
    throughput: float  # requests a second
    p50: float
    p95: float
    p99: float
    refused: float  # share of requests
    most: float  # requests a second that the replicas answer at all
    bound_by: str  # what is busiest then, and breaks first
    gbit: float  # a second, in and out, of all
    machine_hours: float  # for a million requests
    cost: float  # of them


def on_device(inputs: Inputs, device: str) -> Inputs:
    """Costs with the engine on another device: passes on a GPU, all else as it was measured.

    Passes between those that docs/engine.md has are on a line between them. Scores are made on the CPU, as they are on
    every device.
    """
    if device == "cpu":
        return inputs
    models = {name: _on_cuda(costs, CUDA_FLOW_S[name]) for name, costs in inputs.models.items()}
    return inputs.model_copy(update={"models": models})


def _on_cuda(costs: ModelCosts, known: dict[int, float]) -> ModelCosts:
    sizes, per_row = list(known), max(one.scores_s / one.rows for one in costs.passes[-2:])
    passes = []
    for rows in (2**i for i in range(13)):
        high = next(size for size in sizes if size >= rows)
        low = max((size for size in sizes if size < rows), default=high)
        share = (rows - low) / (high - low) if high > low else 0.0
        flow_s = known[low] + share * (known[high] - known[low])
        passes.append(Pass(rows=rows, flow_s=flow_s, scores_s=per_row * rows))
    return costs.model_copy(update={"passes": passes})


def most_of_one(inputs: Inputs, what: Deployment, load: Load) -> Prediction:
    """A replica that always has something to do."""
    connections = max(4, min(128, MANY_ROWS // load.rows))
    full = replace(load, connections=connections, rate=0.0)
    one = replace(what, replicas=1)
    seconds = 0.25
    while True:  # long enough for every connection to have had some answers
        found = predict(inputs, one, full, seconds)
        if found.counts["answered"] >= 5 * connections or seconds > 100:
            return found
        seconds *= 4


def ask(
    inputs: Inputs,
    what: Deployment,
    load: Load,
    device: str = "cpu",
    replicas: int | None = None,
    p99_s: float = 0.1,
    price: float = 0.0,
    seconds: float | None = None,
    seed: int = 0,
) -> Answer:
    """What a load takes of so many replicas, or of the fewest that keep the promise. Raises UsageError.

    That is for a model without measured costs, and where no number of replicas keeps it.
    """
    if load.model not in inputs.models:
        raise UsageError(f"--model {load.model}: must be one of {', '.join(inputs.models)}")
    costs = on_device(inputs, device)
    full = most_of_one(costs, what, load)
    most = full.throughput
    num = replicas or max(1, math.ceil(load.rate / most / MOST_LOADED))
    while True:
        found = _at(costs, what, load, num, seconds, seed)
        loaded = load.rate / (num * most)  # how busy a part is tells less: passes of few rows take longer a row
        holds = found.p99 <= p99_s and found.refused == 0 and loaded <= MOST_LOADED
        if replicas or holds:
            break
        if num > 1 and num > 8 * load.rate / most:
            raise UsageError(f"--p99 {p99_s:g}: {num} replicas, which is plenty, have {found.p99:.3g} s")
        num = max(num + 1, math.ceil(1.05 * num))
    body = costs.models[load.model].body(load.media, load.rows)
    hours = num / load.rate * 1e6 / 3600
    return Answer(
        replicas=num,
        holds=holds,
        throughput=found.throughput * num / min(num, MOST_SIMULATED),
        p50=found.p50,
        p95=found.p95,
        p99=found.p99,
        refused=found.refused,
        most=most * num,
        bound_by=full.bound_by,
        gbit=load.rate * (body.request_bytes + body.answer_bytes) * 8e-9,
        machine_hours=hours,
        cost=hours * price,
    )


def _at(inputs: Inputs, what: Deployment, load: Load, num: int, seconds: float | None, seed: int) -> Prediction:
    few = min(num, MOST_SIMULATED)
    share = replace(load, rate=load.rate * few / num)
    own = replace(what, replicas=few)
    requests = max(1, min(REQUESTS, REQUESTED_ROWS // load.rows))
    return predict(inputs, own, share, seconds or max(0.2, requests / share.rate), seed)
