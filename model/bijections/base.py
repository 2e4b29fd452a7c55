"""The contract of a bijection, and composition."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def sum_per_input(values: Tensor) -> Tensor:
    """Sum everything but the batch dimension, in float64: (B, ...) -> (B,).

    A log-density adds hundreds of terms of both signs; in float32 the rounding of that sum alone would eat a tenth of
    the tolerance promised for the answer.
    """
    return values.flatten(1).sum(1, dtype=torch.float64)


def log_normal(z: Tensor) -> Tensor:
    """Log N(z_i; 0, 1) = -(z_i^2 + log 2 pi) / 2 of each entry, float64."""
    wide = z.double()
    return -0.5 * wide * wide - 0.5 * math.log(2 * math.pi)


class Bijection(nn.Module):
    """An invertible map with a tractable Jacobian determinant.

    To add one: write ``forward`` and ``inverse`` with the signatures below, typed and free of anything TorchScript
    cannot compile, and add a row to the table in tests/test_bijections.py, which checks every law. Neither method may
    write state: data-dependent initialisation is the verb ``initialize``.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, H, W) inputs to (B, C', H', W') latents; also log|det dz/dx|, (B,) nats."""
        raise NotImplementedError

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map latents back to inputs; also log|det dx/dz| = -log|det dz/dx|, (B,) nats."""
        raise NotImplementedError


class ChannelAffine(Bijection):
    """A bijection that applies one affine map of the channels at every pixel, whatever the input.

    z[:, :, i, j] = W x[:, :, i, j] + b, so log_det = H*W*log|det W|. Neighbours of this kind are merged into a single
    1x1 convolution when a flow is exported.
    """

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return W (C, C) and b (C,) in float64."""
        raise NotImplementedError


class Chain(Bijection):
    """Composition z = f_n(...f_2(f_1(x))); log_det is the sum over the layers (chain rule)."""

    def __init__(self, steps: Iterable[Bijection]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        for step in self.steps:
            x, log_det = step(x)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(z.shape[0], dtype=torch.float64, device=z.device)
        for step in self.steps[::-1]:
            z, log_det = step.inverse(z)
            total = total + log_det
        return z, total
