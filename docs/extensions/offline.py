"""A page that loads anything from elsewhere is a warning, which ends a strict build. Links that readers follow may."""

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

_FROM_ELSEWHERE = re.compile(r"""<(?!a\b)[a-z][^>]*\b(?:src|href|data)\s*=\s*["']?(?:https?:)?//[^>]*>""")
_STYLE_FROM_ELSEWHERE = re.compile(r"""(?:@import\s*["']|url\(\s*["']?)(?:https?:)?//[^)"';]*""")

logger = logging.getLogger(__name__)


def _look(app: Sphinx, error: Exception | None) -> None:
    for suffix, pattern in ((".html", _FROM_ELSEWHERE), (".css", _STYLE_FROM_ELSEWHERE)):
        for path in Path(app.outdir).rglob(f"*{suffix}"):
            for found in pattern.findall(path.read_text()):
                logger.warning("%s loads from elsewhere: %s", path, found)


def setup(app: Sphinx) -> dict[str, Any]:
    """Look at all that was written."""
    app.connect("build-finished", _look)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
