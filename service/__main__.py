"""The server: ``python -m service [--models DIR_OR_FILE ...] [--port N]``."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

from service.app import create_app
from service.artifact import ArtifactError
from service.cli import Parser, UsageError
from service.settings import SettingsError, read_settings
from service.workers import begin_logs, serve, serve_with_workers, taken_port

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Serve until a signal. Wrong settings and artifacts end the start with one line and exit code 2."""
    parser = Parser(
        "python -m service", "Serve Glow artifacts over HTTP.", "python -m service --models my-table.pt --port 9000"
    )
    parser.add_argument(
        "--models", type=Path, nargs="+", metavar="DIR_OR_FILE", help="artifacts, instead of the embedded ones"
    )
    parser.add_argument("--host", help="address to listen on (GLOW_HOST)")
    parser.add_argument("--port", type=int, help="TCP port to listen on (GLOW_PORT)")
    parser.add_argument("--workers", type=int, help="processes that share the port (GLOW_WORKERS)")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    try:
        given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
        settings = read_settings(**given)
        begin_logs(settings)
        with taken_port(settings) as bound:
            # Which checks the artifacts, also for workers, who make their own.
            app = create_app(settings, load_first=settings.workers > 1)
            logger.info("serving on %s port %d, %d workers", *bound.getsockname()[:2], settings.workers)
            if settings.workers == 1:
                return 0 if serve(app, settings, bound) else 2
            del app
            return 0 if serve_with_workers(settings, bound, given) else 1
    except (SettingsError, ArtifactError, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
