"""First layers of a flow: from the user's units to numbers of order one."""

import math

import torch
from torch import Tensor

from model.bijections.base import Bijection, log_normal, sum_per_input


class Pixels(Bijection):
    """Turn pixel values into standard normal ones by their marginal distribution: z = Phi^-1(F(x)).

    Under uniform noise the integer k is a bin [k - 0.5, k + 0.5) with probability p_k, so F is piecewise linear:
    F(x) = p_0 + ... + p_{k-1} + p_k (x - k + 0.5). With equal p_k, F(x) = (x + 0.5) / n. Every decoded value lies in
    [-0.5, n - 0.5], and half of an image being one background value costs no dynamic range of the couplings.
    log_det = sum of log p_k - log phi(z), nats, phi the standard normal density.

    x: (B, C, H, W) in pixel units; probabilities: (n,), one for each value 0..n-1, all positive. Computed in float64;
    the flow casts z to its own precision. Raises ValueError for probabilities that are not positive or do not sum to 1.
    Source: marginal Gaussianization, Chen & Gopinath 2000 (NIPS 13); Laparra et al. 2011 (arXiv:1602.00229).
    """

    probabilities: Tensor
    edges: Tensor

    def __init__(self, probabilities: Tensor) -> None:
        super().__init__()
        probabilities = probabilities.double()
        if not bool((probabilities > 0).all()) or abs(probabilities.sum().item() - 1) > 1e-9:
            raise ValueError("probabilities must be positive and sum to 1")
        self.tail = 1e-9  # F(x) stays this far from 0 and 1, so that a pixel at the end of its range has a finite z
        self.register_buffer("probabilities", probabilities)
        self.register_buffer("edges", probabilities.cumsum(0) - probabilities)  # F at the lower end of each bin

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and the terms whose sum is log_det, both (B, C, H, W) float64."""
        position = x.double() + 0.5
        index = position.detach().floor().clamp(0, len(self.edges) - 1).long()
        density = self.probabilities[index]
        z = torch.special.ndtri((self.edges[index] + density * (position - index)).clamp(self.tail, 1 - self.tail))
        return z, _log_slopes(z, density)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_slopes = self.transform(x)
        return z, sum_per_input(log_slopes)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.double()
        cumulative = torch.special.ndtr(z)
        index = torch.searchsorted(self.edges, cumulative.detach().contiguous(), right=True) - 1
        density = self.probabilities[index]
        # Within its bin even where rounding put the cumulative a little past its end.
        offset = ((cumulative - self.edges[index]) / density).clamp(0, 1)
        return index + offset - 0.5, -sum_per_input(_log_slopes(z, density))


def _log_slopes(z: Tensor, density: Tensor) -> Tensor:
    return density.log() - log_normal(z)


class Standardize(Bijection):
    """Per-dimension scaling to values of order one, z = t((x - center) / scale), with far values drawn in.

    t(u) = u where |u| <= tail, and sign(u) tail (1 + log(|u| / tail)) beyond: continuously differentiable, and a value
    of 1e6 scales is as easy for a network as one of 40, so that heavy tails of the data and absurd inputs cost neither
    the training nor the answer its digits. log_det = -sum(log scale) - sum over |u| > tail of log(|u| / tail), nats.

    x: (B, C, H, W) float64; center, scale: (C, H, W). In float64, so that a column like 1e9 + small keeps its digits;
    the flow casts the answer to its own precision. Raises ValueError where a scale is not positive and finite, or
    unless tail > 0.
    """

    center: Tensor
    scale: Tensor
    log_slopes: Tensor

    def __init__(self, center: Tensor, scale: Tensor, tail: float = math.inf) -> None:
        super().__init__()
        if not bool(torch.all((scale > 0) & torch.isfinite(scale))):
            raise ValueError(
                f"scale must be positive and finite in every dimension, got {scale.min().item()}..{scale.max().item()}"
            )
        if not tail > 0:
            raise ValueError(f"tail must be > 0, got {tail}")
        self.register_buffer("center", center.double())
        self.register_buffer("scale", scale.double())
        self.register_buffer("log_slopes", -scale.double().log())
        self.register_buffer("tail", torch.tensor(tail, dtype=torch.float64))

    tail: Tensor

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and the terms whose sum is log_det, both (B, C, H, W)."""
        u = (x.double() - self.center) / self.scale
        excess = (u.abs() / self.tail).clamp_min(1).log()
        z = torch.where(excess > 0, u.sign() * self.tail * (1 + excess), u)
        return z, self.log_slopes - excess

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_slopes = self.transform(x)
        return z, sum_per_input(log_slopes)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.double()
        excess = (z.abs() / self.tail).clamp_min(1) - 1
        u = torch.where(excess > 0, z.sign() * self.tail * torch.exp(excess), z)
        return u * self.scale + self.center, sum_per_input(excess - self.log_slopes)
