"""Conditioners: the networks inside couplings and split priors.

Any module (B, C, H, W) -> (B, C', H, W) will do; these are the ones the recipes choose from. The last layer of each
starts at zero, so that a coupling starts as the identity and a prior as N(0, I).
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.bijections.actnorm import MIN_STD

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class ActNormConv2d(nn.Module):
    """A convolution whose outputs are scaled per channel: exp(log_scale) * (conv(x, weight) + bias).

    ``initialize`` makes the outputs of one batch zero-mean and unit-variance; this is actnorm behind a convolution,
    with the scale applied to the weights instead of the (larger) outputs. (B, C, H, W) -> (B, C', H, W) with an odd
    ``kernel_size``. Source: Salimans & Kingma 2016 (arXiv:1602.07868), section 3.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, kernel_size)
        self.padding = kernel_size // 2
        self.weight = conv.weight
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.log_scale = nn.Parameter(torch.zeros(out_channels))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set bias and log_scale from a batch of inputs (B, C, H, W)."""
        outputs = F.conv2d(x, self.weight, padding=self.padding).transpose(0, 1).flatten(1)
        self.bias.copy_(-outputs.mean(1))
        self.log_scale.copy_(-outputs.std(1, correction=0).clamp_min(MIN_STD).log())

    def forward(self, x: Tensor) -> Tensor:
        scale = self.log_scale.exp()
        return F.conv2d(x, self.weight * scale[:, None, None, None], self.bias * scale, padding=self.padding)

    def folded(self) -> nn.Conv2d:
        """Return the plain convolution with the same answers."""
        out_channels, in_channels, kernel_size, _ = self.weight.shape
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=self.padding)
        scale = self.log_scale.detach().double().exp()
        conv.weight.data = (self.weight.detach().double() * scale[:, None, None, None]).to(self.weight.dtype)
        conv.bias = nn.Parameter((self.bias.detach().double() * scale).to(self.weight.dtype))
        return conv


class GatedResidualBlock(nn.Module):
    """x + a * sigmoid(b), (a, b) = conv1x1(relu(conv3x3(relu(x)))). (B, C, H, W) -> the same.

    Gates as in van den Oord et al. 2016 (arXiv:1606.05328), section 2.1.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = ActNormConv2d(width, width, 3)
        self.gate = ActNormConv2d(width, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.gate(F.relu(self.conv(F.relu(x)), inplace=True))
        return x + F.glu(h, 1)


class AttentionBlock(nn.Module):
    """x + a * sigmoid(b), (a, b) = conv1x1(attention(x)): every pixel looks at every other. (B, C, H, W) -> the same.

    softmax(q k^T / sqrt(C / heads)) v over the H*W pixels, so memory and time grow with (H*W)^2. Source: Vaswani et
    al. 2017 (arXiv:1706.03762); in couplings Ho et al. 2019 (arXiv:1902.00275), section 3.3.
    """

    def __init__(self, width: int, num_heads: int = 4) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width must be a multiple of {num_heads} where there is attention, got {width}")
        self.num_heads = num_heads
        self.query_key_value = ActNormConv2d(width, 3 * width, 1)
        self.gate = ActNormConv2d(width, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, breadth = x.shape
        heads = self.query_key_value(x).reshape(batch, 3, self.num_heads, width // self.num_heads, height * breadth)
        query, key, value = heads.transpose(3, 4).unbind(1)
        seen = F.scaled_dot_product_attention(query, key, value)
        h = self.gate(seen.transpose(2, 3).reshape(batch, width, height, breadth))
        return x + F.glu(h, 1)


class ConvFeatures(nn.Module):
    """Gated residual convolutions with a learned bias per position: (B, C, H, W) -> (B, width, H, W), H and W fixed.

    The position bias tells the network where in the image it is, which a convolution cannot know and the scale of a
    pixel depends on (a corner of a product photograph is background).
    """

    def __init__(self, in_channels: int, size: tuple[int, int], width: int, num_blocks: int, attention: bool) -> None:
        super().__init__()
        self.stem = ActNormConv2d(in_channels, width, 3)
        self.position = nn.Parameter(torch.zeros(1, width, *size))  # of four dimensions: laid out as the features are
        blocks: list[nn.Module] = [GatedResidualBlock(width) for _ in range(num_blocks)]
        self.blocks = nn.Sequential(*blocks, *([AttentionBlock(width)] if attention else []))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.blocks(self.stem(x) + self.position), inplace=True)


class ConvNet(nn.Module):
    """``ConvFeatures`` and a linear 3x3 head: (B, C, H, W) -> (B, C', H, W), of one size (H, W).

    The features, where the work is, may be computed in a lower precision than the answer.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        width: int,
        num_blocks: int,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.features = ConvFeatures(in_channels, size, width, num_blocks, attention)
        self.head = zeros(nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.features(x).to(x.dtype))
        return outputs


class ResidualMLP(nn.Module):
    """Residual perceptron of the channels of single-pixel images: (B, C, 1, 1) -> (B, C', 1, 1).

    Each block adds linear(relu(dropout(linear(relu(h))))).
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, num_blocks: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Linear(in_channels, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.Dropout(dropout), nn.ReLU(), nn.Linear(width, width))
            for _ in range(num_blocks)
        )
        self.head = zeros(nn.Linear(width, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.flatten(1))
        for block in self.blocks:
            h = h + block(h)
        outputs: Tensor = self.head(F.relu(h))
        return outputs[:, :, None, None]


def zeros(layer: Layer) -> Layer:
    """Set a layer's weights to zero and return it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
