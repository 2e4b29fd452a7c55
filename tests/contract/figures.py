"""What becomes true a little later, such as figures that a deployment tells after it counted them."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(read: Callable[[], T], holds: Callable[[T], bool], seconds: float = 3.0) -> T:
    """What is read once it holds. AssertionError, with what was read last, where it does not."""
    ends = time.monotonic() + seconds
    while not holds(value := read()):
        assert time.monotonic() < ends, value
        time.sleep(0.05)
    return value
