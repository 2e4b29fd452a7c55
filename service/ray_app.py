"""The same application on Ray Serve: replicas on many machines behind its proxies.

``python -m service.ray_app`` starts Ray, or joins a cluster, and serves until a signal; ``serve run
service.ray_app:build max_replicas=8`` and a Serve configuration deploy the same to a cluster (docs/ray.md).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, HTTPOptions
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.cli import DONE, INTERRUPTED, WRONG_USE, Parser, listing, note, run_command
from common.errors import line_of
from service import ray_environment
from service.app import create_app
from service.errors import ReloadRefused
from service.peers import Peers
from service.ray_metrics import tell_ray
from service.settings import Settings, SettingsError, read_settings
from service.workers import begin_logs

APPLICATION = "glow"  # of Ray Serve, and of its only deployment
ANYWHERE = "0.0.0.0"  # nosec B104 # noqa: S104 (where Ray listens unless it is told)
_MAX_ONGOING = 4096  # requests of a replica: more than its own queue takes, so that what it says of it is what counts
_SPARE_S = 10.0  # that Ray leaves a request, or a replica that ends, beyond our own deadline

logger = logging.getLogger(__name__)


class Options(BaseModel):
    """How Ray runs replicas, each with an engine and a batcher of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(1, ge=1, description="Replicas, at least.")
    max_replicas: int = Field(4, ge=1, description="Replicas, at most.")
    target_ongoing_requests: float = Field(
        16, gt=0, description="Requests under way, on average a replica, that more replicas are started to keep."
    )
    upscale_delay_s: float = Field(10, ge=0, description="Seconds of more than that before replicas are started.")
    downscale_delay_s: float = Field(300, ge=0, description="Seconds of less than that before replicas are ended.")
    num_cpus: float = Field(1, gt=0, description="Cores of a replica, and threads of its engine.")
    num_gpus: float = Field(0, ge=0, description="GPUs of a replica; 0.25 lets four share one.")

    @model_validator(mode="after")
    def _consistent(self) -> Options:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) must be at least min_replicas ({self.min_replicas})")
        return self


def build(options: Options | dict[str, Any]) -> serve.Application:
    """The application, for ``serve run`` and Serve configurations. Settings are the environment's, as of the server.

    Where Ray listens is not seen from here: unless GLOW_HOST says so, it is taken for a public address, which needs
    GLOW_API_KEYS_FILE or GLOW_ALLOW_ANONYMOUS. Raises SettingsError, and ValidationError of options.
    """
    chosen = Options.model_validate(options)  # Ray gives what it was given: it looks for no annotation in quotes
    return application(chosen, read_settings(**({} if "GLOW_HOST" in os.environ else {"host": ANYWHERE})))


def application(options: Options, settings: Settings) -> serve.Application:
    """The application with such settings, which its replicas read anew. Raises SettingsError."""
    if settings.workers > 1:
        raise SettingsError(f"GLOW_WORKERS: replicas are processes of Ray; must be 1, got {settings.workers}")
    said = {"threads": max(1, int(options.num_cpus)), **settings.model_dump(exclude_unset=True)}
    deployment = serve.deployment(
        name=APPLICATION,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        max_ongoing_requests=_MAX_ONGOING,
        autoscaling_config=AutoscalingConfig(
            min_replicas=options.min_replicas,
            max_replicas=options.max_replicas,
            target_ongoing_requests=options.target_ongoing_requests,
            upscale_delay_s=options.upscale_delay_s,
            downscale_delay_s=options.downscale_delay_s,
        ),
        health_check_period_s=5,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=1,
        graceful_shutdown_timeout_s=settings.deadline_s + _SPARE_S,
    )
    return deployment(serve.ingress()(_Replica)).bind(said)


class _Replica:
    """One process of the service; Ray Serve builds its application in it, and runs that."""

    def __init__(self, said: dict[str, Any]) -> None:
        settings = read_settings(**said)
        begin_logs(settings)
        self._app = create_app(settings, peers=_Replicas())
        self._service = self._app.state.service
        self._telling = asyncio.create_task(tell_ray(self._service.metrics))

    def __serve_build_asgi_app__(self) -> FastAPI:
        self._app.middleware_stack = without_request_id(cast(ASGIApp, self._app.middleware_stack))
        return self._app

    async def check_health(self) -> None:
        """Raise Stuck as /livez does; Ray then starts another replica in this one's place."""
        self._service.check_alive()

    async def reload(self) -> dict[str, Any]:
        """As /admin/reload, of this replica alone."""
        answer: dict[str, Any] = await self._service.reload()
        return answer


