"""The file: a TorchScript archive (a zip) with one record more, ``extra/manifest.json``.

The SHA-256 of everything before it is the zip's comment, so that any changed byte shows before anything is loaded.
``version`` is the first 12 hex digits of the SHA-256 over all records but the manifest: it names the flow, whatever is
written about it.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import PIL
import torch
from pydantic import ValidationError

from common.errors import UsageError, line_of, unquoted
from common.files import write_whole
from service.artifact.golden import golden_fault, golden_rows
from service.artifact.manifest import Manifest, Operation
from service.artifact.torchscript import Program, load
from service.scores import codec_bytes

_MANIFEST = "extra/manifest.json"
_COMMENT_PREFIX = b"sha256:"
_COMMENT_BYTES = len(_COMMENT_PREFIX) + 64


class ArtifactError(UsageError):
    """A file that is not a usable artifact; the message names the file, what is wrong and what was expected."""


@dataclass(frozen=True)
class Artifact:
    """A verified artifact: its manifest and its program.

    ``digest`` is the SHA-256 of the whole file, in hex. ``architecture`` is the same for flows that differ in nothing
    but their weights: it names the program's code and the sizes of its records.
    """

    manifest: Manifest
    program: Program
    digest: str = ""
    architecture: str = ""


def version_of(records: dict[str, bytes]) -> str:
    """First 12 hex digits of the SHA-256 over all records but the manifest, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(records):
        if name.partition("/")[2] != _MANIFEST:
            digest.update(f"{name}:{len(records[name])}:".encode() + records[name])
    return digest.hexdigest()[:12]


def pack(records: dict[str, bytes], manifest: Manifest | None = None) -> bytes:
    """Assemble the bytes of an artifact; without a manifest, one that a loader will refuse."""
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


def save_artifact(path: Path, records: dict[str, bytes], manifest: Manifest) -> None:
    """Write an artifact, open it as a loader would, and only then give it its name; a failed check leaves no file."""

    def write(partial: Path) -> None:
        partial.write_bytes(pack(records, manifest))
        open_artifact(partial)

    try:
        write_whole(path, write)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror}") from error


def read_records(path: Path) -> dict[str, bytes]:
    """Check the digest, and read the records of an artifact, its manifest among them. Raises ArtifactError."""
    return _read_records(path, _read_whole(path))


def open_artifact(path: Path) -> Artifact:
    """Check digest, manifest and golden case, in this order, and load. Raises ArtifactError."""
    artifact = read_artifact(path)
    check_golden(artifact, str(path))
    return artifact


def read_artifact(path: Path, allowed: Container[str] | None = None) -> Artifact:
    """Check digest and manifest, and load, without running anything of it.

    ``allowed`` are the SHA-256 of files that may be loaded, in hex; None: all. Raises ArtifactError.
    """
    data = _read_whole(path)
    file_digest = hashlib.sha256(data).hexdigest()
    if allowed is not None and file_digest not in allowed:
        raise ArtifactError(f"{path}: its SHA-256 is {file_digest}, which is not one of GLOW_DIGESTS_FILE")
    records = _read_records(path, data)
    manifest_name = f"{next(iter(records)).partition('/')[0]}/{_MANIFEST}"
    if manifest_name not in records:
        raise ArtifactError(f"{path}: holds no {_MANIFEST}: not exported by python -m model.export")
    try:
        manifest = Manifest.model_validate_json(records[manifest_name])
    except ValidationError as error:
        fault = line_of(error.errors()[0], lambda name: f"manifest field {name!r}", unquoted)
        raise ArtifactError(f"{path}: {fault}") from error
    if manifest.version != version_of(records):
        raise ArtifactError(
            f"{path}: manifest field 'version' is {manifest.version}, but the records are {version_of(records)}"
        )
    try:
        program = load(data)
    except Exception as error:  # torch's reader raises nearly anything on records that it did not write
        raise ArtifactError(
            f"{path}: torch {torch.__version__} cannot load it (exported by {manifest.torch_version})"
        ) from error
    missing = [name for name in manifest.methods if not hasattr(program, name)]
    if missing:
        raise ArtifactError(f"{path}: its program lacks the methods {', '.join(missing)}")
    return Artifact(manifest, program, file_digest, _architecture_of(records))


def digest_of(path: Path) -> str:
    """SHA-256 of a whole file, in hex. Raises ArtifactError."""
    _check_is_file(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error


def _architecture_of(records: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in sorted(records.items()):
        inside = name.partition("/")[2]
        if inside != _MANIFEST:
            digest.update(f"{inside}:{len(data)}:".encode())
            digest.update(data if inside.startswith("code/") else b"")
    return digest.hexdigest()[:16]


def check_golden(artifact: Artifact, origin: str) -> None:
    """Replay the golden case. Raises ArtifactError where an answer is off."""
    manifest = artifact.manifest
    outputs: dict[Operation, list[npt.NDArray[Any]]] = {}
    try:
        with torch.inference_mode():
            for operation in manifest.operations:
                answer = getattr(artifact.program, operation)(torch.from_numpy(golden_rows(manifest, operation)))
                outputs[operation] = [part.numpy() for part in (answer if isinstance(answer, tuple) else (answer,))]
    except RuntimeError as error:
        raise ArtifactError(
            f"{origin}: golden case: the program fails on inputs of shape {list(manifest.shape)}"
        ) from error
    for operation in manifest.operations:
        if fault := golden_fault(manifest, operation, outputs[operation]):
            raise ArtifactError(f"{origin}: golden case: {fault}")
    codec = manifest.scoring.codec
    if codec is not None:
        sizes = codec_bytes(codec, golden_rows(manifest, "encode")).tolist()
        if sizes != manifest.golden.codec_bytes:
            raise ArtifactError(
                f"{origin}: golden case: codec {codec} of Pillow {PIL.__version__} makes {sizes} bytes, expected "
                f"{manifest.golden.codec_bytes}: scores would not compare with the calibrated ones. Install another "
                "Pillow, or export the artifact with this one"
            )


def _read_records(path: Path, data: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if sum(info.file_size for info in archive.infolist()) > len(data):
                raise ArtifactError(f"{path}: must hold its records as they are: compressed, they could be of any size")
            records = {name: archive.read(name) for name in names}
    except ArtifactError:
        raise
    except Exception as error:  # encrypted, compressed in an odd way, or no zip at all
        raise ArtifactError(f"{path}: is not a readable zip archive") from error
    if len(records) != len(names) or len({name.partition("/")[0] for name in names}) != 1:
        raise ArtifactError(f"{path}: must hold each record once, all in one folder")
    return records


def _check_is_file(path: Path) -> None:
    if path.exists() and not path.is_file():  # a pipe or a device may have no end
        raise ArtifactError(f"{path}: is no file")


def _read_whole(path: Path) -> bytes:
    _check_is_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error
    body, comment = data[:-_COMMENT_BYTES], data[-_COMMENT_BYTES:]
    if not comment.startswith(_COMMENT_PREFIX):
        raise ArtifactError(f"{path}: does not end in its checksum: truncated, or not an artifact of model.export")
    expected, actual = comment[len(_COMMENT_PREFIX) :].decode("ascii", "replace"), hashlib.sha256(body).hexdigest()
    if actual != expected:
        raise ArtifactError(f"{path}: is damaged: its SHA-256 is {actual[:12]}..., expected {expected[:12]}...")
    return data
