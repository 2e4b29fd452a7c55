"""Bulk scoring beyond one machine: Ray Data gives the spans of a file to actors, each of which holds the model.

Ray Data does what a cluster needs: it starts actors, gives each the next span, gives the spans of an actor that was
lost to others, holds actors back whose results nobody has taken yet, and returns results in the order of the spans.
Each actor reads its spans itself, by the same code and in the same batches as a run without Ray, in reproducible
passes, so that the results are the same to the bit, however many actors there are and whichever of them is lost.

What goes wrong with the file is a result too, the text of the error: the run ends with it where it would have ended
without Ray, and nothing is tried again.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from common.cli import explanation
from common.errors import Explained, UsageError
from common.machine import available_cpus
from service import ray_environment
from service.files import RowFile, describe
from service.score.results import Result, results_of
from service.score.targets import EngineTarget
from service.settings import Settings, settings_for

if TYPE_CHECKING:
    import ray

LOCAL = "local"  # the address of a cluster of this machine alone, for the run
STORE_BYTES = 2**29  # of results on their way, in shared memory, where the cluster is our own
CONNECT_S, LEAVE_S = 10.0, 30.0
BLOCK_BYTES = 2**20  # a batch or two: an actor waits where nobody takes its last two blocks and the store is full
MOST_DEATHS = 3  # of actors one after the other that have not begun: more than a node costs that is lost

_THREADS = ("StreamingExecutor", "iter_threaded", "ray-data")
_RESULT = "result"


class RayTarget(EngineTarget):
    """An artifact, run by actors of a Ray cluster; always reproducible.

    ``address`` is the cluster's; without one RAY_ADDRESS names it, or else this machine is one for the run. Of
    ``actors`` there is one a GPU, if the cluster has any and GLOW_DEVICE does not say cpu, else one a core.
    """

    def __init__(
        self, artifact: Path, scores: str | None = None, address: str | None = None, actors: int | None = None
    ) -> None:
        settings = settings_for(artifact)
        super().__init__(artifact, None, scores, True, settings.model_copy(update={"device": "cpu"}))
        self._artifact = artifact
        self._settings = settings.model_copy(update={"threads": 1, "digests_file": None, "cache_dir": None})
        self._scores = scores
        self._address = address or os.environ.get("RAY_ADDRESS") or LOCAL
        self._actors = actors
        self._opened = ExitStack()  # what close() gives up

    def check(self, rows: RowFile) -> None:
        if rows.spans[-1].stop is None:
            raise UsageError(
                f"{rows.path}: is read from its beginning alone, which one process does best; leave out --engine, or "
                "write .parquet or .npy"
            )

    def prepare(self) -> None:
        """Connect to the cluster, or start it."""
        ray_environment.tell(ray_environment.QUIET)
        import ray

        self._opened.enter_context(redirect_stdout(io.StringIO()))  # to which Ray tells of actors that it lost
        if ray.is_initialized():  # by the program that calls
            return
        own: dict[str, Any] = {
            "num_cpus": self._actors or available_cpus(),
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
        handler = signal.getsignal(signal.SIGTERM)
        try:
            host, _, port = self._address.rpartition(":")
            if host and port.isdigit():  # Ray would ask for minutes whether there is anyone
                socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
            with _silent():
                ray.init(
                    self._address,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    **(own if self._address == LOCAL else {}),
                )
        except (OSError, RuntimeError, ValueError) as error:  # nobody is there, or of another version
            raise UsageError(f"Ray at {self._address!r}: {error}") from error
        self._opened.callback(_leave)
        signal.signal(signal.SIGTERM, handler)  # Ray's would end the process with another code

    def results(self, rows: RowFile, start: int) -> Generator[Result, None, None]:
        import ray
        from ray.data import ActorPoolStrategy, DataContext
        from ray.data.exceptions import ExecutionTimeoutError

        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler) and type(handler).__module__.startswith("ray."):
                handler.setLevel(logging.CRITICAL + 1)
        spans = [i for i, span in enumerate(rows.spans) if span.stop is not None and span.stop > start]
        if not spans:
            return
        device, of_each, actors = self._resources()
        actors = min(actors, len(spans))
        job = _Job(
            self._artifact.read_bytes(),
            self._settings.model_copy(update={"device": device}),
            self._scores,
            rows,
            start,
            describe(rows.path),
            version("glow-service"),
        )
        context = DataContext.get_current().copy()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        context.target_max_block_size = BLOCK_BYTES
        context.max_consecutive_actor_init_deaths = MOST_DEATHS
        with DataContext.current(context):
            items = ray.data.from_items(spans, override_num_blocks=len(spans)).map_batches(
                _Actor,
                batch_size=None,
                fn_constructor_args=(ray.put(job),),
                compute=ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
                **of_each,
            )
            tables: Any = iter(items.iter_batches(batch_size=None, batch_format="pyarrow"))
            self._opened.callback(tables.close)  # before the cluster is left
            try:
                for table in tables:
                    for item in table[_RESULT]:
                        result = pickle.loads(item.as_py())  # nosec B301 # noqa: S301 (of our own actors)
                        if isinstance(result, str):
                            raise UsageError(result)
                        yield result
            except (ray.exceptions.RayActorError, ExecutionTimeoutError) as error:
                told = str(error).strip().splitlines()[-1]
                raise UsageError(f"Ray at {self._address!r}: cannot run the model: {told}") from error

    def _resources(self) -> tuple[str, dict[str, Any], int]:
        """The device of all actors, what each takes of the cluster, and how many there are."""
        import ray

        available = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = int(available.get("GPU", 0))
        if self._settings.device == "cuda" and not gpus:
            raise UsageError(f"GLOW_DEVICE is 'cuda', but Ray at {self._address!r} has no GPU")
        if gpus and self._settings.device != "cpu":
            return "cuda", {"num_gpus": 1}, self._actors or gpus
        return "cpu", {"num_cpus": 1}, self._actors or max(1, int(available.get("CPU", 1)))

    def close(self) -> None:
        self._opened.close()


def _leave() -> None:
    """Leave the cluster, once the threads of Ray Data have ended: Ray ends a process that asks it anything later."""
    import ray

    for thread in threading.enumerate():
        if thread.name.startswith(_THREADS):
            thread.join(LEAVE_S)
    ray.shutdown()


@contextmanager
def _silent() -> Iterator[None]:
    """Without standard error, whatever language writes to it: Ray's core tells there that it is told to say less."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@dataclass(frozen=True)
