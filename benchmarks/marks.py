"""Measure over HTTP what the shipped image model promises: ``python -m benchmarks.marks URL IMAGES``.

Prints, over all images of a file (any that the training reads): the bits per dimension under uniform noise beside the
manifest's, the largest round-trip error, the largest disagreement of the routes about one likelihood, whether a seed
gives the same bits alone and among 50 requests, the likelihood of uniform noise, and the throughput of each route.
"""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np

from common.cli import Parser, run_command
from model.data import Array, load

MODEL = "fashion-mnist"
CHUNK = 1000
Query = int | float | str


def npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


class Service:
    """The routes, arrays in and arrays out."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=120)

    def post(self, path: str, array: Array, **query: Query) -> httpx.Response:
        headers = {"content-type": "application/x-npy"}
        response = self.client.post(path, params={"model": MODEL, **query}, content=npy(array), headers=headers)
        return response.raise_for_status()

    def array(self, path: str, array: Array, **query: Query) -> Array:
        answer: Array = np.load(io.BytesIO(self.post(path, array, format="npy", **query).content))
        return answer

    def sample(self, **query: Query) -> dict[str, Any]:
        values: dict[str, Any] = self.client.get("/sample", params={"model": MODEL, **query}).raise_for_status().json()
        return values


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m benchmarks.marks", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("images")
    args = parser.parse_args(argv)
    service, images = Service(args.url), load(args.images).x
    chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]

    started = time.perf_counter()
    noisy = [
        service.array("/log-likelihood", x, dequantization_samples=1, dequantization_seed=i)
        for i, x in enumerate(chunks)
    ]
    bits = -np.concatenate(noisy) / (images[0].size * np.log(2))
    published = service.client.get(f"/models/{MODEL}").json()["test"]["bits_per_dim"]
    print(f"bits/dim        {bits.mean():.4f} +- {bits.std() / len(bits) ** 0.5:.4f}, manifest {published:.4f}")
    print(f"  two passes    {2 * len(images) / (time.perf_counter() - started):.0f} rows/s")

    started = time.perf_counter()
    codes = [service.array("/encode", x) for x in chunks]
    middle = time.perf_counter()
    errors = [np.abs(service.array("/decode", z) - x).max() for z, x in zip(codes, chunks, strict=True)]
    print(f"round trip      {max(errors):.2e} pixel units at most")
    print(f"  encode        {len(images) / (middle - started):.0f} rows/s")
    print(f"  decode        {len(images) / (time.perf_counter() - middle):.0f} rows/s")

    drawn = service.sample(n=64, seed=1)
    samples = np.array(drawn["samples"], np.float32)
    likelihoods = [
        np.array(drawn["log_likelihood"]),
        service.array("/log-likelihood", samples),
        np.array(service.post("/encode", samples, format="json").json()["log_likelihood"]),
    ]
    difference = max(np.abs(a - b).max() for a in likelihoods for b in likelihoods)
    print(f"agreement       {difference:.1e} nats between /sample, /log-likelihood and /encode")

    alone = service.sample(n=4, seed=7)["samples"]
    with ThreadPoolExecutor(50) as pool:
        among = list(
            pool.map(lambda i: service.sample(n=4 if i == 25 else 1 + i % 7, seed=7 if i == 25 else i), range(50))
        )
    print(
        f"seed            {'same bits' if among[25]['samples'] == alone else 'DIFFERENT'} alone and among 50 requests"
    )

    noise = np.random.default_rng(0).integers(0, 256, (64, *images.shape[1:]))
    real, random = service.array("/log-likelihood", images[:64]), service.array("/log-likelihood", noise)
    print(f"uniform noise   {random.max():.0f} nats at most, real images {real.min():.0f} at least")


if __name__ == "__main__":
    run_command(main)
