"""Processes of a run as torchrun would start them, but forked from a server that has imported torch already."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.cli import run_command
from model.distributed import Processes, join
from tests.test_server import free_port

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.processes"])


def in_processes(
    work: Callable[..., Any], size: int, folder: Path, *arguments: Any, hosts: int = 1
) -> tuple[list[Any], list[int], str]:
    """Call ``work(processes, *arguments)`` in processes that have joined, as if so many hosts ran them.

    Returns what they give, by rank, their exit codes, and what they tell on standard error. ``work`` must be a function
    of a module.
    """
    port = free_port()
    ranks = range(size)
    started = [SERVER.Process(target=_run, args=(work, r, size, hosts, port, folder, arguments)) for r in ranks]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        process.kill()
        process.join()
    values = [json.loads(path.read_text()) for path in (folder / f"{rank}.json" for rank in ranks) if path.exists()]
    told = "".join((folder / f"{rank}.err").read_text() for rank in ranks)
    return values, [process.exitcode or 0 for process in started], told


def _run(
    work: Callable[..., Any], rank: int, size: int, hosts: int, port: int, folder: Path, arguments: tuple[Any, ...]
) -> None:
    local_size = size // hosts
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"LOCAL_RANK": str(rank % local_size), "LOCAL_WORLD_SIZE": str(local_size)}
    torch.set_num_threads(1)
    os.dup2(os.open(folder / f"{rank}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())

    def main(_: list[str]) -> None:
        processes: Processes = join()
        value = work(processes, *arguments)
        (folder / f"{rank}.json").write_text(json.dumps(value))
        processes.finish(0)

    run_command(main)
