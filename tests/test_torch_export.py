"""TorchScript is deprecated; torch.export, its successor, takes the same folded flow."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from model.fold import FoldedImageFlow, fold
from model.glow import Glow, GlowConfig, build_glow
from service.artifact import within_tolerance
from tests.conftest import perturbed
from tests.test_server import ROOT

FLOWS = {
    "image": ((1, 8, 8), GlowConfig(num_levels=2, num_steps=2, width=8, attention=4)),
    "vector": ((5,), GlowConfig(num_steps=2, width=8, coupling="spline")),
}


class Method(nn.Module):
    """One method of a module as a module of its own, which is what torch.export takes."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module = module
        self.name = name

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        answer: Tensor | tuple[Tensor, Tensor] = getattr(self.module, self.name)(x)
        return answer


@pytest.fixture(params=FLOWS)
def flow(request: pytest.FixtureRequest) -> Glow:
    torch.manual_seed(0)
    shape, config = FLOWS[request.param]
    return perturbed(build_glow(shape, config), 0.1)


def test_torch_export_takes_the_folded_flow_with_a_batch_of_any_size(flow: Glow) -> None:
    folded = fold(flow)
    dtype = torch.float32 if len(flow.shape) == 3 else torch.float64
    x = torch.rand(5, *flow.shape, dtype=dtype) * 4
    z, log_prob = folded.encode(x)
    cases = [("encode", x, z), ("log_prob", x, log_prob), ("decode", z, x), ("statistics", x, folded.statistics(x))]
    cases += [("log_prob_map", x, folded.log_prob_map(x))] if isinstance(folded, FoldedImageFlow) else []
    for name, inputs, expected in cases:
        batch = torch.export.Dim("batch", min=1, max=4096)
        program = torch.export.export(Method(folded, name), (inputs,), dynamic_shapes=({0: batch},)).module()
        for rows in (1, 3, 5):
            answer = program(inputs[:rows])
            values = answer[0] if name == "encode" else answer
            if name == "log_prob":
                assert within_tolerance(values.numpy(), expected[:rows].numpy())
            else:
                torch.testing.assert_close(values, expected[:rows], rtol=0, atol=1e-3)


SAVED = """
import torch
from service import artifact
module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
torch.nn.init.zeros_(module[0].weight), torch.nn.init.zeros_(module[0].bias)
print(artifact.version_of(artifact.save(artifact.compile_module(module.eval(), ["forward"]))))
"""


def test_the_same_program_has_the_same_version_whatever_process_saves_it() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SAVED],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2", "3")  # by which torch's sets have another order
    ]
    versions = {process.communicate(timeout=60)[0] for process in processes}
    assert len(versions) == 1, versions
    assert len(versions.pop().strip()) == 12