class _Job:
    """What all actors are given, once."""

    artifact: bytes  # which need not lie on their nodes
    settings: Settings
    scores: str | None
    rows: RowFile
    start: int  # rows before it are scored
    described: str  # the file, as the driver sees it
    version: str  # of this package


class _Actor:
    """A model, loaded once, and what it makes of spans: tables of pickled results, or of the text of an error."""

    def __init__(self, job: ray.ObjectRef[_Job]) -> None:
        import ray

        self._job: _Job = ray.get(job)
        self._fault = ""
        try:
            check_node(self._job.rows.path, self._job.described, self._job.version)
            with tempfile.NamedTemporaryFile(suffix=".pt") as file:
                file.write(self._job.artifact)
                file.flush()
                self._target = EngineTarget(Path(file.name), None, self._job.scores, True, self._job.settings)
            self._target.prepare()
        except (Explained, OSError, MemoryError) as error:
            self._fault = f"node {socket.gethostname()}: {explanation(error)}"

    def __call__(self, spans: dict[str, Any]) -> Iterator[pa.Table]:
        for i in spans["item"]:
            for result in self._results(int(i)):
                yield pa.table({_RESULT: pa.array([pickle.dumps(result)], pa.large_binary())})

    def _results(self, i: int) -> Iterator[Result | str]:
        job = self._job
        if self._fault:
            yield self._fault
            return
        span = job.rows.spans[i]
        try:
            yield from results_of(job.rows.only(span).batches(max(job.start, span.start)), self._target.score, 1)
        except (Explained, OSError, MemoryError) as error:
            yield explanation(error)


def check_node(path: Path, described: str, expected: str) -> None:
    """Raise UsageError where this node has another version of this package, or not the input."""
    if (mine := version("glow-service")) != expected:
        raise UsageError(f"has glow-service {mine}; expected {expected}, as where the command runs")
    here = describe(path) if path.exists() else "not there"
    if here != described:
        raise UsageError(
            f"{path}: is {here}; expected {described}: the input must lie on storage that all nodes share, under the "
            "same path"
        )
