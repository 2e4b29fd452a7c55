"""The table, and what has to be known to read it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.why_a_flow.images import Images
from benchmarks.why_a_flow.learning import BATCH_SIZE
from benchmarks.why_a_flow.measure import DRAWS, NUM_HALVINGS, TIMED_IMAGES, Run
from benchmarks.why_a_flow.two_sample import BANDWIDTH_FACTORS
from benchmarks.why_a_flow.vae import LATENT
from common.machine import processor

COLUMNS = (
    "model",
    "parameters",
    "steps",
    "bits/dim",
    f"bits/dim, K = {DRAWS}",
    "the bits are",
    "MMD² x 1000",
    "passes a draw",
    "ms an image",
    "latent code",
)
NOTES = """\
What the figures are:

* **bits/dim**: -log P of the {rows} test images, whole pixel values 0..{highest}, in bits per pixel. The PixelCNN
  computes P itself. The flow computes a density exactly, and P is its integral over the bins of the pixels: under one
  draw of uniform noise the figure is, on average, at least the bits. So is the VAE's, its evidence lower bound.
  **K = {draws}** averages over {draws} draws inside the logarithm (the VAE's importance-weighted bound): closer, still
  a bound. The standard error over the images is at most {error:.3f}; the images are the same for all, so differences
  are surer. A GAN has no likelihood.
* **MMD²**: unbiased estimate between {rows} samples and the {rows} test images, pixels scaled to [0, 1]; the kernel is
  the mean of exp(-d² / 2s²) over s = {factors} times {bandwidth:.3g}, the median distance of held-out images. Near 0 is
  good; the first row is what real images score ({halvings} random halvings of {held_out}; +- over these). Samples are
  whole pixel values at temperature 1, the VAE's drawn from its distribution of pixels and not its mean. Such a kernel
  sees coarse structure: it says little about sharpness, nothing of a model that repeats its training images.
* **ms an image**: CPU time to draw {timed} images at once, per image. The PixelCNN runs once for every pixel, on the
  rows known so far; keeping its activations would make the passes cheaper, not fewer.
* +- is the standard deviation over seeds, elsewhere.

How it was made fair:

* Every model: {seconds:g} s of CPU time on one core to train, batches of {batch}, Adam, the project's warm-up and
  cosine schedule sized to the budget by a throwaway run ({used} s were used), averaged weights. Of ten checkpoints the
  one with the best validation likelihood is kept; of the GAN, which has none, the last. Building, sizing and validation
  are not counted. CPU time is fairer than the clock on the wall, but other work on the machine still slows every step.
* The PixelCNN has the whole budget in each of {num_orders} orders, so {num_orders} budgets as a kind; the order with
  the best validation is in the table. Test bits/dim by order (seed 0): {orders}; spread {spread:.3f}.
* Sizes and learning rates were chosen by validation likelihood (the GAN's by MMD² to validation images) after
  30 to 100 s on Fashion-MNIST, from three to nine candidates each. Flow: couplings by checkerboard and by channel in
  turn, since its one level halves the sides once. VAE: convolutional, {latent} latent numbers, the weight of the
  divergence warmed up, a mixture of discretized logistics for each pixel. PixelCNN: two streams without a blind spot,
  the same mixture. GAN: convolutional, spectral norms, non-saturating loss; its critic sees real pixels under the
  flow's noise.
* What this is not: a verdict on the kinds. Models and budget are small; larger ones of every kind do better, a VAE with
  a hierarchy of latent codes much better, and the ranking may change.

Only the flow has all three: a likelihood, draws in one pass, and a code that decodes to its image. The VAE draws in one
pass, but bounds its likelihood and infers its code; the PixelCNN has the exact likelihood, but draws pixel by pixel and
has no code; the GAN draws in one pass and answers nothing else.
"""


@dataclass(frozen=True)
class Comparison:
    """Everything that was measured."""

    images: Images
    seconds: float
    runs: dict[str, list[Run]]  # by kind of model, one a seed
    orders: dict[str, float]  # test bits/dim of the autoregressive model in each order, seed 0
    best_order: str  # by validation
    real: list[float]  # squared MMD between halves of real images
    bandwidth: float


def report(comparison: Comparison, command: str) -> str:
    """Write a comparison as markdown, under the command that made it."""
    images, runs = comparison.images, comparison.runs
    num_seeds = len(runs["flow"])
    num_dims = images.fit[0].numel()
    rows = [
        ["real images", *["-"] * 5, _spread([1000 * value for value in comparison.real], 2), *["-"] * 3],
        _row("flow", runs["flow"], "bound; the density is exact", "1", "exact"),
        _row("VAE", runs["VAE"], "bound", "1", "approximate"),
        _row(f"PixelCNN by {comparison.best_order}", runs["PixelCNN"], "exact", str(num_dims), "none"),
        _row("GAN", runs["GAN"], "none", "1", "none"),
    ]
    orders = comparison.orders
    used = [run.fitted.seconds for kind in runs.values() for run in kind]
    notes = NOTES.format(
        rows=len(images.test),
        highest=2**images.bits - 1,
        draws=DRAWS,
        error=max(run.likelihood.standard_error for kind in runs.values() for run in kind if run.likelihood),
        factors=", ".join(f"{factor:g}" for factor in BANDWIDTH_FACTORS),
        bandwidth=comparison.bandwidth,
        halvings=NUM_HALVINGS,
        held_out=len(images.test) + len(images.other),
        timed=TIMED_IMAGES,
        seconds=comparison.seconds,
        used=f"{min(used):.1f} to {max(used):.1f}",
        batch=BATCH_SIZE,
        num_orders=len(orders),
        orders=", ".join(f"{order} {bits:.3f}" for order, bits in orders.items()),
        spread=max(orders.values()) - min(orders.values()),
        latent=LATENT,
    )
    seeds = "seed 0" if num_seeds == 1 else f"seeds 0 to {num_seeds - 1}"
    made_by = (
        f"`{command}`: {images.name}, {len(images.fit)} training images, {seeds}, "
        f"one core of {processor()}, torch {torch.__version__}."
    )
    return "\n".join(
        ["# Why a flow", "", made_by, "", *map(_line, [COLUMNS, ["---"] * len(COLUMNS), *rows]), "", notes]
    )


def _row(name: str, runs: list[Run], bits: str, passes: str, code: str) -> list[str]:
    likelihoods = [run.likelihood for run in runs if run.likelihood is not None]
    return [
        name,
        f"{runs[0].fitted.num_parameters:,}",
        f"{statistics.mean(run.fitted.steps for run in runs):.0f}",
        _spread([each.single for each in likelihoods], 3),
        _spread([each.tight for each in likelihoods], 3),
        bits,
        _spread([1000 * run.squared_mmd for run in runs], 2),
        passes,
        f"{statistics.median(run.milliseconds for run in runs):.2f}",
        code,
    ]


def _spread(values: list[float], digits: int) -> str:
    """Write a mean and, of several values, their standard deviation."""
    if not values:
        return "none"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.{digits}f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
