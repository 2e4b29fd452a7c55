"""First layers of a flow: from the user's units to numbers of order one."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from model.bijections.base import Bijection, sum_per_input


class Pixels(Bijection):
    """Map pixel values to the real line: v = (x + 0.5) / 2**bits, z = logit(alpha + (1 - 2 alpha) v).

    The integer k is the centre of its bin [k - 0.5, k + 0.5), and v covers (0, 1). The logit makes every decoded value
    a possible one: none falls outside [-0.5 - m, 2**bits - 0.5 + m] with m = 2**bits alpha / (1 - 2 alpha).
    log_det = sum of log(1 - 2 alpha) - bits log 2 - log w - log(1 - w) with w = alpha + (1 - 2 alpha) v, nats.

    x: (B, C, H, W) in pixel units. Source: Papamakarios et al. 2017 (arXiv:1705.07057), section 4.3.
    """

    def __init__(self, bits: int, alpha: float) -> None:
        super().__init__()
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha must lie in (0, 0.5), got {alpha}")
        self.num_values = float(2**bits)
        self.alpha = alpha
        self.log_slope = math.log((1 - 2 * alpha) / 2**bits)

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and the terms whose sum is log_det, both (B, C, H, W)."""
        w = self.alpha + (1 - 2 * self.alpha) * ((x + 0.5) / self.num_values)
        # A pixel a little outside its range, or rounding beside its ends, must not meet log 0.
        w = w.clamp(0.5 * self.alpha, 1 - 0.5 * self.alpha)
        z = torch.log(w) - torch.log1p(-w)
        return z, self._log_slopes(z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_slopes = self.transform(x)
        return z, sum_per_input(log_slopes)

    @torch.jit.export
    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        v = (torch.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha)
        return v * self.num_values - 0.5, -sum_per_input(self._log_slopes(z))

    def _log_slopes(self, z: Tensor) -> Tensor:
        # log w + log(1 - w) = -(softplus(z) + softplus(-z)), which is exact at both ends.
        return self.log_slope + F.softplus(z) + F.softplus(-z)


class Standardize(Bijection):
    """Per-dimension affine map to zero mean and unit variance: z = (x - mean) / std, in float64.

    log_det = -sum(log std), nats. x: (B, C, H, W) float64; mean, std: (C, H, W). In float64, so that a column like
    1e9 + small keeps its digits; the flow casts the answer to its own precision. Raises ValueError where std is not positive and finite.
    """

    mean: Tensor
    std: Tensor
    log_slopes: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        if not bool(torch.all((std > 0) & torch.isfinite(std))):
            raise ValueError(f"std must be positive and finite in every dimension, got {std.min().item()}..{std.max().item()}")
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
