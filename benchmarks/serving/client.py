"""An open-loop HTTP client: requests leave when their time has come, however many are still unanswered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Outcome:
    """One request; times are in seconds from the start of the run."""

    scheduled: float
    sent: float
    done: float
    status: str  # the HTTP status, or why there was none

    @property
    def latency(self) -> float:
        """From when it should have left, so that a slow server or client hides nothing."""
        return self.done - self.scheduled


class Client:
    """Posts one body; keeps connections that are free, and opens another where none is."""

    def __init__(self, url: str, body: bytes, media_type: str, timeout_s: float, key: str = "") -> None:
        address = urlsplit(url)
        self._host, self._port = str(address.hostname), int(address.port or 80)
        target = f"{address.path}?{address.query}" if address.query else address.path
        head = (
            f"POST {target} HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Content-Type: {media_type}\r\nX-API-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body
        self._timeout_s = timeout_s
        self._free: list[Connection] = []

    async def run(self, times: Sequence[float]) -> list[Outcome]:
        """Send a request at each time, ascending, in seconds from now; returns when the last one is over."""
        clock = asyncio.get_running_loop().time
        start = clock()

        async def one(scheduled: float) -> Outcome:
            sent = clock() - start
            status = await self.ask()
            return Outcome(scheduled, sent, clock() - start, status)

        tasks = []
        for scheduled in times:
            await asyncio.sleep(max(0.0, start + scheduled - clock()))
            tasks.append(asyncio.create_task(one(scheduled)))
        outcomes = [await task for task in tasks]
        for _, writer in self._free:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        return outcomes

    async def ask(self) -> str:
        """Send a request now; tells its status, or why there was none."""
        try:
            async with asyncio.timeout(self._timeout_s):  # wait_for would cost a task
                return str(await self._ask())
        except TimeoutError:
            return "timeout"
        except (OSError, asyncio.IncompleteReadError) as error:
            return type(error).__name__

    async def _ask(self) -> int:
        connection = self._take() or await asyncio.open_connection(self._host, self._port)
        reader, writer = connection
        try:
            writer.write(self._request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), None)
            if length is None or "\r\nconnection: close" in head:
                writer.close()  # where the answer ends is not known, or nothing comes after it
            else:
                await reader.readexactly(length)
                self._free.append(connection)
        except BaseException:
            writer.close()
            raise
        return int(head.split(" ", 2)[1])

    def _take(self) -> Connection | None:
        """The connection used last that the server has not closed."""
        while self._free:
            reader, writer = self._free.pop()
            if not (reader.at_eof() or writer.is_closing()):
                return reader, writer
            writer.close()
        return None
