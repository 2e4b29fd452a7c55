"""Callers on threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

Caller = Generator[None, None, None]  # yields between two calls


@contextmanager
def calling(*callers: Caller) -> Iterator[None]:
    """Let callers go on, each on a thread, until the ``with`` ends; raises then what ended one of them before."""
    ended = threading.Event()
    problems: list[BaseException] = []

    def work(caller: Caller) -> None:
        try:
            with closing(caller):
                for _ in caller:
                    if ended.is_set():
                        return
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        if problems:
            raise problems[0]
