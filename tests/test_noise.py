"""Noise belongs to its request: to the seed and the row, to nothing else."""

import numpy as np

from service.noise import MAX_SEED, dequantization_noise, latent_noise, random_seed


def test_a_shorter_request_is_a_prefix_of_a_longer_one() -> None:
    assert np.array_equal(latent_noise(7, 4, 10), latent_noise(7, 16, 10)[:4])
    assert np.array_equal(dequantization_noise(7, 2, 3, 10), dequantization_noise(7, 5, 3, 10)[:2])
    assert np.array_equal(dequantization_noise(7, 2, 3, 10), dequantization_noise(7, 2, 8, 10)[:, :3])


def test_parts_of_a_request_have_the_noise_of_the_whole() -> None:
    assert np.array_equal(latent_noise(7, 4, 10, first=3), latent_noise(7, 16, 10)[3:7])
    assert np.array_equal(dequantization_noise(7, 2, 3, 10, first=3), dequantization_noise(7, 5, 3, 10)[3:])
    assert np.isfinite(latent_noise(MAX_SEED, 2, 1, first=MAX_SEED)).all()


def test_seeds_and_rows_differ() -> None:
    noise = latent_noise(7, 3, 10)
    assert len(np.unique(noise)) == noise.size
    assert not np.array_equal(noise, latent_noise(8, 3, 10))
    assert not np.array_equal(noise, latent_noise(MAX_SEED, 3, 10))


def test_latent_noise_is_standard_normal_and_dequantization_noise_uniform() -> None:
    normal = latent_noise(1, 200, 500)
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02
    uniform = dequantization_noise(1, 200, 1, 500)
    assert uniform.min() >= -0.5
    assert uniform.max() < 0.5
    assert abs(uniform.std() - 12**-0.5) < 0.01


def test_random_seeds_are_in_range() -> None:
    assert all(0 <= random_seed() <= MAX_SEED for _ in range(100))
