"""Activation normalisation."""

import torch
from torch import Tensor, nn

from model.bijections.base import ChannelAffine

MIN_STD = 1e-3  # A constant channel would otherwise be scaled by 1/0 and dominate the log-determinant.


class ActNorm(ChannelAffine):
    """Per-channel affine map z = exp(log_scale) * (x + bias).

    log_det = H*W*sum(log_scale), nats. x: (B, C, H, W), any H and W. ``initialize`` sets the parameters so that a batch
    leaves with zero mean and unit variance per channel; ``forward`` never does, so a loaded flow cannot learn from its
    first request. Source: Kingma & Dhariwal 2018 (arXiv:1807.03039), section 3.1.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.log_scale = nn.Parameter(torch.zeros(num_channels))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set bias = -mean and log_scale = -log(max(std, MIN_STD)) from a batch (B, C, H, W)."""
        channels = x.transpose(0, 1).flatten(1)
        self.bias.copy_(-channels.mean(1))
        self.log_scale.copy_(-channels.std(1, correction=0).clamp_min(MIN_STD).log())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x + self.bias[:, None, None]) * torch.exp(self.log_scale)[:, None, None]
        return z, self._log_det(x)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x = z * torch.exp(-self.log_scale)[:, None, None] - self.bias[:, None, None]
        return x, -self._log_det(z)

    def _log_det(self, x: Tensor) -> Tensor:
        per_pixel = self.log_scale.sum(dtype=torch.float64)
        return (x.shape[2] * x.shape[3] * per_pixel).expand(x.shape[0])

    def affine(self) -> tuple[Tensor, Tensor]:
        scale = self.log_scale.detach().double().exp()
        return torch.diag(scale), scale * self.bias.detach().double()
