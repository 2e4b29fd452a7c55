"""Mutations of JSON that leave it JSON, wherever in some bytes it stands."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 64, 2**31, 2**53, 2**63, 2**64 - 1, -(2**63), 10**30, 0.5, -0.0, 1e308, 5e-324),
    *("", "a", "0", "all", "\0", "é", "[[", [], {}, [[]], [0, 1], {"a": 1}),
]


def mutate(data: bytes, random: Random) -> bytes:
    """Change something in the first JSON object that bytes hold; the same bytes where they hold none."""
    text = data.decode("latin-1")
    start = text.find("{")
    while start >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
            continue
        changed = json.dumps(_changed(value, random), separators=random.choice([(",", ":"), (", ", ": ")]))
        return data[:start] + changed.encode("latin-1", "replace") + data[end:]
    return data


def _changed(value: Any, random: Random) -> Any:  # noqa: ANN401 (any JSON)
    """The same tree, but for one node, which is left out, said twice, wrapped, or another."""
    places = [
        (value, key) for value in _nodes(value) for key in (value if isinstance(value, dict) else range(len(value)))
    ]
    if not places:
        return random.choice(_VALUES)
    parent, key = random.choice(places)
    other = random.choice(
        [copy.deepcopy(node[at]) for node, at in random.choices(places, k=2)] + random.choices(_VALUES, k=3)
    )
    kind = random.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1:
        parent[key] = [parent[key]]
    elif kind == 2 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    elif kind == 3 and isinstance(parent, dict):
        parent[random.choice([str(at) for _, at in places])] = other
    else:
        parent[key] = other
    return value


def _nodes(value: Any) -> list[Any]:  # noqa: ANN401 (any JSON)
    """Lists and objects of a tree, itself among them."""
    found, level = [], [value]
    while level:
        level = [node for node in level if isinstance(node, list | dict)]
        found += level
        level = [inner for node in level for inner in (node.values() if isinstance(node, dict) else node)]
    return found
