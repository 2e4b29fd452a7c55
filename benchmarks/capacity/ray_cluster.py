"""The service on a local cluster of Ray nodes, a replica each."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from benchmarks.serving.servers import CACHE, ROOT, Server, free_port
from service.ray_environment import QUIET

STORE_BYTES = 80 * 2**20  # of each node's object store, which requests do not use
CODE = "from benchmarks.capacity.ray_cluster import serve; serve({nodes}, {{port}})"


def ray_serve(nodes: int, haproxy: bool, models: Path, **settings: object) -> Server:
    """So many nodes, behind Ray's proxy in Python or HAProxy; ``settings`` are those of the service."""
    given = {"models": models, "cache_dir": CACHE, "threads": 1, **settings}
    environment = {f"GLOW_{name.upper()}": str(value) for name, value in given.items()}
    environment |= {
        **QUIET,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": str(int(haproxy)),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),  # where other clusters of this machine have none
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # of 5, which a busy machine does not keep
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.1",
    }
    command = [sys.executable, "-W", "ignore", "-c", CODE.format(nodes=nodes)]
    return Server("ray", "/log-likelihood", command, environment)


def serve(nodes: int, port: int) -> None:
    """Start the cluster and the service on it, behind the first node, until SIGTERM."""
    import ray
    from ray import serve as ray_serve
    from ray.cluster_utils import Cluster

    from service.ray_app import Options, running
    from service.settings import read_settings

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(**node)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        # On one machine, a second HAProxy would have no port to tell its metrics on, and begin again and again.
        ray_serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        with running(Options(min_replicas=nodes, max_replicas=nodes), read_settings(port=port)):
            signal.pause()
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]
