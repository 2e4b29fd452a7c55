"""Laws of every bijection: a table of constructors times the laws. Adding a bijection is adding a row."""

import itertools
import math
from collections.abc import Callable

import pytest
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
    Elementwise,
    InvertibleConv1x1,
    Permutation,
    Pixels,
    Shift,
    Spline,
    Split,
    Squeeze,
    Standardize,
    log_normal,
)
from model.nets import ConvNet, ResidualMLP
from service.artifact import compile_module

SHAPE = (4, 4, 4)
VECTOR = (5, 1, 1)


class SplitAsBijection(Bijection):
    """A Split seen as one map, kept and eps side by side, so that the table's laws apply to it."""

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.split = split

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, eps, log_det = self.split(x)
        return torch.cat([kept, eps], 1), log_det

    @torch.jit.export
    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        kept, eps = z.chunk(2, 1)
        x, log_det = self.split.inverse(kept, eps)
        return x, log_det


def by_channels(elementwise: Elementwise, swap: bool = False, attention: bool = False) -> ChannelCoupling:
    net = ConvNet(2, 2 * elementwise.num_params, SHAPE[1:], 8, 1, attention)
    return ChannelCoupling(4, net, elementwise, swap)


def by_pixels(elementwise: Elementwise, parity: int = 0) -> CheckerboardCoupling:
    net = ConvNet(4, 4 * elementwise.num_params, SHAPE[1:], 6, 1)
    return CheckerboardCoupling(SHAPE, net, elementwise, parity)


def of_vectors(elementwise: Elementwise, swap: bool = False) -> ChannelCoupling:
    copied, changed = (2, 3) if swap else (3, 2)
    net = ResidualMLP(copied, changed * elementwise.num_params, 8, 1, dropout=0.1)
    return ChannelCoupling(5, net, elementwise, swap)


def uneven_probabilities() -> Tensor:
    values = torch.arange(1, 17, dtype=torch.float64)
    return values / values.sum()


BIJECTIONS: dict[str, tuple[Callable[[], Bijection], tuple[int, int, int]]] = {
    "actnorm": (lambda: ActNorm(4), SHAPE),
    "conv1x1": (lambda: InvertibleConv1x1(4), SHAPE),
    "permutation": (lambda: Permutation([2, 0, 3, 1]), SHAPE),
    "coupling by channels": (lambda: by_channels(Affine()), SHAPE),
    "coupling by the other channels": (lambda: by_channels(Affine(2.0), swap=True), SHAPE),
    "coupling with attention": (lambda: by_channels(Affine(), attention=True), SHAPE),
    "coupling by pixels": (lambda: by_pixels(Affine()), SHAPE),
    "coupling by the other pixels": (lambda: by_pixels(Affine(), 1), SHAPE),
    "additive coupling": (lambda: by_channels(Shift()), SHAPE),
    "spline coupling": (lambda: by_channels(Spline(4, bound=2.0)), SHAPE),
    "spline coupling by pixels": (lambda: by_pixels(Spline(3, bound=1.0)), SHAPE),
    "coupling of an odd vector": (lambda: of_vectors(Affine()), VECTOR),
    "coupling of an odd vector's other half": (lambda: of_vectors(Affine(), swap=True), VECTOR),
    "spline coupling of a vector": (lambda: of_vectors(Spline(8, bound=3.0)), VECTOR),
    "squeeze": (Squeeze, SHAPE),
    "split": (lambda: SplitAsBijection(Split(ConvNet(2, 4, SHAPE[1:], 6, 1))), SHAPE),
    "pixels": (lambda: Pixels(uneven_probabilities()), SHAPE),
    "standardize": (lambda: Standardize(torch.rand(SHAPE), torch.rand(SHAPE) + 0.5), SHAPE),
    "standardize with tails": (lambda: Standardize(torch.rand(SHAPE), torch.rand(SHAPE) + 0.5, tail=0.7), SHAPE),
    "chain": (lambda: Chain([Squeeze(), ActNorm(16), InvertibleConv1x1(16)]), SHAPE),
}


