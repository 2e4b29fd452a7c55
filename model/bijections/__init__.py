"""Invertible layers, one a file, forward and inverse side by side."""

from model.bijections.actnorm import ActNorm
from model.bijections.base import Bijection, Chain, ChannelAffine, log_normal, sum_per_input
from model.bijections.conv1x1 import InvertibleConv1x1, Permutation
from model.bijections.coupling import ChannelCoupling, CheckerboardCoupling, Coupling, halves
from model.bijections.elementwise import Affine, Elementwise, Shift, Spline
from model.bijections.inputs import Pixels, Standardize
from model.bijections.split import Split
from model.bijections.squeeze import Squeeze

__all__ = [
    "ActNorm",
    "Affine",
    "Bijection",
    "Chain",
    "ChannelAffine",
    "ChannelCoupling",
    "CheckerboardCoupling",
    "Coupling",
    "Elementwise",
    "InvertibleConv1x1",
    "Permutation",
    "Pixels",
    "Shift",
    "Spline",
    "Split",
    "Squeeze",
    "Standardize",
    "halves",
    "log_normal",
    "sum_per_input",
]
