"""A proper likelihood of whole pixel values: mixtures of discretized logistic distributions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_COMPONENTS = 10
LOG_SCALE_RANGE = (-7.0, 7.0)


class LogisticMixture(nn.Module):
    """Turn the features of each pixel into a distribution over its values 0..n-1.

    The range of values is mapped to [-1, 1] in bins of width 2/n; a logistic distribution gives a bin the mass that
    falls into it, the first and the last bin also all that lies beyond, so the masses sum to 1. Source: Salimans et al.
    2017 (arXiv:1701.05517), section 2.1.
    """

    def __init__(self, width: int, num_values: int) -> None:
        super().__init__()
        self.num_values = num_values
        self.parameters_of = nn.Conv2d(width, 3 * NUM_COMPONENTS, 1)
        means = torch.linspace(-1, 1, NUM_COMPONENTS)
        log_scales = torch.full_like(means, -math.log(NUM_COMPONENTS))
        with torch.no_grad():  # start with components spread over the range
            self.parameters_of.weight.mul_(0.1)
            self.parameters_of.bias.copy_(torch.cat([torch.zeros_like(means), means, log_scales]))  # type: ignore[union-attr]

    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        """Log-probability of whole values x (B, 1, H, W), given features (B, width, H, W): (B,) nats, float64."""
        return log_mass(self.parameters_of(features), x, self.num_values).double().sum((1, 2))

    def sample(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a whole value for each pixel, given features (B, width, H, W): (B, 1, H, W)."""
        logits, means, log_scales = self.parameters_of(features).chunk(3, 1)
        gumbel = -torch.empty_like(logits).exponential_(generator=generator).log()
        chosen = (logits + gumbel).argmax(1, keepdim=True)
        mean, scale = means.gather(1, chosen), log_scales.clamp(*LOG_SCALE_RANGE).exp().gather(1, chosen)
        value = mean + scale * torch.logit(torch.rand(mean.shape, generator=generator))
        return to_pixels(value, self.num_values)


def log_mass(parameters: Tensor, x: Tensor, num_values: int) -> Tensor:
    """Log-probability of each pixel: parameters (B, 3K, H, W), whole values x (B, 1, H, W) -> (B, H, W) nats.

    With a, b the standardised upper and lower edge of a bin, sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b)
    (1 - exp(b - a)): no difference of nearly equal numbers, and b - a does not depend on x.
    """
    logits, means, log_scales = parameters.chunk(3, 1)
    precision = torch.exp(-log_scales.clamp(*LOG_SCALE_RANGE))
    upper = (to_unit(x + 0.5, num_values) - means) * precision
    lower = (to_unit(x - 0.5, num_values) - means) * precision
    below = torch.where(x < num_values - 1, F.logsigmoid(upper), 0)
    above = torch.where(x > 0, F.logsigmoid(-lower), 0)
    within = torch.where((x > 0) & (x < num_values - 1), torch.log(-torch.expm1(-2 / num_values * precision)), 0)
    return torch.logsumexp(F.log_softmax(logits, 1) + below + above + within, 1)


def to_unit(x: Tensor, num_values: int) -> Tensor:
    """Map pixel values, bins [k - 0.5, k + 0.5), to [-1, 1]."""
    return (x + 0.5) * (2 / num_values) - 1


def to_pixels(value: Tensor, num_values: int) -> Tensor:
    """Map [-1, 1] to the whole pixel value in whose bin it lies; what is beyond goes to the ends."""
    return ((value + 1) * (num_values / 2)).floor().clamp(0, num_values - 1)
