"""Factoring out half of the dimensions under a learned prior."""

import torch
from torch import Tensor, nn

from model.bijections.base import sum_per_input


class Split(nn.Module):
    """Keep the first half of the channels and whiten the second half given the first.

    eps = (x_b - mu(x_a)) * exp(-log_sigma(x_a)), (mu, raw) = net(x_a), log_sigma = a * tanh(raw / a), so that eps is
    standard normal under the prior x_b ~ N(mu, sigma^2). log_det = -sum(log_sigma), nats: the learned prior of a
    multi-scale flow is an affine bijection like any other, and a latent code is plain N(0, I) at every level.

    x: (B, C, H, W), C even -> kept (B, C/2, H, W), eps (B, C/2, H, W); net: (B, C/2, H, W) -> (B, C, H, W). Source:
    Kingma & Dhariwal 2018 (arXiv:1807.03039), figure 2b.
    """

    def __init__(self, net: nn.Module, max_log_sigma: float = 4.0) -> None:
        super().__init__()
        self.net = net
        self.max_log_sigma = max_log_sigma

    def prior(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return (mu, log_sigma) of the part that is split off, each (B, C/2, H, W)."""
        h: Tensor = self.net(kept)
        mu, raw = h.chunk(2, 1)
        return mu, self.max_log_sigma * torch.tanh(raw / self.max_log_sigma)

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return kept, eps and log_sigma, whose sum is -log_det, each (B, C/2, H, W)."""
        kept, other = x.chunk(2, 1)
        mu, log_sigma = self.prior(kept)
        return kept, (other - mu) * torch.exp(-log_sigma), log_sigma

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (kept, eps, log_det)."""
        kept, eps, log_sigma = self.transform(x)
        return kept, eps, -sum_per_input(log_sigma)

    def inverse(self, kept: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x, log_det)."""
        mu, log_sigma = self.prior(kept)
        return torch.cat([kept, eps * torch.exp(log_sigma) + mu], 1), sum_per_input(log_sigma)
