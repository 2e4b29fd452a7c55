"""Two statistics of an image as a whole, which a flow of local steps hardly sees."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from model.data import Array
from model.density import fit_gaussians
from model.floors import FIT_ROWS, choose_rows

PIXEL_STATISTICS = ["pixel_components", "pixel_residual"]
COMPONENTS = 40  # principal ones, at most
MIXTURE = 20  # Gaussians, at most
ROWS_A_GAUSSIAN = 500  # of the fit, at least


class PixelMixture(nn.Module):
    """A mixture of Gaussians over the leading principal components c of an image, and how much these leave out.

    (B, C, H, W) in pixel units -> (B, 2), float64: -log q(c / std(c)), nats, and log(|x - mean|^2 - |c|^2) with x in
    [0, 1]. Source: probabilistic principal components, Tipping & Bishop 1999 (Neural Computation 11).
    """

    mean: Tensor
    components: Tensor
    stds: Tensor
    factors: Tensor
    centers: Tensor
    log_heights: Tensor

    def __init__(
        self, highest: float, mean: Array, components: Array, stds: Array, weights: Array, means: Array, factors: Array
    ) -> None:
        """Take mean (D,), components (D, k), stds (k,), and weights (K,), means (K, k), factors (K, k, k)."""
        super().__init__()
        self.highest = highest
        num_components = len(stds)
        heights = np.log(weights) + np.linalg.slogdet(factors)[1] - 0.5 * num_components * math.log(2 * math.pi)
        for name, values in (
            ("mean", mean),
            ("components", components),
            ("stds", stds),
            ("factors", factors.transpose(1, 0, 2).reshape(num_components, -1)),  # one product for all Gaussians
            ("centers", np.einsum("ki,kij->kj", means, factors).ravel()),
            ("log_heights", heights),
        ):
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values, np.float64)))

    def forward(self, x: Tensor) -> Tensor:
        centred = x.flatten(1).double() / self.highest - self.mean
        components = centred @ self.components
        left_out = ((centred * centred).sum(1) - (components * components).sum(1)).clamp_min(0)
        whitened = (components / self.stds) @ self.factors - self.centers
        distances = (whitened * whitened).reshape(len(x), len(self.log_heights), -1).sum(2)
        log_prob = torch.logsumexp(self.log_heights - 0.5 * distances, 1)
        return torch.stack([-log_prob, torch.log(left_out + 1e-3)], 1)


def fit_pixel_mixture(images: Array, highest: float) -> PixelMixture:
    """Fit to images (N, C, H, W) of values 0..highest, those that the flow was trained on."""
    from sklearn.decomposition import PCA

    rows = images[choose_rows(len(images), FIT_ROWS)].reshape(-1, math.prod(images.shape[1:])) / highest
    pca = PCA(min(COMPONENTS, rows.shape[1] // 2, len(rows) // 2), random_state=0).fit(rows)
    stds = np.sqrt(pca.explained_variance_).clip(1e-6)
    mixture = fit_gaussians(pca.transform(rows) / stds, MIXTURE, ROWS_A_GAUSSIAN, max_iter=60, tol=1e-2)
    return PixelMixture(
        highest, pca.mean_, pca.components_.T, stds, mixture.weights_, mixture.means_, mixture.precisions_cholesky_
    )
