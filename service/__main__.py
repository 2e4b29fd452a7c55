"""The server: ``python -m service [--models DIR_OR_FILE ...] [--port N]``."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from importlib.metadata import version
from pathlib import Path

from common.cli import DONE, FAILED, INTERRUPTED, WRONG_USE, Parser, listing, note, run_command
from service.app import create_app
from service.service import Service
from service.settings import is_loopback, read_settings
from service.workers import begin_logs, serve, serve_with_workers, taken_port

logger = logging.getLogger(__name__)


def parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        "python -m service",
        "Serve artifacts over HTTP: likelihoods and anomaly scores, samples, latent codes. Every setting is a variable "
        "GLOW_... of the environment (docs/settings.md lists them); the options here stand above it.",
        examples=[
            "python -m service",
            "python -m service --models my-table.pt --port 9000",
            "python -m service --models models/ service/artifacts/fashion-mnist.pt --workers 4",
            "GLOW_ALLOW_ANONYMOUS=true python -m service --host 0.0.0.0",
        ],
        codes=(DONE, FAILED, WRONG_USE, INTERRUPTED),
    )
    parser.add_argument(
        "--models",
        type=Path,
        nargs="+",
        metavar="DIR_OR_FILE",
        help="artifacts, or folders of them (GLOW_MODELS; default: the two that it carries)",
    )
    parser.add_argument("--host", help="address to listen on (GLOW_HOST; default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, metavar="N", help="TCP port to listen on, 0 for a free one (GLOW_PORT; default: 8000)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that share the port (GLOW_WORKERS; default: 1)"
    )
    return parser


def main(argv: list[str]) -> None:
    """Serve until a signal. Wrong settings and artifacts end the start with one line and exit code 2."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    given = {name: value for name, value in vars(parser().parse_args(argv)).items() if value is not None}
    settings = read_settings(**given)
    begin_logs(settings)
    with taken_port(settings) as bound:
        # Which checks the artifacts, also for workers, who make their own.
        app = create_app(settings, load_first=settings.workers > 1)
        _announce(app.state.service, bound)
        if settings.workers == 1:
            has_served = serve(app, settings, bound)
        else:
            del app
            has_served = serve_with_workers(settings, bound, given)
    if not has_served:
        raise SystemExit(WRONG_USE)  # the log tells which model could not be served


def _announce(service: Service, bound: socket.socket) -> None:
    """Say what is served and where: on a terminal as somebody reads it who has just started it, else in the log."""
    host, port = bound.getsockname()[:2]
    workers = service.settings.workers
    if not sys.stderr.isatty():
        logger.info("serving on %s port %d, %d worker%s", host, port, workers, "s" * (workers > 1))
        return
    if is_loopback(host) or not host.strip("0.:"):  # 0.0.0.0 or ::
        host = "localhost"
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    models = service.loaded
    engine = service.engine
    facts = {
        "playground": f"{url}/",
        "API": f"{url}/docs",
        "models": ", ".join(f"{model.name}{' (default)' * (model is models.default)}" for model in models.models),
        "runs on": f"{engine.device}, {engine.threads} threads, {workers} process{'es' * (workers > 1)}",
        "stop it": "Ctrl-C",
    }
    note(f"Glow service {version('glow-service')}\n{listing(facts)}")


if __name__ == "__main__":
    run_command(main)
