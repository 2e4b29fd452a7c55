"""Manifests for KubeRay: what Kubernetes, Ray and the service take, guarded as the others, and true of each other."""

import os
import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from ray._common.utils import import_attr
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from benchmarks.serving.node_loss import HEAD_SETTINGS
from service import ray_app
from service.settings import Settings
from tests.kuberay import AGENT_PORT, KUBERAY, METRICS_PORT, groups, ray_service, serve_config
from tests.kustomize import Manifest, build, build_with_kustomize, kustomize
from tests.pages import ROOT
from tests.test_kubernetes import CUSTOM_KINDS, DOCKERFILE, NEWEST, OLDEST

DOCS = (ROOT / "docs" / "kuberay.md").read_text()
SPARE_S = 10  # that Ray leaves a request, or a replica that ends, beyond our own deadline


@pytest.fixture(params=["cpu", "gpu"])
def manifest(request: pytest.FixtureRequest) -> Manifest:
    return ray_service(gpus=request.param == "gpu")


@pytest.fixture(params=["head", "worker"])
def pod(request: pytest.FixtureRequest, manifest: Manifest) -> Manifest:
    found: Manifest = groups(manifest)[request.param]["template"]["spec"]
    return found


def container(manifest: Manifest, group: str) -> Manifest:
    (found,) = groups(manifest)[group]["template"]["spec"]["containers"]
    assert found["name"] == f"ray-{group}"
    return dict(found)


def around() -> list[Manifest]:
    """What stands beside the RayService, its monitoring included."""
    manifests = build(KUBERAY)
    build(KUBERAY / "monitoring", manifests)
    return [found for found in manifests if found["kind"] != "RayService"]


def application(manifest: Manifest) -> dict[str, Any]:
    (found,) = ServeDeploySchema.model_validate(serve_config(manifest)).applications
    return found.model_dump()


def settings(manifest: Manifest) -> Settings:
    given: dict[str, Any] = application(manifest)["runtime_env"]["env_vars"]
    assert all(isinstance(value, str) and name.startswith("GLOW_") for name, value in given.items())
    return Settings(**{"host": ray_app.ANYWHERE, **{name[5:].lower(): value for name, value in given.items()}})


def seconds(probe: Manifest) -> int:
    return int(probe["periodSeconds"] * probe["failureThreshold"])


def environment(manifest: Manifest, group: str) -> dict[str, int]:
    return {entry["name"]: int(entry["value"]) for entry in container(manifest, group)["env"]}


def ports(manifest: Manifest, group: str) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(manifest, group)["ports"]}


@pytest.mark.parametrize("release", [OLDEST, NEWEST])
def test_pods_and_what_stands_around_them_are_valid_by_the_schemas_of_kubernetes(
    manifest: Manifest, release: str
) -> None:
    for group in groups(manifest).values():
        pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
        kubernetes_validate.validate(pod, release, strict=True)
    for found in around():
        if found["kind"] not in CUSTOM_KINDS:
            kubernetes_validate.validate(found, release, strict=True)


def test_the_lines_for_gpus_share_one_a_pod_among_its_replicas() -> None:
    cpu, gpu = ray_service(), ray_service(gpus=True)
    assert "num_gpus" not in application(cpu)["args"]
    assert "nvidia.com/gpu" not in container(cpu, "worker")["resources"]["limits"]
    assert container(gpu, "worker")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    (toleration,) = groups(gpu)["worker"]["template"]["spec"]["tolerations"]
    assert toleration["key"] == "nvidia.com/gpu"
    assert settings(gpu).device == "cuda"
    assert int(1 / application(gpu)["args"]["num_gpus"]) == int(groups(gpu)["worker"]["rayStartParams"]["num-cpus"])
    assert "sed -E 's/^( *)# (.*) # on GPUs$/\\1\\2/' deploy/kuberay/rayservice.yaml" in DOCS


