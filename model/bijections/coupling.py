"""Coupling layers: one part copied, the rest scaled and shifted by a network of the copied part."""

import torch
from torch import Tensor, nn

from model.bijections.base import Bijection, sum_per_input


def channel_mask(shape: tuple[int, int, int], parity: int = 0) -> Tensor:
    """Mark the first half of the channels (parity 0) or the rest (parity 1) as copied: (C, H, W) of 0 and 1."""
    channels = torch.arange(shape[0]) < (shape[0] + 1) // 2
    return (channels == (parity == 0)).float()[:, None, None].expand(shape).clone()


def checkerboard_mask(shape: tuple[int, int, int], parity: int = 0) -> Tensor:
    """Mark the pixels with (row + column) % 2 == parity as copied: (C, H, W) of 0 and 1."""
    _, height, width = shape
    colour = (torch.arange(height)[:, None] + torch.arange(width)[None, :]) % 2
    return (colour == parity).float().expand(shape).clone()


class AffineCoupling(Bijection):
    """z = x on the copied part (mask = 1); z = x * exp(log_scale) + shift on the rest (mask = 0).

    (raw, shift) = net(mask * x), log_scale = a * tanh(raw / a), so a scale stays within exp(+-a) in both directions and
    is 1 where the network answers 0, as it does at initialisation. log_det = sum of log_scale, nats. The net sees only
    what is copied, so it may be any network (B, C, H, W) -> (B, 2C, H, W), and is never inverted. With ``additive`` it
    answers the shift alone, (B, C, H, W), and log_det = 0.

    x: (B, C, H, W), mask: (C, H, W). Raises ValueError where the mask copies everything or nothing. Sources: Dinh et
    al. 2015 (arXiv:1410.8516, additive), 2017 (arXiv:1605.08803, affine, channel and checkerboard masks). The logistic
    scale of Kingma & Dhariwal 2018 is unbounded below, which overflows when sampling; hence tanh.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, net: nn.Module, max_log_scale: float = 1.0, additive: bool = False) -> None:
        super().__init__()
        if not 0 < mask.sum() < mask.numel():
            raise ValueError(
                f"a coupling must copy a part of its input and change the rest, "
                f"got a mask of {int(mask.sum())} ones in {mask.numel()}"
            )
        if max_log_scale <= 0:
            raise ValueError(f"max_log_scale must be > 0 nats, got {max_log_scale}")
        self.register_buffer("mask", mask)
        self.net = net
        self.max_log_scale = max_log_scale
        self.additive = additive

    def scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (log_scale, shift), both (B, C, H, W) and 0 on the copied part."""
        h: Tensor = self.net(x * self.mask)
        free = 1 - self.mask
        if self.additive:
            return torch.zeros_like(x), h * free
        raw, shift = h.chunk(2, 1)
        return self.max_log_scale * torch.tanh(raw / self.max_log_scale) * free, shift * free

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log_scale, whose sum is log_det, both (B, C, H, W)."""
        log_scale, shift = self.scale_and_shift(x)
        return x * torch.exp(log_scale) + shift, log_scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_scale = self.transform(x)
        return z, sum_per_input(log_scale)

    @torch.jit.export
    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.scale_and_shift(z)  # The copied part of z is that of x, so the net answers the same.
        return (z - shift) * torch.exp(-log_scale), -sum_per_input(log_scale)
