"""An autoregressive model: a PixelCNN, P(x) = product of P(pixel | pixels before it), in a chosen order."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.why_a_flow.images import Images
from benchmarks.why_a_flow.learning import DensityLearner, TrainableDensity, schedule
from benchmarks.why_a_flow.logistics import LogisticMixture, to_unit
from model.likelihood import bits_per_dim

WIDTH, NUM_BLOCKS = 48, 5
LEARNING_RATE = 5e-3
SAMPLING_BATCH = 250
# An order is a symmetry of the image followed by reading it in rows from the top left: (transposed, turned by 180).
ORDERS = {
    "rows": (False, False),
    "columns": (True, False),
    "rows reversed": (False, True),
    "columns reversed": (True, True),
}


class Block(nn.Module):
    """A residual step of two streams: ``above`` knows the rows above a pixel, ``before`` also what is left of it."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.above = nn.Conv2d(WIDTH, WIDTH, (2, 3), dilation=dilation)
        self.above_out = nn.Conv2d(WIDTH, WIDTH, 1)
        self.link = nn.Conv2d(WIDTH, WIDTH, 1)
        self.before = nn.Conv2d(WIDTH, WIDTH, (1, 2), dilation=dilation)
        self.before_out = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, above: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        reach = self.dilation
        seen = self.above(F.pad(F.relu(above), (reach, reach, reach, 0)))
        above = above + self.above_out(F.relu(seen))
        seen = self.before(F.pad(F.relu(before), (reach, 0))) + self.link(F.relu(above))
        return above, before + self.before_out(F.relu(seen))


class PixelCNN(TrainableDensity):
    """Convolutions in two streams without a blind spot, and a mixture of discretized logistics for each pixel.

    Source: van den Oord et al. 2016 (arXiv:1606.05328), section 2; the mixture, Salimans et al. 2017.
    """

    exact = True

    def __init__(self, shape: tuple[int, int, int], order: str, num_values: int) -> None:
        super().__init__()
        self.transposed, self.turned = ORDERS[order]
        self.num_values = num_values
        height, width = (shape[2], shape[1]) if self.transposed else shape[1:]
        self.size = height, width
        self.above_stem = nn.Conv2d(1, WIDTH, (2, 3))
        self.before_stem = nn.Conv2d(1, WIDTH, (1, 2))
        self.above_position = nn.Parameter(torch.zeros(WIDTH, height, width))
        self.before_position = nn.Parameter(torch.zeros(WIDTH, height, width))
        self.blocks = nn.ModuleList(Block(dilation=1 + i % 2) for i in range(NUM_BLOCKS))
        self.head = LogisticMixture(WIDTH, num_values)

    def features(self, x: Tensor) -> Tensor:
        """What each pixel of the first rows of an image in reading order may know: (B, 1, h, W) -> (B, width, h, W)."""
        rows = x.shape[2]
        x = to_unit(x, self.num_values)
        # Padding by one more than the kernel reaches, and dropping the last row or column, hides the pixel itself.
        above = self.above_stem(F.pad(x, (1, 1, 2, 0))[:, :, :-1]) + self.above_position[:, :rows]
        before = self.before_stem(F.pad(x, (2, 0))[:, :, :, :-1]) + self.before_position[:, :rows]
        for block in self.blocks:
            above, before = block(above, before)
        return F.relu(before)

    def loss(self, x: Tensor, progress: float) -> Tensor:
        return bits_per_dim(self.log_prob(x), x[0].numel()).mean()

    def log_weight(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log P(x) of whole pixel values: (B, 1, H, W) -> (B,) nats, float64."""
        x = self.in_reading_order(x)
        return self.head.log_prob(self.features(x), x)

    @torch.inference_mode()
    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        height, width = self.size
        x = torch.zeros(num, 1, height, width)
        for part in torch.split(x, SAMPLING_BATCH):
            for row in range(height):
                for column in range(width):
                    features = self.features(part[:, :, : row + 1])[:, :, row:, column : column + 1]
                    part[:, :, row : row + 1, column : column + 1] = self.head.sample(features, generator)
        return self.from_reading_order(x)

    def in_reading_order(self, x: Tensor) -> Tensor:
        """Turn the image so that the model's order is by rows from the top left."""
        x = x.mT if self.transposed else x
        return x.flip(2, 3) if self.turned else x

    def from_reading_order(self, x: Tensor) -> Tensor:
        """Turn the image back."""
        x = x.flip(2, 3) if self.turned else x
        return x.mT if self.transposed else x


class PixelCNNLearner(DensityLearner):
    """A PixelCNN of one order in training."""

    def __init__(self, order: str, images: Images, seed: int, steps: int) -> None:
        torch.manual_seed(seed)
        density = PixelCNN(images.shape, order, 2**images.bits)
        super().__init__(density, images.fit, schedule(steps, LEARNING_RATE))
