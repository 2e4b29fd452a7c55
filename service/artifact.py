"""The artifact: one TorchScript file that carries its manifest and the proof that it is whole.

The file is a TorchScript archive (a zip) with one record more, ``extra/manifest.json``, and the SHA-256 of everything
before it as the zip's comment, so that any changed byte shows before anything is loaded. ``version`` is the first 12
hex digits of the SHA-256 over all records but the manifest: it names the flow, whatever is written about it.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from service.columns import NOISE_FLOOR as NOISE_FLOOR  # re-exported: model/ sees the format through this module alone
from service.columns import Column as Column
from service.columns import listed_categories as listed_categories
from service.scores import smallest_p_value

METHODS = ["log_prob", "encode", "decode", "statistics"]
ROUND_TRIP_TOLERANCE = 1e-2  # of decode(encode(x)), in pixel units or scales of a column

_MANIFEST = "extra/manifest.json"
_COMMENT_PREFIX = b"sha256:"
_COMMENT_BYTES = len(_COMMENT_PREFIX) + 64


class ArtifactError(ValueError):
    """A file that is not a usable artifact; the message names the file, what is wrong and what was expected."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LatentPart(_Part):
    """Where one level's part of the latent code lies in z, and its shape (C, H, W) before it was flattened."""

    offset: int = Field(ge=0)
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]


class TestResult(_Part):
    """Likelihood of rows never trained on: bits per dimension of images (uniform noise), mean nats of vectors."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    bits_per_dim: float | None = None
    nats: float | None = None
    standard_error: float
    rows: int = Field(ge=2)

    @model_validator(mode="after")
    def _one_unit(self) -> TestResult:
        if (self.bits_per_dim is None) == (self.nats is None):
            raise ValueError("one of bits_per_dim and nats must be given")
        return self

    @property
    def figure(self) -> str:
        """The result as it is published."""
        value, unit = (self.nats, "nats") if self.bits_per_dim is None else (self.bits_per_dim, "bits/dim")
        return f"{value:.3f} +- {self.standard_error:.3f} {unit}"


class Calibration(_Part):
    """Held-out scores, ascending; higher = more anomalous."""

    score: Literal["negative_log_likelihood"] = "negative_log_likelihood"
    alpha: float = Field(gt=0, lt=1)  # default threshold of p-values
    values: list[float] = Field(min_length=1)

    @cached_property
    def array(self) -> npt.NDArray[np.float64]:
        """The scores as an array."""
        return np.asarray(self.values, np.float64)

    @model_validator(mode="after")
    def _ascending(self) -> Calibration:
        if np.any(np.diff(self.values) < 0):
            raise ValueError("values must be ascending")
        smallest = smallest_p_value(len(self.values))
        if self.alpha < smallest:
            raise ValueError(f"alpha must be at least {smallest:.3g}, the smallest p-value of {len(self.values)} rows")
        return self


class Golden(_Part):
    """Inputs and the answers that the exporting machine gave; a loader must reproduce them."""

    inputs: list[list[float]]  # rows, flattened
    log_prob: list[float]
    latents: list[list[float]]


class Manifest(_Part):
    """What an artifact says of itself, as one JSON object; unknown keys are refused."""

    format_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: str = Field(pattern=r"^[0-9a-f]{12}$")
    description: str
    kind: Literal["image", "vector"]
    shape: tuple[int, ...]
    columns: list[Column] = []  # vectors: one per dimension
    value_range: tuple[float, float] | None = None  # images: lowest and highest pixel value
    latent_layout: list[LatentPart]
    statistics: list[str]
    temperature: float = Field(ge=0)  # default of sampling
    recipe: dict[str, Any]
    data_digest: str
    test: TestResult | None
    calibration: Calibration | None
    golden: Golden
    torch_version: str
    licence: str

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if len(self.shape) != (3 if self.kind == "image" else 1) or min(self.shape) < 1:
            raise ValueError(f"shape must be (C, H, W) of images or (D,) of vectors, got {list(self.shape)}")
        if (self.kind == "image") != (self.value_range is not None):
            raise ValueError("images have a value_range, vectors have none")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range must go up, got {list(self.value_range)}")
        if self.kind == "vector" and len(self.columns) != self.num_dims:
            raise ValueError(f"columns must name each of {self.num_dims} dimensions, got {len(self.columns)}")
        names = [column.name for column in self.columns]
        if len(set(names)) != len(names):
            raise ValueError("columns must have different names")
        for i, column in enumerate(self.columns):
            if column.duplicate_of is not None and column.duplicate_of not in names[:i]:
                raise ValueError(f"column {column.name!r} must repeat one before it, not {column.duplicate_of!r}")
        golden = self.golden
        sizes = {len(row) for row in [*golden.inputs, *golden.latents]}
        if not (len(golden.inputs) == len(golden.log_prob) == len(golden.latents) >= 1) or sizes != {self.num_dims}:
            raise ValueError(f"golden must hold as many log_prob and latents as inputs, of {self.num_dims} dimensions")
        ends = [part.offset + int(np.prod(part.shape)) for part in self.latent_layout]
        if [part.offset for part in self.latent_layout] != [0, *ends][:-1] or ends[-1:] != [self.num_dims]:
            raise ValueError(f"latent_layout must cover {self.num_dims} dimensions without a gap")
        return self

    @property
    def num_dims(self) -> int:
        return int(np.prod(self.shape))

    @property
    def is_picture(self) -> bool:
        """Whether PNG and JPEG can carry an input: grey or RGB images."""
        return self.kind == "image" and self.shape[0] in (1, 3)

    @cached_property
    def quantized(self) -> npt.NDArray[np.bool_]:
        """Which dimensions hold whole numbers or codes, each the centre of a bin of width 1: (D,)."""
        if self.kind == "image":
            return np.ones(self.num_dims, np.bool_)
        return np.array([column.quantized for column in self.columns])

    @property
    def unit(self) -> npt.NDArray[np.float64]:
        """What errors of inputs are measured in: one pixel value, or the scale of each column."""
        return np.array([column.scale for column in self.columns]) if self.columns else np.ones(())

    @property
    def methods(self) -> list[str]:
        """What the module must offer."""
        return [*METHODS, "log_prob_map"] if self.kind == "image" else METHODS

    @property
    def input_dtype(self) -> npt.DTypeLike:
        return np.float32 if self.kind == "image" else np.float64


@dataclass(frozen=True)
class Artifact:
    """A verified artifact: its manifest and its TorchScript module."""

    manifest: Manifest
    module: torch.jit.ScriptModule


def within_tolerance(log_prob: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> bool:
    """|difference| <= 1e-3 + 1e-6 |expected| nats: the one tolerance of log-likelihoods between plans and machines."""
    return bool(np.all(np.abs(log_prob - expected) <= 1e-3 + 1e-6 * np.abs(expected)))


def script(module: torch.nn.Module) -> dict[str, bytes]:
    """Compile a module to the records of a TorchScript archive, without the source positions of debugging."""
    buffer = io.BytesIO()
    with _torchscript():
        torch.jit.save(torch.jit.script(module), buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {
            info.filename: archive.read(info) for info in archive.infolist() if not info.filename.endswith(".debug_pkl")
        }


def version_of(records: dict[str, bytes]) -> str:
    """First 12 hex digits of the SHA-256 over all records but the manifest, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(records):
        if name.partition("/")[2] != _MANIFEST:
            digest.update(f"{name}:{len(records[name])}:".encode() + records[name])
    return digest.hexdigest()[:12]


