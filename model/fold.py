"""Folding: a trained flow becomes an equal one in which nothing is computed that the input does not decide."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.bijections import Chain, ChannelAffine, Coupling, Squeeze, log_normal
from model.glow import Glow
from model.pixels import PIXEL_STATISTICS, PixelMixture
from service.scores import LOG_PROB


class FoldedStep(nn.Module):
    """One 1x1 convolution (any run of ActNorm, InvertibleConv1x1 and Permutation) and the coupling behind it.

    Weight and bias are composed in float64 and rounded; inverse and log|det W| are those of the rounded weight, in
    float64. The latter goes into the flow's constant, so only the coupling's is returned.
    """

    weight: Tensor
    bias: Tensor
    inverse_weight: Tensor
    inverse_bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, coupling: Coupling) -> None:
        super().__init__()
        # Invert the weight as rounded, not as learned: it is the rounded one that has to be undone.
        rounded_weight, rounded_bias = weight.float().double(), bias.float().double()
        inverse = torch.linalg.inv(rounded_weight)
        self.register_buffer("weight", rounded_weight.float()[:, :, None, None])
        self.register_buffer("bias", rounded_bias.float())
        self.register_buffer("inverse_weight", inverse.float()[:, :, None, None])
        self.register_buffer("inverse_bias", -(inverse @ rounded_bias).float())
        self.coupling = coupling
        self.log_det_per_pixel = torch.linalg.slogdet(rounded_weight)[1].item()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z (B, C, H, W) and the coupling's log slopes (B, C', H, W)."""
        return self.coupling.transform(F.conv2d(x, self.weight, self.bias))

    def inverse(self, z: Tensor) -> Tensor:
        return F.conv2d(self.coupling.untransform(z)[0], self.inverse_weight, self.inverse_bias)


