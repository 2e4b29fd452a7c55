"""The report of a run: what was trained, on what, for how long, and how well it fits, in figures and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.cli import note
from common.files import write_whole
from common.machine import available_cpus, processor
from model.checkpoint import load_checkpoint
from model.columns import TAIL, treatment
from model.evaluate import BATCH, batches, log_prob, noisy, noisy_batches
from model.floors import FIT_ROWS, HELD_OUT_ROWS, Floor, choose_rows, measure_floors
from model.glow import Glow
from model.likelihood import MeanLikelihood, mean_likelihood
from model.plots import save_latents, save_marginals, save_temperatures
from model.recipe import Splits
from model.trainer import Trainer

TEMPERATURES = [0.5, 0.7, 0.8, 1.0]
NUM_TEMPERATURE_SAMPLES = 36  # at each
NUM_MARGINAL_ROWS = 5000  # at most, of the data and of samples
PICTURES = {
    "curves.png": "Training: the loss, and what it consists of.",
    "samples.png": "Samples; of a table at temperature 1 and beside its fit rows, values beyond an axis at its ends.",
    "temperatures.png": "The same latent codes decoded at several temperatures.",
    "latents.png": "Latent codes of held-out rows; standard normal where the flow fits.",
}


def write_report(trainer: Trainer, splits: Splits, out: Path) -> dict[str, Any]:
    """Measure the best checkpoint in ``out`` and write ``report.json``, ``report.md`` and their pictures.

    The likelihood is that of the test rows, else of the validation rows; beside it stand the floors, simple densities
    of the same rows. One that the flow does not beat is a warning, in the report, which is returned, and on standard
    error.
    """
    best = load_checkpoint(out / "best.pt")
    flow = best.averaged_flow()
    split, data = ("validation", splits.validation) if splits.test is None else ("test", splits.test)
    log_probs = log_prob(flow, noisy_batches(data, best.columns))
    compared = data.take(choose_rows(len(data.x), HELD_OUT_ROWS))
    x = noisy(compared, best.columns)
    floors = {
        floor.name: _compare(floor, log_prob(flow, batches(x)), data.shape)
        for floor in measure_floors(splits, compared, x, best.columns)
    }
    report = {
        "likelihood": {"split": split, **_figures(mean_likelihood(log_probs, data.shape))},
        "floors": floors,
        "warnings": [_warning(name, floor, split) for name, floor in floors.items() if not floor["beaten"]],
        "best_step": best.step,
        **_facts(trainer, splits),
    }
    _draw(trainer, flow, splits, x, out)
    pictures = [name for name in PICTURES if (out / name).exists()]
    _write(out / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    _write(out / "report.md", _markdown(report, pictures))
    for warning in report["warnings"]:
        note(f"WARNING: {warning}")
    return report


def _compare(floor: Floor, log_probs: Tensor, shape: tuple[int, ...]) -> dict[str, Any]:
    """Set a floor beside the flow's log-likelihoods of the same rows."""
    return {
        "what": floor.what,
        **_figures(mean_likelihood(floor.log_prob, shape)),
        "flow": _finite(mean_likelihood(log_probs, shape).value),
        "beaten": bool(log_probs.mean() > floor.log_prob.mean()),  # never by what is not a number
    }


def _warning(name: str, floor: dict[str, Any], split: str) -> str:
    return (
        f"the flow does not beat {name} ({floor['what']}): {_figure(floor['flow'])} against {_figure(floor['value'])} "
        f"{floor['unit']} on the same {floor['rows']} {split} rows; so simple a density describes them better: "
        "the flow is trained too little, overfits, or does not suit the data"
    )


def _figures(mean: MeanLikelihood) -> dict[str, Any]:
    return {**vars(mean), "value": _finite(mean.value), "standard_error": _finite(mean.standard_error)}


def _finite(value: float) -> float | None:
    """A figure as JSON can hold it."""
    return value if math.isfinite(value) else None


def _facts(trainer: Trainer, splits: Splits) -> dict[str, Any]:
    """Tell what was trained, on what, on which machine and for how long."""
    return {
        "recipe": trainer.recipe.model_dump(),
        "unit": trainer.unit,
        "validation": _finite(trainer.best),
        "rows": {name: 0 if data is None else len(data.x) for name, data in vars(splits).items()},
        "data_digest": trainer.data_digest,
        "columns": [
            {**column.model_dump(), "treatment": treatment(column, trainer.recipe.training.noise)}
            for column in trainer.columns
        ],
        "num_parameters": sum(parameter.numel() for parameter in trainer.flow.parameters()),
        "seed": trainer.recipe.training.seed,
        "steps": trainer.step,
        "rollbacks": trainer.rollbacks,
        "skipped_steps": trainer.skipped,
        "seconds": round(trainer.seconds, 1),
        "rows_per_s": round(trainer.step * trainer.recipe.training.batch_size / max(trainer.seconds, 1e-9), 1),
        "hardware": {
            "device": str(trainer.device),
            "cpu": processor(),
            "cores": available_cpus(),
            "threads": torch.get_num_threads(),
            "processes": trainer.processes.size,
        },
        "torch_version": torch.__version__,
        "history": [{name: _finite(value) for name, value in entry.items()} for entry in trainer.history],
    }


