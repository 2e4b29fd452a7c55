"""The server: ``python -m service [--models DIR_OR_FILE ...] [--port N]``."""

from __future__ import annotations

import argparse
import logging
import math
import socket
import sys
from pathlib import Path
from typing import NoReturn

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.artifact import ArtifactError
from service.settings import Settings, SettingsError, read_settings


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def main(argv: list[str]) -> int:
    """Serve until a signal. Wrong settings and artifacts end the start with one line and exit code 2."""
    parser = _Parser(prog="python -m service", description="Serve Glow artifacts over HTTP.")
    parser.add_argument(
        "--models", type=Path, nargs="+", metavar="DIR_OR_FILE", help="artifacts, instead of the embedded ones"
    )
    parser.add_argument("--host", help="address to listen on (GLOW_HOST)")
    parser.add_argument("--port", type=int, help="TCP port to listen on (GLOW_PORT)")
    try:
        given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
        settings = read_settings(**given)
        logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        listener = listen(settings)
        app = create_app(settings)
    except (SettingsError, ArtifactError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    serve(app, settings, listener)
    return 0


def listen(settings: Settings) -> socket.socket:
    """Take the port before the models are loaded. Raises SettingsError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}") from error


def serve(app: FastAPI, settings: Settings, listener: socket.socket) -> None:
    """Run uvicorn in this process until SIGINT or SIGTERM; requests in flight are answered first."""
    config = uvicorn.Config(
        app,
        log_level=settings.log_level,
        access_log=False,
        proxy_headers=False,  # nothing depends on the caller's address
        loop="uvloop",
        http="httptools",
        timeout_graceful_shutdown=math.ceil(settings.deadline_s),
    )
    address, port = listener.getsockname()[:2]
    logging.getLogger(__name__).info("listening on %s port %d", address, port)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
