"""A real node, a series with a canary in every free text: what is counted and traced of it, and what is not; and what
Debian's Prometheus makes of it by the dashboard's and the alerts' expressions."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from dicom_node import metrics, tracing
from dicom_node.metrics.vocabulary import Acquisition
from dicom_node.peers import PeerConfig
from dicom_node.sending import send
from tests.fakes.collector import collector
from tests.node import Node
from tests.peers import Orthanc, free_port
from tests.prometheus import Prometheus, expressions_of_dashboard, expressions_of_rules, prometheus

pytestmark = pytest.mark.peers

CANARY = "CANARYBIRD"
FREE_TEXT = ("PatientName", "PatientID", "Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "StationName")
SPANS = {"receive", "series", "priors", "analyse", "deliver", "commit"}
# Metric, or what an expression holds -> why this node has nothing to show.
RIGHTLY_EMPTY = {
    "dicom_node_gpu": "there is no GPU",
    "dicom_node_shadow_runs": "no route has a second model",
    "dicom_node_corrections": "no peer may correct",
    "offset 7d": "the node is not that old",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """text: what the node's port shows at the end. shown: of each of the dashboard's expressions, how many values.
    alerts: pending or firing while all is well, and after all roles ended. faults: of rules."""

    text: str
    spans: list[Span] = field(repr=False)
    series_uid: str
    shown: dict[str, int]
    alerts: list[str]
    alerts_at_the_end: set[str]
    faults: list[str]


@pytest.fixture(scope="module")
def seen(
    orthanc_server: Orthanc,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_files: list[Path],
    tiny_uids: tuple[str, list[str]],
) -> Iterator[Seen]:
    orthanc_server.clear()
    series_uid, uids = tiny_uids
    folder, port = tmp_path_factory.mktemp("canary"), free_port()
    files = [_with_canary(path, folder / path.name) for path in tiny_files]
    archive = {"may_be_queried": True, "retrieve_by": "c_get", "may_commit": True}
    peers = {
        "pacs": {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": orthanc_server.dicom_port, **archive},
        "ct": {"ae_title": "CT1", "host": "127.0.0.1", "may_send": True, "may_receive": False},
    }
    routes = [{"name": "all", "model": "fast", "destinations": ["pacs"], "compare_with": "pacs"}]
    # Nobody listens there, which UDP does not notice.
    audit = {"syslog": {"host": "127.0.0.1", "port": free_port(), "transport": "udp"}}
    with collector() as collected, prometheus(folder / "prometheus", f"127.0.0.1:{port}") as watching:
        traces = {"endpoint": collected.endpoint}
        sections = {"metrics": {"port": port}, "traces": traces, "audit": audit}
        node = Node(folder / "node", peers=peers, routes=routes, **sections)
        orthanc_server.set_modality("node", "DICOMNODE", node.port)
        try:
            _count_an_earlier_one(node)
            node.start("receive", "work", "deliver")
            # Before anything happens: what is counted later is an increase.
            watching.wait(lambda: watching.query("dicom_node_database_up == 1"), "the node")
            here = PeerConfig(ae_title="DICOMNODE", host="127.0.0.1", port=node.port)
            assert {outcome.kind for outcome in send(files, here, "CT1")} == {"stored"}
            job_id = node.job_of(uids, series_uid)
            node.wait_ended(job_id)
            node.wait(lambda: {row["state"] for row in node.database.deliveries(job_id)} == {"committed"}, "commitment")
            watching.wait(
                lambda: watching.query('increase(dicom_node_deliveries_total{status="committed"}[1m]) > 0'),
                "all counts",
            )
            watching.wait(lambda: watching.query("dicom_node_commitments_open == 0"), "the rows of a moment ago")
            watching.wait(lambda: watching.query("dicom_node:finding_score:increase1h > 0"), "the hour's sums")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
                text = answer.read().decode()
            shown = {each: _numbers(watching, each) for each in expressions_of_dashboard()}
            faults = [f"{rule['name']}: {rule['lastError']}" for rule in watching.rules() if rule.get("lastError")]
            alerts = [each["metric"]["alertname"] for each in watching.query("ALERTS")]
            node.stop()  # each role sends the spans that it still has
            watching.wait(lambda: len(_missing(watching)) == 3, "the alert that no role lives")
            yield Seen(
                text=text,
                spans=collected.spans(),
                series_uid=series_uid,
                shown=shown,
                alerts=alerts,
                alerts_at_the_end=_missing(watching),
                faults=faults,
            )
        finally:
            node.close()


def _with_canary(path: Path, to: Path) -> Path:
    ds = pydicom.dcmread(path)
    for name in FREE_TEXT:
        setattr(ds, name, CANARY)
    ds.save_as(to)
    return to


def _count_an_earlier_one(node: Node) -> None:
    """As on a node that has been at work: scanner, kernel and stages are known, and their next count is an increase."""
    metrics.start(node.config.metrics_folder(), "work")
    timings_s = {"read": 1.0, "network": 1.0, "results": 1.0}
    metrics.result_made(Acquisition(), [{"score": 0.9, "long_axis_mm": 7.0}], timings_s)
    for stage in ("wait", "deliver"):
        metrics.stage_took(stage, 1.0)
    metrics.stop()


def _numbers(watching: Prometheus, expression: str) -> int:
    """How many values it has that are one."""
    return sum(each["value"][1] != "NaN" for each in watching.query(_filled_in(expression)))


def _filled_in(expression: str) -> str:
    """As Grafana asks: with its variables' values."""
    if found := re.fullmatch(r"label_values\((\w+), \w+\)", expression):
        return found[1]
    return expression.replace("$__rate_interval", "1m").replace("$scanner", ".*").replace("$kernel", ".*")


