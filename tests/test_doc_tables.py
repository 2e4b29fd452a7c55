"""Tables of the documentation say what the code says."""

import dataclasses
import re

import pytest
from pydantic import BaseModel

from docs.extensions.routes import paths, section
from model.glow import GlowConfig
from model.recipe import ArtifactRecipe, DataRecipe, TrainingRecipe
from service import errors
from service.errors import ServiceError
from service.scores import DEFINITIONS
from service.settings import Settings
from tests.pages import ROOT


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def test_scores() -> None:
    text = page("anomalies").replace("\\|", "|")
    for name, what in DEFINITIONS.items():
        assert f"| `{name}` | {what.unit} | {what.formula} | {what.direction} |" in text


def test_routes() -> None:
    """Whatever the document refers to by name stands in the reference itself."""
    text = "\n".join(section("POST", "/log-likelihood", paths()["/log-likelihood"]["post"]))
    for line in ("`inputs` | list", "`guarantee` | `marginal`, `conditional`", "`p_value` | list of number"):
        assert f"\n| {line} |" in text
    assert "| any |" not in text


def test_settings() -> None:
    rows = re.findall(r"^\| `(GLOW_\w+)` \| (.*?) \| (.*?) \|$", page("settings"), re.MULTILINE)
    expected = []
    for name, field in Settings.model_fields.items():
        default = f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
        shown = {"models": "the embedded artifacts"}.get(name, "" if field.default in (None, [], {}) else default)
        expected.append((f"GLOW_{name.upper()}", shown, field.description))
    assert rows == expected


@pytest.mark.parametrize(
    ("table", "part"),
    [("data", DataRecipe), ("model", GlowConfig), ("training", TrainingRecipe), ("artifact", ArtifactRecipe)],
)
def test_keys_of_a_recipe(table: str, part: type[BaseModel] | type[GlowConfig]) -> None:
    text = page("recipe").partition(f"| `[{table}]` | default | meaning |\n")[2].partition("\n\n")[0]
    if issubclass(part, BaseModel):
        defaults = {name: "required" if one.is_required() else one.default for name, one in part.model_fields.items()}
    else:
        defaults = {one.name: one.default for one in dataclasses.fields(part)}
    expected = [
        (name, "required" if value == "required" else "" if value in (None, [], "") else f"`{value}`")
        for name, value in defaults.items()
    ]
    assert re.findall(r"^\| `(\w+)` \| (.*?) ?\| ", text, re.MULTILINE) == expected


def test_every_module_of_the_two_halves_has_its_place_on_the_map() -> None:
    rows = page("design").partition("| part | what it does |")[2].partition("\n\n")[0]
    named = []
    for part in re.findall(r"^\| (`.*?) \|", rows, re.MULTILINE):
        names = re.findall(r"`([^`]+)`", part)  # the first says in which folder those are that do not
        named += [name if "/" in name[:-1] else f"{names[0].partition('/')[0]}/{name}" for name in names]
    for half in ("model", "service"):
        inside = [path for path in (ROOT / half).iterdir() if path.name[0] not in "_."]
        there = [f"{half}/{path.name}{'/' * path.is_dir()}" for path in inside if path.is_dir() or path.suffix == ".py"]
        assert sorted(there) == sorted(name for name in named if name.startswith(f"{half}/")), half


def test_every_error_is_in_the_tree_of_its_module() -> None:
    """With its status, where it has another than the class above it."""
    assert errors.__doc__ is not None
    rows = re.findall(r"^[│ ]*[├└]── (\w+)(?: (\d+))?", errors.__doc__, re.MULTILINE)
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ServiceError)]
    expected = [(kind.__name__, str(vars(kind).get("status", ""))) for kind in kinds if kind is not ServiceError]
    assert sorted(rows) == sorted(expected)
