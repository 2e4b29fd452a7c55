"""Which of our code a target reaches, as far as imports tell."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("common", "model", "service")  # what is fuzzed


def digest_of(module: str) -> str:
    """Digest of those modules of PACKAGES that a module imports, directly or through others of ours."""
    found: set[Path] = set()
    left = [*_files(module)]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += [file for name in _imports(path) for file in _files(name)]
    digest = hashlib.sha256()
    for path in sorted(found):
        if path.relative_to(ROOT).parts[0] in PACKAGES:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files(name: str) -> Iterator[Path]:
    """Files that importing a name runs, those of ours."""
    parts = name.split(".")
    if parts[0] in (*PACKAGES, "reliability"):
        for end in range(1, len(parts) + 1):
            folder = ROOT.joinpath(*parts[:end])
            yield from (path for path in (folder / "__init__.py", folder.with_suffix(".py")) if path.is_file())
