"""A real node, a series with a canary in every free text: what is counted and traced of it, and what is not."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from dicom_node import tracing
from dicom_node.peers import PeerConfig
from dicom_node.sending import send
from tests.fakes.collector import collector
from tests.node import Node
from tests.peers import Orthanc, free_port

pytestmark = pytest.mark.peers

CANARY = "CANARYBIRD"
FREE_TEXT = ("PatientName", "PatientID", "Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "StationName")
SPANS = {"receive", "series", "analyse", "deliver"}


@pytest.fixture(scope="module")
def seen(
    orthanc_server: Orthanc,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_files: list[Path],
    tiny_uids: tuple[str, list[str]],
) -> Iterator[tuple[str, list[Span], str]]:
    """What the node's port shows at the end, the spans, and the series' UID."""
    orthanc_server.clear()
    series_uid, uids = tiny_uids
    folder, port = tmp_path_factory.mktemp("canary"), free_port()
    files = [_with_canary(path, folder / path.name) for path in tiny_files]
    peers = {
        "pacs": {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": orthanc_server.dicom_port},
        "ct": {"ae_title": "CT1", "host": "127.0.0.1", "may_send": True, "may_receive": False},
    }
    routes = [{"name": "all", "model": "fast", "destinations": ["pacs"]}]
    with collector() as collected:
        traces = {"endpoint": collected.endpoint}
        node = Node(folder / "node", peers=peers, routes=routes, metrics={"port": port}, traces=traces)
        try:
            node.start("receive", "work", "deliver")
            here = PeerConfig(ae_title="DICOMNODE", host="127.0.0.1", port=node.port)
            assert {outcome.kind for outcome in send(files, here, "CT1")} == {"stored"}
            node.wait_ended(node.job_of(uids, series_uid))
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
                text = answer.read().decode()
            node.stop()  # each role sends the spans that it still has
            yield text, collected.spans(), series_uid
        finally:
            node.close()


def _with_canary(path: Path, to: Path) -> Path:
    ds = pydicom.dcmread(path)
    for name in FREE_TEXT:
        setattr(ds, name, CANARY)
    ds.save_as(to)
    return to


def value(text: str, sample: str) -> float:
    [found] = re.findall(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    return float(found)


def test_one_role_shows_what_all_roles_counted(seen: tuple[str, list[Span], str], tiny_files: list[Path]) -> None:
    text, _, _ = seen
    received = value(text, 'dicom_node_instances_received_total{peer="ct",status="0x0000"}')
    assert received == len(tiny_files)
    assert value(text, 'dicom_node_received_bytes_total{peer="ct",status="0x0000"}') > 1000 * received
    assert value(text, 'dicom_node_associations_total{outcome="released",peer="ct"}') == 1
    assert value(text, "dicom_node_associations_open") == 0
    assert value(text, 'dicom_node_series_total{outcome="complete",reason=""}') == 1
    assert value(text, 'dicom_node_findings_count{kernel="other",scanner="other"}') == 1
    assert value(text, 'dicom_node_deliveries_total{destination="pacs",status="stored"}') >= 2
    for role in ("receive", "work", "deliver"):
        assert value(text, f'dicom_node_processes{{role="{role}"}}') == 1
    for stage in ("wait", "read", "detect", "build"):
        assert value(text, f'dicom_node_stage_seconds_count{{stage="{stage}"}}') == 1


def test_one_trace_holds_what_all_roles_did_to_the_series(seen: tuple[str, list[Span], str]) -> None:
    _, spans, series_uid = seen
    assert {span.name for span in spans} >= SPANS
    assert {span.trace_id for span in spans} == {tracing.trace_id(series_uid).to_bytes(16, "big")}
    roots = [span for span in spans if not span.parent_span_id]
    assert [span.name for span in roots] == ["series"]
    ids = {span.span_id for span in spans}
    assert all(span.parent_span_id in ids for span in spans if span not in roots)


def test_no_free_text_and_no_uid_is_in_counts_or_traces(seen: tuple[str, list[Span], str]) -> None:
    text, spans, series_uid = seen
    said = text + "".join(map(str, spans))
    assert CANARY not in said.upper()
    assert series_uid not in said
