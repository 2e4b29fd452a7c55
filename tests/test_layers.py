"""The two halves meet at a file: who may import whom."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def imports(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_the_service_never_imports_the_training_half() -> None:
    for path in modules("service"):
        assert not {name for name in imports(path) if name.split(".")[0] == "model"}, path


def test_the_training_half_imports_only_the_format_and_the_scores() -> None:
    allowed = ("service.artifact", "service.scores")
    for path in modules("model"):
        foreign = {name for name in imports(path) if name.startswith("service.")}
        assert all(name.startswith(allowed) for name in foreign), (path, foreign)


def test_what_both_halves_stand_on_knows_neither() -> None:
    for path in modules("common"):
        assert not {name for name in imports(path) if name.split(".")[0] in ("model", "service")}, path


def test_batching_knows_neither_torch_nor_http() -> None:
    for path in (*(ROOT / "service" / name for name in ("batcher.py", "noise.py")), *modules("service/scores")):
        roots = {found.split(".")[0] for found in imports(path)}
        assert not roots & {"torch", "fastapi", "starlette", "httpx"}, path


def test_one_module_knows_torchscript() -> None:
    paths = [
        *modules("common"),
        *modules("model"),
        *modules("service"),
        *modules("benchmarks"),
        *modules("reliability"),
    ]
    paths = [path for path in paths if path.parent.name != "peers"]  # which are other people's servers
    knowing = [
        path.relative_to(ROOT).as_posix()
        for path in paths
        if re.search(r"torch\.(jit|_C\b)|import jit", path.read_text())
    ]
    assert knowing == ["service/artifact/torchscript.py"]


def test_no_file_is_longer_than_a_person_can_hold_in_mind() -> None:
    for package in ("common", "model", "service", "tests", "benchmarks", "reliability", "docs"):
        for path in modules(package):
            assert len(path.read_text().splitlines()) <= 400, path


def test_a_silenced_rule_has_its_reason() -> None:
    silenced, reasoned = re.compile("#.*no(qa|sec)"), re.compile(r"(# no[s]ec [B0-9]+ )?# no[q]a: [A-Z]+[0-9]+ \(.+\)$")
    for package in ("common", "model", "service", "tests", "benchmarks", "reliability", "docs", "deploy"):
        for path in modules(package):
            for line in path.read_text().splitlines():
                if found := silenced.search(line):
                    assert reasoned.search(line[found.start() :]), (path, line)
