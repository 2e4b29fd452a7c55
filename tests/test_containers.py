"""What the images and the compose file promise, as far as it can be read; ``make docker-test`` runs them."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from service.settings import Settings

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()


def of(keyword: str) -> list[str]:
    """What follows an instruction, once for each time it is given."""
    return [line.removeprefix(f"{keyword} ") for line in INSTRUCTIONS if line.startswith(f"{keyword} ")]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_is_hardened(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] > 0
    assert re.fullmatch(r"\$\{MEMORY:-\d+g\}", service["mem_limit"])
    assert [mount for mount in service["tmpfs"] if "size=" not in mount] == []
    assert not {"privileged", "cap_add", "pid", "ipc", "devices"} & service.keys()
    assert not re.match(r"0\b|root\b", str(service.get("user", "10001")))
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert not any("docker.sock" in volume for volume in service["volumes"])


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_compose_gives_the_service_the_time_that_it_may_take_to_stop(name: str) -> None:
    defaults = {field: info.default for field, info in Settings.model_fields.items()}
    grace_s = int(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s"))
    assert grace_s > defaults["deadline_s"] + defaults.get("drain_delay_s", 5)
    assert COMPOSE["services"][name]["restart"] == "unless-stopped"
    assert COMPOSE["services"][name]["environment"]["GLOW_DEVICE"] == {"cpu": "cpu", "gpu": "cuda"}[name]


def test_compose_builds_for_a_gpu_what_it_reserves_one_for() -> None:
    gpu = COMPOSE["services"]["gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert gpu["build"]["args"]["DEVICE"] == "cuda"
    assert COMPOSE["services"]["cpu"]["build"]["args"]["DEVICE"] == "cpu"


def test_compose_starts_the_service_alone_unless_asked() -> None:
    assert [name for name, service in COMPOSE["services"].items() if "profiles" not in service] == ["cpu"]
    assert COMPOSE["services"]["train"]["network_mode"] == "none"


def test_compose_sets_only_settings_that_there_are() -> None:
    known = {f"GLOW_{name.upper()}" for name in Settings.model_fields}
    for service in COMPOSE["services"].values():
        assert service.get("environment", {}).keys() <= known


def test_the_dockerfile_runs_no_shell_and_no_root() -> None:
    for command in (*of("ENTRYPOINT"), *of("CMD"), *(check.partition("CMD ")[2] for check in of("HEALTHCHECK"))):
        assert command.startswith('["python", '), command
    assert of("USER") == ["10001:10001"]
    stages = re.findall(r"FROM (\S+) AS (\S+)", DOCKERFILE)
    assert {name for base, name in stages if base == "base"} == {"ray", "serve", "train"}
    assert stages[-1][1] == "serve"  # the default
    assert INSTRUCTIONS.index("USER 10001:10001") > INSTRUCTIONS.index("FROM ${PYTHON_IMAGE} AS base")


def test_the_dockerfile_fetches_nothing_by_itself() -> None:
    assert of("ADD") == []
    assert "://" not in re.sub(r"^#.*", "", DOCKERFILE, flags=re.MULTILINE)
    script = (ROOT / "deploy" / "image" / "locked.sh").read_text().replace("\\\n", "").splitlines()
    installs = re.findall(r"pip --python \S+ install (.*?)(?:&&|$)", "\n".join([*INSTRUCTIONS, *script]), re.MULTILINE)
    assert len(installs) == 3  # torch, the tools that build, and what is locked
    for install in installs:
        assert "--only-binary :all:" in install
        assert install.rstrip().endswith('"$TORCH"') or {"--require-hashes", "--no-deps"} <= set(install.split())


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    first, *exceptions = (ROOT / ".dockerignore").read_text().split()
    assert first == "*"
    allowed = {line.removeprefix("!") for line in exceptions if line.startswith("!")}
    copied = {source for line in of("COPY") if "--from" not in line for source in line.split()[:-1]}
    assert {source for source in copied if not any(Path(source).is_relative_to(name) for name in allowed)} == set()
    assert all((ROOT / name).exists() for name in (*allowed, *copied))
    assert not {"tests", "docs", "benchmarks", ".git", ".venv"} & allowed


def test_the_image_has_a_release_of_torch_that_the_project_allows() -> None:
    (release,) = re.findall(r"ARG TORCH=torch==(\S+)", DOCKERFILE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in ("serve", "train"):
        (allowed,) = [requirement for requirement in map(Requirement, extras[extra]) if requirement.name == "torch"]
        assert allowed.specifier.contains(release)


def test_a_wheel_has_every_file_of_the_packages_and_their_types() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in ("common", "model", "service"):
        assert (ROOT / package / "py.typed").exists()
        packed = {path for pattern in [*patterns[package], "**/*.py"] for path in (ROOT / package).glob(pattern)}
        for path in (ROOT / package).rglob("*"):
            assert path in packed or path.is_dir() or path.suffix == ".pyc", path
