"""deploy/kuberay as the operator reads it."""

import re
from typing import Any

import yaml

from tests.kustomize import Manifest
from tests.pages import ROOT

KUBERAY = ROOT / "deploy" / "kuberay"
ON_GPUS = re.compile(r"^( *)# (.*) # on GPUs$", re.MULTILINE)  # as the command of docs/kuberay.md
AGENT_PORT, METRICS_PORT = 52365, 8080  # which it gives by itself


def ray_service(gpus: bool = False) -> Manifest:
    """The manifest, or its variant for GPUs."""
    text = (KUBERAY / "rayservice.yaml").read_text()
    manifest: Manifest = yaml.safe_load(ON_GPUS.sub(r"\1\2", text) if gpus else text)
    return manifest


def serve_config(manifest: Manifest) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    return config


def groups(manifest: Manifest) -> dict[str, Manifest]:
    """Of the head and of the workers: what Ray is started with, and the template of its pods."""
    cluster = manifest["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    return {"head": cluster["headGroupSpec"], "worker": workers}


def start_command(group: Manifest, address: str | None = None) -> list[str]:
    """Command of a container of Ray: of the head, or of a worker that joins the one at the address."""
    (container,) = group["template"]["spec"]["containers"]
    given = {"address": address} if address else {"head": ""}
    given |= group["rayStartParams"] | {
        "metrics-export-port": METRICS_PORT,
        "dashboard-agent-listen-port": AGENT_PORT,
        "memory": int(container["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30,
        "block": "",
    }
    flags = " ".join(f"--{name}={value}" if value != "" else f"--{name}" for name, value in given.items())
    return ["/bin/bash", "-c", "--", f"ulimit -n 65536; ray start {flags}"]