@pytest.fixture(params=BIJECTIONS, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> tuple[Bijection, Tensor]:
    """A bijection in float64 with perturbed parameters (at initialisation many are the identity), and inputs to it."""
    torch.manual_seed(0)
    build, shape = BIJECTIONS[request.param]
    bijection = build().double().eval()
    with torch.no_grad():
        for parameter in bijection.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(3, *shape, dtype=torch.float64)
    if request.param == "pixels":
        x = 16 * torch.rand(3, *shape, dtype=torch.float64) - 0.5
    return bijection, x


def test_inverse_of_forward_is_the_input(case: tuple[Bijection, Tensor]) -> None:
    bijection, x = case
    torch.testing.assert_close(bijection.inverse(bijection(x)[0])[0], x, rtol=0, atol=1e-9)


def test_log_det_is_that_of_the_autodiff_jacobian(case: tuple[Bijection, Tensor]) -> None:
    bijection, x = case
    for row in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
            lambda flat: bijection(flat.reshape(1, *x.shape[1:]))[0].flatten(), x[row].flatten()
        )
        torch.testing.assert_close(bijection(x)[1][row], torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-9)


def test_log_det_of_the_inverse_is_minus_that_of_forward(case: tuple[Bijection, Tensor]) -> None:
    bijection, x = case
    z, log_det = bijection(x)
    torch.testing.assert_close(bijection.inverse(z)[1], -log_det, rtol=0, atol=1e-9)


def test_log_det_is_one_float64_per_input(case: tuple[Bijection, Tensor]) -> None:
    bijection, x = case
    _, log_det = bijection(x)
    assert (log_det.shape, log_det.dtype) == ((len(x),), torch.float64)