def pack(records: dict[str, bytes], manifest: Manifest | None = None) -> bytes:
    """Assemble the bytes of an artifact; without a manifest, of a plain TorchScript archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        root = next(iter(records)).partition("/")[0]
        written = (
            records if manifest is None else {**records, f"{root}/{_MANIFEST}": manifest.model_dump_json().encode()}
        )
        for name, data in written.items():
            archive.writestr(zipfile.ZipInfo(name), data)  # ZipInfo: a fixed date, so equal contents give equal bytes
        archive.comment = b" " * _COMMENT_BYTES
    body = buffer.getvalue()[:-_COMMENT_BYTES]
    return body + _COMMENT_PREFIX + hashlib.sha256(body).hexdigest().encode()


def load_records(records: dict[str, bytes]) -> torch.jit.ScriptModule:
    """Load a module from records."""
    return _load(pack(records))


def _load(data: bytes) -> torch.jit.ScriptModule:
    with _torchscript():
        module: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(data), "cpu")  # type: ignore[no-untyped-call]
    return module.eval()


def freeze(module: torch.jit.ScriptModule, methods: list[str]) -> torch.jit.ScriptModule:
    """Inline a module's weights as constants, for inference alone."""
    with _torchscript():
        frozen: torch.jit.ScriptModule = torch.jit.freeze(module.eval(), preserved_attrs=methods)
    return frozen


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside the target, then rename it: the target is whole, or what it was before."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def save_artifact(path: Path, records: dict[str, bytes], manifest: Manifest) -> None:
    """Write an artifact, open it as a loader would, and only then give it its name; a failed check leaves no file."""

    def write(partial: Path) -> None:
        partial.write_bytes(pack(records, manifest))
        open_artifact(partial)

    try:
        write_whole(path, write)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror}") from error


