"""Traces: a span a request with its parts below it, one a pass with links to its requests, sent by OTLP."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from service.app import create_app
from service.service import tracer_type
from service.settings import Settings, SettingsError
from service.tracing import Tracer
from tests.test_access_log import TRACE
from tests.wire import TABLE

ROW = {"model": TABLE, "inputs": [[0.5, 1010.25, 3.0]]}
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Spans:
    """What was sent."""

    def __init__(self, tracer: Tracer, exporter: InMemorySpanExporter) -> None:
        self._tracer, self._exporter = tracer, exporter

    def take(self) -> dict[str, ReadableSpan]:
        """Spans since the last look, by name."""
        self._tracer.flush()
        spans = self._exporter.get_finished_spans()
        self._exporter.clear()
        return {span.name: span for span in spans}


@pytest_asyncio.fixture
async def spans(app: FastAPI) -> AsyncIterator[Spans]:
    exporter = InMemorySpanExporter()
    tracer = Tracer(exporter)
    service = app.state.service
    service.tracer = service.flows.tracer = tracer
    yield Spans(tracer, exporter)
    service.tracer = service.flows.tracer = None
    tracer.close()


async def test_a_request_continues_the_callers_trace_and_has_its_parts_below_it(
    client: httpx.AsyncClient, spans: Spans
) -> None:
    parent = "00f067aa0ba902b7"
    await client.post("/log-likelihood?alpha=0.1", json=ROW, headers={"traceparent": f"00-{TRACE}-{parent}-01"})
    found = spans.take()
    assert found.keys() == {"POST /log-likelihood", "read", "queue", "forward", "encode", "batch"}
    request = found["POST /log-likelihood"]
    assert request.kind is SpanKind.SERVER
    assert request.parent is not None
    assert format_trace_id(request.context.trace_id) == TRACE
    assert format_span_id(request.parent.span_id) == parent
    assert request.attributes is not None
    told = dict(request.attributes)
    assert told["http.request.method"] == "POST"
    assert told["http.route"] == told["url.path"] == "/log-likelihood"
    assert told["http.response.status_code"] == 200
    assert (told["glow.model"], told["glow.rows"]) == (TABLE, 1)
    assert "error.type" not in told
    assert not any("1010.25" in str(value) or "alpha" in str(value) for value in told.values())
    ends = [request.start_time]
    for name in ("read", "queue", "forward", "encode"):
        part = found[name]
        assert part.parent is not None
        assert part.parent.span_id == request.context.span_id
        ends += [part.start_time, part.end_time]
    times = [time for time in (*ends, request.end_time) if time is not None]
    assert all(later >= earlier - 1000 for earlier, later in pairwise(times)), times  # of float seconds: 1 us


async def test_a_pass_and_the_requests_in_it_are_linked(client: httpx.AsyncClient, spans: Spans) -> None:
    await asyncio.gather(*(client.post("/encode", json=ROW) for _ in range(5)))
    exported = spans._exporter
    spans._tracer.flush()
    everything = exported.get_finished_spans()
    exported.clear()
    requests = {span.context.span_id for span in everything if span.kind is SpanKind.SERVER}
    passes = [span for span in everything if span.name == "batch"]
    linked = [link.context.span_id for span in passes for link in span.links]
    assert len(requests) == 5
    assert sorted(linked) == sorted(requests)
    assert all(span.parent is None for span in passes)
    forward = [span for span in everything if span.name == "forward"]
    assert {link.context.span_id for span in forward for link in span.links} == {one.context.span_id for one in passes}
    assert sum(int(str((span.attributes or {})["glow.requests"])) for span in passes) == 5


async def test_errors_and_other_routes_are_told_by_their_routes(client: httpx.AsyncClient, spans: Spans) -> None:
    await client.get("/livez")
    await client.get("/models/secret?x=1")
    await client.post("/encode", content=b"{")
    found = spans.take()
    assert found.keys() == {"GET /models/{name}", "POST /encode", "read"}
    for name, status, code in (
        ("GET /models/{name}", 404, "model_not_found"),
        ("POST /encode", 400, "bad_request"),
    ):
        attributes = found[name].attributes
        assert attributes is not None
        assert (attributes["http.response.status_code"], attributes["error.type"]) == (status, code)
        assert found[name].status.status_code is not StatusCode.ERROR  # it is the caller's


async def test_a_defect_of_ours_is_an_error(
    app: FastAPI, client: httpx.AsyncClient, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(app.state.service.flows._batcher, "_run", fail)
    await client.post("/encode", json=ROW)
    request = spans.take()["POST /encode"]
    assert request.status.status_code is StatusCode.ERROR
    assert (request.attributes or {})["error.type"] == "internal_error"


async def test_what_the_caller_does_not_sample_is_not_sent(client: httpx.AsyncClient, spans: Spans) -> None:
    await client.post("/encode", json=ROW, headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-00"})
    assert spans.take() == {}


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """A collector of traces that keeps what it is sent: path, media type and body."""
    received: list[tuple[str, str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, self.headers["content-type"], body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    thread.join()
    server.server_close()


async def test_traces_reach_the_collector_that_the_environment_names(
    collector: tuple[str, list[tuple[str, str, bytes]]], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, received = collector
    monkeypatch.setenv(ENDPOINT, url)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        assert (await client.post("/encode", json=ROW)).status_code == 200
    path, media_type, body = received[0]
    assert (path, media_type) == ("/v1/traces", "application/x-protobuf")
    sent = ExportTraceServiceRequest.FromString(body)
    names = {span.name for of in sent.resource_spans for scope in of.scope_spans for span in scope.spans}
    assert {"POST /encode", "batch"} <= names
    resource = {item.key: item.value.string_value for item in sent.resource_spans[0].resource.attributes}
    assert resource["service.name"] == "glow-service"
    assert resource["deployment.environment.name"] == "test"


def test_traces_that_cannot_be_made_refuse_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracer_type() is None
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4318")
    assert tracer_type() is Tracer
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(SettingsError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL: .* http/protobuf alone, got 'grpc'"):
        tracer_type()
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL")
    monkeypatch.delitem(sys.modules, "service.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT: traces need pip install .*\[otel\]"):
        tracer_type()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracer_type() is None


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    code = "import sys, service.app; sys.exit('opentelemetry.sdk' in sys.modules or 'service.tracing' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
