"""As much of kustomize as deploy/kubernetes uses, so that its manifests are tested where kustomize is not installed.

Resources, components, strategic merge patches, and settings from files and literals; no hashes in names. Anything else
is refused. Where kustomize is installed, a test compares the two.
"""

import subprocess
from pathlib import Path
from shutil import which
from typing import Any

import yaml

Manifest = dict[str, Any]

_KNOWN = {"apiVersion", "kind", "resources", "components", "patches", "configMapGenerator"}
_MERGE_KEYS = {"volumeMounts": "mountPath", "containers": "name", "volumes": "name"}  # other lists are replaced


def build(folder: Path, manifests: list[Manifest] | None = None) -> list[Manifest]:
    """Manifests of a folder with a kustomization.yaml; a component's join and change those given."""
    found = [] if manifests is None else manifests
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert not kustomization.keys() - _KNOWN, f"{folder}: the renderer does not know {kustomization.keys() - _KNOWN}"
    for name in kustomization.get("resources", []):
        path = folder / name
        found += build(path) if path.is_dir() else yaml.safe_load_all(path.read_text())
    for one in kustomization.get("configMapGenerator", []):
        data = dict(line.split("=", 1) for line in one.get("literals", []))
        for name in one.get("envs", []):
            lines = (folder / name).read_text().splitlines()
            data |= dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": one["name"]}, "data": data}
        if one.get("behavior") == "merge":
            _patch(found, settings)
        else:
            found.append(settings)
    for patch in kustomization.get("patches", []):
        _patch(found, yaml.safe_load((folder / patch["path"]).read_text()))
    for name in kustomization.get("components", []):
        build(folder / name, found)
    return found


def _patch(manifests: list[Manifest], patch: Manifest) -> None:
    (target,) = (one for one in manifests if _identity(one) == _identity(patch))
    if patch.get("$patch") == "delete":
        manifests.remove(target)
    else:
        manifests[manifests.index(target)] = _merged(target, patch)


def _identity(manifest: Manifest) -> tuple[str, ...]:
    return manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"]


def _merged(old: Any, new: Any, field: str = "") -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {name: _merged(old.get(name), value, name) for name, value in new.items()}
    if isinstance(old, list) and field in _MERGE_KEYS:
        key = _MERGE_KEYS[field]
        by_key = {item[key]: item for item in new}
        kept = [_merged(item, by_key.pop(item[key], {})) for item in old]
        return [*by_key.values(), *kept]
    return new


def kustomize() -> list[str] | None:
    """The command of the real one, if there is one."""
    if which("kustomize"):
        return ["kustomize", "build"]
    if which("kubectl") and subprocess.run(["kubectl", "kustomize", "--help"], capture_output=True).returncode == 0:
        return ["kubectl", "kustomize"]
    return None


def build_with_kustomize(command: list[str], folder: Path) -> list[Manifest]:
    """Manifests of a folder as kustomize makes them."""
    result = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return list(yaml.safe_load_all(result.stdout))
