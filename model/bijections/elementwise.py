"""Monotone maps of each entry, whose parameters come from elsewhere: what a coupling does to the part it changes."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Elementwise(nn.Module):
    """An increasing map of each entry of x (B, C, H, W) by parameters (B, num_params * C, H, W).

    Parameters that are all 0 give the identity. Both directions return (output, log_slopes) with the logarithm of the
    *forward* map's slope at each entry, (B, C, H, W) nats: a coupling adds them up and knows the sign.
    """

    num_params: int

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map x to z; also log dz/dx."""
        raise NotImplementedError

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map z to x; also log dz/dx."""
        raise NotImplementedError


class Shift(Elementwise):
    """z = x + shift. Source: Dinh et al. 2015 (arXiv:1410.8516)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_params = 1

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return x + params, torch.zeros_like(x)

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return z - params, torch.zeros_like(z)


class Affine(Elementwise):
    """z = x * exp(log_scale) + shift with log_scale = a * tanh(raw / a), so a scale stays within exp(+-a) both ways.

    Raises ValueError unless a = max_log_scale > 0. Source: Dinh et al. 2017 (arXiv:1605.08803). The logistic scale of
    Kingma & Dhariwal 2018 is unbounded below, which overflows when sampling; hence tanh.
    """

    def __init__(self, max_log_scale: float = 1.0) -> None:
        super().__init__()
        if max_log_scale <= 0:
            raise ValueError(f"max_log_scale must be > 0 nats, got {max_log_scale}")
        self.num_params = 2
        self.max_log_scale = max_log_scale

    def log_scale_and_shift(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, each of x's shape."""
        raw, shift = params.chunk(2, 1)
        raw = raw.clone()  # dense: torch takes the tanh of a view into other numbers five times as slowly
        if self.max_log_scale == 1:  # two operations less, whose overhead is all that they cost
            return torch.tanh(raw), shift
        return self.max_log_scale * torch.tanh(raw / self.max_log_scale), shift

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.log_scale_and_shift(params)
        return torch.addcmul(shift, x, torch.exp(log_scale)), log_scale

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.log_scale_and_shift(params)
        return (z - shift) * torch.exp(-log_scale), log_scale


class Spline(Elementwise):
    """Monotone rational-quadratic spline of K bins on [-bound, bound], the identity outside.

    The parameters of an entry are K bin widths, K bin heights (both by softmax, each at least ``MIN_BIN`` of the whole)
    and the slopes at the K - 1 inner knots (by softplus, at least ``MIN_SLOPE``); at the outer knots the slope is 1, so
    the map is continuously differentiable. With s = dy / dx of a bin, d_k the slopes at its ends, xi = (x - x_k) / dx:

        z = y_k + dy (s xi^2 + d_k xi (1 - xi)) / (s + (d_k + d_{k+1} - 2 s) xi (1 - xi))

    and the inverse is the root in [0, 1] of a quadratic. No masks and no branches on data: entries are clamped into the
    interval, mapped, and chosen by ``where``. Raises ValueError unless K is 2..64 and bound > 0. Source: Durkan et
    al. 2019 (arXiv:1906.04032), section 3.1; minima ten times as large as theirs, for the sake of float32 round trips.
    """

    MIN_BIN = 1e-2
    MIN_SLOPE = 1e-2

    def __init__(self, num_bins: int = 8, bound: float = 4.0) -> None:
        super().__init__()
        if not 2 <= num_bins <= 64:
            raise ValueError(f"num_bins must lie in [2, 64], got {num_bins}")
        if bound <= 0:
            raise ValueError(f"bound must be > 0, got {bound}")
        self.num_params = 3 * num_bins - 1
        self.num_bins = num_bins
        self.bound = bound
        self.min_bin = self.MIN_BIN
        self.min_slope = self.MIN_SLOPE
        self.unit_slope = math.log(math.expm1(1 - self.MIN_SLOPE))  # softplus of it is the rest of a slope of 1

    def knots(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Left ends and lengths of the bins, (B, K, C, H, W) each, from K unconstrained numbers an entry."""
        shares = self.min_bin + (1 - self.min_bin * self.num_bins) * torch.softmax(raw, 1)
        lengths = 2 * self.bound * shares
        return torch.cumsum(lengths, 1) - lengths - self.bound, lengths

    def bin_of(
        self, value: Tensor, params: Tensor, by_height: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The bin that holds each entry: x_k, dx, y_k, dy, d_k and d_{k+1}, each (B, C, H, W)."""
        batch, channels, height, width = value.shape
        raw = params.reshape(batch, self.num_params, channels, height, width)
        raw_widths, raw_heights, inner = torch.split(raw, [self.num_bins, self.num_bins, self.num_bins - 1], 1)
        slopes = F.pad(self.min_slope + F.softplus(inner + self.unit_slope), [0, 0, 0, 0, 0, 0, 1, 1], value=1.0)
        x_lefts, widths = self.knots(raw_widths)
        y_lefts, heights = self.knots(raw_heights)
        lefts = y_lefts if by_height else x_lefts
        index = (value[:, None] >= lefts[:, 1:]).sum(1, keepdim=True)
        return (
            pick(x_lefts, index),
            pick(widths, index),
            pick(y_lefts, index),
            pick(heights, index),
            pick(slopes, index),
            pick(slopes, index + 1),
        )

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.clamp(-self.bound, self.bound)
        x0, dx, y0, dy, d0, d1 = self.bin_of(inside, params, by_height=False)
        xi = ((inside - x0) / dx).clamp(0, 1)
        s = dy / dx
        rest = xi * (1 - xi)
        denominator = s + (d0 + d1 - 2 * s) * rest
        z = y0 + dy * (s * xi * xi + d0 * rest) / denominator
        return self.or_identity(x, z, log_slope(s, d0, d1, xi, denominator))

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        inside = z.clamp(-self.bound, self.bound)
        x0, dx, y0, dy, d0, d1 = self.bin_of(inside, params, by_height=True)
        s = dy / dx
        offset = inside - y0
        bend = offset * (d0 + d1 - 2 * s)
        a = dy * (s - d0) + bend
        b = dy * d0 - bend
        c = -s * offset
        # Rounding can take the discriminant a little below 0, and the root a little out of its bin.
        xi = (2 * c / (-b - torch.sqrt((b * b - 4 * a * c).clamp_min(0)))).clamp(0, 1)
        denominator = s + (d0 + d1 - 2 * s) * xi * (1 - xi)
        return self.or_identity(z, x0 + dx * xi, log_slope(s, d0, d1, xi, denominator))

    def or_identity(self, value: Tensor, mapped: Tensor, log_slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the identity for entries out of the interval."""
        outside = value.abs() > self.bound
        return torch.where(outside, value, mapped), torch.where(outside, 0.0, log_slopes)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Take one entry along dimension 1: (B, K, C, H, W), (B, 1, C, H, W) -> (B, C, H, W)."""
    return values.gather(1, index).squeeze(1)


def log_slope(s: Tensor, d0: Tensor, d1: Tensor, xi: Tensor, denominator: Tensor) -> Tensor:
    """Log of s^2 (d1 xi^2 + 2 s xi (1 - xi) + d0 (1 - xi)^2) / denominator^2, the derivative of a bin's map."""
    rest = 1 - xi
    return torch.log(s * s * (d1 * xi * xi + 2 * s * xi * rest + d0 * rest * rest)) - 2 * torch.log(denominator)
