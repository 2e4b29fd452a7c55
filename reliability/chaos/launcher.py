"""The server, whose process also does what no request can make it do: ``python -m reliability.chaos.launcher``.

SIGUSR1 ends the engine's thread, as an error of the interpreter would; SIGUSR2 blocks the event loop for good.
"""

from __future__ import annotations

import ctypes
import signal
import threading
import time

from common.cli import run_command
from service.__main__ import main


def end_engine(*_: object) -> None:
    """Raise SystemExit in the engine's thread, at its next step of Python."""
    (engine,) = [thread for thread in threading.enumerate() if thread.name == "engine"]
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(engine.ident or 0), ctypes.py_object(SystemExit))


def block_loop(*_: object) -> None:
    """Hold the main thread, on which the event loop runs."""
    while True:
        time.sleep(1)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, end_engine)
    signal.signal(signal.SIGUSR2, block_loop)
    run_command(main)