class FoldedLevel(nn.Module):
    """The steps of one level behind its squeeze, if it has one."""

    def __init__(self, steps: list[FoldedStep], squeeze: bool) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.squeeze = squeeze
        self.log_det_per_pixel = sum(step.log_det_per_pixel for step in steps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log_det of each of its pixels."""
        if self.squeeze:
            x = F.pixel_unshuffle(x, 2)
        terms: list[Tensor] = []
        for step in self.steps:
            x, log_slopes = step(x)
            terms.append(log_slopes)
        return x, torch.cat(terms, 1).sum(1, dtype=torch.float64)  # one sum costs less than one a step

    def inverse(self, z: Tensor) -> Tensor:
        for step in self.steps[::-1]:
            z = step.inverse(z)
        return F.pixel_shuffle(z, 2) if self.squeeze else z


class FoldedFlow(nn.Module):
    """The module inside an artifact. A finite input never gets a non-finite answer.

    Where an intermediate value overflows, log_prob is the lowest finite float64 and codes or outputs are clipped to
    finite values: an input that far from the data is an anomaly, not an error. x: (B, *shape) in the user's units,
    float32 for images, float64 for vectors; z: (B, D) float32; log_prob: (B,) nats, float64.
    """

    constant: Tensor

    def __init__(self, flow: Glow) -> None:
        super().__init__()
        inputs = copy.deepcopy(flow.inputs)  # keeps its float64: a column like 1e9 + small has no digits to spare
        flow = copy.deepcopy(flow).float()
        self.shape = flow.shape
        self.latent_shapes = flow.latent_shapes
        self.latent_sizes = flow.latent_sizes
        self.inputs = inputs
        levels = [_fold_chain(chain) for chain in [*flow.levels, flow.top]]
        constant = 0.0
        for level, (_, height, width) in zip(levels, flow.latent_shapes, strict=True):
            constant += height * width * level.log_det_per_pixel
        self.levels = nn.ModuleList(levels[:-1])
        self.top = levels[-1]
        self.splits = flow.splits
        self.register_buffer("constant", torch.tensor(constant, dtype=torch.float64))
        fold_convolutions(self)
        self.eval().requires_grad_(False)

    def analyse(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return z and the (B, h, w) terms of log_det by pixel, but the constant: of the inputs, then of each level."""
        if len(self.shape) == 1:
            x = x[:, :, None, None]
        x, log_slopes = self.inputs.transform(x)
        x = x.float()
        log_dets = [log_slopes.sum(1, dtype=torch.float64)]
        parts: list[Tensor] = []
        for level, split in zip(self.levels, self.splits):
            x, log_det = level(x)
            x, eps, log_sigma = split.transform(x)
            parts.append(eps.flatten(1))
            log_dets.append(log_det - log_sigma.sum(1, dtype=torch.float64))
        x, log_det = self.top(x)
        parts.append(x.flatten(1))
        log_dets.append(log_det)
        return torch.cat(parts, 1), log_dets

    def total(self, z: Tensor, log_dets: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return log N(z) and log_det, each (B,)."""
        log_det = self.constant.expand(z.shape[0])
        for term in log_dets:
            log_det = log_det + term.sum([1, 2])
        return log_normal(z).sum(1), log_det

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log_prob."""
        z, log_dets = self.analyse(x)
        normal, log_det = self.total(z, log_dets)
        return torch.nan_to_num(z), lowest_if_not_finite(normal + log_det)

    def forward(self, x: Tensor) -> Tensor:
        return self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) per unit of the user's units."""
        return self.encode(x)[1]

    def decode(self, z: Tensor) -> Tensor:
        """Return x in the user's units, not rounded."""
        parts = torch.split(z, self.latent_sizes, 1)
        x = self.top.inverse(parts[-1].reshape([-1] + self.latent_shapes[-1]))
        i = len(self.latent_shapes) - 2
        for level, split in zip(self.levels[::-1], self.splits[::-1]):
            x = split.inverse(x, parts[i].reshape([-1] + self.latent_shapes[i]))[0]
            x = level.inverse(x)
            i -= 1
        x = self.inputs.inverse(x)[0]
        return torch.nan_to_num(x[:, :, 0, 0] if len(self.shape) == 1 else x.float())

    def statistics(self, x: Tensor) -> Tensor:
        """Return (B, S), nats: log_prob, and its parts, log N of each level's part of z and log_det.

        ``statistics_names`` has their names.
        """
        z, log_dets = self.analyse(x)
        return lowest_if_not_finite(self.decompose(z, log_dets))

    def decompose(self, z: Tensor, log_dets: list[Tensor]) -> Tensor:
        """Return log_prob and its parts: (B, 2 + levels)."""
        normal, log_det = self.total(z, log_dets)
        columns = [normal + log_det]
        columns += [part.sum(1) for part in torch.split(log_normal(z), self.latent_sizes, 1)]
        columns.append(log_det)
        return torch.stack(columns, 1)


class FoldedImageFlow(FoldedFlow):
    """A folded flow of images, which can also tell where in the image the likelihood is lost.

    With ``pixels``, its statistics are two more.
    """

    def __init__(self, flow: Glow, pixels: PixelMixture | None = None) -> None:
        super().__init__(flow)
        self.pixels = pixels

    def statistics(self, x: Tensor) -> Tensor:
        """Return (B, S): those of every flow and, where it has ``pixels``, theirs."""
        z, log_dets = self.analyse(x)
        values = self.decompose(z, log_dets)
        if self.pixels is not None:
            values = torch.cat([values, self.pixels(x)], 1)
        return lowest_if_not_finite(values)

    def log_prob_map(self, x: Tensor) -> Tensor:
        """Return (B, H, W) nats summing to log_prob.

        Every term of log p belongs to a pixel of some level and is shared equally by the image's pixels under it; the
        constant is shared by all.
        """
        z, log_dets = self.analyse(x)
        height, width = self.shape[1], self.shape[2]
        total = log_dets[0] + self.constant / (height * width)
        parts = torch.split(log_normal(z), self.latent_sizes, 1)
        for i, log_det in enumerate(log_dets[1:]):
            term = parts[i].reshape([-1] + self.latent_shapes[i]).sum(1) + log_det
            rows, columns = height // term.shape[1], width // term.shape[2]
            shared = term / (rows * columns)
            total = total + shared.repeat_interleave(rows, 1).repeat_interleave(columns, 2)
        lowest = lowest_if_not_finite(total.sum([1, 2]))[:, None, None] / (height * width)
        return torch.where(torch.isfinite(total.sum([1, 2]))[:, None, None], total, lowest)


def lowest_if_not_finite(values: Tensor) -> Tensor:
    """Replace NaN and both infinities by the lowest finite number."""
    return torch.nan_to_num(torch.where(torch.isfinite(values), values, float("-inf")))


def statistics_names(flow: FoldedFlow) -> list[str]:
    """Names of the columns of ``statistics``."""
    names = [LOG_PROB, *(f"log_normal_level_{level}" for level in range(len(flow.latent_shapes))), "log_det"]
    has_pixels = isinstance(flow, FoldedImageFlow) and flow.pixels is not None
    return [*names, *PIXEL_STATISTICS] if has_pixels else names


def fold(flow: Glow, pixels: PixelMixture | None = None) -> FoldedFlow:
    """Fold a flow built by ``build_glow``: same answers, float32, nothing left to train.

    Raises ValueError for a level that is not [Squeeze] and then runs of ChannelAffine each followed by a coupling.
    """
    return FoldedFlow(flow) if len(flow.shape) == 1 else FoldedImageFlow(flow, pixels)


def fold_convolutions(module: nn.Module) -> None:
    """Replace every child that knows a plain equivalent (``folded``) by it, in place."""
    for name, child in module.named_children():
        if hasattr(child, "folded"):
            setattr(module, name, child.folded())
        else:
            fold_convolutions(child)


def _fold_chain(chain: Chain) -> FoldedLevel:
    bijections = list(chain.steps)
    squeeze = isinstance(bijections[0], Squeeze)
    steps: list[FoldedStep] = []
    run: list[ChannelAffine] = []
    for bijection in bijections[1:] if squeeze else bijections:
        if isinstance(bijection, ChannelAffine):
            run.append(bijection)
        elif isinstance(bijection, Coupling):
            if not run:
                raise ValueError("a coupling must follow an affine map of the channels to be folded")
            weight, bias = _compose(run)
            steps.append(FoldedStep(weight, bias, bijection))
            run = []
        else:
            raise ValueError(f"cannot fold a {type(bijection).__name__} inside a level")
    if run:
        raise ValueError("a level must end in a coupling to be folded")
    return FoldedLevel(steps, squeeze)


def _compose(run: list[ChannelAffine]) -> tuple[Tensor, Tensor]:
    """Compose affine maps of the channels, first to last: W (C, C) and b (C,), float64."""
    weight, bias = run[0].affine()
    for bijection in run[1:]:
        next_weight, next_bias = bijection.affine()
        weight, bias = next_weight @ weight, next_weight @ bias + next_bias
    return weight, bias
