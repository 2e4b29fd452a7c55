"""Coupling layers: one part copied, the rest changed entry by entry as a network of the copied part says."""

import torch
from torch import Tensor, nn

from model.bijections.base import Bijection, sum_per_input
from model.bijections.elementwise import Elementwise


class Coupling(Bijection):
    """z = x on the copied part, z = elementwise(x; net(copied part)) on the rest; log_det = sum of log slopes, nats.

    The net sees only what is copied, so it may be any network and is never inverted. ``transform`` also tells where the
    log-determinant comes from. Source: Dinh et al. 2015 (arXiv:1410.8516), 2017 (arXiv:1605.08803).
    """

    def __init__(self, net: nn.Module, elementwise: Elementwise) -> None:
        super().__init__()
        self.net = net
        self.elementwise = elementwise

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, H, W) to z; also log slopes (B, C', H, W) whose sum is log_det."""
        raise NotImplementedError

    def untransform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map z back to x; also the same log slopes."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_slopes = self.transform(x)
        return z, sum_per_input(log_slopes)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x, log_slopes = self.untransform(z)
        return x, -sum_per_input(log_slopes)


class ChannelCoupling(Coupling):
    """Copy the first half of the channels, or with ``swap`` the rest, and change the others.

    x: (B, C, H, W), C >= 2; the first half is ceil(C/2) channels. net: (B, copied, H, W) -> (B, num_params * changed,
    H, W). Raises ValueError for a single channel.
    """

    def __init__(self, num_channels: int, net: nn.Module, elementwise: Elementwise, swap: bool = False) -> None:
        super().__init__(net, elementwise)
        if num_channels < 2:
            raise ValueError(
                f"a coupling must copy a part of its input and change the rest, got {num_channels} channel"
            )
        self.sizes = list(halves(num_channels))
        self.swap = swap

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Part x into what is copied and what is changed."""
        first, second = torch.split(x, self.sizes, 1)
        return (second, first) if self.swap else (first, second)

    def join(self, copied: Tensor, changed: Tensor) -> Tensor:
        """Undo ``split``."""
        return torch.cat([changed, copied] if self.swap else [copied, changed], 1)

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        copied, rest = self.split(x)
        z, log_slopes = self.elementwise(rest, self.net(copied))
        return self.join(copied, z), log_slopes

    def untransform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        copied, rest = self.split(z)
        x, log_slopes = self.elementwise.inverse(rest, self.net(copied))
        return self.join(copied, x), log_slopes


class CheckerboardCoupling(Coupling):
    """Copy the pixels with (row + column) % 2 == parity, in all channels, and change the others.

    x: (B, C, H, W) of one ``shape`` (C, H, W) with at least two pixels; net: (B, C, H, W) -> (B, num_params * C, H, W)
    sees the changed pixels as 0, so that convolutions keep the image's geometry. Raises ValueError for a single pixel.
    """

    copied: Tensor

    def __init__(self, shape: tuple[int, int, int], net: nn.Module, elementwise: Elementwise, parity: int = 0) -> None:
        super().__init__(net, elementwise)
        _, height, width = shape
        if height * width < 2:
            raise ValueError(
                f"a coupling must copy a part of its input and change the rest, got {height}x{width} pixels"
            )
        colour = (torch.arange(height)[:, None] + torch.arange(width)[None, :]) % 2
        self.register_buffer("copied", colour == parity)

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_slopes = self.elementwise(x, self.net(x * self.copied))
        return torch.where(self.copied, x, z), log_slopes.masked_fill(self.copied, 0.0)

    def untransform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x, log_slopes = self.elementwise.inverse(z, self.net(z * self.copied))
        return torch.where(self.copied, z, x), log_slopes.masked_fill(self.copied, 0.0)


def halves(num_channels: int) -> tuple[int, int]:
    """Sizes of the first and the second half of the channels."""
    return (num_channels + 1) // 2, num_channels // 2
