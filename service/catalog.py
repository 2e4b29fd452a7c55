"""The catalog: which models are served, by name and version, and which of them answer when a caller names less."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from service.artifact import ArtifactError, digest_of, read_artifact
from service.engine import Engine, Model
from service.errors import ModelNotFound
from service.plans import Steps, finish
from service.settings import Settings

MEASURING_S = 15.0  # for the plans of all models, at every start
MEASURING_ONCE_S = 45.0  # the same where a cache keeps them
EMBEDDED_DEFAULT = "fashion-mnist"

_DIGEST_LINE = re.compile(r"([0-9a-fA-F]{64})(\s.*)?")

logger = logging.getLogger(__name__)


class Catalog:
    """Models by the file that each was read from; never changed, but exchanged for another one as a whole.

    A model is named by NAME or, in full, by NAME@VERSION. Of several versions of a name, the file NAME.pt answers for
    the name alone or, where there is none, the last in the order of file names. ``wanted`` is the model that answers
    where none is named, NAME or NAME@VERSION, whose version then answers for its name, too. Raises ArtifactError for
    one artifact under two file names, and for a default that is not there.
    """

    def __init__(self, files: Mapping[Path, Model], wanted: str | None = None) -> None:
        self.files = files
        self._by_reference: dict[str, Model] = {}
        origins: dict[str, Path] = {}
        for path, model in files.items():
            if model.reference in origins:
                raise ArtifactError(
                    f"two artifacts are {model.reference}: {origins[model.reference]} and {path}; serve one of them"
                )
            origins[model.reference] = path
            self._by_reference[model.reference] = model
        self._by_name: dict[str, Model] = {}
        for _, model in sorted(files.items(), key=lambda item: (item[0].stem == item[1].name, item[0].name)):
            self._by_name[model.name] = model
        if wanted is None:
            wanted = EMBEDDED_DEFAULT if EMBEDDED_DEFAULT in self._by_name else min(self._by_name)
        default = self._by_name.get(wanted) or self._by_reference.get(wanted)
        if default is None:
            served = ", ".join([*sorted(self._by_name), *sorted(self._by_reference)])
            raise ArtifactError(f"GLOW_DEFAULT_MODEL is {wanted!r}, but only {served} are served")
        self.default = default
        self._by_name[default.name] = default
        self.models = sorted(
            self._by_reference.values(), key=lambda model: (model.name, not self.answers_for_name(model), model.version)
        )

    @cached_property
    def most_dims(self) -> int:
        """Numbers in a row of the largest model."""
        return max(model.manifest.num_dims for model in self.models)

    def answers_for_name(self, model: Model) -> bool:
        """Whether this version is meant where a caller gives the name alone."""
        return self._by_name[model.name] is model

    def versions(self, name: str) -> list[Model]:
        """All versions of a name, the one that answers for it first; none where it is not served."""
        return [model for model in self.models if model.name == name]

    def find(self, reference: str | None) -> Model:
        """The model of NAME or NAME@VERSION; the default one for None. Raises ModelNotFound."""
        if reference is None:
            return self.default
        model = self._by_name.get(reference) or self._by_reference.get(reference)
        if model is None:
            served = ", ".join(model.reference for model in self.models)
            raise ModelNotFound(f"no model {reference[:100]!r}; served are {served}")
        return model

    def warm_up(self, alone: bool = True, reproducible_only: bool = False) -> Steps[None]:
        """Check and warm up every model that is not yet warm, in steps. Raises ArtifactError."""
        settings = self.default.engine.settings
        deadline = time.monotonic() + _seconds(settings)
        for done, model in enumerate(self.models):
            left = (deadline - time.monotonic()) / (len(self.models) - done)
            yield from model.warm_up(left, alone, reproducible_only)

    def prepare(self, reproducible_only: bool = False) -> None:
        """Do the same at once; a bar on a terminal tells how much is left, at most. Raises ArtifactError."""
        steps = self.warm_up(reproducible_only=reproducible_only)
        settings = self.default.engine.settings
        finish(_watched(steps, _seconds(settings), settings.workers == 1 and not reproducible_only))


def _seconds(settings: Settings) -> float:
    return MEASURING_ONCE_S if settings.cache_dir else MEASURING_S


def _watched(steps: Steps[None], most_s: float, shown: bool) -> Steps[None]:
    """The same steps, under a bar of the seconds that they may take."""
    begun = time.monotonic()
    with tqdm(
        total=most_s,
        desc="measuring how models run fastest here",
        bar_format="{desc} {bar:20} {n:.0f} s of {total:.0f} at most",
        leave=False,
        disable=None if shown else True,
    ) as bar:
        for _ in steps:
            bar.update(min(time.monotonic() - begun, most_s) - bar.n)
            yield


def read_catalog(engine: Engine, known: Catalog | None = None) -> Catalog:
    """Read all artifacts that the settings name, without running them; files that are ``known`` keep their models.

    Raises ArtifactError for one that fails its checks, or that ``GLOW_DIGESTS_FILE`` does not allow.
    """
    settings = engine.settings
    allowed = None if settings.digests_file is None else read_digests(settings.digests_file)
    loaded = {model.digest: model for model in known.models} if known else {}
    files: dict[Path, Model] = {}
    for path in find_artifacts(settings.models):
        model = loaded.get(digest_of(path)) if loaded else None
        if model is None or (allowed is not None and model.digest not in allowed):
            model = Model(read_artifact(path, allowed), engine, str(path))
        files[path] = model
    catalog = Catalog(files, settings.default_model)
    served = ", ".join(model.reference for model in catalog.models)
    logger.info("read %s for %s, %d threads", served, engine.device, engine.threads)
    return catalog


def open_catalog(engine: Engine) -> Catalog:
    """Read all artifacts that the settings name, and replay their golden cases. Raises ArtifactError."""
    catalog = read_catalog(engine)
    for model in catalog.models:
        model.check_golden()
    return catalog


def warm_catalog(settings: Settings, reproducible_only: bool = False) -> Catalog:
    """Read, check and warm up all that the settings name, here and now. Raises ArtifactError."""
    catalog = open_catalog(Engine(settings))
    catalog.prepare(reproducible_only)
    return catalog


def find_artifacts(paths: list[Path]) -> list[Path]:
    """Expand folders to the artifacts in them. Raises ArtifactError where there is none."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.pt")) if path.is_dir() else [path]
        if not inside:
            raise ArtifactError(f"{path}: holds no artifact (*.pt)")
        found += inside
    return found


def read_digests(path: Path) -> frozenset[str]:
    """SHA-256 of files that may be loaded, as ``sha256sum`` writes them: a digest in hex begins each line.

    Raises ArtifactError.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read: {error} (GLOW_DIGESTS_FILE)") from error
    digests = set()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _DIGEST_LINE.fullmatch(line)
        if found is None:
            raise ArtifactError(f"{path}: line {number} does not begin with a SHA-256 in hex (GLOW_DIGESTS_FILE)")
        digests.add(found[1].lower())
    return frozenset(digests)