def without_request_id(app: ASGIApp) -> ASGIApp:
    """The same application, but that Ray puts the id on the answer, as it does anyway."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        async def pass_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [header for header in message["headers"] if header[0] != b"x-request-id"]
            await send(message)

        await app(scope, receive, pass_on)

    return run


class _Replicas(Peers):
    """The replicas of the deployment that this process is one of."""

    async def bring_along(self, seconds: float) -> int | None:
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        answers: list[Any] = []
        with suppress(TimeoutError):
            answers = await handle.broadcast("reload").results_async(timeout_s=seconds, return_exceptions=True)
        if not answers or any(isinstance(answer, BaseException) for answer in answers):
            raise ReloadRefused("not all replicas have followed; their log tells why")
        if len({tuple(answer["models"]) for answer in answers}) != 1:
            raise ReloadRefused("replicas have found different artifacts; they must be the same on every node")
        return len(answers)


@contextmanager
def running(options: Options, settings: Settings, address: str | None = None) -> Iterator[str]:
    """Deploy the service and give its address, until the end of the block, which answers what it has taken.

    ``address`` of a cluster to join: as Ray takes it, ``auto`` for the one on this machine; None starts Ray here, and
    ends it. Raises SettingsError.
    """
    deployed = application(options, settings)
    started = not ray.is_initialized()
    if started:
        ray_environment.tell(ray_environment.SERVING)
        ray.init(address=address or "local", include_dashboard=False, log_to_driver=True)
    try:
        with suppress(RayActorError):  # of a proxy that was slow to start: Ray starts another
            serve.start(
                proxy_location="EveryNode",
                http_options=HTTPOptions(
                    host=settings.host,
                    port=settings.port,
                    request_timeout_s=settings.deadline_s + _SPARE_S,
                    keep_alive_timeout_s=settings.keep_alive_s,
                ),
            )
        serve.run(deployed, name=APPLICATION, route_prefix="/")
        yield f"http://{settings.host}:{settings.port}"
    finally:
        serve.delete(APPLICATION)
        if started and address is None:
            serve.shutdown()  # type: ignore[no-untyped-call]
        if started:
            ray.shutdown()


def parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        "python -m service.ray_app",
        "Serve artifacts from many processes and machines by Ray Serve: what python -m service serves from one. Starts "
        "Ray on this machine, or joins a cluster, and takes the service down again when it ends.",
        examples=[
            "python -m service.ray_app --max-replicas 2",
            "python -m service.ray_app --address auto --min-replicas 2 --max-replicas 16 --num-gpus 0.25",
        ],
        codes=(DONE, WRONG_USE, INTERRUPTED),
    )
    parser.add_argument("--models", type=Path, nargs="+", metavar="DIR_OR_FILE", help="as of python -m service")
    parser.add_argument("--host", help="address that every node listens on (GLOW_HOST; default: 127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="N", help="TCP port (GLOW_PORT; default: 8000)")
    parser.add_argument(
        "--address", metavar="ADDRESS", help="cluster to join, as RAY_ADDRESS (default: start Ray here)"
    )
    for name, field in Options.model_fields.items():
        kind = int if field.annotation is int else float
        text = f"{(field.description or '')[:-1].lower()} (default: {field.default:g})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=text)
    return parser


def main(argv: list[str]) -> None:
    """Serve until a signal. Wrong settings and artifacts end the start with one line and exit code 2."""
    given = {name: value for name, value in vars(parser().parse_args(argv)).items() if value is not None}
    address = given.pop("address", os.environ.get("RAY_ADDRESS"))
    try:
        options = Options(**{name: given.pop(name) for name in [*given] if name in Options.model_fields})
    except ValidationError as error:
        raise SettingsError(line_of(error.errors()[0], lambda name: f"--{name.replace('_', '-')}")) from None
    settings = read_settings(**given)
    create_app(settings)  # which checks the artifacts
    with suppress(KeyboardInterrupt, SystemExit), running(options, settings, address) as url:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own, which exits, prints a trace
        note(f"Glow service on Ray\n{listing({'API': f'{url}/docs', 'stop it': 'Ctrl-C'})}")
        while True:
            signal.pause()


if __name__ == "__main__":
    run_command(main)
