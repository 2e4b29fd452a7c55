"""OpenTelemetry: a span for each request, with what it waited for below it, and one for each pass of the engine.

A request continues the caller's trace (W3C ``traceparent``). A pass serves many requests, so that its span is in none
of their traces: it links to each of theirs, and theirs to it. Where spans go, and how many are kept, is told by the
standard variables ``OTEL_*``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette._utils import get_route_path
from starlette.types import Scope

from service.batcher import Answer, Pass

if TYPE_CHECKING:
    from service.engine import PassKey

SERVICE_NAME = "glow-service"
UNTRACED = (
    "/livez",
    "/readyz",
    "/metrics",
    "/v2/health/live",
    "/v2/health/ready",
)  # asked for all the time, by machines
_CLOSE_S = 5  # for what is not sent yet

_propagator = TraceContextTextMapPropagator()


class Tracer:
    """Makes spans and sends them from a thread of its own."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        named = Resource.create({"service.name": SERVICE_NAME})
        resource = named.merge(OTELResourceDetector().detect())  # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win
        self._processor = BatchSpanProcessor(exporter or OTLPSpanExporter())
        requests = TracerProvider(resource=resource, shutdown_on_exit=False)
        passes = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)  # made for requests that are sampled
        for provider in (requests, passes):
            provider.add_span_processor(self._processor)
        self.requests, self._passes = requests.get_tracer(SERVICE_NAME), passes.get_tracer(SERVICE_NAME)

    def begin(self, scope: Scope, method: str) -> Trace | None:
        """Begin the span of a request; None for one that is of no interest."""
        return None if get_route_path(scope) in UNTRACED else Trace(self.requests, scope, method)

    def passed(self, done: Pass[PassKey]) -> None:
        """Make the span of a pass, if one of its requests is sampled."""
        traces = [tag for tag in done.tags if isinstance(tag, Trace) and tag.context.trace_flags.sampled]
        if not traces:
            return
        begun = _epoch() + round(1e9 * done.started)
        span = self._passes.start_span(
            "batch",
            context=Context(),
            links=[Link(one.context) for one in traces],
            attributes={
                "glow.model": done.key.model.name,
                "glow.version": done.key.model.version,
                "glow.operation": done.key.operation,
                "glow.rows": done.num_rows,
                "glow.requests": done.num_requests,
            },
            start_time=begun,
        )
        span.end(begun + round(1e9 * done.seconds))
        for one in traces:
            one.passes.append(span.get_span_context())

    def flush(self) -> None:
        """Send what is not sent yet."""
        self._processor.force_flush()

    def close(self) -> None:
        """Send what is not sent yet, for a while, and end the thread."""
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)  # which waits half a minute by itself
        closing.start()
        closing.join(_CLOSE_S)


class Trace:
    """The span of a request and those below it; ``passes`` are the engine's for it."""

    def __init__(self, tracer: trace.Tracer, scope: Scope, method: str) -> None:
        self.passes: list[SpanContext] = []
        self._tracer = tracer
        self._method = method
        self._arrived = self._ended = time.perf_counter()  # of what has a span
        self._epoch = _epoch()  # once, so that spans keep their order whatever the clock does meanwhile
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        attributes: dict[str, Any] = {
            "http.request.method": method,
            "url.scheme": scope.get("scheme", "http"),
            "url.path": scope["path"],
            "network.protocol.version": scope.get("http_version", ""),
        }
        if scope.get("server"):
            attributes["server.address"], attributes["server.port"] = scope["server"]
        if "user-agent" in headers:
            attributes["user_agent.original"] = headers["user-agent"]
        self._span = tracer.start_span(
            method, _propagator.extract(headers), SpanKind.SERVER, attributes, start_time=self._at(self._arrived)
        )
        self.context = self._span.get_span_context()
        self.id = trace.format_trace_id(self.context.trace_id)

    def ran(self, answer: Answer) -> None:
        """Note that rows waited for the engine and went through it."""
        if not self._ended > self._arrived:
            self._below("read", self._arrived, answer.submitted)
        started = answer.submitted + answer.queue_s
        self._below("queue", answer.submitted, started)
        self._below("forward", started, started + answer.compute_s, [Link(context) for context in self.passes])
        self.passes = []

    def end(
        self, route: str, status: int, code: str, model: str, num_rows: int, num_bytes: int, runs_model: bool
    ) -> None:
        """End it, with what the request turned out to be."""
        if runs_model:
            now = time.perf_counter()
            self._below("encode" if self._ended > self._arrived else "read", self._ended, now)
        span = self._span
        span.update_name(f"{self._method} {route}".strip())
        span.set_attributes({"http.response.status_code": status, "http.request.body.size": num_bytes})
        if route:
            span.set_attribute("http.route", route)
        if model:
            span.set_attributes({"glow.model": model, "glow.rows": num_rows})
        if code:
            span.set_attribute("error.type", code)
        if status >= 500 or not status:
            span.set_status(Status(StatusCode.ERROR))
        span.end(self._at(time.perf_counter()))

    def _below(self, name: str, begun: float, ended: float, links: Sequence[Link] = ()) -> None:
        self._ended = ended
        if self._span.is_recording():
            parent = trace.set_span_in_context(self._span)
            span = self._tracer.start_span(name, parent, links=links, start_time=self._at(begun))
            span.end(self._at(ended))

    def _at(self, seconds: float) -> int:
        """Of time.perf_counter, to nanoseconds since 1970."""
        return self._epoch + round(1e9 * seconds)


def _epoch() -> int:
    """Nanoseconds from 1970 to the zero of time.perf_counter, by the clock as it is now."""
    return time.time_ns() - time.perf_counter_ns()