def test_ray_and_the_service_take_the_serve_configuration(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServeDeploySchema.model_validate(serve_config(manifest))
    assert not serve_config(manifest).keys() - ServeDeploySchema.model_fields.keys()  # which it would pass over
    assert not serve_config(manifest)["http_options"].keys() - type(config.http_options).model_fields.keys()
    (deployed,) = config.applications
    assert (deployed.name, deployed.route_prefix) == (ray_app.APPLICATION, "/")
    builder = import_attr(deployed.import_path)
    for name in [name for name in os.environ if name.startswith("GLOW_")]:
        monkeypatch.delenv(name)
    for name, value in deployed.runtime_env["env_vars"].items():
        monkeypatch.setenv(name, value)
    call_user_app_builder_with_args_if_necessary(builder, deployed.args)


def test_callers_need_a_key_by_default(manifest: Manifest) -> None:
    chosen = settings(manifest)
    assert not chosen.allow_anonymous
    assert chosen.api_keys_file is not None
    pod = groups(manifest)["worker"]["template"]["spec"]
    (mount,) = [one for one in container(manifest, "worker")["volumeMounts"] if one["name"] == "keys"]
    assert mount == {"name": "keys", "mountPath": str(chosen.api_keys_file.parent), "readOnly": True}
    assert {"name": "keys", "secret": {"secretName": "glow-api-keys", "defaultMode": 0o440}} in pod["volumes"]


def test_ray_gives_up_no_request_and_no_replica_before_the_service_does(manifest: Manifest) -> None:
    deadline_s = settings(manifest).deadline_s
    config = ServeDeploySchema.model_validate(serve_config(manifest))
    assert config.http_options.request_timeout_s == deadline_s + SPARE_S
    assert config.http_options.keep_alive_timeout_s == settings(manifest).keep_alive_s
    assert config.http_options.port == ports(manifest, "worker")["serve"] == Settings.model_fields["port"].default
    grace_s = groups(manifest)["worker"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert manifest["spec"]["rayClusterDeletionDelaySeconds"] > deadline_s + SPARE_S
    drains_s = environment(manifest, "worker")["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
    assert deadline_s + SPARE_S < drains_s < grace_s
    assert environment(manifest, "head")["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == 0


def test_all_replicas_fit_the_most_workers_and_none_lies_on_the_head(manifest: Manifest) -> None:
    of = groups(manifest)
    assert of["head"]["rayStartParams"]["num-cpus"] == "0"
    assert manifest["spec"]["excludeHeadPodFromServeSvc"] is True
    options = ray_app.Options(**application(manifest)["args"])
    cores = int(of["worker"]["rayStartParams"]["num-cpus"])
    assert options.max_replicas * options.num_cpus <= of["worker"]["maxReplicas"] * cores
    assert options.min_replicas >= of["worker"]["minReplicas"] >= 2  # so that one may be lost
    assert cores < int(container(manifest, "worker")["resources"]["limits"]["cpu"])  # the proxy needs one too
    assert manifest["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"] is True


def test_pods_keep_the_restricted_security_standard(pod: Manifest, manifest: Manifest) -> None:
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert f"USER {security['runAsUser']}:" in DOCKERFILE
    assert not [name for name in pod if name.startswith("host")]
    assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= {
        *("emptyDir", "projected", "secret")
    }
    (ray,) = pod["containers"]
    for context in (ray, manifest["spec"]["rayClusterConfig"]["autoscalerOptions"]):
        assert context["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_what_is_written_is_bounded_and_in_places_that_ray_and_the_service_write_to(manifest: Manifest) -> None:
    for name, group in groups(manifest).items():
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        (ray,) = group["template"]["spec"]["containers"]
        written = {mount["mountPath"]: mount["name"] for mount in ray["volumeMounts"] if "readOnly" not in mount}
        assert all("sizeLimit" in volumes[mounted]["emptyDir"] for mounted in written.values())
        cache = {str(settings(manifest).cache_dir)} if name == "worker" else set()
        assert written.keys() == {"/tmp", "/dev/shm", *cache}
        store = int(group["rayStartParams"]["object-store-memory"])
        assert store < int(volumes["shm"]["emptyDir"]["sizeLimit"].removesuffix("Mi")) * 2**20


def test_the_autoscaler_alone_holds_a_token_of_the_cluster(pod: Manifest, manifest: Manifest) -> None:
    assert pod["automountServiceAccountToken"] is False
    (ray,) = pod["containers"]
    mounted = {mount["name"] for mount in ray["volumeMounts"]}
    tokens = {volume["name"] for volume in pod["volumes"] if "projected" in volume}
    assert not mounted & tokens
    mounts = manifest["spec"]["rayClusterConfig"]["autoscalerOptions"]["volumeMounts"]
    token = {"name": "cluster-token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}
    assert token in mounts


def test_ray_lets_nobody_in_without_its_token(manifest: Manifest) -> None:
    assert manifest["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}


def test_the_cluster_sets_no_variables_that_look_like_settings(pod: Manifest) -> None:
    assert pod["enableServiceLinks"] is False


def test_pods_get_all_that_they_may_use(pod: Manifest) -> None:
    (ray,) = pod["containers"]
    limits = {name: value for name, value in ray["resources"]["limits"].items() if "/" not in name}
    assert ray["resources"]["requests"] == limits
    assert limits["cpu"] == str(int(limits["cpu"]))
    assert limits["memory"].endswith("Gi")


def test_the_image_and_ray_are_of_the_projects_releases(pod: Manifest, manifest: Manifest) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert pod["containers"][0]["image"] == f"glow-service:{project}-ray"
    assert manifest["spec"]["rayClusterConfig"]["rayVersion"] == version("ray")
    assert f"ray=={version('ray')} " in (ROOT / "requirements" / "ray.txt").read_text()


def test_probes_ask_what_needs_no_token_and_a_slow_start_is_no_failure(manifest: Manifest) -> None:
    alive = {"path": "/api/healthz", "port": AGENT_PORT}
    for group in ("head", "worker"):
        ray = container(manifest, group)
        assert ray["startupProbe"]["httpGet"] == ray["livenessProbe"]["httpGet"] == alive
        assert seconds(ray["startupProbe"]) >= 300
        assert seconds(ray["livenessProbe"]) >= 60  # a GCS that is started again is waited for
    assert container(manifest, "head")["readinessProbe"]["httpGet"] == alive
    assert container(manifest, "worker")["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "serve"}


def test_a_host_that_does_not_answer_is_given_up_as_soon_as_was_measured(manifest: Manifest) -> None:
    measured = {name: int(value) for name, value in HEAD_SETTINGS.items()}
    assert environment(manifest, "head").items() >= measured.items()


def test_the_operator_finds_the_ports_by_their_names(manifest: Manifest) -> None:
    ours = {"serve": Settings.model_fields["port"].default, "metrics": METRICS_PORT}
    assert ports(manifest, "head") == {"gcs-server": 6379, "dashboard": 8265, **ours}
    assert ports(manifest, "worker") == ours


def test_what_selects_pods_selects_these(manifest: Manifest) -> None:
    labels = {name: group["template"]["metadata"]["labels"] for name, group in groups(manifest).items()}
    assert all("app.kubernetes.io/name" not in one for one in labels.values())  # by which the operator finds the head
    workers = groups(manifest)["worker"]["template"]["spec"]
    assert all(
        spread["labelSelector"]["matchLabels"] == labels["worker"] for spread in workers["topologySpreadConstraints"]
    )
    selected: dict[str, set[str]] = {}
    for found in around():
        spec = found["spec"]
        selector = (spec.get("selector") or spec["podSelector"])["matchLabels"]
        chosen = {name for name, one in labels.items() if selector.items() <= one.items()}
        selected[f"{found['kind']}/{found['metadata']['name']}"] = chosen
    assert selected == {
        "NetworkPolicy/glow-ray": {"head", "worker"},
        "NetworkPolicy/glow-ray-head": {"head"},
        "NetworkPolicy/glow-ray-worker": {"worker"},
        "NetworkPolicy/glow-ray-metrics": {"head", "worker"},
        "PodDisruptionBudget/glow-ray": {"worker"},
        "PodMonitor/glow-ray": {"head", "worker"},
    }


def test_from_outside_only_the_service_is_reached(manifest: Manifest) -> None:
    """The operator reaches the dashboard, Prometheus the figures, and anybody the port that asks for a key."""
    entries = {
        (port["port"], bool(rule.get("from")))
        for found in around()
        if found["kind"] == "NetworkPolicy"
        for rule in found["spec"]["ingress"]
        for port in rule.get("ports", [])
    }
    assert entries == {("serve", False), ("dashboard", True), ("metrics", True)}
    for found in around():
        if found["kind"] == "PodMonitor":
            assert [one["port"] for one in found["spec"]["podMetricsEndpoints"]] == ["metrics"]


def test_a_drained_node_leaves_callers_a_worker(manifest: Manifest) -> None:
    (budget,) = [found["spec"] for found in around() if found["kind"] == "PodDisruptionBudget"]
    assert budget["maxUnavailable"] < groups(manifest)["worker"]["minReplicas"]


def test_files_that_the_docs_name_exist() -> None:
    named = set(re.findall(r"\bdeploy/[\w./-]*\w", DOCS))
    assert named
    assert all((ROOT / name).exists() for name in named)


@pytest.mark.skipif(kustomize() is None, reason="neither kustomize nor kubectl is installed")
def test_the_kustomization_in_the_docs_builds(tmp_path: Path) -> None:
    command = kustomize()
    assert command is not None
    (example,) = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    deploy = os.path.relpath(ROOT / "deploy", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(example.replace("../glow-service/deploy", deploy))
    manifests = build_with_kustomize(command, tmp_path)
    assert len(manifests) == len(around()) + 1
    assert {found["metadata"]["namespace"] for found in manifests} == {"glow"}
    (service,) = [found for found in manifests if found["kind"] == "RayService"]
    assert {container(service, group)["image"] for group in ("head", "worker")} == {
        "registry.example.com/glow-service:0.1.0-ray"
    }
