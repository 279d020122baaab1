"""Rules, dashboard and documents name metrics and labels that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dicom_node.metrics.catalogue import CATALOGUE

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dicom-node.json"
SAMPLES = {sample: definition for definition in CATALOGUE.values() for sample in definition.samples()}
# What Prometheus itself adds to each sample, and a histogram to its buckets.
ADDED = {"instance", "job", "le"}


def expressions_of_rules() -> Iterator[str]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def expressions_of_dashboard() -> Iterator[str]:
    board = json.loads(DASHBOARD.read_text())
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]


@pytest.mark.parametrize("expression", [*expressions_of_rules(), *expressions_of_dashboard()])
def test_an_expression_names_metrics_and_labels_that_there_are(expression: str) -> None:
    names = re.findall(r"\b(dicom_node_\w+)(?:\{([^}]*)\})?", expression)
    assert names
    labels = set().union(*(SAMPLES[name].labels for name, _ in names)) | ADDED
    for name, selector in names:
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert asked <= {*SAMPLES[name].labels, *ADDED}, name
    for grouped in re.findall(r"\b(?:by|ignoring|on)\s*\(([^)]*)\)", expression):
        assert {each.strip() for each in grouped.split(",")} <= labels
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
    shown = " ".join(expressions_of_dashboard())
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


@pytest.mark.peers
def test_promtool_takes_the_rules() -> None:
    promtool = shutil.which("promtool")
    assert promtool, "tests/peers.sh installs it"
    done = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_document_has_every_metric_as_the_code_has_it() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("| `dicom_node_")]
    assert table == [
        f"| `{d.name}` | {d.kind} | {', '.join(d.labels) or '-'} | {d.text}{' (rows)' if d.rows else ''} |"
        for d in CATALOGUE.values()
    ]
