"""What was measured: costs of the service's parts on one machine, as ``benchmarks.capacity.measure`` writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from service.plans import Bucket, Schedule

MEASURED = Path(__file__).with_name("measured.json")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Pass(_Part):
    """A pass of the engine over one of its numbers of rows: seconds of the flow, and of making scores of it."""

    rows: int = Field(ge=1)
    flow_s: float = Field(gt=0)
    scores_s: float = Field(ge=0)


class Body(_Part):
    """A request of so many rows: seconds of the event loop and of the client, and bytes there and back."""

    rows: int = Field(ge=1)
    loop_s: float = Field(ge=0)
    client_s: float = Field(ge=0)
    request_bytes: float = Field(gt=0)
    answer_bytes: float = Field(gt=0)


class ModelCosts(_Part):
    """One model on one device: its passes, ascending, and its requests by type of body, ascending."""

    passes: list[Pass]
    bodies: dict[str, list[Body]]

    @property
    def schedule(self) -> Schedule:
        """The buckets by which the service forms its passes."""
        # What else a bucket says does not matter to who only counts rows and seconds.
        return Schedule(
            buckets=[
                Bucket(rows=one.rows, seconds=one.flow_s, form="frozen", threads=1, memory=0) for one in self.passes
            ]
        )

    def body(self, media: str, rows: int) -> Body:
        """Costs of a request of any number of rows, by lines between those measured, the last one going on."""
        known = self.bodies[media]
        if len(known) == 1:
            return known[0].model_copy(update={"rows": rows})
        at = int(np.clip(np.searchsorted([one.rows for one in known], rows), 1, len(known) - 1))
        low, high = known[at - 1], known[at]
        share = (rows - low.rows) / (high.rows - low.rows)

        def between(name: str) -> float:
            a, b = getattr(low, name), getattr(high, name)
            return max(0.0, float(a + share * (b - a)))

        return Body(rows=rows, **{name: between(name) for name in Body.model_fields if name != "rows"})


class Client(_Part):
    """A load generator: seconds of CPU each time that it is woken, and of a request beside those of its body."""

    wake_cpu_s: float = Field(ge=0)
    request_s: float = Field(ge=0)


class Ingress(_Part):
    """What Ray Serve adds to a request: seconds of CPU, there and back, and of waiting that no CPU explains.

    Of the Python proxy and of the replica, threads of Python share one interpreter; the others run beside them.
    """

    proxy_threads: int = Field(ge=1)  # that share its work
    proxy_s: float = Field(ge=0)
    proxy_beside_s: float = Field(ge=0)
    replica_s: float = Field(ge=0)
    replica_beside_s: float = Field(ge=0)
    byte_s: float = Field(ge=0)  # of the proxy, for each byte of body and answer
    wait_s: float = Field(ge=0)
    idle_cores: float = Field(ge=0)  # that the processes of the cluster keep busy without any request
    p50_s: float  # of one-row requests, one at a time, as measured
    cpu_s: float  # all CPU of such a request


class Inputs(_Part):
    """All of one machine."""

    machine: str
    date: str
    cores: int
    foreign_cpus: float = Field(ge=0)  # that other processes kept busy, median: the more, the worse all figures
    wake_s: float = Field(ge=0)  # until a thread that slept runs
    loop_pass_s: float = Field(ge=0)  # of the event loop, for each pass
    engine_pass_s: float = Field(ge=0)  # of the engine's thread, for each pass beside the flow and its scores
    plain_p50_s: float  # of one-row requests of a table to the service alone, one at a time
    plain_cpu_s: float  # all CPU of such a request
    clients: dict[str, Client]
    models: dict[str, ModelCosts]
    ingresses: dict[str, Ingress]


def read_inputs(path: Path = MEASURED) -> Inputs:
    """Read what was measured. Raises OSError, or pydantic.ValidationError for another format."""
    return Inputs.model_validate_json(path.read_bytes())
