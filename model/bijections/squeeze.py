"""Trading pixels for channels."""

import torch
from torch import Tensor
from torch.nn import functional as F

from model.bijections.base import Bijection


class Squeeze(Bijection):
    """Turn every 2x2 block of pixels into four channels: (B, C, H, W) -> (B, 4C, H/2, W/2); log_det = 0.

    Raises RuntimeError (from torch) where H or W is odd. Source: Dinh et al. 2017 (arXiv:1605.08803), section 3.6.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_shuffle(z, 2), torch.zeros(z.shape[0], dtype=torch.float64, device=z.device)