@torch.inference_mode()
def _draw(trainer: Trainer, flow: Glow, splits: Splits, x: Tensor, out: Path) -> None:
    """Draw samples, and the latent codes of held-out rows x (N, *shape)."""
    latents = torch.cat([flow(batch)[0] for batch in torch.split(x, BATCH)])
    save_latents(latents.numpy(), flow.latent_sizes, out / "latents.png")
    generator = torch.Generator().manual_seed(0)
    num_dims = latents.shape[1]
    if trainer.kind == "image":
        z = torch.randn(NUM_TEMPERATURE_SAMPLES, num_dims, generator=generator)
        images = {temperature: flow.inverse(z * temperature)[0].numpy() for temperature in TEMPERATURES}
        save_temperatures(images, 2**trainer.recipe.model.bits - 1, out / "temperatures.png")
    else:
        fit = splits.fit.take(choose_rows(len(splits.fit.x), NUM_MARGINAL_ROWS))
        z = torch.randn(NUM_MARGINAL_ROWS, num_dims, generator=generator)
        samples = torch.cat([flow.inverse(batch)[0] for batch in torch.split(z, BATCH)])
        save_marginals(noisy(fit, trainer.columns).numpy(), samples.numpy(), fit.columns, out / "samples.png")


def _markdown(report: dict[str, Any], pictures: list[str]) -> str:
    """Lay a report out for a reader."""
    likelihood, floors = report["likelihood"], report["floors"]
    better = "lower" if report["unit"] == "bits/dim" else "higher"
    run = {
        name.replace("_", " "): report[name]
        for name in (
            *("steps", "best_step", "skipped_steps", "rollbacks", "seconds", "rows_per_s", "num_parameters", "seed"),
            *("rows", "hardware", "torch_version", "data_digest"),
        )
    }
    sections = [
        f"# {report['recipe']['name']}",
        f"Likelihood of {likelihood['rows']} {likelihood['split']} rows: **{_measured(likelihood)}** "
        f"({better} is better; the best checkpoint, averaged weights, of step {report['best_step']}).",
        *(f"> **WARNING:** {warning}" for warning in report["warnings"]),
        "## Floors",
        f"The same {likelihood['split']} rows under simple densities, with the same noise. Of more than {FIT_ROWS} fit "
        f"rows and {HELD_OUT_ROWS} {likelihood['split']} rows, so many are chosen at random.",
        _table(
            ["floor", "likelihood", "the flow's", "rows", "beaten", "what it is"],
            [
                [
                    name,
                    _measured(floor),
                    _figure(floor["flow"]),
                    floor["rows"],
                    "yes" if floor["beaten"] else "**no**",
                    floor["what"],
                ]
                for name, floor in floors.items()
            ],
        ),
        "## Pictures",
        *(f"{PICTURES[name]}\n\n![{name.partition('.')[0]}]({name})" for name in pictures),
        "## Run",
        _table(["", ""], run.items()),
    ]
    if report["columns"]:
        columns = [[column[key] for key in ("name", "treatment", "center", "scale")] for column in report["columns"]]
        seen = f"The flow sees (x - centre) / scale, and beyond {TAIL:g} scales a logarithm of it."
        sections += ["## Columns", seen, _table(["column", "what it becomes", "centre", "scale"], columns)]
    recipe = [
        [f"{table}.{key}", value]
        for table, values in report["recipe"].items()
        if isinstance(values, dict)
        for key, value in values.items()
    ]
    return "\n\n".join([*sections, "## Recipe", _table(["key", "value"], recipe)]) + "\n"


def _measured(mean: dict[str, Any]) -> str:
    return f"{_figure(mean['value'])} +- {_figure(mean['standard_error'])} {mean['unit']}"


def _figure(value: float | None) -> str:
    """A likelihood in the decimals that are published."""
    return "not finite" if value is None else f"{value:.3f}"


def _table(header: list[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: object) -> str:
    """A value as a cell of a table: one line, without a bar."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    return "none" if value is None else " ".join(str(value).replace("|", "\\|").split())


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda partial: partial.write_text(text))
