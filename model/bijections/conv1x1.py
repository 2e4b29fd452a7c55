"""Mixing of channels: Glow's learned invertible 1x1 convolution, and a fixed permutation to compare it with."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.bijections.base import ChannelAffine


class InvertibleConv1x1(ChannelAffine):
    """Learned mixing of channels z[:, :, i, j] = W x[:, :, i, j] with W = P L (U + diag(sign * exp(log_s))).

    log_det = H*W*log|det W| = H*W*sum(log_s), nats. x: (B, C, H, W). P is a fixed permutation, L unit lower and U
    strictly upper triangular, so W is invertible for every value of the parameters and its determinant costs O(C). W
    starts as a random rotation, drawn from torch's global generator. Source: Kingma & Dhariwal 2018
    (arXiv:1807.03039), section 3.2.
    """

    order: Tensor
    sign: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(num_channels, num_channels, dtype=torch.float64))[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        dtype = torch.get_default_dtype()
        self.register_buffer("order", permutation.argmax(1))
        self.register_buffer("sign", diagonal.sign().to(dtype))
        self.lower = nn.Parameter(lower.tril(-1).to(dtype))
        self.upper = nn.Parameter(upper.triu(1).to(dtype))
        self.log_s = nn.Parameter(diagonal.abs().log().to(dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Assemble L and U + diag(sign * exp(log_s)), (C, C) each."""
        lower = self.lower.tril(-1) + torch.eye(self.lower.shape[0], dtype=self.lower.dtype, device=self.lower.device)
        return lower, self.upper.triu(1) + torch.diag(self.sign * self.log_s.exp())

    def weight(self) -> Tensor:
        """Assemble W, (C, C)."""
        lower, upper = self.factors()
        return (lower @ upper)[self.order]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[2] * x.shape[3] == 1:  # A table's row: a product of matrices, tenfold faster than a convolution.
            rows = x.flatten(1)
            lower, upper = self.factors()
            # Of a wide table the factors' products with a batch cost less than their product with each other.
            mixed = rows @ upper.T @ lower.T if rows.shape[0] < rows.shape[1] else rows @ (lower @ upper).T
            z = mixed[:, self.order, None, None]
        else:
            z = F.conv2d(x, self.weight()[:, :, None, None])
        return z, self._log_det(x)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        # Solve in float64: inverted in float32, a W of condition number 1e3 costs 1e-2 of round trip.
        inverse = torch.linalg.inv(self.weight().double()).to(z.dtype)
        return F.conv2d(z, inverse[:, :, None, None]), -self._log_det(z)

    def _log_det(self, x: Tensor) -> Tensor:
        return (x.shape[2] * x.shape[3] * self.log_s.sum(dtype=torch.float64)).expand(x.shape[0])

    def affine(self) -> tuple[Tensor, Tensor]:
        weight = self.weight().detach().double()
        return weight, weight.new_zeros(len(weight))


class Permutation(ChannelAffine):
    """Fixed reordering of channels z[:, c] = x[:, order[c]]; log_det = 0.

    x: (B, C, H, W). Raises ValueError unless ``order`` holds each of 0..C-1 once. The shuffle by hand of RealNVP (Dinh
    et al. 2017, arXiv:1605.08803, section 3.5), which the learned 1x1 convolution generalises.
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        if sorted(order) != list(range(len(order))):
            raise ValueError(f"order must hold each of 0..{len(order) - 1} once, got {order}")
        self.register_buffer("order", torch.tensor(order))
        self.register_buffer("inverse_order", torch.tensor(order).argsort())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, self.order], torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z[:, self.inverse_order], torch.zeros(z.shape[0], dtype=torch.float64, device=z.device)

    def affine(self) -> tuple[Tensor, Tensor]:
        weight = torch.eye(len(self.order), dtype=torch.float64)[self.order.cpu()]
        return weight, weight.new_zeros(len(weight))
