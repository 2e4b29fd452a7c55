"""Dashboard, rules and compose file: every query asks for what the service tells, and every alert says what to do."""

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import pytest_asyncio
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.wire import IMAGES, TABLE, post

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "monitoring"
DASHBOARD = json.loads((FOLDER / "grafana/dashboards/glow.json").read_text())
RULES = yaml.safe_load((FOLDER / "prometheus/rules.yml").read_text())
CONFIG = yaml.safe_load((FOLDER / "prometheus/prometheus.yml").read_text())
COMPOSE = yaml.safe_load((FOLDER / "compose.yml").read_text())
PANELS: list[Any] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS: list[Any] = [rule for group in RULES["groups"] for rule in group["rules"]]
OF_TARGETS = {"job", "instance"}  # labels that Prometheus adds
OF_PROMETHEUS = {"up": set[str](), "ALERTS": {"alertname", "alertstate"}}  # metrics that are its own
VARIABLES = re.compile(r"\$(__\w+|\w+)")
QUERIES = [
    *(pytest.param(target["expr"], id=panel["title"]) for panel in PANELS for target in panel["targets"]),
    *(pytest.param(alert["expr"], id=alert["alert"]) for alert in ALERTS),
    *(pytest.param(one["expr"], id=one["name"]) for one in DASHBOARD["annotations"]["list"]),
]
Labels = dict[str, dict[str, set[str]]]  # values of each label of each metric


@pytest_asyncio.fixture(scope="module")
async def told(client: httpx.AsyncClient) -> Labels:
    """What the service tells after requests of all kinds."""
    row = [0.5, 1010.0, 3.0]
    for path in ("/log-likelihood", "/encode"):
        await post(client, path, {"model": TABLE, "inputs": [row]})
    await client.get(f"/sample?model={IMAGES}&n=1")
    await client.post("/encode", content=b"{")
    found: Labels = defaultdict(lambda: defaultdict(set))
    for family in text_string_to_metric_families((await client.get("/metrics")).text):
        for sample in family.samples:
            labels = found[sample.name]
            for name, value in sample.labels.items():
                labels[name].add(value)
    return found


def parse(query: str) -> promql_parser.Expr:
    """Parse a query as Prometheus gets it from Grafana."""
    return promql_parser.parse(VARIABLES.sub(lambda name: "5m" if name[1].startswith("__") else ".*", query))


def walk(node: object) -> Iterator[object]:
    """A part of a query, and all parts of it."""
    yield node
    for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
        if getattr(node, name, None) is not None:
            yield from walk(getattr(node, name))
    if isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from walk(argument)


def labels_of(node: object, told: Labels) -> set[str]:
    """Labels that the metrics below a part of a query have."""
    found = set(OF_TARGETS)
    for part in walk(node):
        if isinstance(part, promql_parser.VectorSelector) and part.name is not None:
            found |= OF_PROMETHEUS.get(part.name, set()) | set(told[part.name])
    return found


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_asks_for_what_there_is(query: str, told: Labels) -> None:
    selectors = 0
    for part in walk(parse(query)):
        if isinstance(part, promql_parser.VectorSelector):
            selectors += 1
            assert part.name in told or part.name in OF_PROMETHEUS
            known = labels_of(part, told)
            for matcher in part.matchers.matchers:
                assert matcher.name in known, f"{part.name} has no label {matcher.name}"
                if matcher.name in ("phase", "tail"):
                    assert matcher.value in told[str(part.name)][matcher.name]
        for modifier in (getattr(part, "modifier", None),):
            grouped = getattr(modifier, "labels", None) or getattr(getattr(modifier, "matching", None), "labels", None)
            assert set(grouped or ()) <= labels_of(part, told)
        if isinstance(part, promql_parser.Call):
            inside = [one.name for one in walk(part) if isinstance(one, promql_parser.VectorSelector)]
            if part.func.name == "histogram_quantile":
                assert all(str(name).endswith("_bucket") for name in inside)
                assert "le" in query
            if part.func.name in ("rate", "increase"):  # of what only grows
                assert all(str(name).endswith(("_total", "_bucket", "_sum", "_count")) for name in inside)
    assert selectors


