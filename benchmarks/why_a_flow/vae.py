"""A variational autoencoder: a latent code, a decoder, and a lower bound of the likelihood."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.why_a_flow.images import Images
from benchmarks.why_a_flow.learning import DensityLearner, TrainableDensity, schedule
from benchmarks.why_a_flow.logistics import LogisticMixture, to_unit
from model.bijections.base import log_normal, sum_per_input
from model.likelihood import bits_per_dim, standard_normal_log_prob

LATENT, WIDTH = 32, 32
LEARNING_RATE = 5e-3
WARM_UP = 0.2  # share of the training over which the weight of the divergence rises from 0 to 1


class ResidualBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.gate = nn.Conv2d(WIDTH, 2 * WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.glu(self.gate(F.relu(self.conv(F.relu(x)))), 1)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to a size, then a convolution."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        upsampled: Tensor = self.conv(F.interpolate(x, self.size))
        return upsampled


class VAE(TrainableDensity):
    """z ~ N(0, I); each pixel of x, given z, an independent mixture of discretized logistics; q(z|x) a diagonal normal.

    Source: Kingma & Welling 2014 (arXiv:1312.6114).
    """

    def __init__(self, shape: tuple[int, int, int], num_values: int) -> None:
        super().__init__()
        self.num_values = num_values
        sizes = [(shape[1], shape[2])]
        for _ in range(2):
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        top = WIDTH * sizes[2][0] * sizes[2][1]
        self.encoder = nn.Sequential(
            nn.Conv2d(1, WIDTH, 3, padding=1),
            ResidualBlock(),
            nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1),
            ResidualBlock(),
            nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1),
            ResidualBlock(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(top, 2 * LATENT),
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, top),
            nn.Unflatten(1, (WIDTH, *sizes[2])),
            ResidualBlock(),
            Upsample(sizes[1]),
            ResidualBlock(),
            Upsample(sizes[0]),
            ResidualBlock(),
            ResidualBlock(),
            nn.ReLU(),
        )
        self.head = LogisticMixture(WIDTH, num_values)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z|x): two of (B, latent)."""
        mean, log_std = self.encoder(to_unit(x, self.num_values)).chunk(2, 1)
        return mean, log_std.clamp(-7, 3)

    def loss(self, x: Tensor, progress: float) -> Tensor:
        mean, log_std = self.posterior(x)
        z = mean + log_std.exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean**2 + (2 * log_std).exp() - 1 - 2 * log_std).double().sum(1)
        evidence = self.head.log_prob(self.decoder(z), x) - min(1.0, progress / WARM_UP) * divergence
        return bits_per_dim(evidence, x[0].numel()).mean()

    def log_weight(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """log p(x|z) + log p(z) - log q(z|x) at one z ~ q(z|x); its expectation is the evidence lower bound."""
        mean, log_std = self.posterior(x)
        noise = torch.randn(mean.shape, generator=generator)
        z = mean + log_std.exp() * noise
        log_posterior = sum_per_input(log_normal(noise) - log_std)
        return self.head.log_prob(self.decoder(z), x) + standard_normal_log_prob(z) - log_posterior

    @torch.inference_mode()
    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        return self.head.sample(self.decoder(torch.randn(num, LATENT, generator=generator)), generator)


class VAELearner(DensityLearner):
    """A VAE in training."""

    def __init__(self, images: Images, seed: int, steps: int) -> None:
        torch.manual_seed(seed)
        density = VAE(images.shape, 2**images.bits)
        super().__init__(density, images.fit, schedule(steps, LEARNING_RATE))
