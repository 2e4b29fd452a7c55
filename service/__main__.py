"""The server: ``python -m service [--models DIR_OR_FILE ...] [--port N]``."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.artifact import ArtifactError
from service.settings import Settings, SettingsError, read_settings


def main(argv: list[str]) -> int:
    """Serve until a signal. Wrong settings and artifacts end the start with one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m service", description="Serve Glow artifacts over HTTP.")
    parser.add_argument(
        "--models", type=Path, nargs="+", metavar="DIR_OR_FILE", help="artifacts, instead of the embedded ones"
    )
    parser.add_argument("--host", help="address to listen on (GLOW_HOST)")
    parser.add_argument("--port", type=int, help="TCP port to listen on (GLOW_PORT)")
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    try:
        settings = read_settings(**given)
        logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        app = create_app(settings)
    except (SettingsError, ArtifactError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return serve(app, settings)


def serve(app: FastAPI, settings: Settings) -> int:
    """Run uvicorn in this process until SIGINT or SIGTERM; requests in flight are answered first."""
    config = uvicorn.Config(
        app, settings.host, settings.port, log_level=settings.log_level, access_log=False, timeout_graceful_shutdown=30
    )
    server = uvicorn.Server(config)
    server.run()
    return 0 if server.started else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