def test_a_wrong_query_is_noticed(told: Labels) -> None:
    for query in ("glow_rows", 'glow_ready{modell="x"}', "sum by (rute) (glow_requests_total)"):
        with pytest.raises(AssertionError):
            test_a_query_asks_for_what_there_is(query, told)
    with pytest.raises(AssertionError):
        test_a_query_asks_for_what_there_is('glow_phase_duration_seconds_count{phase="wait"}', told)
    with pytest.raises(ValueError, match="unclosed"):
        parse("sum(rate(glow_requests_total[5m])")


def test_variables_of_the_dashboard_are_asked_of_what_there_is(told: Labels) -> None:
    names = set()
    for variable in DASHBOARD["templating"]["list"]:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
        assert label in OF_TARGETS | told[metric].keys()
        names.add(variable["name"])
    used = {name for query in QUERIES for name in VARIABLES.findall(str(query.values[0]))}
    assert used - {"__rate_interval", "__range"} == names


def test_panels_have_units_numbers_and_a_source_that_is_provisioned() -> None:
    (source,) = yaml.safe_load((FOLDER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        for holder in (panel, *panel["targets"]):
            assert holder["datasource"] == {"type": source["type"], "uid": source["uid"]}
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    assert [holder["datasource"]["uid"] for holder in DASHBOARD["templating"]["list"]] == [source["uid"]] * 2


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))


def test_every_metric_of_the_service_is_documented(told: Labels) -> None:
    text = (ROOT / "docs" / "operations.md").read_text() + (ROOT / "docs" / "drift.md").read_text()
    for name in told:
        base = re.sub(r"_(bucket|sum|count|created)$", "", name)
        if not name.endswith("_created") and name.startswith("glow_"):
            assert base in text or base.removeprefix("glow_drift_") in text, name


@pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: Any) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    annotations = alert["annotations"]
    assert annotations["summary"]
    assert annotations["runbook"] == f"docs/operations.md#{alert['alert'].lower()}"
    section = (ROOT / "docs" / "operations.md").read_text().partition(f"\n### {alert['alert']}\n")[2]
    assert len(section.partition("\n#")[0].strip()) > 80


def test_figures_are_asked_of_the_services_that_compose_has() -> None:
    main = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert main["include"] == ["deploy/monitoring/compose.yml"]
    (job,) = CONFIG["scrape_configs"]
    (lookup,) = job["dns_sd_configs"]
    assert job["job_name"] == "glow"
    assert set(lookup["names"]) <= main["services"].keys()
    assert lookup["port"] == 8000
    assert [FOLDER / "prometheus" / name for name in CONFIG["rule_files"]] == [FOLDER / "prometheus/rules.yml"]


def test_monitoring_is_seen_from_this_machine_alone_and_can_write_nowhere_else() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["profiles"] == ["monitoring"]
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"]), name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        for volume in service["volumes"]:
            source, _, rest = volume.partition(":")
            assert rest.endswith(":ro") and (FOLDER / source).is_dir() if source.startswith(".") else source == name
    grafana = COMPOSE["services"]["grafana"]["environment"]
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"


def test_every_alert_has_a_test_of_its_rule() -> None:
    text = (FOLDER / "rules_test.yml").read_text()
    assert all(f'"{alert["alert"]}"' in text for alert in ALERTS)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: package prometheus) is not installed")
def test_prometheus_takes_its_configuration_and_the_rules_do_as_they_say() -> None:
    for command in (
        ["check", "config", FOLDER / "prometheus/prometheus.yml"],
        ["test", "rules", FOLDER / "rules_test.yml"],
    ):
        result = subprocess.run(["promtool", *map(str, command)], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
