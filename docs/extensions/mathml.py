"""Formulas as MathML, which browsers draw by themselves: no script; _static/formulas.css gives them a font."""

from itertools import pairwise
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

SPACE = "http://www.w3.org/1998/Math/MathML"
ROWS = {"math", "mrow", "mtd", "mstyle"}
SCRIPTS = {"msub", "msup", "msubsup", "munder", "mover", "munderover"}
SIGNS = {"~": "\u223c", ";": ";"}  # which the converter takes for names
BARS = {"|", "\u2016"}


def to_mathml(formula: str, display: str = "inline") -> str:
    """What the converter makes of a formula of LaTeX, with LaTeX's spaces around functions and signs."""
    ElementTree.register_namespace("", SPACE)
    root = ElementTree.fromstring(convert(formula, display=display))  # noqa: S314 (the converter's own)
    for leaf in root.iter():
        if leaf.text in SIGNS:
            leaf.tag, leaf.text = _name("mo"), SIGNS[leaf.text]
        if _is(leaf, "mo") and (leaf.text or "").isalpha():
            leaf.set("lspace", "0")
            leaf.set("rspace", "0")
        elif leaf.text == "\u2016":
            leaf.set("stretchy", "false")
    for row in [node for node in root.iter() if _is(node, *ROWS)]:
        _space(row)
    return ElementTree.tostring(root, encoding="unicode")


def _space(row: Element) -> None:
    """Put thin spaces between functions and their operands, and none behind the sign of a number."""
    children = list(row)
    for before, after in pairwise(children):
        if (_is_function(before) and not _is_sign(after)) or (_is_function(after) and not _is_sign(before)):
            space = Element(_name("mspace"), width="0.167em")
            row.insert(list(row).index(after), space)
        is_closed = before.text in {")", "]", "}", *BARS} and before.get("form") != "prefix"
        if after.text == "\u2212" and _is(before, "mo", "mspace") and not is_closed:
            after.set("form", "prefix")


def _is_function(node: Element) -> bool:
    while _is(node, *SCRIPTS):
        node = node[0]
    text = node.text or ""
    return _is(node, "mi", "mo") and len(text) > 1 and text.isalpha()


def _is_sign(node: Element) -> bool:
    """Whether it is no operand: a relation, a bracket that opens, a space."""
    return (_is(node, "mo") and not _is_function(node) and node.text != ")") or _is(node, "mspace")


def _is(node: Element, *names: str) -> bool:
    return node.tag in map(_name, names)


def _name(tag: str) -> str:
    return f"{{{SPACE}}}{tag}"


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(to_mathml(node.astext()))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    # Wide formulas scroll by themselves, so that a page on a phone does not.
    translator.body.append(f'<div style="overflow-x: auto">{to_mathml(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Make it known to Sphinx as ``html_math_renderer = "mathml"``."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
