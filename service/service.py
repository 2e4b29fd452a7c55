"""The service from start to end: loading, ready, reloading, draining; what /livez and /readyz tell of it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from service.access import Access, read_access
from service.artifact import ArtifactError
from service.catalog import Catalog, open_catalog, read_catalog
from service.engine import Engine
from service.errors import ReloadRefused, Stuck, Unavailable
from service.flows import Flows
from service.levels import check_settings
from service.metrics import Metrics
from service.peers import Peers, Workers
from service.room import BodyRoom
from service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from service.tracing import Tracer

_TRACES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOL = "http/protobuf"

logger = logging.getLogger(__name__)


class Service:
    """Keys, models and their engine, of one process. ``start``, ``reload`` any time, ``close``.

    Raises ArtifactError where the settings name an artifact that cannot be served, and SettingsError for wrong keys, or
    where traces are wanted that cannot be made.
    """

    def __init__(self, settings: Settings, peers: Peers | None = None) -> None:
        self.settings = settings
        self._make_tracer = tracer_type()
        self.tracer: Tracer | None = None
        self.metrics = Metrics()
        self.metrics.service = self
        self.access: Access = read_access(settings.api_keys_file)
        self.room = BodyRoom(settings.max_bodies_bytes)
        self.draining = False
        self._closed = False
        self.engine = Engine(settings)
        self._catalog: Catalog = open_catalog(self.engine)
        check_settings(settings, self._catalog)
        self._flows: Flows | None = None
        self._reloading = asyncio.Lock()
        self._has_flows = asyncio.Event()
        self._peers = peers or Workers()

    @property
    def flows(self) -> Flows:
        """The served models. Raises Unavailable before they are warm and after they have stopped."""
        if self._flows is None:
            why = "has stopped" if self._closed else "is starting: how its models run fastest is being measured"
            raise Unavailable(f"the service {why}")
        return self._flows

    @property
    def is_ready(self) -> bool:
        """Whether ``check_ready`` raises nothing."""
        try:
            self.check_ready()
        except Unavailable:
            return False
        return True

    @property
    def has_started(self) -> bool:
        """Whether models were ready at any time."""
        return self._flows is not None or self._closed

    @property
    def loaded(self) -> Catalog:
        """What is, or is to be, served."""
        return self._catalog

    @property
    def catalog(self) -> Catalog | None:
        """What is served; None where ``flows`` are not there."""
        return None if self._flows is None else self._flows.catalog

    async def start(self) -> None:
        """Warm the models up. Raises ArtifactError for one that does not answer rightly here."""
        begun = time.monotonic()
        if self._make_tracer is not None:
            self.tracer = self._make_tracer()
        flows = Flows(self.settings, self._catalog, self.metrics, self.tracer)
        await flows.start()
        self._flows, self._closed = flows, False
        self._announce()
        logger.info("ready after %.1f s", time.monotonic() - begun)
        self._has_flows.set()

    async def close(self) -> None:
        """Finish queued work and stop the engine."""
        if self._flows is not None:
            flows, self._flows, self._closed = self._flows, None, True
            self._has_flows.clear()
            await flows.close()
        if self.tracer is not None:
            tracer, self.tracer = self.tracer, None
            await asyncio.to_thread(tracer.close)

    async def reload(self) -> dict[str, Any]:
        """Read keys and artifacts anew and exchange all that changed, or nothing; tells what is served now.

        One reload follows the other, the first when models are warm. Raises ReloadRefused.
        """
        await self._has_flows.wait()
        async with self._reloading:
            flows = self.flows
            before = flows.catalog
            try:
                access = read_access(self.settings.api_keys_file, self.access)
                catalog = await asyncio.to_thread(read_catalog, self.engine, before)
                await flows.replace(catalog)
            except (ArtifactError, SettingsError) as error:
                self._peers.announce("")
                logger.error("reload refused: %s", error)
                raise ReloadRefused(f"{error}; what was served is served on") from error
            except Exception as error:  # no memory, for one
                self._peers.announce("")
                logger.exception("reload failed")
                raise ReloadRefused("it failed, as the log tells; what was served is served on") from error
            finally:
                gc.collect()  # models hold cycles, and else collections are rare
            self.access, self._catalog = access, catalog
            self._announce()
            old = {model.digest for model in before.models}
            loaded = [model.reference for model in catalog.models if model.digest not in old]
            logger.info("reloaded: %d of %d models are new", len(loaded), len(catalog.models))
            del before
            gc.collect()
            return {"status": "ok", "loaded": loaded, "models": [model.reference for model in catalog.models]}

    async def reload_all(self) -> dict[str, Any]:
        """Reload, and have the other workers of this host do so; waits until all of them serve the same.

        Raises ReloadRefused, here, where another worker refuses, or where one does not follow in ``deadline_s``, and
        Unavailable before models are warm.
        """
        _ = self.flows
        if self._reloading.locked():
            raise ReloadRefused("another reload is under way")
        answer = await self.reload()
        num_workers = await self._peers.bring_along(self.settings.deadline_s)
        return answer if num_workers is None else {**answer, "workers": num_workers}

    def _announce(self) -> None:
        files = [f"{path} {model.digest}" for path, model in sorted(self._catalog.files.items())]
        self._peers.announce("\n".join([self.access.fingerprint, *files]))

    def check_ready(self) -> None:
        """Raise Unavailable unless every model is warm, the engine makes progress, and the end has not begun."""
        if self.draining:
            raise Unavailable("the service is about to stop")
        _ = self.flows
        self.check_alive()

    def check_alive(self) -> None:
        """Raise Stuck where the engine has been at one pass for longer than ``stall_s``, or has ended by itself."""
        if self._flows is None:
            return
        if self._flows.busy_s > self.settings.stall_s:
            raise Stuck(f"the engine has been at one pass for {self._flows.busy_s:.0f} s (GLOW_STALL_S)")
        if self._flows.has_stopped:
            raise Stuck("the engine has ended")

    @property
    def is_stuck(self) -> bool:
        """Whether ``check_alive`` raises, or the event loop has turned to nothing for as long."""
        try:
            self.check_alive()
        except Stuck:
            return True
        return time.perf_counter() - self.metrics.sampled_at > self.settings.stall_s


def tracer_type() -> type[Tracer] | None:
    """What makes traces, if an endpoint for them is set. Raises SettingsError where it cannot be imported or used."""
    endpoint = next((name for name in _TRACES if os.environ.get(name)), None)
    if endpoint is None or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if os.environ.get(name, _PROTOCOL) != _PROTOCOL:
            raise SettingsError(f"{name}: traces are sent by {_PROTOCOL} alone, got {os.environ[name]!r}")
    try:
        from service.tracing import Tracer
    except ModuleNotFoundError as error:
        raise SettingsError(f"{endpoint}: traces need pip install 'glow-service[otel]' ({error})") from None
    return Tracer
