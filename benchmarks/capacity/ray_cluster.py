"""The service on a local cluster of Ray nodes, a replica each."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.serving.servers import CACHE, ROOT, Server, free_port

if TYPE_CHECKING:
    from fastapi import FastAPI

STORE_BYTES = 80 * 2**20  # of each node's object store, which requests do not use
CODE = "from benchmarks.capacity.ray_cluster import serve; serve({nodes}, {{port}})"


def ray_serve(nodes: int, haproxy: bool, models: Path, **settings: object) -> Server:
    """So many nodes, behind Ray's proxy in Python or HAProxy; ``settings`` are those of the service."""
    given = {"models": models, "cache_dir": CACHE, "threads": 1, **settings}
    environment = {f"GLOW_{name.upper()}": str(value) for name, value in given.items()}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": str(int(haproxy)),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),  # where other clusters of this machine have none
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # of 5, which a busy machine does not keep
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    command = [sys.executable, "-W", "ignore", "-c", CODE.format(nodes=nodes)]
    return Server("ray", "/log-likelihood", command, environment)


def serve(nodes: int, port: int) -> None:
    """Start the cluster and the service on it, until SIGTERM."""
    import ray
    from ray import serve as ray_serve
    from ray.cluster_utils import Cluster

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(**node)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        ray_serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})
        deployment = ray_serve.deployment(
            num_replicas=nodes, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=10_000
        )
        ray_serve.run(deployment(ray_serve.ingress()(Replica)).bind(), name="glow")
        signal.pause()
    finally:
        ray_serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


class Replica:
    """The service's application in a replica, made there."""

    def __serve_build_asgi_app__(self) -> FastAPI:
        from service.app import create_app
        from service.settings import read_settings

        return create_app(read_settings())
