"""The flow: the project's own, trained by the project's own trainer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.why_a_flow.images import Images
from benchmarks.why_a_flow.learning import Density, Learner, Sampler, schedule, size_of
from model.data import Dataset
from model.glow import Glow
from model.likelihood import dequantize
from model.recipe import Splits, parse_recipe
from model.trainer import Trainer

ARCHITECTURE = {"num_levels": 1, "num_steps": 8, "width": 32, "partition": "alternating"}
LEARNING_RATE = 5e-3


class FlowLearner(Learner):
    """A recipe and its trainer."""

    def __init__(self, images: Images, seed: int, steps: int) -> None:
        values = {
            "name": "why-a-flow",
            "data": {"train": "given", "validation": len(images.validation), "calibration": len(images.validation)},
            "model": {**ARCHITECTURE, "bits": images.bits},
            "training": schedule(steps, LEARNING_RATE).model_dump() | {"seed": seed},
        }
        fit, validation = (Dataset(x.numpy(), []) for x in (images.fit, images.validation))
        splits = Splits(fit=fit, validation=validation, calibration=validation, test=None)
        self.trainer = Trainer(parse_recipe(values, "why-a-flow"), splits)
        self.highest = 2**images.bits - 1
        self.num_parameters = size_of(self.trainer.flow)

    def step(self) -> None:
        self.trainer.train_step()

    def model(self) -> Sampler:
        return FlowDensity(self.trainer.averaged_flow(), self.highest)


class FlowDensity(Density):
    """A density of real numbers; the probability of a whole pixel value is its integral over the value's bin."""

    def __init__(self, flow: Glow, highest: int) -> None:
        self.flow = flow
        self.highest = highest

    def log_weight(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.flow.log_prob(dequantize(x, generator))

    @torch.inference_mode()
    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        images, _ = self.flow.inverse(torch.randn(num, math.prod(self.flow.shape), generator=generator))
        return images.round().clamp(0, self.highest)
