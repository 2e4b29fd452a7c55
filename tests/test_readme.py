"""The README is true: its examples run against the shipped service, its table of settings is the code's."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.recipe import parse_recipe
from service.scores import DEFINITIONS
from service.settings import EMBEDDED_ARTIFACTS, Settings
from tests.test_server import server

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server("--models", EMBEDDED_ARTIFACTS) as (url, _):
        yield url


def test_shell_examples_run(url: str, tmp_path: Path) -> None:
    (commands,) = blocks("bash")
    script = commands.replace("curl -s", "curl -sf").replace("localhost:8000", url.removeprefix("http://"))
    result = subprocess.run(["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert '"p_value"' in result.stdout
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_python_examples_run(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    exec(compile(code.replace("http://localhost:8000", url), "README.md", "exec"), {})
    assert "[False]" in capsys.readouterr().out


def test_the_examples_of_the_open_inference_protocol_run(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "oip.md").read_text().replace("localhost:8000", url.removeprefix("http://"))
    (code,), (command,) = blocks("python", text), blocks("bash", text)
    exec(compile(code, "oip.md", "exec"), {})
    assert "[False False False False]" in capsys.readouterr().out
    result = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, timeout=60)
    assert '"model_name":"breast-cancer.sample"' in result.stdout


def test_the_example_recipe_is_valid() -> None:
    (recipe,) = blocks("toml")
    assert parse_recipe(tomllib.loads(recipe), "README.md").name == "my-table"


def test_the_table_of_scores_is_the_codes() -> None:
    text = (ROOT / "docs" / "anomalies.md").read_text().replace("\\|", "|")
    for name, what in DEFINITIONS.items():
        assert f"| `{name}` | {what.unit} | {what.formula} | {what.direction} |" in text


def test_the_table_of_settings_is_the_codes() -> None:
    rows = re.findall(r"^\| `(GLOW_\w+)` \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
    expected = []
    for name, field in Settings.model_fields.items():
        default = f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
        shown = {"models": "the embedded artifacts"}.get(name, "" if field.default in (None, [], {}) else default)
        expected.append((f"GLOW_{name.upper()}", shown, field.description))
    assert rows == expected


def test_every_dependency_is_named_with_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = README.partition("## Dependencies")[2]
    for requirement in [
        *project["dependencies"],
        *project["optional-dependencies"]["serve"],
        *project["optional-dependencies"]["train"],
    ]:
        name = re.split(r"[\[<>=]", requirement)[0]
        assert re.search(rf"\b{name}\b", table), name
