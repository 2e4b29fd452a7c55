"""The engine on a CUDA device: ``python -m benchmarks.engine_cuda``.

A flow of 3 levels of 32 steps, 512 hidden channels, 3x32x32, float32 without TF32, random weights. Taking turns in one
process, medians: its folded program as plain TorchScript and as a replayed CUDA graph, NumPy arrays in and out as the
service runs it; the peak is a float32 matrix product measured in the same run. Exactness is against the same flow in
float64 on the CPU.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import interleaved
from common.cli import Parser, run_command
from common.errors import UsageError
from model.fold import fold, statistics_names
from model.glow import Glow, GlowConfig, build_glow
from service.artifact import Artifact, Golden, LatentPart, Manifest, Scoring, compile_module, methods_of
from service.runner import Plan, Runner

SHAPE = (3, 32, 32)
CONFIG = GlowConfig(num_levels=3, num_steps=32, width=512)
BATCHES = (1, 8, 64, 512)
MATRIX = 8192
EXACT_ROWS = 8


def random_flow() -> Glow:
    """A flow whose couplings do something, and whose scales are those of images."""
    torch.manual_seed(0)
    flow = build_glow(SHAPE, CONFIG)
    flow.initialize(torch.randint(0, 256, (64, *SHAPE)).float())
    for parameter in flow.parameters():
        parameter.data += 0.003 * torch.randn_like(parameter)
    return flow.eval().requires_grad_(False)


def runner_of(flow: Glow, device: torch.device) -> Runner:
    """The flow's program on a device, with a manifest that says no more than the runner asks."""
    folded = fold(flow)
    program = compile_module(folded, methods_of("image"))
    x = torch.zeros(1, *SHAPE)
    offsets = np.cumsum([0, *flow.latent_sizes])
    manifest = Manifest(
        name="random",
        version="0" * 12,
        description="",
        kind="image",
        shape=SHAPE,
        value_range=(0, 255),
        latent_layout=[
            LatentPart(offset=int(offset), shape=tuple(shape))
            for offset, shape in zip(offsets, flow.latent_shapes, strict=False)
        ],
        statistics=statistics_names(folded),
        temperature=1,
        recipe={},
        data_digest="",
        test=None,
        scoring=Scoring(default="negative_log_likelihood", typical=0),
        calibration=None,
        golden=Golden(
            inputs=x.flatten(1).tolist(),
            statistics=folded.statistics(x).tolist(),
            latents=folded.encode(x)[0].tolist(),
        ),
        torch_version=torch.__version__,
        licence="",
    )
    return Runner(Artifact(manifest, program), device)


def main(argv: list[str]) -> None:
    """Print one table."""
    Parser(prog="python -m benchmarks.engine_cuda", description=__doc__).parse_args(argv)
    if not torch.cuda.is_available():
        raise UsageError("torch finds no GPU")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device("cuda")
    flow = random_flow()
    runner = runner_of(flow, device)
    images = np.random.default_rng(0).integers(0, 256, (max(BATCHES), *SHAPE)).astype(np.float32)
    expected = flow.double().log_prob(torch.from_numpy(images[:EXACT_ROWS]).double()).numpy()
    flow.float()
    left = torch.randn(MATRIX, MATRIX, device=device)

    def product() -> None:
        torch.mm(left, left)
        torch.cuda.synchronize()

    with FlopCounterMode(display=False) as counter:
        fold(flow).encode(torch.zeros(1, *SHAPE))
    flop = int(counter.get_total_flops())
    peak = 2 * MATRIX**3 / interleaved({"product": product})["product"]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, float32 matrix peak {peak / 1e12:.1f} TFLOP/s\n")
    print("| rows | plan | ms | share of peak | times as fast as frozen | error against float64, nats |")
    print("|---|---|---|---|---|---|")
    for batch in BATCHES:
        rows = images[:batch]
        plans = [Plan("frozen"), Plan("channels_last"), Plan("cuda_graph")]
        seconds = interleaved(
            {plan.form: lambda plan=plan, rows=rows: runner.run("statistics", plan, rows) for plan in plans}  # type: ignore[misc]
        )
        for plan in plans:
            error = np.abs(runner.run("statistics", plan, rows)[0][:EXACT_ROWS, 0] - expected[:batch]).max()
            share, gain = batch * flop / seconds[plan.form] / peak, seconds["frozen"] / seconds[plan.form]
            print(
                f"| {batch} | {plan.form} | {1e3 * seconds[plan.form]:.2f} | {share:.2f} | {gain:.2f} | {error:.1e} |"
            )


if __name__ == "__main__":
    run_command(main)
