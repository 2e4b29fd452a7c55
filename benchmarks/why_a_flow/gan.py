"""A generative adversarial network: samples, and nothing else to be asked."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.why_a_flow.images import Images
from benchmarks.why_a_flow.learning import (
    Learner,
    Sampler,
    averaged,
    channels_last,
    endless_batches,
    schedule,
    size_of,
    take_step,
)
from benchmarks.why_a_flow.logistics import to_pixels, to_unit
from model.likelihood import dequantize

LATENT, WIDTH = 64, 64
LEARNING_RATE = 5e-4


class Generator(nn.Module, Sampler):
    """z ~ N(0, I) -> images in [-1, 1]: nearest-neighbour upsampling and convolutions."""

    def __init__(self, shape: tuple[int, int, int], num_values: int) -> None:
        super().__init__()
        self.num_values = num_values
        half = shape[1] // 2, shape[2] // 2
        quarter = (half[0] + 1) // 2, (half[1] + 1) // 2
        self.net = nn.Sequential(
            nn.Linear(LATENT, WIDTH * quarter[0] * quarter[1]),
            nn.Unflatten(1, (WIDTH, *quarter)),
            *norm_relu(WIDTH),
            nn.Upsample(half),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            *norm_relu(WIDTH),
            nn.Upsample(shape[1:]),
            nn.Conv2d(WIDTH, WIDTH // 2, 3, padding=1),
            *norm_relu(WIDTH // 2),
            nn.Conv2d(WIDTH // 2, 1, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.net(z)
        return images

    @torch.inference_mode()
    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        return to_pixels(self(torch.randn(num, LATENT, generator=generator)), self.num_values)


def norm_relu(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(width), nn.ReLU()


def critic(shape: tuple[int, int, int]) -> nn.Sequential:
    """Images in [-1, 1] -> how real they look, (B, 1); spectral norms bound its slope."""
    quarter = [((side + 1) // 2 + 1) // 2 for side in shape[1:]]
    return nn.Sequential(
        spectral_norm(nn.Conv2d(1, WIDTH // 2, 3, padding=1)),
        nn.LeakyReLU(0.1),
        spectral_norm(nn.Conv2d(WIDTH // 2, WIDTH, 3, stride=2, padding=1)),
        nn.LeakyReLU(0.1),
        spectral_norm(nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        spectral_norm(nn.Linear(WIDTH * quarter[0] * quarter[1], 1)),
    )


class GANLearner(Learner):
    """Generator and critic in turn, with the non-saturating loss.

    The critic sees real pixels under the noise that the flow sees, and so cannot tell them by being whole numbers.
    Source: Goodfellow et al. 2014 (arXiv:1406.2661); spectral norm, Miyato et al. 2018 (arXiv:1802.05957).
    """

    def __init__(self, images: Images, seed: int, steps: int) -> None:
        torch.manual_seed(seed)
        self.num_values = 2**images.bits
        self.training = schedule(steps, LEARNING_RATE)
        self.generator = channels_last(Generator(images.shape, self.num_values))
        self.averaged = averaged(self.generator, self.training)
        self.critic = channels_last(critic(images.shape))
        self.optimizers = [
            torch.optim.Adam(module.parameters(), betas=(0.5, 0.99)) for module in (self.generator, self.critic)
        ]
        self.batches = endless_batches(images.fit)
        self.noise = torch.Generator().manual_seed(seed)
        self.num_parameters = size_of(self.generator, self.critic)
        self.done = 0

    def step(self) -> None:
        real = to_unit(dequantize(next(self.batches), self.noise), self.num_values)
        fake = self.generator(torch.randn(len(real), LATENT))
        critic_loss = F.softplus(-self.critic(real)).mean() + F.softplus(self.critic(fake.detach())).mean()
        take_step(self.optimizers[1], critic_loss, self.done, self.training)
        generator_loss = F.softplus(-self.critic(fake)).mean()
        take_step(self.optimizers[0], generator_loss, self.done, self.training)
        self.averaged.update_parameters(self.generator)
        self.done += 1

    def model(self) -> Sampler:
        generator = self.averaged.module.eval()
        assert isinstance(generator, Generator)
        return generator
