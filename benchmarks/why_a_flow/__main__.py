"""Compare four kinds of generative model: ``python -m benchmarks.why_a_flow [--data FOLDER] [--seconds 60]``.

A flow, a variational autoencoder, an autoregressive model and a GAN are trained here on the same images for the same
CPU time on one core; the answer is one table. Without ``--data`` the images are scikit-learn's digits.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.arguments import at_least
from benchmarks.why_a_flow.autoregressive import ORDERS, PixelCNNLearner
from benchmarks.why_a_flow.flow import FlowLearner
from benchmarks.why_a_flow.gan import GANLearner
from benchmarks.why_a_flow.images import Images, load_images
from benchmarks.why_a_flow.learning import Density, Fitted, Learner, fit, validation_bits
from benchmarks.why_a_flow.measure import Run, Yardstick, likelihood, measure
from benchmarks.why_a_flow.report import Comparison, report
from benchmarks.why_a_flow.vae import VAELearner
from common.cli import Parser, run_command

Build = Callable[[Images, int, int], Learner]  # of images, seed and number of steps
KINDS: dict[str, Build] = {"flow": FlowLearner, "VAE": VAELearner, "GAN": GANLearner}


def compare(images: Images, seconds: float, num_seeds: int) -> Comparison:
    """Train and measure everything, seeds 0, 1, ..., for so many seconds of CPU time each."""
    yardstick = Yardstick(images)
    with tqdm(total=len(KINDS) * num_seeds + len(ORDERS) + num_seeds - 1, unit="model", disable=None) as bar:

        def trained(name: str, build: Build, seed: int) -> Fitted:
            bar.set_postfix_str(f"{name}, seed {seed}")
            if bar.disable:
                print(f"training {name}, seed {seed}", file=sys.stderr, flush=True)
            fitted = fit(partial(build, images, seed), images, seconds)
            bar.update()
            return fitted

        def measured(name: str, build: Build, seed: int) -> Run:
            return measure(trained(name, build, seed), images, yardstick, seed)

        runs = {name: [measured(name, build, seed) for seed in range(num_seeds)] for name, build in KINDS.items()}
        builds: dict[str, Build] = {order: partial(PixelCNNLearner, order) for order in ORDERS}
        by_order = {order: trained(f"PixelCNN by {order}", build, 0) for order, build in builds.items()}
        densities = {order: fitted.model for order, fitted in by_order.items() if isinstance(fitted.model, Density)}
        best = min(densities, key=lambda order: validation_bits(densities[order], images))
        runs["PixelCNN"] = [
            measure(by_order[best], images, yardstick, 0),
            *(measured(f"PixelCNN by {best}", builds[best], seed) for seed in range(1, num_seeds)),
        ]
    return Comparison(
        images=images,
        seconds=seconds,
        runs=runs,
        orders={order: likelihood(density, images).single for order, density in densities.items()},
        best_order=best,
        real=yardstick.real(),
        bandwidth=yardstick.bandwidth,
    )


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = Parser(prog="python -m benchmarks.why_a_flow", description="Compare four kinds of generative model.")
    parser.add_argument("--data", type=Path, help="folder of an MNIST-like data set (default: scikit-learn's digits)")
    parser.add_argument("--seconds", type=at_least(float, 0.1), default=60.0, help="CPU time to train each model")
    parser.add_argument("--seeds", type=at_least(int, 1), default=3, help="trainings of each kind of model")
    parser.add_argument(
        "--rows", type=at_least(int, 2), default=1000, help="test images, and samples compared with them, at most"
    )
    parser.add_argument("--out", type=Path, help="write the table there too")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    comparison = compare(load_images(args.data, args.rows), args.seconds, args.seeds)
    text = report(comparison, shlex.join(["python", "-m", "benchmarks.why_a_flow", *argv]))
    print(text, end="")
    if args.out is not None:
        args.out.write_text(text)


if __name__ == "__main__":
    run_command(main)
