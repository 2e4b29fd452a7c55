"""The flow: its configuration and its assembly from bijections."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from model.bijections import (
    ActNorm,
    Affine,
    Bijection,
    Chain,
    ChannelAffine,
    ChannelCoupling,
    CheckerboardCoupling,
    Coupling,
    Elementwise,
    InvertibleConv1x1,
    Permutation,
    Pixels,
    Shift,
    Spline,
    Split,
    Squeeze,
    Standardize,
    halves,
)
from model.likelihood import standard_normal_log_prob
from model.nets import ConvNet, ResidualMLP

Shape = tuple[int, ...]  # of one input: (C, H, W) of images, (D,) of vectors
ImageShape = tuple[int, int, int]


@dataclass(frozen=True)
class GlowConfig:
    """What a flow is made of, whatever the size of its inputs; it travels inside the checkpoint.

    Raises ValueError for a value that no flow can be built from, naming field, rule and value.
    """

    num_levels: int = 1  # images: each level squeezes, mixes and (but the last) splits; vectors: 1
    num_steps: int = 8  # steps of (actnorm, mixing, coupling) per level
    width: int = 64  # hidden channels of the conditioners
    num_blocks: int = 1  # residual blocks of a conditioner
    dropout: float = 0.0  # in the conditioners of vectors
    attention: int = 0  # images: largest side, behind the squeeze, at which a conditioner has an attention block
    partition: Literal["channel", "checkerboard", "alternating"] = "channel"
    mixing: Literal["conv1x1", "roll"] = "conv1x1"  # learned, or by hand: rolled so that every channel changes
    coupling: Literal["affine", "additive", "spline"] = "affine"
    max_log_scale: float = 1.0  # nats: an affine coupling scales by exp(+-this) at most
    num_bins: int = 8  # of a spline
    bound: float = 4.0  # a spline acts on [-bound, bound]
    bits: int = 8  # of an image's pixels

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_levels", 1, 16),
            ("num_steps", 1, 1024),
            ("width", 1, 8192),
            ("num_blocks", 0, 1024),
            ("dropout", 0, 0.95),
            ("attention", 0, 16),
            ("max_log_scale", 1e-3, 10),
            ("num_bins", 2, 64),
            ("bound", 1e-3, 1e3),
            ("bits", 1, 8),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie in [{low}, {high}], got {getattr(self, name)}")


class Glow(nn.Module):
    """A multi-scale stack of invertible layers between inputs (B, *shape) and latent codes z (B, D), z ~ N(0, I).

    x -> inputs -> levels[0] -> splits[0] -> levels[1] -> ... -> levels[-1]; every split puts half of its dimensions
    into z, the last level the rest. z concatenates the parts in that order (``latent_shapes``). Source: Kingma &
    Dhariwal 2018 (arXiv:1807.03039). Build one with ``build_glow``.
    """

    def __init__(
        self, shape: Shape, inputs: Bijection, levels: list[Bijection], splits: list[Split], latents: list[ImageShape]
    ) -> None:
        super().__init__()
        self.shape = list(shape)
        self.inputs = inputs
        self.levels = nn.ModuleList(levels[:-1])
        self.splits = nn.ModuleList(splits)
        self.top = levels[-1]
        self.latent_shapes = [list(latent) for latent in latents]
        self.latent_sizes = [math.prod(latent) for latent in latents]
        self.register_buffer("working_dtype", torch.zeros(()), persistent=False)

    working_dtype: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode x (B, *shape) in the user's units: z (B, D) and log|det dz/dx| (B,), nats."""
        if len(self.shape) == 1:
            x = x[:, :, None, None]
        x, total = self.inputs(x)
        x = x.to(self.working_dtype.dtype)
        parts: list[Tensor] = []
        for level, split in zip(self.levels, self.splits):
            x, log_det = level(x)
            x, eps, split_log_det = split(x)
            parts.append(eps.flatten(1))
            total = total + log_det + split_log_det
        x, log_det = self.top(x)
        parts.append(x.flatten(1))
        return torch.cat(parts, 1), total + log_det

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Decode z (B, D): x (B, *shape) in the user's units and log|det dx/dz| (B,), nats."""
        parts = torch.split(z, self.latent_sizes, 1)
        x, total = self.top.inverse(parts[-1].reshape([-1] + self.latent_shapes[-1]))
        i = len(self.latent_shapes) - 2
        for level, split in zip(self.levels[::-1], self.splits[::-1]):
            x, split_log_det = split.inverse(x, parts[i].reshape([-1] + self.latent_shapes[i]))
            x, log_det = level.inverse(x)
            total = total + log_det + split_log_det
            i -= 1
        x, log_det = self.inputs.inverse(x)
        if len(self.shape) == 1:
            x = x[:, :, 0, 0]
        return x, total + log_det

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of x (B, *shape) per unit of the user's units: (B,) nats, float64."""
        z, log_det = self.forward(x)
        return standard_normal_log_prob(z) + log_det

    def initialize(self, x: Tensor) -> None:
        """Set every data-dependent scale from one batch (B, *shape), front to back, as that batch flows through."""
        handles = [
            module.register_forward_pre_hook(lambda module, args: module.initialize(args[0]))
            for module in self.modules()
            if module is not self and hasattr(module, "initialize")
        ]
        try:
            with torch.no_grad():
                self(x)
        finally:
            for handle in handles:
                handle.remove()


