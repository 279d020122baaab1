"""Rules, dashboard and documents name metrics and labels that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from dicom_node.metrics.catalogue import CATALOGUE
from tests.prometheus import DASHBOARD, RULES, expressions_of_dashboard, expressions_of_rules, recorded

ROOT = Path(__file__).parents[2]
CASES = sorted((ROOT / "deploy" / "prometheus" / "tests").glob("*.yml"))
SAMPLES = {sample: definition for definition in CATALOGUE.values() for sample in definition.samples()}
# What Prometheus itself adds to each sample, and a histogram to its buckets.
ADDED = {"instance", "job", "le"}


@pytest.mark.parametrize("expression", [*expressions_of_rules(), *expressions_of_dashboard()])
def test_an_expression_names_metrics_and_labels_that_there_are(expression: str) -> None:
    for name, of in recorded().items():
        expression = expression.replace(name, f"({of})")
    names = re.findall(r"\b(dicom_node_\w+)(?:\{([^}]*)\})?", expression)
    assert names
    labels = set().union(*(SAMPLES[name].labels for name, _ in names)) | ADDED
    for name, selector in names:
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert asked <= {*SAMPLES[name].labels, *ADDED}, name
    for grouped in re.findall(r"\b(?:by|ignoring|on)\s*\(([^)]*)\)", expression):
        assert {each.strip() for each in grouped.split(",")} - {""} <= labels
    # A rate of what is no counter, and a counter without one, are the two common mistakes.
    for name, inside in re.findall(r"(\w+)\((dicom_node_\w+)", expression):
        if name in ("rate", "increase"):
            assert SAMPLES[inside].kind != "gauge", inside


def test_what_the_rows_say_is_never_summed_over_hosts() -> None:
    rows = [name for name, definition in CATALOGUE.items() if definition.rows]
    for expression in [*expressions_of_rules(), *expressions_of_dashboard()]:
        for name in rows:
            assert not re.search(rf"sum[^(]*\(\s*{name}\b", expression), expression


def test_each_metric_is_in_a_panel() -> None:
    shown = " ".join([*expressions_of_dashboard(), *recorded().values()])
    missing = [name for name, d in CATALOGUE.items() if not any(re.search(rf"\b{s}\b", shown) for s in d.samples())]
    assert missing == []


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    """Read into the classes that Grafana makes of its own schema, and written again: nothing is lost on the way."""
    register_default_plugins()
    board = json.loads(DASHBOARD.read_text())
    back = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    # What Grafana's own exports hold beside `query`, for older versions.
    lost = [path for path in _lost(board, back) if not path.endswith(".definition")]
    assert lost == []
    assert {panel["type"] for panel in board["panels"]} == {"row", "stat", "gauge", "timeseries", "heatmap", "table"}


def _lost(sent: Any, back: Any, path: str = "") -> Iterator[str]:
    if isinstance(sent, dict) and isinstance(back, dict):
        for key, value in sent.items():
            yield from _lost(value, back.get(key), f"{path}.{key}")
    elif isinstance(sent, list) and isinstance(back, list) and len(sent) == len(back):
        for place, (one, other) in enumerate(zip(sent, back, strict=True)):
            yield from _lost(one, other, f"{path}[{place}]")
    elif sent != back:
        yield path


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    alerts = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
              if "alert" in rule}  # fmt: skip
    cases = [case for path in CASES for test in yaml.safe_load(path.read_text())["tests"] for case in
             test["alert_rule_test"]]  # fmt: skip
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    # Of drift one scanner fires and two do not, in one case.
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    assert alerts - silent == {"DicomNodeScoresDrift", "DicomNodeFindingsDrift"}


@pytest.mark.peers
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_promtool_finds_that_alerts_fire_when_they_should(path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here: tests/peers.sh installs it")
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(path)]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_document_has_every_metric_as_the_code_has_it() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("| `dicom_node_")]
    assert table == [
        f"| `{d.name}` | {d.kind} | {', '.join(d.labels) or '-'} | {d.text}{' (rows)' if d.rows else ''} |"
        for d in CATALOGUE.values()
    ]