def open_artifact(path: Path) -> Artifact:
    """Check digest, manifest and golden case, in this order, and load. Raises ArtifactError."""
    data = _read_whole(path)
    records = _read_records(path, data)
    manifest_name = f"{next(iter(records)).partition('/')[0]}/{_MANIFEST}"
    if manifest_name not in records:
        raise ArtifactError(f"{path}: holds no {_MANIFEST}: not exported by python -m model.export")
    try:
        manifest = Manifest.model_validate_json(records[manifest_name])
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "manifest"
        raise ArtifactError(f"{path}: manifest field {field!r}: {first['msg']}") from error
    if manifest.version != version_of(records):
        raise ArtifactError(
            f"{path}: manifest field 'version' is {manifest.version}, but the records are {version_of(records)}"
        )
    try:
        module = _load(data)
    except Exception as error:  # torch's reader raises nearly anything on records that it did not write
        raise ArtifactError(
            f"{path}: torch {torch.__version__} cannot load it (exported by {manifest.torch_version})"
        ) from error
    missing = [name for name in manifest.methods if not hasattr(module, name)]
    if missing:
        raise ArtifactError(f"{path}: its module lacks the methods {', '.join(missing)}")
    artifact = Artifact(manifest, module)
    check_golden(artifact, str(path))
    return artifact


def check_golden(artifact: Artifact, origin: str, device: str = "cpu") -> None:
    """Replay the golden case on the module's device. Raises ArtifactError where an answer is off."""
    manifest, golden = artifact.manifest, artifact.manifest.golden
    x = np.asarray(golden.inputs, manifest.input_dtype).reshape(-1, *manifest.shape)
    try:
        with torch.inference_mode():
            inputs = torch.from_numpy(x).to(device)
            latents, encoded_log_prob = artifact.module.encode(inputs)
            log_prob, statistics = artifact.module.log_prob(inputs), artifact.module.statistics(inputs)
            decoded = artifact.module.decode(latents).cpu()
    except RuntimeError as error:
        raise ArtifactError(f"{origin}: golden case: the module fails on inputs of shape {list(x.shape)}") from error
    for values in (log_prob.cpu(), encoded_log_prob.cpu()):
        if not within_tolerance(values.numpy(), np.asarray(golden.log_prob)):
            raise ArtifactError(f"{origin}: golden case: log_prob is {values.tolist()}, expected {golden.log_prob}")
    if statistics.shape != (len(x), len(manifest.statistics)):
        raise ArtifactError(f"{origin}: golden case: statistics are {statistics.shape[1]}, not {manifest.statistics}")
    latents_error = np.abs(latents.cpu().numpy() - np.asarray(golden.latents)).max()
    round_trip_error = (np.abs(decoded.numpy() - x) / manifest.unit).max()
    for what, value in (("latents", latents_error), ("decode(encode(x))", round_trip_error)):
        if not value <= ROUND_TRIP_TOLERANCE:
            raise ArtifactError(
                f"{origin}: golden case: {what} differ by {value:.3g}, expected at most {ROUND_TRIP_TOLERANCE}"
            )


def _read_records(path: Path, data: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            records = {name: archive.read(name) for name in names}
    except Exception as error:  # encrypted, compressed in an odd way, or no zip at all
        raise ArtifactError(f"{path}: is not a readable zip archive") from error
    if len(records) != len(names) or len({name.partition("/")[0] for name in names}) != 1:
        raise ArtifactError(f"{path}: must hold each record once, all in one folder")
    return records


def _read_whole(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error
    body, comment = data[:-_COMMENT_BYTES], data[-_COMMENT_BYTES:]
    if not comment.startswith(_COMMENT_PREFIX):
        raise ArtifactError(f"{path}: does not end in its checksum: truncated, or not an artifact")
    expected, actual = comment[len(_COMMENT_PREFIX) :].decode("ascii", "replace"), hashlib.sha256(body).hexdigest()
    if actual != expected:
        raise ArtifactError(f"{path}: is damaged: its SHA-256 is {actual[:12]}..., expected {expected[:12]}...")
    return data


class _torchscript(warnings.catch_warnings):
    """Silence torch's notice that TorchScript is deprecated: it is the format, and torch is pinned to read it."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..* is deprecated", category=DeprecationWarning)
