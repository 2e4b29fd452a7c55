"""Memory for the bodies of all requests together: many bodies within their own limit are more than a machine has."""

from __future__ import annotations

import threading

from service.errors import ClientLeft, QueueFull


class BodyRoom:
    """So many bytes, of which each request has a ``Share``; threads may use them."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.taken = 0
        self.lock = threading.Lock()


class Share:
    """What one request takes of a room, until it is closed."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self._taken = 0
        self._is_closed = False

    def take(self, num_bytes: int) -> None:
        """Take more. Raises QueueFull where there is not as much, ClientLeft where the request is over."""
        room = self._room
        with room.lock:
            if self._is_closed:  # while a thread was inflating what it sent
                raise ClientLeft("the request is over")
            if room.taken + num_bytes > room.num_bytes:
                raise QueueFull(
                    f"the bodies of requests under way have {room.taken} of the {room.num_bytes} bytes that they may "
                    "have together (GLOW_MAX_BODIES_BYTES)"
                )
            room.taken += num_bytes
            self._taken += num_bytes

    def close(self) -> None:
        """Give all back."""
        with self._room.lock:
            self._room.taken -= self._taken
            self._taken, self._is_closed = 0, True