def build_glow(shape: Shape, config: GlowConfig, inputs: Bijection | None = None) -> Glow:
    """Assemble a flow of inputs of one shape, with random mixing and identity couplings (torch's global generator).

    ``inputs`` is the first layer; by default Pixels with equal probabilities for images, and for vectors a Standardize
    that changes nothing.
    Raises ValueError where the configuration does not fit the shape.
    """
    if math.prod(shape) < 2:
        raise ValueError(
            f"a flow needs at least 2 dimensions, got shape {shape}: a coupling copies one part to change another"
        )
    latents = latent_shapes(shape, config)
    if len(shape) == 1:
        single_pixel = (shape[0], 1, 1)
        default: Bijection = Standardize(torch.zeros(single_pixel), torch.ones(single_pixel))
        return Glow(shape, inputs or default, [Chain(_steps(config, single_pixel))], [], latents)
    levels: list[Bijection] = []
    splits = []
    for level, (channels, height, width) in enumerate(latents):
        last = level == config.num_levels - 1
        squeezed = (channels if last else 2 * channels, height, width)
        levels.append(Chain([Squeeze(), *_steps(config, squeezed)]))
        if not last:
            splits.append(Split(_conditioner(config, (channels, height, width), channels, 2 * channels)))
    return Glow(shape, inputs or Pixels(torch.full((2**config.bits,), 2.0**-config.bits)), levels, splits, latents)


def latent_shapes(shape: Shape, config: GlowConfig) -> list[ImageShape]:
    """Shape of each level's part of the latent code, in the order in which they are concatenated.

    Raises ValueError where inputs of this shape cannot be halved as often as the configuration wants.
    """
    if len(shape) == 1:
        if config.num_levels != 1 or config.partition != "channel":
            raise ValueError(
                f"a vector is one pixel: num_levels must be 1 and partition 'channel', "
                f"got {config.num_levels} and {config.partition!r}"
            )
        return [(shape[0], 1, 1)]
    if len(shape) != 3:
        raise ValueError(f"shape must be (D,) of vectors or (C, H, W) of images, got {shape}")
    channels, height, width = shape
    factor = 2**config.num_levels
    if height % factor or width % factor:
        raise ValueError(f"image sides must be divisible by 2**num_levels = {factor}, got {height}x{width}")
    shapes = []
    for level in range(config.num_levels):
        channels, height, width = 4 * channels, height // 2, width // 2
        if level < config.num_levels - 1:
            channels //= 2
        shapes.append((channels, height, width))
    return shapes


def _steps(config: GlowConfig, shape: ImageShape) -> list[Bijection]:
    """Steps of (actnorm, mixing, coupling) of one level."""
    channels = shape[0]
    steps: list[Bijection] = []
    for step in range(config.num_steps):
        steps += [ActNorm(channels), _mixing(config, channels), _coupling(config, shape, step)]
    return steps


def _mixing(config: GlowConfig, channels: int) -> ChannelAffine:
    if config.mixing == "conv1x1":
        return InvertibleConv1x1(channels)
    return Permutation([(c + halves(channels)[0]) % channels for c in range(channels)])


def _coupling(config: GlowConfig, shape: ImageShape, step: int) -> Coupling:
    """Build the coupling of a step; the two halves take turns.

    Where every coupling is by channels they need not: the mixing before each makes the new halves.
    """
    elementwise = _elementwise(config)
    channels = shape[0]
    by_pixels = config.partition == "checkerboard" or (config.partition == "alternating" and step % 2 == 0)
    turn = step // 2 if config.partition == "alternating" else step
    if by_pixels:
        net = _conditioner(config, shape, channels, elementwise.num_params * channels)
        return CheckerboardCoupling(shape, net, elementwise, turn % 2)
    swap = config.partition == "alternating" and turn % 2 == 1
    first, second = halves(channels)
    copied, changed = (second, first) if swap else (first, second)
    net = _conditioner(config, shape, copied, elementwise.num_params * changed)
    return ChannelCoupling(channels, net, elementwise, swap)


def _elementwise(config: GlowConfig) -> Elementwise:
    if config.coupling == "additive":
        return Shift()
    if config.coupling == "spline":
        return Spline(config.num_bins, config.bound)
    return Affine(config.max_log_scale)


def _conditioner(config: GlowConfig, shape: ImageShape, in_channels: int, out_channels: int) -> nn.Module:
    size = shape[1:]
    if size == (1, 1):
        return ResidualMLP(in_channels, out_channels, config.width, config.num_blocks, config.dropout)
    attention = max(size) <= config.attention
    return ConvNet(in_channels, out_channels, size, config.width, config.num_blocks, attention)
