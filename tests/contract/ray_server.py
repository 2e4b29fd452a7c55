"""Ray Serve on a small cluster of this machine: ``python -m tests.contract.ray_server REPLICAS``.

Settings are the environment's. It writes its address when it is ready, and ends when its input does.
"""

import sys

import ray

from service.ray_app import Options, running
from service.settings import read_settings

if __name__ == "__main__":
    replicas = int(sys.argv[1])
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    with running(Options(min_replicas=replicas, max_replicas=replicas), read_settings()) as url:
        print(url, flush=True)
        sys.stdin.read()
