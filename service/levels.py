"""Which rows are anomalies: the levels that may be asked for, and those that hold where nobody asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service import scores
from service.artifact import ArtifactError, Calibration, Manifest
from service.errors import Unprocessable
from service.options import ScoreOptions
from service.settings import Settings

if TYPE_CHECKING:
    from service.catalog import Catalog


def default_alpha(settings: Settings, calibration: Calibration) -> float:
    """What rows are flagged by where nobody says."""
    return settings.alpha or calibration.alpha


def check_level(model: str, num_calibration: int | None, **given: float | str | None) -> None:
    """Check what rows are to be flagged by: ``alpha`` with a ``guarantee``, or ``fdr``.

    Raises Unprocessable for both at once, for one without p-values, and for one below all of them.
    """
    wanted = {name: value for name, value in given.items() if value is not None}
    if "fdr" in wanted and len(wanted) > 1:
        raise Unprocessable("fdr is a way of its own to flag rows; give no alpha and no guarantee beside it")
    for name, value in wanted.items():
        if num_calibration is None:
            raise Unprocessable(f"{name}: model {model} is not calibrated, so it has no p-values")
        smallest = scores.smallest_p_value(num_calibration)
        if isinstance(value, float) and value < smallest:
            raise Unprocessable(
                f"{name} must be at least {smallest!r}, the smallest p-value of {num_calibration} calibration rows"
            )


def check_settings(settings: Settings, catalog: Catalog) -> None:
    """Raise ArtifactError for settings that do not go with what is served."""
    names = {model.name for model in catalog.models}
    for name in settings.model_limits.keys() - names:
        raise ArtifactError(f"GLOW_MODEL_LIMITS has limits of {name!r}, but only {', '.join(sorted(names))} are served")
    for model in catalog.models:
        calibration = model.manifest.calibration
        if settings.alpha is None or calibration is None:
            continue
        smallest = scores.smallest_p_value(calibration.num_rows)
        if settings.alpha < smallest:
            raise ArtifactError(
                f"GLOW_ALPHA is {settings.alpha}, but must be at least {smallest!r}, the smallest p-value of "
                f"{model.name}"
            )


def check_options(settings: Settings, manifest: Manifest, options: ScoreOptions) -> None:
    """Raise Unprocessable for a level that can flag nothing, or not with the guarantee that is wanted."""
    if options.alpha is None and options.fdr is None and options.guarantee is None:  # as in most requests
        return
    calibration = manifest.calibration
    num_rows = None if calibration is None else calibration.num_rows
    check_level(manifest.name, num_rows, alpha=options.alpha, fdr=options.fdr, guarantee=options.guarantee)
    if calibration is None or options.guarantee != "conditional":
        return
    if calibration.approximate:
        raise Unprocessable(f"guarantee: {manifest.name} is calibrated by folds, for which there is only 'marginal'")
    least = scores.smallest_conditional_alpha(calibration.num_rows)
    if scores.conditional_level(options.alpha or default_alpha(settings, calibration), calibration.num_rows) is None:
        raise Unprocessable(
            f"guarantee: with {num_rows} calibration rows, 'conditional' takes an alpha of at least {least!r}"
        )
