"""First layers of a flow: from the user's units to numbers of order one."""

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

    @torch.jit.export
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
    """Per-dimension affine map to zero mean and unit variance: z = (x - mean) / std, in float64.

    log_det = -sum(log std), nats. x: (B, C, H, W) float64; mean, std: (C, H, W). In float64, so that a column like
    1e9 + small keeps its digits; the flow casts the answer to its own precision. Raises ValueError where std is not
    positive and finite.
    """

    mean: Tensor
    std: Tensor
    log_slopes: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        if not bool(torch.all((std > 0) & torch.isfinite(std))):
            raise ValueError(
                f"std must be positive and finite in every dimension, got {std.min().item()}..{std.max().item()}"
            )
        self.register_buffer("mean", mean.double())
        self.register_buffer("std", std.double())
        self.register_buffer("log_slopes", -std.double().log())

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and the terms whose sum is log_det, both (B, C, H, W)."""
        z = (x.double() - self.mean) / self.std
        return z, self.log_slopes.expand_as(z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_slopes = self.transform(x)
        return z, sum_per_input(log_slopes)

    @torch.jit.export
    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z.double() * self.std + self.mean, -sum_per_input(self.log_slopes.expand_as(z))
