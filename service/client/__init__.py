"""The Python client of the service: ``GlowClient``, and ``AsyncGlowClient`` for event loops; httpx and NumPy alone.

``calls`` says what is asked and ``steps`` how often, as generators of steps, which the two classes here do; ``tensors``
and ``rows`` are the arrays and data frames on the way, ``answers`` what comes of a call, ``errors`` what may go wrong.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Callable, Coroutine
from functools import wraps
from itertools import islice
from queue import SimpleQueue
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import httpx

from service.client.answers import Codes as Codes
from service.client.answers import Outputs as Outputs
from service.client.answers import Samples as Samples
from service.client.answers import Scores as Scores
from service.client.calls import Calls
from service.client.errors import Busy as Busy
from service.client.errors import ConnectionFailed as ConnectionFailed
from service.client.errors import DeadlineExceeded as DeadlineExceeded
from service.client.errors import Forbidden as Forbidden
from service.client.errors import GlowError as GlowError
from service.client.errors import InvalidRequest as InvalidRequest
from service.client.errors import NotFound as NotFound
from service.client.errors import NotNow as NotNow
from service.client.errors import ServiceFailed as ServiceFailed
from service.client.errors import TooLarge as TooLarge
from service.client.errors import Unauthorized as Unauthorized
from service.client.errors import Unavailable as Unavailable
from service.client.errors import VersionGone as VersionGone
from service.client.steps import Answer, Asking, Pause, Send, Steps, Together

CONNECT_S, SILENCE_S = 10.0, 300.0  # that a connection may take and be silent: longer than a service computes

Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
P = ParamSpec("P")
T = TypeVar("T")


class _Client(Generic[Http]):
    """What both clients are: calls, and httpx."""

    _http: Http

    def __init__(
        self,
        service: str | Http = "http://localhost:8000",
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float | None = None,
        retries: int | None = 4,
        concurrency: int = 4,
        max_rows: int = 4096,
        max_bytes: int = 2**23,
    ) -> None:
        headers = {}
        if api_key is not None:
            if not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
                raise InvalidRequest("api_key must be printable ASCII without spaces around it")
            headers["authorization"] = f"Bearer {api_key}"
        self._calls = Calls(
            Asking(retries, headers),
            model=model,
            timeout=timeout,
            concurrency=concurrency,
            max_rows=max_rows,
            max_bytes=max_bytes,
        )
        self._ending = threading.Event()
        self._groups: set[threading.Event] = set()  # of what threads of ours do for calls
        self._owns_http = isinstance(service, str)
        try:
            self._http = self._connect(service) if isinstance(service, str) else service
        except httpx.InvalidURL as error:
            raise InvalidRequest(f"the address of a service must be a URL: {error}") from error
        if self._http.base_url.scheme not in ("http", "https") or not self._http.base_url.host:
            raise InvalidRequest(
                f"the address of a service must begin with http:// or https:// and its host, got {self.address!r}"
            )

    @property
    def address(self) -> str:
        """Where the service is, without a password that may be part of it."""
        url = self._http.base_url
        return f"{url.scheme}://{url.netloc.decode()}{url.path}".rstrip("/")

    def __repr__(self) -> str:
        model = self._calls.model_name
        return f"{type(self).__name__}({self.address!r}{'' if model is None else f', model={model!r}'})"

    def _connect(self, address: str) -> Http:
        raise NotImplementedError

    def _refuse_closed(self, is_closed: bool) -> None:
        if is_closed or self._http.is_closed:
            raise ConnectionFailed(f"{self.address}: the client is closed", "closed")

    def _request(self, send: Send) -> dict[str, Any]:
        """What httpx is to be told of a request."""
        about: dict[str, Any] = {
            "method": send.method,
            "url": send.path,
            "content": send.content,
            "headers": send.headers,
        }
        left_s = send.deadline.left_s
        if left_s < math.inf:  # else as the client of httpx has it
            own = self._http.timeout.as_dict().items()
            about["timeout"] = httpx.Timeout(**{name: left_s if s is None else min(left_s, s) for name, s in own})
        return about

    def _failure(self, error: httpx.HTTPError | str) -> ConnectionFailed:
        return ConnectionFailed(f"{self.address}: {str(error) or type(error).__name__}")


_DEFAULTS: dict[str, Any] = {
    "timeout": httpx.Timeout(SILENCE_S, connect=CONNECT_S),
    "limits": httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=30.0),
}


def _of_call(method: Callable[..., Any], call: T, owner: str) -> T:
    """Give a method of ``owner`` the signature and docstring of what it calls, whose result it returns."""
    signature = inspect.signature(method)
    result = str(signature.return_annotation).removeprefix("Steps[").removesuffix("]")
    wraps(method, assigned=("__name__", "__doc__"))(call)  # type: ignore[arg-type]
    call.__qualname__ = f"{owner}.{method.__name__}"  # type: ignore[attr-defined]
    call.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
    return call


def _sync(method: Callable[Concatenate[Calls, P], Steps[T]]) -> Callable[Concatenate[GlowClient, P], T]:
    def call(self: GlowClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._do(method(self._calls, *args, **kwargs), self._ending)

    return _of_call(method, call, "GlowClient")


def _async(
    method: Callable[Concatenate[Calls, P], Steps[T]],
) -> Callable[Concatenate[AsyncGlowClient, P], Coroutine[Any, Any, T]]:
    async def call(self: AsyncGlowClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._do(method(self._calls, *args, **kwargs))

    return _of_call(method, call, "AsyncGlowClient")


class GlowClient(_Client[httpx.Client]):
    """A client of the service; threads may share one. As a context manager, it closes its connections at the end.

    Parameters:
        service: its address, or an httpx.Client with that ``base_url``, and its own headers, transport and timeouts.
        model: NAME or NAME@VERSION of the model that calls mean where they name none; the service's default if None.
        api_key: sent with every request, and shown nowhere.
        timeout: seconds that a call may take in all, retries included; as long as the service takes if None.
        retries: times that a request is sent again that was refused for now or lost on the way (NotNow); until the
            ``timeout`` if None.
        concurrency: requests under way for one call.
        max_rows: rows of one request; fewer once the service has refused so many.
        max_bytes: bytes of one request's rows.

    Raises InvalidRequest for a value out of range.
    """

    def _connect(self, address: str) -> httpx.Client:
        return httpx.Client(base_url=address, **_DEFAULTS)

    log_likelihood = _sync(Calls.log_likelihood)
    encode = _sync(Calls.encode)
    decode = _sync(Calls.decode)
    sample = _sync(Calls.sample)
    models = _sync(Calls.models)
    model = _sync(Calls.model)
    example = _sync(Calls.example)
    drift = _sync(Calls.drift)
    reload = _sync(Calls.reload)
    ready = _sync(Calls.ready)
    wait_until_ready = _sync(Calls.wait_until_ready)

    def close(self) -> None:
        """Close the connections, but for those of a client that was given.

        Calls under way in other threads end with the answer that they wait for, and those that pause at once.
        """
        self._ending.set()
        for group in list(self._groups):
            group.set()
        if self._owns_http:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, steps: Steps[T], ending: threading.Event) -> T:
        """Do the steps of a call, until ``ending`` is set."""
        came: object = None
        while True:
            try:
                step = steps.send(came)
            except StopIteration as stop:
                result: T = stop.value
                return result
            self._refuse_closed(ending.wait(step.seconds) if isinstance(step, Pause) else ending.is_set())
            if isinstance(step, Send):
                came = self._exchange(step)
            elif isinstance(step, Together):
                self._do_together(step)

    def _exchange(self, send: Send) -> Answer | ConnectionFailed:
        try:
            with self._http.stream(**self._request(send)) as response:
                content = bytearray()
                for part in response.iter_bytes():
                    content += part
                    if not send.deadline.left_s:
                        return self._failure("the answer is not complete")
                return Answer(response.status_code, response.headers, content)
        except httpx.HTTPError as error:
            return self._failure(error)

    def _do_together(self, together: Together) -> None:
        ending = threading.Event()
        ended: SimpleQueue[int | BaseException] = SimpleQueue()

        def work(job: Steps[int]) -> None:
            try:
                ended.put(self._do(job, ending))
            except BaseException as error:
                ended.put(error)

        def begin(num: int) -> int:
            """Begin so many of the jobs that are left; returns how many there were."""
            # As daemons: when the call is over, not even the end of the program waits for requests that nobody needs.
            threads = [threading.Thread(target=work, args=(job,), daemon=True) for job in islice(together.jobs, num)]
            for thread in threads:
                thread.start()
            return len(threads)

        self._groups.add(ending)
        try:
            running = begin(together.concurrency)
            while running:
                result = ended.get()
                if isinstance(result, BaseException):
                    raise result
                together.done(result)
                running += begin(1) - 1
        finally:
            ending.set()
            self._groups.discard(ending)


class AsyncGlowClient(_Client[httpx.AsyncClient]):
    """As GlowClient, to be awaited: the same parameters and methods, its ``service`` an address or httpx.AsyncClient.

    Tasks of one event loop of asyncio may share it.
    """

    def _connect(self, address: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=address, **_DEFAULTS)

    log_likelihood = _async(Calls.log_likelihood)
    encode = _async(Calls.encode)
    decode = _async(Calls.decode)
    sample = _async(Calls.sample)
    models = _async(Calls.models)
    model = _async(Calls.model)
    example = _async(Calls.example)
    drift = _async(Calls.drift)
    reload = _async(Calls.reload)
    ready = _async(Calls.ready)
    wait_until_ready = _async(Calls.wait_until_ready)

    async def aclose(self) -> None:
        """Close the connections, but for those of a client that was given."""
        self._ending.set()
        if self._owns_http:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _do(self, steps: Steps[T]) -> T:
        """Do the steps of a call."""
        came: object = None
        while True:
            try:
                step = steps.send(came)
            except StopIteration as stop:
                result: T = stop.value
                return result
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
            self._refuse_closed(self._ending.is_set())
            if isinstance(step, Send):
                came = await self._exchange(step)
            elif isinstance(step, Together):
                await self._do_together(step)

    async def _exchange(self, send: Send) -> Answer | ConnectionFailed:
        try:
            async with self._http.stream(**self._request(send)) as response:
                content = bytearray()
                async for part in response.aiter_bytes():
                    content += part
                    if not send.deadline.left_s:
                        return self._failure("the answer is not complete")
                return Answer(response.status_code, response.headers, content)
        except httpx.HTTPError as error:
            return self._failure(error)

    async def _do_together(self, together: Together) -> None:
        jobs = together.jobs
        running = {asyncio.create_task(self._do(job)) for job in islice(jobs, together.concurrency)}
        ended: set[asyncio.Task[int]] = set()
        try:
            while running:
                ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    together.done(task.result())
                    running |= {asyncio.create_task(self._do(job)) for job in islice(jobs, 1)}
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, *ended, return_exceptions=True)
