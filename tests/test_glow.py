"""Laws of whole flows: they are normalised densities, their samples follow them, and one class serves every input."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from model.bijections import ActNorm, Chain, ChannelCoupling, Coupling, InvertibleConv1x1, Permutation, Standardize
from model.glow import Glow, GlowConfig, _steps, build_glow, latent_shapes
from model.likelihood import bits_per_dim, dequantize, standard_normal_log_prob
from service.artifact import compile_module
from tests.conftest import perturbed

SMALL = GlowConfig(num_steps=2, width=8)
FLOWS = {
    "grey image": ((1, 8, 8), replace(SMALL, num_levels=2)),
    "28x28 in two levels": ((1, 28, 28), replace(SMALL, num_levels=2, num_steps=1)),
    "colour image by alternating halves": ((3, 4, 4), replace(SMALL, partition="alternating")),
    "colour image by pixels": ((3, 8, 4), replace(SMALL, num_levels=2, partition="checkerboard")),
    "additive with the channels rolled by hand": ((2, 4, 4), replace(SMALL, coupling="additive", mixing="roll")),
    "spline image with attention": ((1, 8, 8), replace(SMALL, coupling="spline", num_bins=4, attention=4)),
    "spline vector": ((5,), replace(SMALL, coupling="spline")),
    "two features": ((2,), SMALL),
    "odd vector": ((5,), SMALL),
}


@pytest.fixture(params=FLOWS, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> tuple[Glow, Tensor]:
    shape, config = FLOWS[request.param]
    torch.manual_seed(0)
    flow = perturbed(build_glow(shape, config))
    x = torch.randn(3, *shape, dtype=torch.float64)
    return flow, x if len(shape) == 1 else 255 * torch.rand_like(x)


def test_decode_of_encode_is_the_input(case: tuple[Glow, Tensor]) -> None:
    flow, x = case
    z, log_det = flow(x)
    decoded, inverse_log_det = flow.inverse(z)
    torch.testing.assert_close(decoded, x, rtol=0, atol=1e-7)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=0, atol=1e-7)


def test_latent_code_is_one_flat_vector_of_the_inputs_dimension(case: tuple[Glow, Tensor]) -> None:
    flow, x = case
    assert flow(x)[0].shape == (3, math.prod(x.shape[1:]))
    assert sum(flow.latent_sizes) == math.prod(x.shape[1:])


@pytest.mark.parametrize("case", [name for name, (shape, _) in FLOWS.items() if math.prod(shape) <= 100], indirect=True)
def test_log_det_of_the_flow_is_that_of_the_autodiff_jacobian(case: tuple[Glow, Tensor]) -> None:
    flow, x = case
    jacobian = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
        lambda flat: flow(flat.reshape(1, *x.shape[1:]))[0].flatten(), x[0].flatten()
    )
    torch.testing.assert_close(flow(x)[1][0], torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-7)


def test_scripted_flow_answers_as_eager(case: tuple[Glow, Tensor]) -> None:
    flow, x = case
    scripted = compile_module(flow, ["inverse", "log_prob"])
    torch.testing.assert_close(scripted.log_prob(x), flow.log_prob(x), rtol=0, atol=1e-9)
    z, _ = flow(x)
    torch.testing.assert_close(scripted.inverse(z)[0], flow.inverse(z)[0], rtol=0, atol=1e-9)


def test_a_row_alone_has_the_likelihood_it_has_in_a_batch(case: tuple[Glow, Tensor]) -> None:
    flow, x = case
    torch.testing.assert_close(flow.log_prob(x[1:2])[0], flow.log_prob(x)[1], rtol=0, atol=1e-9)


def test_density_integrates_to_one() -> None:
    torch.manual_seed(0)
    flow = perturbed(build_glow((2,), replace(SMALL, num_steps=3)), 0.3)
    step = 0.05
    axis = torch.arange(-15, 15, step, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    assert (flow.log_prob(grid).exp().sum() * step**2).item() == pytest.approx(1, abs=1e-3)


def test_density_of_a_pixel_pair_integrates_to_one_over_the_pixel_range() -> None:
    torch.manual_seed(0)
    flow = perturbed(build_glow((1, 2, 2), GlowConfig(num_steps=2, width=8, bits=1)), 0.05)
    step = 0.1
    axis = torch.arange(-0.5 + step / 2, 1.5, step, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis, axis, axis).reshape(-1, 1, 2, 2)
    assert (flow.log_prob(grid).exp().sum() * step**4).item() == pytest.approx(1, abs=0.02)


def test_noise_bounds_the_log_probability_of_an_integer_and_more_noise_tightens_it() -> None:
    """E log p(x + u) <= E log mean_k p(x + u_k) <= log P(x), and the P(x) of all images sum to 1."""
    torch.manual_seed(0)
    flow = perturbed(build_glow((1, 2, 2), GlowConfig(num_steps=2, width=8, bits=1)), 0.1)
    axis = torch.arange(-0.45, 0.5, 0.1, dtype=torch.float64)
    noise = torch.cartesian_prod(axis, axis, axis, axis).reshape(-1, 1, 2, 2)
    images = torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * 4).reshape(-1, 1, 2, 2)
    log_p = torch.stack([flow.log_prob(image + noise) for image in images])
    log_probability = torch.logsumexp(log_p, 1) - math.log(len(noise))  # bins of volume 1: the mean is the integral
    assert log_probability.exp().sum().item() == pytest.approx(1, abs=0.02)
    shuffled = log_p[:, torch.randperm(len(noise))].reshape(len(images), -1, 8)
    of_eight = (torch.logsumexp(shuffled, 2) - math.log(8)).mean(1)
    assert (log_p.mean(1) < of_eight).all()
    assert (of_eight < log_probability).all()


def test_samples_follow_the_density() -> None:
    """The share of samples in each cell of a grid is the density's integral over it (chi-squared statistic)."""
    torch.manual_seed(0)
    flow = perturbed(build_glow((2,), replace(SMALL, num_steps=3)), 0.3)
    num = 100_000
    samples, _ = flow.inverse(torch.randn(num, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    low, high, cells, fine = -3.0, 3.0, 12, 20
    step = (high - low) / (cells * fine)
    axis = low + step * (torch.arange(cells * fine, dtype=torch.float64) + 0.5)
    density = flow.log_prob(torch.cartesian_prod(axis, axis)).exp().reshape(cells, fine, cells, fine)
    expected = density.sum((1, 3)).flatten() * step**2 * num
    inside = ((samples >= low) & (samples < high)).all(1)
    index = ((samples[inside] - low) / (high - low) * cells).long()
    observed = torch.bincount(index[:, 0] * cells + index[:, 1], minlength=cells**2)
    kept = expected > 20
    chi_squared = ((observed - expected)[kept] ** 2 / expected[kept]).sum().item()
    num_kept = int(kept.sum())
    assert num_kept > 10
    assert chi_squared < num_kept + 4 * math.sqrt(2 * num_kept)


def test_an_affine_flow_of_a_gaussian_has_the_exact_gaussian_density() -> None:
    torch.manual_seed(0)
    mixing, scaling = InvertibleConv1x1(3).double(), ActNorm(3).double()
    for parameter in (*mixing.parameters(), *scaling.parameters()):
        parameter.data += 0.3 * torch.randn_like(parameter)
    identity = Standardize(torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    flow = Glow((3,), identity, [Chain([scaling, mixing])], [], [(3, 1, 1)]).double()
    weight = mixing.affine()[0] @ scaling.affine()[0]
    mean = -torch.linalg.solve(*scaling.affine())
    exact = torch.distributions.MultivariateNormal(mean, precision_matrix=weight.T @ weight)
    x = torch.randn(10, 3, dtype=torch.float64)
    torch.testing.assert_close(flow.log_prob(x), exact.log_prob(x))  # type: ignore[no-untyped-call]


def test_a_new_flow_of_vectors_is_a_rotation_of_a_standard_normal() -> None:
    flow = build_glow((4,), SMALL).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(flow.log_prob(x), standard_normal_log_prob(x), rtol=0, atol=1e-5)


def test_initialisation_whitens_what_each_actnorm_sees() -> None:
    torch.manual_seed(0)
    flow = build_glow((3,), SMALL)
    x = (torch.randn(4096, 3) @ torch.randn(3, 3) + 5).double()
    flow.initialize(x)
    outputs: list[Tensor] = []
    for module in flow.modules():
        if isinstance(module, ActNorm):
            module.register_forward_hook(lambda _module, _args, output: outputs.append(output[0].flatten(1)))
    flow(x)
    assert len(outputs) == 2
    for output in outputs:
        torch.testing.assert_close(output.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
        torch.testing.assert_close(output.std(0), torch.ones(3), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        ((1,), SMALL, "at least 2 dimensions, got shape (1,)"),
        ((1, 6, 8), replace(SMALL, num_levels=2), "image sides must be divisible by 2**num_levels = 4, got 6x8"),
        ((4,), replace(SMALL, num_levels=2), "a vector is one pixel"),
        ((4, 4), SMALL, "shape must be (D,) of vectors or (C, H, W) of images, got (4, 4)"),
    ],
)
def test_a_configuration_that_does_not_fit_the_shape_is_named(
    shape: tuple[int, ...], config: GlowConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        build_glow(shape, config)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"), [("num_steps", 0), ("width", 0), ("dropout", 1.0), ("bits", 9), ("max_log_scale", float("nan"))]
)
def test_a_configuration_that_cannot_be_built_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must lie in .* got {value}"):
        replace(SMALL, **{name: value})  # type: ignore[arg-type]


def changed_by(coupling: Coupling, shape: tuple[int, int, int]) -> Tensor:
    """Which entries a coupling changes, seen by making its network answer ones: (C, H, W)."""
    coupling.net = Ones(coupling)
    x = torch.rand(1, *shape)
    changed: Tensor = coupling(x)[0] != x
    return changed[0]


class Ones(nn.Module):
    """A conditioner that answers 1 whatever it sees."""

    def __init__(self, coupling: Coupling) -> None:
        super().__init__()
        self.num_params = coupling.elementwise.num_params
        self.changed = coupling.sizes[0 if coupling.swap else 1] if isinstance(coupling, ChannelCoupling) else None

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1] if self.changed is None else self.changed
        return torch.ones(len(x), self.num_params * channels, *x.shape[2:])


@pytest.mark.parametrize("partition", ["channel", "checkerboard", "alternating"])
@pytest.mark.parametrize("channels", [3, 4])
def test_rolling_by_hand_lets_every_dimension_change(partition: str, channels: int) -> None:
    """No dimension is copied by all couplings: z is not a linear function of any single part of x."""
    torch.manual_seed(0)
    config = replace(SMALL, num_steps=8, mixing="roll", partition=partition)  # type: ignore[arg-type]
    shape = (channels, 2, 2)
    changed = torch.zeros(shape)
    order = torch.arange(changed.numel()).reshape(shape)  # which input dimension lies where
    for step in _steps(config, shape):
        if isinstance(step, Permutation):
            order = order[step.order]
        elif isinstance(step, Coupling):
            changed.view(-1)[order[changed_by(step, shape)]] = 1
    assert changed.all()


def test_28x28_halves_twice_without_padding() -> None:
    assert latent_shapes((1, 28, 28), replace(SMALL, num_levels=2)) == [(2, 14, 14), (8, 7, 7)]


def test_bits_per_dim_of_a_uniform_density_over_256_values_is_eight() -> None:
    log_prob = torch.tensor([-10 * math.log(256)])
    assert bits_per_dim(log_prob, 10).item() == pytest.approx(8)


def test_dequantization_noise_stays_in_the_bin_of_its_integer() -> None:
    x = torch.arange(256.0).expand(100, 256)
    noisy = dequantize(x, torch.Generator().manual_seed(0))
    assert ((noisy >= x - 0.5) & (noisy < x + 0.5 + 1e-4)).all()
    assert (noisy - x).mean().item() == pytest.approx(0, abs=0.01)
