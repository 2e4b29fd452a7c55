"""Invertible layers, one a file, forward and inverse side by side."""

from model.bijections.actnorm import ActNorm
from model.bijections.base import Bijection, Chain, ChannelAffine, log_normal, sum_per_input
from model.bijections.conv1x1 import InvertibleConv1x1, Permutation
from model.bijections.coupling import AffineCoupling, channel_mask, checkerboard_mask
from model.bijections.inputs import Pixels, Standardize
from model.bijections.split import Split
from model.bijections.squeeze import Squeeze

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "Bijection",
    "Chain",
    "ChannelAffine",
    "InvertibleConv1x1",
    "Permutation",
    "Pixels",
    "Split",
    "Squeeze",
    "Standardize",
    "channel_mask",
    "checkerboard_mask",
    "log_normal",
    "sum_per_input",
]
