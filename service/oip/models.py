"""What an artifact is to the Open Inference Protocol: four models, their tensors and what they run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from service import noise
from service.artifact import Manifest, Operation
from service.catalog import Catalog
from service.engine import Model
from service.errors import Unprocessable
from service.flows import Budget, Flows
from service.oip.codec import Array, InferRequest
from service.oip.tensors import datatype_of
from service.options import RowOptions, SampleOptions, ScoreOptions, read_parameters
from service.rows import inputs_from_array, latents_from_array
from service.scorer import chosen_scores, named_columns

PLATFORM = "pytorch_torchscript"  # the protocol's name of what artifacts are
_ROWS = -1  # size of a dimension that a request chooses


class Tensor(NamedTuple):
    """An input or output of a model: its name, and the dtype and shape that it has or best has."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    optional: bool = False


class Task(NamedTuple):
    """What a request asks of a model: ``run(budget, wanted)`` gives arrays by name, the wanted ones among them."""

    num_rows: int
    outputs: list[str]
    run: Callable[[Budget, Collection[str]], Awaitable[dict[str, Any]]]


class View(ABC):
    """One of the four models that each artifact is."""

    suffix: ClassVar[str]  # behind the artifact's name
    path: ClassVar[str]  # of the service's own route that does the same
    operation: ClassVar[Operation]  # whose passes it takes
    batched: ClassVar[bool] = True  # whether the first dimension of each tensor is that of the rows

    def name(self, manifest: Manifest) -> str:
        """Name of the model."""
        return manifest.name + self.suffix

    @property
    def route(self) -> str:
        """Label of its inferences in the metrics."""
        return f"/v2/models/{{name}}{self.suffix}/infer"

    @abstractmethod
    def inputs(self, manifest: Manifest) -> list[Tensor]:
        """Inputs of the model."""

    @abstractmethod
    def outputs(self, manifest: Manifest) -> list[Tensor]:
        """Outputs that it has whatever is asked."""

    @abstractmethod
    def task(self, flows: Flows, model: Model, request: InferRequest) -> Task:
        """Check inputs and options. Raises Unprocessable, TooLarge, or BadRequest for what is not finite."""

    def prepare(self, flows: Flows, model: Model, request: InferRequest) -> Task:
        """Check a request. Raises what ``task`` raises."""
        manifest = model.manifest
        known = self.inputs(manifest)
        _check_names("input", request.inputs, [tensor.name for tensor in known], self.name(manifest))
        for tensor in known:
            if not tensor.optional and tensor.name not in request.inputs.keys() | request.parameters.keys():
                raise Unprocessable(f"model {self.name(manifest)} lacks its input {tensor.name!r}")
        task = self.task(flows, model, request)
        _check_names("output", request.outputs or (), task.outputs, self.name(manifest))
        return task

    def metadata(self, manifest: Manifest, versions: list[str]) -> dict[str, Any]:
        """Describe the model as the protocol does, with all ``versions`` of its name."""
        return {
            "name": self.name(manifest),
            "versions": versions,
            "platform": PLATFORM,
            "inputs": [_metadata(tensor) for tensor in self.inputs(manifest)],
            "outputs": [_metadata(tensor) for tensor in self.outputs(manifest)],
        }

    def config(self, manifest: Manifest, max_rows: int) -> dict[str, Any]:
        """Describe the model as Triton's extension model_configuration does, where the rows are no dimension."""
        skip = int(self.batched)
        batching = {"max_batch_size": max_rows, "dynamic_batching": {}} if self.batched else {"max_batch_size": 0}
        return {
            "name": self.name(manifest),
            "platform": PLATFORM,
            **batching,
            "input": [_config(tensor, skip) for tensor in self.inputs(manifest)],
            "output": [_config(tensor, skip) for tensor in self.outputs(manifest)],
        }


class Score(View):
    """x -> log-likelihood, bits per dimension and, calibrated, score, p-value and flag."""

    suffix, path, operation = "", "/log-likelihood", "statistics"

    def inputs(self, manifest: Manifest) -> list[Tensor]:
        return [_x(manifest)]

    def outputs(self, manifest: Manifest) -> list[Tensor]:
        names = ["log_likelihood", "bits_per_dim"]
        if manifest.calibration is None:
            return [_per_row(name) for name in names]
        return [*map(_per_row, [*names, "score", "p_value"]), _per_row("is_anomaly", np.bool_)]

    def task(self, flows: Flows, model: Model, request: InferRequest) -> Task:
        manifest = model.manifest
        options = read_parameters(ScoreOptions, request.parameters)
        x = inputs_from_array(request.inputs["x"], manifest, "x")
        names = chosen_scores(manifest, options.scores)
        known = manifest.calibration.arrays if manifest.calibration else {}
        outputs = [tensor.name for tensor in self.outputs(manifest)]
        outputs += named_columns(dict.fromkeys(names, x), known, names)
        if options.explain:
            outputs.append("contributions")

        async def run(budget: Budget, wanted: Collection[str]) -> dict[str, Any]:
            values = await flows.score(budget, model, x, options)
            scores, p_values = values.pop("scores", {}), values.pop("p_values", {})
            return {**values, **named_columns(scores, p_values, scores)}

        return Task(len(x), outputs, run)