def _missing(watching: Prometheus) -> set[str]:
    return {each["metric"]["role"] for each in watching.query('ALERTS{alertname="DicomNodeRoleMissing"}')}


def value(text: str, sample: str) -> float:
    [found] = re.findall(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    return float(found)


def test_one_role_shows_what_all_roles_counted(seen: Seen, tiny_files: list[Path]) -> None:
    text = seen.text
    received = value(text, 'dicom_node_instances_received_total{peer="ct",status="0x0000"}')
    assert received == len(tiny_files)
    assert value(text, 'dicom_node_received_bytes_total{peer="ct",status="0x0000"}') > 1000 * received
    assert value(text, 'dicom_node_associations_total{outcome="released",peer="ct"}') == 1
    assert value(text, "dicom_node_associations_open") == 0
    assert value(text, 'dicom_node_series_total{outcome="complete",reason=""}') == 1
    assert value(text, 'dicom_node_findings_count{kernel="other",scanner="other"}') == 2
    stored = value(text, 'dicom_node_deliveries_total{destination="pacs",status="stored"}')
    assert value(text, 'dicom_node_deliveries_total{destination="pacs",status="committed"}') == stored >= 2
    assert value(text, 'dicom_node_commitments_open{destination="pacs"}') == 0
    for role in ("receive", "work", "deliver"):
        assert value(text, f'dicom_node_processes{{role="{role}"}}') == 1
    for stage in ("wait", "read", "detect", "build"):
        assert value(text, f'dicom_node_stage_seconds_count{{stage="{stage}"}}') == 2


def test_one_trace_holds_what_all_roles_did_to_the_series(seen: Seen) -> None:
    assert {span.name for span in seen.spans} >= SPANS
    assert {span.trace_id for span in seen.spans} == {tracing.trace_id(seen.series_uid).to_bytes(16, "big")}
    roots = [span for span in seen.spans if not span.parent_span_id]
    assert [span.name for span in roots] == ["series"]
    ids = {span.span_id for span in seen.spans}
    assert all(span.parent_span_id in ids for span in seen.spans if span not in roots)


def test_no_free_text_and_no_uid_is_in_counts_or_traces(seen: Seen) -> None:
    said = seen.text + "".join(map(str, seen.spans))
    assert CANARY not in said.upper()
    assert seen.series_uid not in said


def test_each_panel_shows_something_or_rightly_nothing(seen: Seen) -> None:
    empty = [each for each, values in seen.shown.items() if not values]
    unexplained = [each for each in empty if not any(what in each for what in RIGHTLY_EMPTY)]
    assert unexplained == []
    unneeded = [what for what in RIGHTLY_EMPTY if not any(what in each for each in empty)]
    assert unneeded == []


def test_prometheus_evaluates_each_rule_and_a_node_that_is_well_raises_no_alert(seen: Seen) -> None:
    assert seen.faults == []
    assert seen.alerts == []
    assert len(list(expressions_of_rules())) > 20


def test_a_node_that_is_gone_raises_one(seen: Seen) -> None:
    assert seen.alerts_at_the_end == {"receive", "work", "deliver"}
