"""Laws of the rational-quadratic spline: smooth, increasing, bounded slopes, undone in single precision."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from model.bijections import Spline


def spline_parameters(spline: Spline, num: int, size: float) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return size * torch.randn(num, spline.num_params, 1, 1, generator=generator)


def test_spline_is_increasing_and_the_identity_beyond_its_bound() -> None:
    spline = Spline(8, bound=2.0)
    grid = torch.linspace(-3, 3, 2001)
    z, _ = spline(grid[:, None, None, None], spline_parameters(spline, 1, 3.0).expand(len(grid), -1, 1, 1))
    assert (z.flatten().diff() > 0).all()
    outside = grid.abs() > 2
    assert torch.equal(z.flatten()[outside], grid[outside])


def test_spline_is_the_rational_quadratic_of_its_knots() -> None:
    spline = Spline(4, bound=2.0).double()
    params = spline_parameters(spline, 1, 2.0).double()
    width_shares, height_shares = (
        0.01 + 0.96 * torch.softmax(part, 0) for part in torch.split(params.flatten()[:8], 4)
    )
    slopes = 0.01 + torch.nn.functional.softplus(params.flatten()[8:] + math.log(math.expm1(0.99)))
    d = [1.0, *slopes.tolist(), 1.0]
    edges_x, edges_y = (
        torch.cat([torch.zeros(1), 4 * shares.cumsum(0)]) - 2 for shares in (width_shares, height_shares)
    )
    for k, xi in itertools.product(range(4), (0.1, 0.5, 0.8)):
        dx, dy = (edges_x[k + 1] - edges_x[k]).item(), (edges_y[k + 1] - edges_y[k]).item()
        s, x = dy / dx, edges_x[k].item() + xi * dx
        numerator = dy * (s * xi**2 + d[k] * xi * (1 - xi))
        expected = edges_y[k].item() + numerator / (s + (d[k] + d[k + 1] - 2 * s) * xi * (1 - xi))
        z, _ = spline(torch.full((1, 1, 1, 1), x, dtype=torch.float64), params)
        assert z.item() == pytest.approx(expected, abs=1e-6)


def test_spline_has_one_slope_on_both_sides_of_every_knot() -> None:
    spline = Spline(4, bound=2.0).double()
    params = spline_parameters(spline, 1, 2.0).double()
    lefts, _ = spline.knots(params[:, :4].reshape(1, 4, 1, 1, 1))
    knots = torch.cat([lefts.flatten(), torch.tensor([2.0])])
    slopes = [
        spline((knots + side)[:, None, None, None], params.expand(5, -1, 1, 1))[1].flatten() for side in (-1e-9, 1e-9)
    ]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=0, atol=1e-6)
    assert slopes[0][[0, -1]].tolist() == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize(("size", "tolerance"), [(1.0, 5e-4), (1e4, 8.0)])
def test_spline_in_single_precision_is_undone_and_finite_for_any_parameters(size: float, tolerance: float) -> None:
    """Parameters of order one lose few digits; nothing overflows or leaves its interval however wild the network."""
    spline = Spline(8)
    params = spline_parameters(spline, 5000, size)
    x = torch.cat([4 * torch.rand(4990) - 2, torch.tensor([-4.0, 4.0, -4.0001, 4.0001, 0, 1e30, -1e30, 1e-30, 3, -3])])
    x = x[:, None, None, None]
    z, log_slopes = spline(x, params)
    again, inverse_log_slopes = spline.inverse(z, params)
    assert torch.isfinite(log_slopes).all()
    assert torch.isfinite(inverse_log_slopes).all()
    assert ((again - x).abs() / x.abs().clamp_min(1)).max() < tolerance


def test_bins_and_slopes_of_a_spline_have_a_minimum_whatever_the_network_says() -> None:
    spline, wild = Spline(8, bound=2.0), 1e4
    generator = torch.Generator().manual_seed(0)
    raw = wild * torch.randn(200, 8, 1, 1, generator=generator)
    _, lengths = spline.knots(raw)
    assert lengths.min() >= 0.01 * 2 * spline.bound * (1 - 1e-5)
    torch.testing.assert_close(lengths.sum(1), torch.full((200, 1, 1), 2 * spline.bound))
    params = torch.cat([torch.zeros(200, 16, 1, 1), -wild * torch.ones(200, 7, 1, 1)], 1)
    knots = torch.linspace(-2, 2, 9)[1:-1].repeat(200)[:200, None, None, None]
    assert spline(knots, params)[1].min() >= math.log(0.01) - 1e-4


def test_entries_are_clamped_before_the_search_for_their_bin() -> None:
    spline = Spline(4, bound=1.0)
    far = torch.tensor([-1e30, 1e30, -torch.inf, torch.inf])[:, None, None, None]
    params = torch.zeros(4, spline.num_params, 1, 1)
    for by_height in (False, True):
        seen: list[Tensor] = []
        spline.bin_of = lambda value, params, by_height, seen=seen: (  # type: ignore[method-assign, misc]
            seen.append(value),
            Spline.bin_of(spline, value, params, by_height),
        )[1]
        (spline.inverse if by_height else spline)(far, params)
        assert seen[0].abs().max() == 1


def test_gradients_of_a_spline_are_finite_inside_outside_and_on_its_knots() -> None:
    spline = Spline(4, bound=1.0)
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 1e20])[:, None, None, None].requires_grad_()
    params = torch.zeros(8, spline.num_params, 1, 1, requires_grad=True)
    z, log_slopes = spline(x, params)
    x_again, _ = spline.inverse(x, params)
    (z.sum() + log_slopes.sum() + x_again.sum()).backward()
    assert x.grad is not None
    assert params.grad is not None
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(params.grad).all()