class Encode(View):
    """x -> latent code and log-likelihood."""

    suffix, path, operation = ".encode", "/encode", "encode"

    def inputs(self, manifest: Manifest) -> list[Tensor]:
        return [_x(manifest)]

    def outputs(self, manifest: Manifest) -> list[Tensor]:
        return [_z(manifest), _per_row("log_likelihood")]

    def task(self, flows: Flows, model: Model, request: InferRequest) -> Task:
        manifest = model.manifest
        options = read_parameters(RowOptions, request.parameters)
        x = inputs_from_array(request.inputs["x"], manifest, "x")

        async def run(budget: Budget, wanted: Collection[str]) -> dict[str, Any]:
            z, log_likelihood = await flows.encode(budget, model, x, options.reproducible)
            return {"z": z, "log_likelihood": log_likelihood}

        return Task(len(x), ["z", "log_likelihood"], run)


class Decode(View):
    """Latent code -> x."""

    suffix, path, operation = ".decode", "/decode", "decode"

    def inputs(self, manifest: Manifest) -> list[Tensor]:
        return [_z(manifest)]

    def outputs(self, manifest: Manifest) -> list[Tensor]:
        return [_x(manifest)]

    def task(self, flows: Flows, model: Model, request: InferRequest) -> Task:
        manifest = model.manifest
        options = read_parameters(RowOptions, request.parameters)
        z = latents_from_array(request.inputs["z"], manifest, "z")

        async def run(budget: Budget, wanted: Collection[str]) -> dict[str, Any]:
            return {"x": await flows.decode(budget, model, z, options.reproducible)}

        return Task(len(z), ["x"], run)


class Sample(View):
    """How many, and how -> samples, their log-likelihood under the model, and the seed that gives them again."""

    suffix, path, operation, batched = ".sample", "/sample", "decode", False

    def inputs(self, manifest: Manifest) -> list[Tensor]:
        one = (1,)
        return [
            Tensor("n", np.dtype(np.int64), one),
            Tensor("temperature", np.dtype(np.float64), one, optional=True),
            Tensor("seed", np.dtype(np.int64), one, optional=True),
        ]

    def outputs(self, manifest: Manifest) -> list[Tensor]:
        samples = _x(manifest)._replace(name="samples")
        return [samples, _per_row("log_likelihood"), Tensor("seed", np.dtype(np.int64), (1,))]

    def task(self, flows: Flows, model: Model, request: InferRequest) -> Task:
        manifest = model.manifest
        for name in request.inputs.keys() & request.parameters.keys():
            raise Unprocessable(f"{name} is given more than once")
        values = {name: _only_value(name, array) for name, array in request.inputs.items()}
        options = read_parameters(SampleOptions, {**request.parameters, **values})
        seed = noise.random_seed() if options.seed is None else options.seed
        temperature = manifest.temperature if options.temperature is None else options.temperature

        async def run(budget: Budget, wanted: Collection[str]) -> dict[str, Any]:
            samples = await flows.sample(budget, model, options.n, temperature, seed, options.first)
            arrays = {"samples": samples, "seed": np.array([seed], np.int64)}
            if "log_likelihood" in wanted:
                arrays["log_likelihood"] = await flows.log_likelihood(budget, model, samples, reproducible=True)
            return arrays

        return Task(options.n, ["samples", "log_likelihood", "seed"], run)


VIEWS: tuple[View, ...] = (Score(), Encode(), Decode(), Sample())
_BY_SUFFIX = {view.suffix: view for view in VIEWS}


def find(flows: Flows, name: str, version: str | None = None) -> tuple[View, Model]:
    """Find a model; an artifact's own name goes first. Raises ModelNotFound, also for a version that is not served."""
    stem, dot, operation = name.rpartition(".")
    view = None if flows.catalog.versions(name) else _BY_SUFFIX.get(dot + operation)
    found = name if view is None else stem
    return view or VIEWS[0], flows.find(found if version is None else f"{found}@{version}")


def versions(flows: Flows, model: Model) -> list[str]:
    """All versions of a model's name, the one that answers for it first."""
    return [other.version for other in flows.catalog.versions(model.name)]


def served(catalog: Catalog) -> list[tuple[View, Model]]:
    """All models, in every version."""
    return [(view, model) for model in catalog.models for view in VIEWS]


def _x(manifest: Manifest) -> Tensor:
    return Tensor("x", np.dtype(manifest.input_dtype), (_ROWS, *manifest.shape))


def _z(manifest: Manifest) -> Tensor:
    return Tensor("z", np.dtype(np.float32), (_ROWS, manifest.num_dims))


def _per_row(name: str, dtype: type[np.generic] = np.float64) -> Tensor:
    return Tensor(name, np.dtype(dtype), (_ROWS,))


def _metadata(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": datatype_of(tensor.dtype), "shape": tensor.shape}


def _config(tensor: Tensor, skip: int) -> dict[str, Any]:
    data_type = f"TYPE_{datatype_of(tensor.dtype)}"
    optional = {"optional": True} if tensor.optional else {}
    return {"name": tensor.name, "data_type": data_type, "dims": tensor.shape[skip:], **optional}


def _check_names(what: str, given: Collection[str], known: Sequence[str], model: str) -> None:
    for name in given:
        if name not in known:
            raise Unprocessable(f"model {model} has no {what} {name!r}; it has {', '.join(known)}")


def _only_value(name: str, array: Array) -> int | float:
    """The number that a tensor of one is."""
    if array.size != 1:
        raise Unprocessable(f"input {name!r} must be of shape [1], got {list(array.shape)}")
    value: int | float = array.item()
    return value
