"""Manifests for Kubernetes and KServe: valid by the official schemas, secure by default, and true of the service."""

import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service import api
from service.metrics import PHASES, Metrics
from service.settings import Settings
from tests.kustomize import Manifest, build, build_with_kustomize, kustomize

ROOT = Path(__file__).parents[1]
KUBERNETES = ROOT / "deploy" / "kubernetes"
COMPONENTS = ("gpu", "keda", "models", "monitoring")
OLDEST, NEWEST = "1.27", kubernetes_validate.latest_version()
CUSTOM_KINDS = {"ScaledObject", "PodMonitor"}  # their schemas are not Kubernetes' own
DOCKERFILE = (ROOT / "Dockerfile").read_text()
DOCS = (ROOT / "docs" / "kubernetes.md").read_text()
INFERENCE_SERVICE = yaml.safe_load((ROOT / "deploy" / "kserve" / "inferenceservice.yaml").read_text())
ADAPTER = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())


def write_overlay(folder: Path, components: tuple[str, ...]) -> Path:
    """A kustomization of the base and components, as a user writes one."""

    def relative(path: Path) -> str:
        return os.path.relpath(path, folder)

    content = {
        "resources": [relative(KUBERNETES / "base")],
        "components": [relative(KUBERNETES / "components" / name) for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture(params=["base", *COMPONENTS, "all"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The base, with each component and with all of them."""
    name: str = request.param
    if name == "base":
        return KUBERNETES / "base"
    return write_overlay(tmp_path, COMPONENTS if name == "all" else (name,))


@pytest.fixture
def manifests(folder: Path) -> list[Manifest]:
    return build(folder)


def one(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def pod_of(manifests: list[Manifest]) -> Manifest:
    template: Manifest = one(manifests, "Deployment")["spec"]["template"]
    settings = one(manifests, "ConfigMap")
    (container,) = template["spec"]["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": settings["metadata"]["name"]}}]
    environment = [{"name": name, "value": value} for name, value in settings["data"].items()]
    return {**template["spec"], "containers": [{**container, "env": environment}]}


def predictor_pod() -> Manifest:
    """The fields of a predictor that are not KServe's own are those of a pod."""
    predictor = INFERENCE_SERVICE["spec"]["predictor"]
    return {name: value for name, value in predictor.items() if name not in ("minReplicas", "deploymentStrategy")}


@pytest.fixture(params=["base", "all", "kserve"])
def pod(request: pytest.FixtureRequest, tmp_path: Path) -> Manifest:
    """What runs: its containers have their settings as ``env``."""
    if request.param == "kserve":
        return predictor_pod()
    return pod_of(build(write_overlay(tmp_path, COMPONENTS if request.param == "all" else ())))


def environment(pod: Manifest) -> dict[str, str]:
    (container,) = pod["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"]}


def setting(pod: Manifest, name: str, default: float) -> float:
    return float(environment(pod).get(f"GLOW_{name.upper()}", default))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_manifests_are_valid_by_the_schemas_of_kubernetes(manifests: list[Manifest], version: str) -> None:
    for manifest in manifests:
        if manifest["kind"] not in CUSTOM_KINDS:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_is_not_valid() -> None:
    deployment = one(build(KUBERNETES / "base"), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        kubernetes_validate.validate(deployment, NEWEST, strict=True)


@pytest.mark.skipif(kustomize() is None, reason="neither kustomize nor kubectl is installed")
def test_the_renderer_of_these_tests_does_what_kustomize_does(folder: Path) -> None:
    command = kustomize()
    assert command is not None

    def comparable(manifests: list[Manifest]) -> list[str]:
        text = [json.dumps(manifest, sort_keys=True) for manifest in manifests]
        return sorted(re.sub(r"glow-settings-[a-z0-9]{10}", "glow-settings", line) for line in text)

    assert comparable(build(folder)) == comparable(build_with_kustomize(command, folder))


def test_an_overlay_is_the_base_and_its_component(tmp_path: Path) -> None:
    overlays = sorted((KUBERNETES / "overlays").iterdir())
    assert [overlay.name for overlay in overlays] == ["gpu", "monitoring"]
    for overlay in overlays:
        assert build(overlay) == build(write_overlay(tmp_path, (overlay.name,)))


def test_every_component_is_tested() -> None:
    assert sorted(path.name for path in (KUBERNETES / "components").iterdir()) == sorted(COMPONENTS)


def test_pods_keep_the_restricted_security_standard(pod: Manifest) -> None:
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert f"USER {security['runAsUser']}:" in DOCKERFILE
    assert not [name for name in pod if name.startswith("host")]
    assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= {
        *("emptyDir", "persistentVolumeClaim", "secret")
    }
    assert "initContainers" not in pod
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_pods_hold_no_token_of_the_cluster(pod: Manifest) -> None:
    assert pod["automountServiceAccountToken"] is False


def test_the_cluster_sets_no_variables_that_look_like_settings(pod: Manifest) -> None:
    """For a Service named glow it would set GLOW_PORT=tcp://..., and the service refuses what it does not know."""
    assert pod["enableServiceLinks"] is False


def test_settings_are_the_services_and_have_values_that_it_takes(pod: Manifest) -> None:
    given = {name[5:].lower(): value for name, value in environment(pod).items() if name.startswith("GLOW_")}
    assert not given.keys() - Settings.model_fields.keys()
    Settings(**given)  # type: ignore[arg-type]


def test_callers_need_a_key_by_default(pod: Manifest) -> None:
    """The keys come from a Secret that has to be there; no manifest lets anonymous callers in."""
    variables = environment(pod)
    assert "GLOW_ALLOW_ANONYMOUS" not in variables
    keys = Path(variables["GLOW_API_KEYS_FILE"])
    assert mounts(pod)[str(keys.parent)] == {
        "name": "keys",
        "secret": {"secretName": "glow-api-keys", "defaultMode": 0o440},
    }


def mounts(pod: Manifest) -> dict[str, Manifest]:
    """Volumes by the path where the container has them; writable ones are temporary and bounded."""
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        volume = volumes[mount["name"]]
        assert mount.get("readOnly", False) or "sizeLimit" in volume["emptyDir"], mount
    return {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}


def test_what_the_service_writes_goes_to_temporary_volumes(pod: Manifest) -> None:
    assert {"/tmp", environment(pod)["GLOW_CACHE_DIR"]} <= mounts(pod).keys()


def test_models_of_ones_own_are_mounted_where_the_service_looks(tmp_path: Path) -> None:
    pod = pod_of(build(write_overlay(tmp_path, ("models",))))
    assert mounts(pod)[environment(pod)["GLOW_MODELS"]]["persistentVolumeClaim"] == {
        "claimName": "glow-models",
        "readOnly": True,
    }


def test_probes_ask_routes_of_the_service_on_its_port(pod: Manifest) -> None:
    (container,) = pod["containers"]
    paths = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in paths.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": "/livez",
    }
    routes = {getattr(route, "path", "") for route in api.router.routes}
    (port,) = container["ports"]
    for probe in paths.values():
        assert probe["path"] in routes
        assert probe["port"] == port["name"]


def test_a_slow_start_is_no_failure(pod: Manifest) -> None:
    """Models are verified, warmed and measured first: 20 s on two cores."""
    probe = pod["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 300


def test_ports_are_the_images(pod: Manifest) -> None:
    (exposed,) = {*re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)}
    (port,) = pod["containers"][0]["ports"]
    assert port["containerPort"] == int(exposed) == Settings.model_fields["port"].default


def test_the_image_is_of_the_projects_version(pod: Manifest) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert pod["containers"][0]["image"] == f"glow-service:{version}"


def test_a_pod_has_time_to_drain_and_to_answer_what_it_took(pod: Manifest) -> None:
    drain_s = setting(pod, "drain_delay_s", 5)
    deadline_s = setting(pod, "deadline_s", Settings.model_fields["deadline_s"].default)
    assert pod["terminationGracePeriodSeconds"] > drain_s + deadline_s
    assert "lifecycle" not in pod["containers"][0]  # the service drains by itself


def test_pods_get_all_that_they_may_use(pod: Manifest) -> None:
    """Threads follow the limit of CPUs, which is whole; requests equal limits, so that none is taken away."""
    resources = pod["containers"][0]["resources"]
    extended = {name: value for name, value in resources["limits"].items() if "/" not in name}
    assert resources["requests"] == extended
    assert extended["cpu"] == str(int(extended["cpu"]))
    assert extended["memory"].endswith("Gi")


def test_the_gpu_component_takes_one_gpu_a_process(tmp_path: Path) -> None:
    base, gpu = build(KUBERNETES / "base"), build(write_overlay(tmp_path, ("gpu",)))
    pod = pod_of(gpu)
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["nvidia.com/gpu"]
    assert environment(pod).items() >= {"GLOW_DEVICE": "cuda", "GLOW_WORKERS": "1"}.items()
    assert environment(pod_of(base))["GLOW_DEVICE"] == "cpu"
    assert one(gpu, "Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_what_selects_pods_selects_the_deployments(manifests: list[Manifest]) -> None:
    deployment = one(manifests, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    selectors = [
        deployment["selector"]["matchLabels"],
        one(manifests, "Service")["spec"]["selector"],
        one(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(item["labelSelector"]["matchLabels"] for item in deployment["template"]["spec"]["topologySpreadConstraints"]),
        *(found["spec"]["selector"]["matchLabels"] for found in manifests if found["kind"] == "PodMonitor"),
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)


def test_the_service_its_policy_and_its_monitor_name_the_containers_port(manifests: list[Manifest]) -> None:
    (container,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    policy = one(manifests, "NetworkPolicy")["spec"]
    assert [item["targetPort"] for item in one(manifests, "Service")["spec"]["ports"]] == [port["name"]]
    assert [item["port"] for rule in policy["ingress"] for item in rule["ports"]] == [port["name"]]
    for monitor in (found for found in manifests if found["kind"] == "PodMonitor"):
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert (endpoint["port"], endpoint["path"]) == (port["name"], "/metrics")


def test_no_pod_calls_out(manifests: list[Manifest]) -> None:
    policy = one(manifests, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []


def test_neither_a_rollout_nor_a_drained_node_leaves_callers_alone(manifests: list[Manifest]) -> None:
    assert one(manifests, "Deployment")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert one(manifests, "PodDisruptionBudget")["spec"]["maxUnavailable"] < min_replicas(manifests)
    assert INFERENCE_SERVICE["spec"]["predictor"]["deploymentStrategy"]["rollingUpdate"]["maxUnavailable"] == 0


def min_replicas(manifests: list[Manifest]) -> int:
    (scaler,) = scalers(manifests)
    return int(scaler["minReplicas" if "minReplicas" in scaler else "minReplicaCount"])


def scalers(manifests: list[Manifest]) -> list[Manifest]:
    return [found["spec"] for found in manifests if found["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]


def test_one_autoscaler_sets_the_replicas_of_the_deployment(manifests: list[Manifest]) -> None:
    deployment = one(manifests, "Deployment")
    assert "replicas" not in deployment["spec"]
    (scaler,) = scalers(manifests)
    target = {"apiVersion": "apps/v1", "kind": "Deployment", **scaler["scaleTargetRef"]}  # KEDA's defaults
    assert target == {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": deployment["metadata"]["name"],
    }


def test_the_autoscaler_reads_the_metric_that_the_adapter_makes() -> None:
    (metric,) = one(build(KUBERNETES / "base"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    (rule,) = ADAPTER["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]


def test_keda_scales_by_the_same_figure_in_the_same_way(tmp_path: Path) -> None:
    hpa = one(build(KUBERNETES / "base"), "HorizontalPodAutoscaler")["spec"]
    keda = one(build(write_overlay(tmp_path, ("keda",))), "ScaledObject")["spec"]
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (hpa["minReplicas"], hpa["maxReplicas"])
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
    (trigger,) = keda["triggers"]
    (metric,), (rule,) = hpa["metrics"], ADAPTER["rules"]["custom"]
    assert metric["pods"]["target"]["averageValue"] == f"{float(trigger['metadata']['threshold']) * 1000:.0f}m"
    query = rule["metricsQuery"].replace(" by (<<.GroupBy>>) ", "").replace("<<.LabelMatchers>>", 'namespace="default"')
    assert trigger["metadata"]["query"] == query
    assert trigger["metricType"] == "Value"  # AverageValue would divide it by the number of replicas


def test_queries_are_of_histograms_that_the_service_publishes() -> None:
    published = Metrics().text().decode()
    (rule,) = ADAPTER["rules"]["custom"]
    for query in (rule["seriesQuery"], rule["metricsQuery"]):
        names = re.findall(r"(glow_\w+)_(?:sum|count)\b", query)
        phases = re.findall(r'phase="(\w+)"', query)
        assert len(names) == len(phases) == query.count("{")
        assert all(f"# TYPE {name} histogram" in published for name in names)
        assert set(phases) <= set(PHASES)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_predictors_pod_is_valid_by_the_schemas_of_kubernetes(version: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "glow"}, "spec": predictor_pod()}
    kubernetes_validate.validate(pod, version, strict=True)


def test_kserve_runs_a_container_of_its_name_by_the_v2_protocol() -> None:
    assert INFERENCE_SERVICE["apiVersion"] == "serving.kserve.io/v1beta1"
    assert INFERENCE_SERVICE["metadata"]["annotations"] == {
        "serving.kserve.io/deploymentMode": "Standard",
        "serving.kserve.io/autoscalerClass": "none",
    }
    assert INFERENCE_SERVICE["spec"].keys() == {"predictor"}
    (container,) = predictor_pod()["containers"]
    assert container["name"] == "kserve-container"
    assert {"name": "PROTOCOL", "value": "v2"} in container["env"]


def blocks(language: str) -> Iterator[str]:
    yield from re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)


@pytest.mark.skipif(kustomize() is None, reason="neither kustomize nor kubectl is installed")
def test_the_kustomization_in_the_docs_builds(tmp_path: Path) -> None:
    command = kustomize()
    assert command is not None
    example = next(blocks("yaml"))
    (tmp_path / "kustomization.yaml").write_text(
        example.replace("../glow-service/deploy", os.path.relpath(ROOT / "deploy", tmp_path))
    )
    (tmp_path / "keys.toml").write_text("")
    manifests = build_with_kustomize(command, tmp_path)
    for manifest in manifests:
        if manifest["kind"] not in CUSTOM_KINDS:
            kubernetes_validate.validate(manifest, NEWEST, strict=True)
    pod: dict[str, Any] = one(manifests, "Deployment")["spec"]["template"]["spec"]
    secret = one(manifests, "Secret")["metadata"]["name"]
    assert secret.startswith("glow-api-keys-")
    assert secret in [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
    assert {manifest["metadata"]["namespace"] for manifest in manifests} == {"glow"}


def test_files_that_the_docs_name_exist() -> None:
    named = set(re.findall(r"\bdeploy/[\w./-]*\w", DOCS))
    assert named
    assert all((ROOT / name).exists() for name in named)
