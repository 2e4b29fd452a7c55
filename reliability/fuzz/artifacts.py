"""What whoever deploys the service gives it: artifacts, digests, keys; and recipes, whoever trains."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from model.recipe import RecipeError, read_recipe
from reliability.fuzz.target import Target, as_file, replaced
from service.access import KeyEntry, read_access
from service.artifact import (
    Artifact,
    ArtifactError,
    Calibration,
    Golden,
    LatentPart,
    Manifest,
    check_golden,
    read_artifact,
    version_of,
)
from service.artifact import file as artifact_file
from service.artifact.file import pack
from service.artifact.mixture import Mixture
from service.artifact.scoring import Density, Scoring
from service.catalog import read_digests
from service.columns import Column
from service.errors import QuotaExceeded, TooLarge
from service.settings import SettingsError

_RECORDS = {"flow/data.pkl": b"weights", "flow/code/a.py": b"code", "flow/version": b"3"}
_CHECKSUM = b"sha256:"


class _Anything:
    """Has whatever methods a manifest wants."""

    def __getattr__(self, name: str) -> str:
        return name


class _Program:
    """Answers as the manifest says that the exporting machine's program did."""

    def __init__(self, manifest: Manifest) -> None:
        golden = manifest.golden
        self._x = torch.from_numpy(np.asarray(golden.inputs, manifest.input_dtype).reshape(-1, *manifest.shape))
        self._z = torch.from_numpy(np.asarray(golden.latents, np.float32))
        self._told = torch.from_numpy(np.asarray(golden.statistics, np.float64))

    def statistics(self, _: torch.Tensor) -> torch.Tensor:
        return self._told

    def encode(self, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._z, self._told[:, 0]

    def decode(self, _: torch.Tensor) -> torch.Tensor:
        return self._x

    def log_prob_map(self, x: torch.Tensor) -> torch.Tensor:
        return (self._told[:, 0] / (x.shape[2] * x.shape[3]))[:, None, None].expand(-1, *x.shape[2:])

    log_prob = statistics


def read_manifest(data: bytes) -> None:
    """A manifest that is taken can be used: its golden case fits, and so do its scores."""
    records = {**_RECORDS, "flow/extra/manifest.json": data.replace(b"VERSION", version_of(_RECORDS).encode())}
    _read(as_file(pack(records), ".pt").read_bytes())


def _read(data: bytes) -> None:
    path = as_file(data, ".pt")
    with replaced(artifact_file, "load", lambda _: _Anything()):  # the program is code, which is not fuzzed
        manifest = read_artifact(path).manifest
    golden: Any = Artifact(manifest, _Program(manifest))  # type: ignore[arg-type]
    check_golden(golden, str(path))
    names = manifest.scoring.names
    statistics = dict(zip(manifest.statistics, np.asarray(manifest.golden.statistics).T, strict=True))
    if manifest.scoring.codec is None:
        with np.errstate(all="ignore"):
            scores = manifest.scoring.compute(names, statistics, manifest.num_dims)
        assert all(len(values) == len(manifest.golden.inputs) for values in scores.values())
    for name in manifest.calibrated_scores if manifest.calibration else ():
        assert len(manifest.calibration.arrays[name]) == manifest.calibration.num_rows  # type: ignore[union-attr]
    text = manifest.model_dump_json()
    assert Manifest.model_validate_json(text).model_dump_json() == text
    assert len(manifest.quantized) == manifest.num_dims


def read_file(data: bytes) -> None:
    """A file that is taken has its checksum, its records once and its manifest, and is what it says."""
    _read(data)


def repair_file(data: bytes) -> bytes:
    """Let the checksums of the records, the version of the manifest and the checksum of all be right."""
    data = data[: -len(_CHECKSUM) - 64]
    parts, at = bytearray(data), 0
    sums = []
    while (at := data.find(b"PK\3\4", at)) >= 0 and at + 30 <= len(data):
        size, name_size, extra_size = struct.unpack_from("<I4xHH", data, at + 18)
        start = at + 30 + name_size + extra_size
        sums.append(struct.pack("<I", zlib.crc32(data[start : start + size])))
        parts[at + 14 : at + 18] = sums[-1]
        at += 30
    at = 0
    for number in sums:
        at = data.find(b"PK\1\2", at)
        if at < 0:
            break
        parts[at + 16 : at + 20] = number
        at += 46
    body = bytes(parts)
    return body + _CHECKSUM + hashlib.sha256(body).hexdigest().encode()


def read_digests_file(data: bytes) -> None:
    """Digests are 64 hex digits in lower case."""
    for digest in read_digests(as_file(data, ".sha256")):
        assert len(bytes.fromhex(digest)) == 32
        assert digest == digest.lower()


def read_keys(data: bytes) -> None:
    """Keys have an id, scopes and perhaps a quota, which can be asked at once."""
    access = read_access(as_file(data, ".keys"))
    assert access.keys
    for digest, caller in access.keys:
        assert len(digest) == 32
        assert caller.id
        assert caller.scopes
        if caller.bucket is not None:
            for num_rows in (1, 1, 2**31):
                with suppress(QuotaExceeded, TooLarge):
                    caller.bucket.take(num_rows)
    assert access.fingerprint == read_access(as_file(data, ".keys"), access).fingerprint


def read_recipe_file(data: bytes) -> None:
    """A recipe that is taken is the same once it has been through a checkpoint."""
    recipe = read_recipe(as_file(data, ".toml"))
    assert type(recipe).model_validate(recipe.model_dump()) == recipe


def _manifests() -> Iterator[Manifest]:
    common: dict[str, Any] = {
        "name": "tiny",
        "version": version_of(_RECORDS),
        "description": "",
        "recipe": {"name": "tiny"},
        "data_digest": "0",
        "test": {"nats": 1.5, "standard_error": 0.1, "rows": 2},
        "temperature": 1.0,
        "torch_version": "2",
        "licence": "MIT",
    }
    mixture = Mixture(shift=[0.0], scale=[1.0], weights=[1.0], means=[[0.0]], factors=[[[1.0]]])
    density = Scoring(default="density", typical=1.0, density=Density(statistics=["log_prob"], mixture=mixture))
    columns = [
        Column(name="color", type="categorical", center=1, scale=1, categories=["blue", "red"]),
        Column(name="size", type="continuous", center=0, scale=1),
    ]
    yield Manifest(
        **common,
        kind="vector",
        shape=(2,),
        columns=columns,
        latent_layout=[LatentPart(offset=0, shape=(2, 1, 1))],
        statistics=["log_prob"],
        scoring=density,
        calibration=Calibration(
            alpha=0.5, scores={name: [0.5, 1.0] for name in ("negative_log_likelihood", "typicality", "density")}
        ),
        golden=Golden(inputs=[[1, 0.5]], statistics=[[-1.5]], latents=[[0.1, 0.2]]),
    )
    yield Manifest(
        **{**common, "test": {"bits_per_dim": 2.5, "standard_error": 0.1, "rows": 9}},
        kind="image",
        shape=(1, 2, 2),
        value_range=(0, 255),
        latent_layout=[LatentPart(offset=0, shape=(2, 1, 1)), LatentPart(offset=2, shape=(1, 1, 2))],
        statistics=["log_prob", "more"],
        scoring=Scoring(default="negative_log_likelihood", typical=1.0),
        calibration=None,
        golden=Golden(inputs=[[0, 1, 2, 3]], statistics=[[-3.0, 0.5]], latents=[[0, 0, 0, 0]]),
    )


def manifest_seeds() -> Iterator[bytes]:
    """Of a table and of images; VERSION stands for the right one."""
    for manifest in _manifests():
        yield manifest.model_dump_json().encode().replace(manifest.version.encode(), b"VERSION")


def file_seeds() -> Iterator[bytes]:
    """Whole artifacts, stored and compressed, and one without a manifest."""
    for manifest in _manifests():
        yield pack({**_RECORDS, "flow/version": b"3"}, manifest)
    yield pack(_RECORDS)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("flow/data.pkl", bytes(1000))
        archive.comment = b" " * 71
    yield repair_file(stream.getvalue())


def digests_seeds() -> Iterable[bytes]:
    """As sha256sum writes them, and with comments."""
    line = hashlib.sha256(b"").hexdigest()
    return [f"{line}  model.pt\n# a comment\n\n{line.upper()}".encode(), line.encode()]


def keys_seeds() -> Iterator[bytes]:
    """Keys with and without a quota."""
    entry = f'[[keys]]\nid = "a.b"\nsha256 = "{hashlib.sha256(b"").hexdigest()}"\nscopes = ["infer"]\n'
    yield entry.encode()
    yield f"{entry}rows_per_second = 10.5\nburst_rows = 3\n".encode()
    yield f"{entry}\n{entry.replace('a.b', 'c').replace('e3b0', '0000').replace('infer', 'admin')}".encode()


def recipe_seeds() -> Iterator[bytes]:
    """Recipes of a table and of images."""
    yield (
        b'name = "a"\n[data]\ntrain = "a.csv"\ntest = 0.2\nvalidation = 100\ncalibration = 0.1\nlabel_column = "y"\n'
        b'ignored = ["id"]\ncategorical = ["c"]\nnormal_label = 0\nsplit_seed = 3\n[model]\nnum_steps = 4\nwidth = 32\n'
        b'dropout = 0.1\ncoupling = "spline"\n[training]\nsteps = 10\nlearning_rate = 1e-3\nnoise = 0.1\npatience = 3\n'
        b'[artifact]\nalpha = 0.01\nscore = "density"\nlicence = "MIT"\ndescription = """x\ny"""\n'
    )
    yield (
        b'name = "i"\ndata = {train = "train.idx", test = "test.idx", validation = 1, calibration = 200}\n'
        b'model = {num_levels = 2, bits = 5, mixing = "roll", partition = "alternating", attention = 7}\n'
        b'training.steps = 1_000\ntraining.precision = "bfloat16"\ntraining.device = "cpu"\n'
    )


_TOML = (b"[[", b"]]", b'"""', b"'''", b"inf", b"nan", b"1979-05-27T07:32:00Z", b"0xff", b"\\u00e9", b" = ", b"{", b"}")
_FIELDS = tuple(f'"{name}":'.encode() for name in (*Manifest.model_fields, *Scoring.model_fields, *Golden.model_fields))
TARGETS = [
    Target(
        "manifest",
        read_manifest,
        manifest_seeds,
        (ArtifactError,),
        (*_FIELDS, b"null", b"1e400", b"[]"),
        holds_json=True,
    ),
    Target("artifact", read_file, file_seeds, (ArtifactError,), (b"PK\3\4", b"PK\1\2", b"PK\5\6"), repair_file),
    Target("digests", read_digests_file, digests_seeds, (ArtifactError,)),
    Target(
        "keys",
        read_keys,
        keys_seeds,
        (SettingsError,),
        (*_TOML, *(name.encode() for name in KeyEntry.model_fields)),
    ),
    Target("recipe", read_recipe_file, recipe_seeds, (RecipeError,), (*_TOML, b"data.", b"training.", b"artifact.")),
]
