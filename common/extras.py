"""What ``pip install glow-service`` alone leaves out; needs the standard library alone."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def require(extra: str, *modules: str) -> None:
    """End a command with one line and exit code 2 where one of the modules of an extra is not installed."""
    for module in modules:
        if find_spec(module) is None:
            install = f"pip install 'glow-service[{extra}]', or -e '.[{extra}]' in a checkout"
            print(f"error: this command needs {module}, which is not installed: {install}", file=sys.stderr)
            raise SystemExit(2)


def is_command(package: str) -> bool:
    """Whether ``python -m`` is on its way to a module of a package, which asks while it is imported.

    Until that module is found, ``sys.argv`` is "-m" and the module's arguments, before which its name was given.
    """
    return sys.argv[:1] == ["-m"] and f"{sys.orig_argv[-len(sys.argv)]}.".startswith(f"{package}.")
