"""Bijections at the edges of what they take, and as they are where nothing else is asked for."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from model.bijections import (
    ActNorm,
    Affine,
    ChannelCoupling,
    CheckerboardCoupling,
    InvertibleConv1x1,
    Permutation,
    Pixels,
    Shift,
    Spline,
    Split,
    Standardize,
)


class Constant(nn.Module):
    """A net that says the same of every input."""

    def __init__(self, params: Tensor) -> None:
        super().__init__()
        self.params = params

    def forward(self, copied: Tensor) -> Tensor:
        return self.params.expand(len(copied), -1, -1, -1)


def column(*values: float) -> Tensor:
    """Inputs of one entry each."""
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None]


def test_a_batch_leaves_actnorm_with_zero_mean_and_unit_variance_at_any_scale_but_for_what_hardly_varies() -> None:
    x = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)[:, None, None, None] * torch.ones(4, 4, 2, 3)
    scales = torch.tensor([100.0, 0.01, 1e-3, 1e-6], dtype=torch.float64)
    layer = ActNorm(4).double()
    layer.initialize(7 + scales[:, None, None] * x)
    z, log_det = layer(7 + scales[:, None, None] * x)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.tensor([1.0, 1.0, 1.0, 1e-3]).double())
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4).double())
    torch.testing.assert_close(log_det, torch.full((4,), -6 * math.log(100 * 0.01 * 1e-3 * 1e-3)).double())


@pytest.mark.parametrize("num_channels", [1, 2, 7])
def test_a_1x1_convolution_starts_as_a_rotation_and_stays_invertible_whatever_its_parameters(num_channels: int) -> None:
    layer = InvertibleConv1x1(num_channels).double()
    weight = layer.weight()
    torch.testing.assert_close(weight @ weight.T, torch.eye(num_channels).double(), rtol=0, atol=1e-6)
    with torch.no_grad():
        for parameter in (layer.lower, layer.upper):
            parameter.add_(torch.randn_like(parameter))  # on and beyond the diagonal, too
    x = torch.randn(3, num_channels, 2, 2, dtype=torch.float64)
    z, log_det = layer(x)
    torch.testing.assert_close(layer.inverse(z)[0], x)
    torch.testing.assert_close(log_det, 4 * torch.linalg.slogdet(layer.weight())[1].expand(3))


def test_a_1x1_convolution_of_a_row_of_any_number_is_that_of_an_image_of_one_pixel_there() -> None:
    torch.manual_seed(0)
    layer = InvertibleConv1x1(5).double()
    with torch.no_grad():
        layer.upper.add_(torch.randn_like(layer.upper))
    rows = torch.randn(6, 5, 1, 1, dtype=torch.float64)
    wide, _ = layer(rows.expand(-1, -1, 1, 2))
    for num in (1, 4, 5, 6):
        torch.testing.assert_close(layer(rows[:num])[0], wide[:num, :, :, :1])


def test_a_coupling_copies_the_first_half_of_the_channels_unless_told_otherwise() -> None:
    x = torch.randn(2, 5, 1, 1)
    for layer, copied in (
        (ChannelCoupling(5, Constant(torch.ones(2, 1, 1)), Shift()), slice(0, 3)),
        (ChannelCoupling(5, Constant(torch.ones(3, 1, 1)), Shift(), swap=True), slice(3, 5)),
    ):
        changed = layer(x)[0] - x
        assert (changed[:, copied] == 0).all()
        assert changed.round().sum() == 2 * (5 - (copied.stop - copied.start))


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 2, 1), (2, 3, 3)])
def test_a_coupling_by_pixels_copies_those_of_an_even_sum_unless_told_otherwise(shape: tuple[int, int, int]) -> None:
    for layer, parity in (
        (CheckerboardCoupling(shape, Constant(torch.ones(shape)), Shift()), 0),
        (CheckerboardCoupling(shape, Constant(torch.ones(shape)), Shift(), parity=1), 1),
    ):
        z, _ = layer(torch.zeros(1, *shape))
        for i, j in itertools.product(range(shape[1]), range(shape[2])):
            assert (z[0, :, i, j] == ((i + j) % 2 != parity)).all()


def test_a_net_of_a_coupling_by_pixels_sees_nothing_of_what_is_changed() -> None:
    seen: list[Tensor] = []
    net = Constant(torch.zeros(1, 2, 2))
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    layer = CheckerboardCoupling((1, 2, 2), net, Shift())
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    layer.inverse(layer(x)[0])
    assert [each.flatten().tolist() for each in seen] == [[1, 0, 0, 4]] * 2


def test_scales_stay_within_a_factor_of_e_unless_told_otherwise() -> None:
    params = torch.tensor([-1e6, 1e6, 0.0, 0.0])[None, :, None, None]
    assert Affine()(torch.zeros(1, 2, 1, 1), params)[1].flatten().tolist() == [-1, 1]


def test_deviations_of_what_a_split_takes_off_stay_within_e_to_the_fourth_unless_told_otherwise() -> None:
    raw = torch.tensor([0.0, 0.0, -1e6, 1e6])[:, None, None]
    for split, bound in ((Split(Constant(raw)), 4.0), (Split(Constant(raw), 0.5), 0.5)):
        assert split.prior(torch.zeros(1, 2, 1, 1))[1].flatten().tolist() == [-bound, bound]
    small = Split(Constant(torch.tensor([0.0, 0.0, 0.01, -0.02])[:, None, None]))
    torch.testing.assert_close(  # so that they are nearly what the net says where that is little
        small.prior(torch.zeros(1, 2, 1, 1))[1].flatten(), torch.tensor([0.01, -0.02]), rtol=1e-4, atol=0
    )


def test_a_spline_has_eight_bins_from_minus_four_to_four_unless_told_otherwise() -> None:
    spline = Spline()
    assert (spline.num_bins, spline.num_params, spline.bound) == (8, 23, 4.0)
    params = torch.randn(1, 23, 1, 1, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
    x = torch.tensor([-4.1, -3.9, 3.9, 4.1])[:, None, None, None]
    assert (spline(x, params)[0] == x).flatten().tolist() == [True, False, False, True]


@pytest.mark.parametrize("num_bins", [2, 64])
def test_a_spline_of_the_fewest_and_the_most_bins_is_undone(num_bins: int) -> None:
    spline = Spline(num_bins, bound=0.5)
    generator = torch.Generator().manual_seed(0)
    params = torch.randn(50, spline.num_params, 1, 1, generator=generator, dtype=torch.float64)
    x = torch.linspace(-0.6, 0.6, 50, dtype=torch.float64)[:, None, None, None]
    z, log_slopes = spline(x, params)
    again, same = spline.inverse(z, params)
    torch.testing.assert_close(again, x)
    torch.testing.assert_close(same, log_slopes)


def test_a_spline_of_more_bins_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_bins must lie in \[2, 64\], got 65"):
        Spline(65)


@pytest.mark.parametrize("probabilities", [[0.5, 0.4], [0.7, 0.7], [0.5, 0.0, 0.5], [0.5, 0.5 + 1e-8]])
def test_what_are_no_probabilities_of_pixels_is_refused(probabilities: list[float]) -> None:
    with pytest.raises(ValueError, match="probabilities must be positive and sum to 1"):
        Pixels(torch.tensor(probabilities, dtype=torch.float64))


def test_a_pixel_beyond_its_range_is_taken_for_the_end_of_it() -> None:
    layer = Pixels(torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64))
    z, _ = layer(column(-7.0, -0.6, -0.5, 2.5, 2.6, 9.0))
    assert z[0] == z[1] == z[2] < -5
    assert z[3] == z[4] == z[5] > 5
    x, _ = layer.inverse(column(-40.0, 40.0))
    assert x.flatten().tolist() == [-0.5, 2.5]


def test_the_density_of_a_pixel_is_its_probability_all_over_its_bin() -> None:
    """Under a standard normal latent: log p(x) = log phi(z) + log_det."""
    probabilities = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    x = column(-0.5 + 1e-6, 0.4, 0.6, 1.4, 1.6, 2.5 - 1e-6)
    z, log_det = Pixels(probabilities)(x)
    density = torch.exp(-(z.flatten() ** 2) / 2 - math.log(2 * math.pi) / 2 + log_det)
    torch.testing.assert_close(density, torch.tensor([0.2, 0.2, 0.3, 0.3, 0.5, 0.5]).double())


def test_values_are_drawn_in_beyond_the_tail_and_smoothly() -> None:
    layer = Standardize(torch.full((1, 1, 1), 10.0), torch.full((1, 1, 1), 2.0), tail=3.0)
    z, log_det = layer(column(10.0, 16.0, 4.0, 10 + 6 * math.e, 10 - 6 * math.e**2))
    torch.testing.assert_close(z.flatten(), torch.tensor([0.0, 3.0, -3.0, 6.0, -9.0]).double())
    torch.testing.assert_close(log_det, -math.log(2) - torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0]).double())


def test_nothing_is_drawn_in_unless_there_is_a_tail() -> None:
    layer = Standardize(torch.zeros(1, 1, 1), torch.full((1, 1, 1), 0.5))
    x = column(-1e300, -1.0, 0.0, 1e9)
    z, log_det = layer(x)
    assert torch.equal(z, 2 * x)
    torch.testing.assert_close(log_det, torch.full((4,), math.log(2)).double())
    assert torch.equal(layer.inverse(z)[0], x)


@pytest.mark.parametrize("scale", [-1.0, 0.0, math.inf, math.nan])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be positive and finite in every dimension"):
        Standardize(torch.zeros(2), torch.tensor([1.0, scale]))


@pytest.mark.parametrize("order", [[1, 2], [0, 0], [0, 2], [-1, 0]])
def test_an_order_that_is_no_permutation_is_refused(order: list[int]) -> None:
    with pytest.raises(ValueError, match=r"order must hold each of 0\.\.1 once"):
        Permutation(order)
