"""One trace a series over processes that share nothing; nothing in it that names a patient or a study."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dicom_node import tracing
from dicom_node.config import parse_config
from dicom_node.errors import ConfigError
from tests.fakes.collector import collector

SERIES, JOB = "1.2.826.0.1.77", "1.2.826.0.1.77-0123456789abcdef"


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    made = InMemorySpanExporter()
    tracing.start_with(made, "work")
    yield made
    tracing.stop()


def whole_series() -> None:
    tracing.spent("receive", SERIES, begun_at=1.0, ended_at=5.0, about={"peer": "pacs"})
    tracing.series_decided(SERIES, JOB, begun_at=1.0, ended_at=6.0, state="queued")
    tracing.spent(
        "analyse", SERIES, job_id=JOB, begun_at=7.0, ended_at=17.0, parts_s={"read": 1.0, "network": 8.0}, about={}
    )
    tracing.spent("deliver", SERIES, job_id=JOB, begun_at=17.0, ended_at=18.0, about={"destination": "pacs"})


def test_all_that_happened_to_a_series_is_one_trace_under_one_root(exporter: InMemorySpanExporter) -> None:
    whole_series()
    tracing.stop()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"series", "receive", "analyse", "read", "network", "deliver"}
    assert {span.context.trace_id for span in spans.values()} == {tracing.trace_id(SERIES)}
    root = spans["series"].context.span_id
    assert spans["series"].parent is None
    assert {spans[name].parent.span_id for name in ("receive", "analyse", "deliver")} == {root}
    assert spans["network"].parent.span_id == spans["analyse"].context.span_id
    assert (spans["network"].start_time, spans["network"].end_time) == (8_000_000_000, 16_000_000_000)
    assert len({span.context.span_id for span in spans.values()}) == len(spans)


def test_no_uid_is_in_a_trace(exporter: InMemorySpanExporter) -> None:
    whole_series()
    tracing.stop()
    text = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert SERIES not in text
    assert '"dicom_node.job": "0123456789abcdef"' in text


def test_another_process_finds_the_same_trace() -> None:
    code = f"from dicom_node import tracing; print(tracing.trace_id({SERIES!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == tracing.trace_id(SERIES) != tracing.trace_id(SERIES + "8")


def test_without_the_setting_nothing_is_traced_nor_imported() -> None:
    code = (
        "import sys; from dicom_node import tracing;"
        "tracing.spent('x', '1.2', begun_at=0, ended_at=1, about={});"
        "print(tracing.is_on(), any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_spans_reach_a_collector_by_otlp() -> None:
    with collector() as collected:
        tracing.start(collected.endpoint, "deliver")
        whole_series()
        tracing.stop()  # sends what waits
        spans = collected.spans()
    assert len(spans) == 6
    assert {span.trace_id for span in spans} == {tracing.trace_id(SERIES).to_bytes(16, "big")}


def test_a_setting_without_its_packages_is_told_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"pip install 'dicom-node\[traces\]'"):
        tracing.check()


@pytest.mark.parametrize("endpoint", ["localhost:4318", "ftp://h/x", "http://h/x?token=1"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"traces.endpoint: .*must be a URL like"):
        parse_config(f"storage: {{root: r}}\ntraces: {{endpoint: '{endpoint}'}}", "f.yaml")