def test_scripted_answers_as_eager(case: tuple[Bijection, Tensor]) -> None:
    bijection, x = case
    scripted = compile_module(bijection, ["inverse"])
    z, log_det = bijection(x)
    for expected, actual in zip((z, log_det), scripted(x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    for expected, actual in zip(bijection.inverse(z), scripted.inverse(z), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_a_row_alone_is_answered_as_in_a_batch(case: tuple[Bijection, Tensor]) -> None:
    bijection, x = case
    z, log_det = bijection(x)
    alone_z, alone_log_det = bijection(x[1:2])
    torch.testing.assert_close(alone_z[0], z[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(alone_log_det[0], log_det[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", ["actnorm", "conv1x1", "permutation"], indirect=True)
def test_channel_affine_layers_know_their_matrix(case: tuple[Bijection, Tensor]) -> None:
    bijection, x = case
    assert isinstance(bijection, ChannelAffine)
    weight, bias = bijection.affine()
    z, total = bijection(x)
    torch.testing.assert_close(torch.einsum("oc,bchw->bohw", weight, x) + bias[:, None, None], z)
    log_det = SHAPE[1] * SHAPE[2] * torch.linalg.slogdet(weight)[1]
    torch.testing.assert_close(log_det.expand(len(x)), total)


# Worked cases.


def test_doubling_and_shifting_a_uniform_variable_halves_its_density() -> None:
    x_of_z = ActNorm(1).double()  # x = 2 z + 1 = exp(log 2) * (z + 1/2)
    with torch.no_grad():
        x_of_z.bias.fill_(0.5)
        x_of_z.log_scale.fill_(math.log(2))
    x = torch.tensor([1.0, 2.0, 2.9], dtype=torch.float64)[:, None, None, None]
    z, log_det = x_of_z.inverse(x)
    assert ((z > -1e-12) & (z < 1)).all()
    torch.testing.assert_close(log_det.exp(), torch.full((3,), 0.5, dtype=torch.float64))  # p(z) = 1 on (0, 1)


def test_determinant_of_z1_plus_z2_and_twice_z1_is_two() -> None:
    layer = InvertibleConv1x1(2).double()
    set_weight(layer, torch.tensor([[1.0, 1.0], [2.0, 0.0]], dtype=torch.float64))
    z = torch.tensor([3.0, 4.0], dtype=torch.float64)[None, :, None, None]
    x, log_det = layer(z)
    assert x.flatten().tolist() == pytest.approx([7.0, 6.0])
    assert log_det.exp().item() == pytest.approx(2.0)


def test_a_squeeze_makes_four_neighbouring_channels_of_a_block_of_pixels() -> None:
    x = torch.randn(2, 3, 4, 6)
    z, _ = Squeeze()(x)
    for c, i, j in itertools.product(range(3), range(2), range(2)):
        assert torch.equal(z[:, 4 * c + 2 * i + j], x[:, c, i::2, j::2])


@pytest.mark.parametrize("bound", [1.0, 2.5])
def test_an_affine_coupling_copies_one_half_and_scales_the_other_within_a_bound(bound: float) -> None:
    torch.manual_seed(0)
    x, params = torch.randn(2, 5, 3, 3), 4 * torch.randn(2, 4, 3, 3)
    net = nn.Identity()
    net.forward = lambda copied: params  # type: ignore[method-assign, assignment]
    z, log_det = ChannelCoupling(5, net, Affine(bound))(x)
    log_scale = bound * torch.tanh(params[:, :2] / bound)
    assert torch.equal(z[:, :3], x[:, :3])
    torch.testing.assert_close(z[:, 3:], x[:, 3:] * log_scale.exp() + params[:, 2:])
    torch.testing.assert_close(log_det, log_scale.double().sum((1, 2, 3)))


def test_what_a_split_takes_off_is_gaussian_given_what_it_keeps() -> None:
    torch.manual_seed(0)
    split = Split(ConvNet(2, 4, SHAPE[1:], 6, 1)).double()
    for parameter in split.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    kept, eps, log_det = split(x)
    mean, log_sigma = split.prior(x[:, :2])
    density = torch.distributions.Normal(mean, log_sigma.exp()).log_prob(x[:, 2:])  # type: ignore[no-untyped-call]
    torch.testing.assert_close(log_normal(eps).sum((1, 2, 3)) + log_det, density.sum((1, 2, 3)))
    assert torch.equal(kept, x[:, :2])
    assert log_sigma.abs().max() < 4


def test_permutation_matrix_sends_1_2_3_to_3_1_2() -> None:
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)[None, :, None, None]
    fixed = Permutation([2, 0, 1])
    learned = InvertibleConv1x1(3).double()
    set_weight(learned, fixed.affine()[0])
    for layer in (fixed, learned):
        z, log_det = layer(x)
        assert z.flatten().tolist() == pytest.approx([3.0, 1.0, 2.0])
        assert log_det.item() == pytest.approx(0.0)


def test_log_det_of_a_1x1_convolution_is_pixels_times_that_of_its_matrix() -> None:
    layer = InvertibleConv1x1(3).double()
    with torch.no_grad():
        layer.log_s.copy_(torch.tensor([0.3, -0.2, 0.5]))
    expected = 4 * 5 * torch.linalg.slogdet(layer.weight())[1]
    torch.testing.assert_close(layer(torch.randn(2, 3, 4, 5, dtype=torch.float64))[1], expected.expand(2))


def test_a_1x1_convolution_by_its_factors_is_that_by_its_matrix() -> None:
    layer = InvertibleConv1x1(9).double()
    x = torch.randn(100, 9, 1, 1, dtype=torch.float64)
    few = torch.cat([layer(row)[0] for row in torch.split(x, 4)])
    torch.testing.assert_close(few, layer(x)[0])


def test_log_det_of_a_chain_is_the_sum_over_its_layers() -> None:
    layers: list[Bijection] = [ActNorm(4), InvertibleConv1x1(4), by_channels(Affine())]
    for layer in layers:
        for parameter in layer.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    x = torch.randn(2, *SHAPE)
    z, total = x, torch.zeros(2, dtype=torch.float64)
    for layer in layers:
        z, log_det = layer(z)
        total = total + log_det
    torch.testing.assert_close(Chain(layers)(x)[1], total)


def test_actnorm_initialises_to_zero_mean_and_unit_variance_even_of_a_constant_channel() -> None:
    x = 5 + 3 * torch.randn(64, 2, 4, 4)
    x[:, 1] = 7
    layer = ActNorm(2)
    layer.initialize(x)
    z, log_det = layer(x)
    assert z[:, 0].mean().item() == pytest.approx(0, abs=1e-4)
    assert z[:, 0].std().item() == pytest.approx(1, abs=1e-2)
    assert torch.isfinite(z).all()
    assert torch.isfinite(log_det).all()


def test_actnorm_learns_nothing_from_a_forward_pass() -> None:
    layer = ActNorm(2).train()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(5 + 3 * torch.randn(8, 2, 4, 4))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


def test_scale_of_an_affine_map_is_bounded_whatever_its_parameters() -> None:
    _, log_slopes = Affine(0.7)(torch.zeros(1, 2, 1, 1), torch.tensor([-1e6, 1e6, 0.0, 0.0])[None, :, None, None])
    assert log_slopes.flatten().tolist() == pytest.approx([-0.7, 0.7])


@pytest.mark.parametrize("elementwise", [Shift(), Affine(), Spline()], ids=lambda case: type(case).__name__)
def test_parameters_of_zero_are_the_identity(elementwise: Elementwise) -> None:
    x = 3 * torch.randn(2, 3, 4, 4)
    z, log_slopes = elementwise(x, torch.zeros(2, 3 * elementwise.num_params, 4, 4))
    torch.testing.assert_close(z, x)
    torch.testing.assert_close(log_slopes, torch.zeros_like(x), rtol=0, atol=1e-5)


def test_absurd_values_stay_of_order_one_hundred_and_come_back() -> None:
    layer = Standardize(torch.zeros(1, 1, 1), torch.ones(1, 1, 1), tail=3.0)
    x = torch.tensor([-1e30, -1e6, -2.9, 0.0, 3.1, 1e12], dtype=torch.float64)[:, None, None, None]
    z, _ = layer(x)
    assert z.abs().max() < 250
    assert (z.flatten().diff() > 0)[1:].all()
    torch.testing.assert_close(layer.inverse(z.float())[0], x, rtol=1e-4, atol=1e-6)


def test_pixels_decode_inside_their_range_whatever_the_latent() -> None:
    layer = Pixels(uneven_probabilities())
    x, _ = layer.inverse(torch.tensor([-1e4, -9.0, 0.0, 9.0, 1e4])[:, None, None, None])
    assert x.min() >= -0.5
    assert x.max() <= 15.5


def test_pixels_with_equal_probabilities_are_normal_quantiles_of_bin_centres() -> None:
    x = torch.arange(4.0)[None, None, None]
    z, _ = Pixels(torch.full((4,), 0.25))(x)
    torch.testing.assert_close(torch.special.ndtr(z), (x.double() + 0.5) / 4)


def test_a_pixel_is_ranked_by_the_share_of_smaller_values() -> None:
    probabilities = uneven_probabilities()
    x = torch.tensor([-0.5, 0.0, 2.75, 15.0], dtype=torch.float64)
    z, _ = Pixels(probabilities)(x[:, None, None, None])
    shares = [0 * x[0], probabilities[0] / 2, probabilities[:3].sum() + probabilities[3] / 4, 1 - probabilities[15] / 2]
    assert torch.special.ndtr(z).flatten().tolist() == pytest.approx([float(share) for share in shares], abs=2e-9)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Permutation([0, 0, 1]), "order must hold each of 0..2 once, got [0, 0, 1]"),
        (
            lambda: ChannelCoupling(1, nn.Identity(), Affine()),
            "copy a part of its input and change the rest, got 1 cha",
        ),
        (lambda: CheckerboardCoupling((3, 1, 1), nn.Identity(), Affine()), "change the rest, got 1x1 pixels"),
        (lambda: Affine(0.0), "max_log_scale must be > 0 nats, got 0.0"),
        (lambda: Spline(1), "num_bins must lie in [2, 64], got 1"),
        (lambda: Spline(4, bound=0.0), "bound must be > 0, got 0.0"),
        (lambda: ConvNet(2, 2, (4, 4), width=6, num_blocks=1, attention=True), "width must be a multiple of 4"),
        (lambda: Standardize(torch.zeros(2), torch.tensor([1.0, 0.0])), "scale must be positive and finite"),
        (lambda: Standardize(torch.zeros(2), torch.ones(2), tail=0.0), "tail must be > 0, got 0.0"),
        (lambda: Pixels(torch.tensor([1.5, -0.5])), "probabilities must be positive and sum to 1"),
    ],
)
def test_wrong_arguments_are_named(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        build()
    assert message in str(raised.value)


def set_weight(layer: InvertibleConv1x1, weight: Tensor) -> None:
    """Give the layer a matrix, through its LU parameters."""
    permutation, lower, upper = torch.linalg.lu(weight)
    with torch.no_grad():
        layer.order.copy_(permutation.argmax(1))
        layer.lower.copy_(lower.tril(-1))
        layer.upper.copy_(upper.triu(1))
        layer.sign.copy_(upper.diagonal().sign())
        layer.log_s.copy_(upper.diagonal().abs().log())


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    net = ResidualMLP(4, 6, width=32, num_blocks=1, dropout=0.5)
    torch.nn.init.normal_(net.head.weight)
    x = torch.randn(16, 4, 1, 1)
    assert not torch.equal(net.train()(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


def test_a_pixel_at_the_end_of_its_range_has_a_latent_of_ordinary_size() -> None:
    ends = torch.tensor([-0.5, 255.5])[:, None, None, None].expand(-1, 1, 2, 2)
    z, log_det = Pixels(torch.full((256,), 1 / 256))(ends)
    assert z.abs().max() < 7
    assert torch.isfinite(log_det).all()
