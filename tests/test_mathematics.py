"""The page of mathematics is the code's: beside every formula stand functions and tests that exist."""

import ast
import re
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
from latex2mathml.converter import convert

from docs.extensions.mathml import to_mathml

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "mathematics.md").read_text()
FENCE = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[`([\w.]+)`\]\(([\w./]+)\)")


@cache
def definitions(path: Path) -> set[str]:
    """Functions, classes and methods of a file, as Class.method."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.AsyncFunctionDef)}
    return names


def faults(page: str) -> list[str]:
    """What is wrong with a page."""
    found = []
    for section in re.split(r"^#+ ", page, flags=re.MULTILINE):
        heading = section.splitlines()[0] if section else ""
        parts = FENCE.split(section)
        for formula, text in zip(parts[1::2], parts[2::2], strict=True):
            if not re.search(r"^Code: \[.*?· Proof: \[", text, re.DOTALL | re.MULTILINE):
                found.append(f"{heading}: no code or no proof of {formula.strip()}")
    for paragraph in re.findall(r"^Code: .*?(?=\n\n|\Z)", page, re.DOTALL | re.MULTILINE):
        code, _, proof = paragraph.partition("· Proof: ")
        for kind, links in (("code", LINK.findall(code)), ("proof", LINK.findall(proof))):
            for name, target in links:
                path = (DOCS / target).resolve()
                if not path.is_file() or name not in definitions(path):
                    found.append(f"{target} has no {name}")
                elif (DOCS.parent / "tests" in path.parents and name.startswith("test_")) != (kind == "proof"):
                    found.append(f"{name} is no {kind}")
    inline = re.findall(r"(?<!\$)\$([^$]+)\$", re.sub(r"```.*?```|`[^`]*`", "", page, flags=re.DOTALL))
    for formula in [*FENCE.findall(page), *inline]:
        if re.search(r"\\|>&<", convert(formula)):  # what it does not know stays as it is
            found.append(f"cannot be shown: {formula}")
    return found


@pytest.mark.parametrize(
    ("formula", "parts"),
    [
        (r"a \tanh(h)", ["a", " ", "tanh", "(", "h", ")"]),  # no atanh
        (r"D \ln 2", ["D", " ", "ln", " ", "2"]),
        (r"\log |\det|", ["log", "|", "det", "|"]),
        (r"\log \max(b)", ["log", " ", "max", "(", "b", ")"]),
        (r"f(x) \log p", ["f", "(", "x", ")", " ", "log", " ", "p"]),
        (r"x - 1 = -\log p", ["x", "\u2212", "1", "=", "prefix \u2212", "log", " ", "p"]),
    ],
)
def test_functions_and_signs_of_a_formula_are_spaced(formula: str, parts: list[str]) -> None:
    leaves = [node for node in ElementTree.fromstring(to_mathml(formula)).iter() if not len(node)]  # noqa: S314 (the converter's own)
    shown = [" " if node.text is None else f"{node.get('form', '')} {node.text}".strip() for node in leaves]
    assert shown == parts


def test_every_formula_stands_beside_code_and_proof_that_exist() -> None:
    assert faults(PAGE) == []
    assert len(FENCE.findall(PAGE)) > 20


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("`ActNorm.forward`", "`ActNorm.gone`", "../model/bijections/actnorm.py has no ActNorm.gone"),
        ("`test_density_integrates_to_one`", "`test_gone`", "../tests/test_glow.py has no test_gone"),
        ("(../model/fold.py)", "(../model/gone.py)", "../model/gone.py has no "),
        ("· Proof: [`test_a_squeeze", "· [`test_a_squeeze", "Squeeze: no code or no proof of z_{4c"),
        ("Code: [`ks_p_value`]", "[`ks_p_value`]", "Drift: no code or no proof of 2 \\sum"),
        (
            "[`test_density_integrates_to_one`](../tests",
            "[`Split`](../model/bijections/split.py) [`x`](",
            "Split is no pr",
        ),
        ("{split}", "{aligned}", "cannot be shown: \\begin{aligned}"),
        ("\\Phi^{-1}", "\\Phj^{-1}", "cannot be shown: z = \\Phj^{-1}"),
    ],
)
def test_a_page_that_the_code_has_left_behind_is_told(old: str, new: str, fault: str) -> None:
    assert old in PAGE
    assert any(found.startswith(fault) for found in faults(PAGE.replace(old, new)))
