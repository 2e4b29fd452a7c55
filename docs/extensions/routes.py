"""``{routes}``: what the service's own OpenAPI document says of each route, as sections of a page."""

import logging
import re
from functools import cache
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from service import openapi
from service.app import create_app
from service.codecs.json_body import MEDIA_TYPE as JSON
from service.settings import Settings

OIP = "/v2"  # the Open Inference Protocol
Described = dict[str, Any]
_MARKUP = re.compile(r"[|<*]")


class Routes(SphinxDirective):
    """A section for each route whose path begins with the argument, or for those of the service's own."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write Markdown and let the page's parser read it."""
        wanted = self.arguments[0] if self.arguments else None
        lines = [
            line
            for path, item in paths().items()
            if (path.startswith(wanted) if wanted else not path.startswith(OIP)) and "/versions/" not in path
            for method, operation in item.items()
            for line in section(method.upper(), path, operation)
        ]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


@cache
def paths() -> Described:
    """The routes as a service with keys describes them, without examples."""
    logging.getLogger("service").setLevel(logging.WARNING)
    document = openapi.document(create_app(Settings()), None, has_keys=True)
    found: Described = _inlined(document["paths"], document["components"]["schemas"])
    return found


def _inlined(value: Any, schemas: Described) -> Any:  # noqa: ANN401 (any JSON)
    """The same with schemas in place of references to them."""
    if isinstance(value, list):
        return [_inlined(one, schemas) for one in value]
    if not isinstance(value, dict):
        return value
    named = schemas[value["$ref"].rpartition("/")[2]] if "$ref" in value else {}
    return {key: _inlined(one, schemas) for key, one in {**named, **value}.items() if key != "$ref"}


def section(method: str, path: str, operation: Described) -> list[str]:
    """Lines of Markdown: what a route is asked, what it answers, and its errors."""
    lines = [f"## `{method} {path}`", "", operation["description"], ""]
    body = operation.get("requestBody", {}).get("content", {})
    fields = _members(body)
    options = {one["name"]: one for one in operation.get("parameters", []) if one["in"] == "query"}
    if body:
        lines += [f"**Body**: {_media(body)}.", ""]
    lines += _table(
        ("option", "type", "meaning"),
        [
            *((f"`{name}`", _kind(schema), _text(schema)) for name, schema in fields.items()),
            *((f"`{name}`", _kind(one["schema"]), _text(one)) for name, one in options.items() if name not in fields),
        ],
    )
    answer = operation["responses"]["200"]["content"]
    lines += [f"**Answer**: {_media(answer)}.", ""]
    lines += _table(
        ("member", "type", "meaning"),
        [(f"`{name}`", _kind(schema), _text(schema)) for name, schema in _members(answer).items()],
    )
    lines += _table(
        ("status", "code", "when"),
        [
            (f"`{status}`", f"`{response['content'][JSON]['example']['code']}`", _text(response))
            for status, response in operation["responses"].items()
            if status != "200"
        ],
    )
    return lines


def _members(content: Described) -> Described:
    """What the JSON of a body or an answer has, where it is one object."""
    members: Described = content.get(JSON, {}).get("schema", {}).get("properties", {})
    return members


def _media(content: Described) -> str:
    return ", ".join(f"`{name}`" for name in content)


def _kind(schema: Described) -> str:
    """The type of a value in a word or two."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"] if one.get("type") != "null"))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_kind(schema['items'])}" if schema.get("items") else "list"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _text(described: Described) -> str:
    """A description, as it may stand in a cell of a table."""
    return _MARKUP.sub(r"\\\g<0>", str(described.get("description", "")))


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows] if rows else []
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def setup(app: Sphinx) -> dict[str, Any]:
    """Make the directive known to Sphinx."""
    app.add_directive("routes", Routes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
