"""What a series went through, as one OpenTelemetry trace over all roles, where `traces` is set; else nothing.

The roles share only rows, so no context is handed on: trace and root span have ids that follow from the Series
Instance UID. They are hashes of it, from which it can't be read. A UID stands for a study of a patient: attributes hold
the job's short id instead, a hash of our own that says nothing without our database.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dicom_node.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

_ANSWER_S, _LAST_WORD_S = 5.0, 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tracing:
    provider: TracerProvider
    tracer: Tracer
    planned: threading.local


_tracing: _Tracing | None = None


def check() -> None:
    """Raises ConfigError when the packages for traces are not installed."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as err:
        raise ConfigError(
            "traces: is set, and its packages are not installed: pip install 'dicom-node[traces]', or take traces: out"
        ) from err


def start(endpoint: str, role: str) -> None:
    """This process sends its spans to `endpoint`, in batches, from a thread. Raises ConfigError as `check` does."""
    check()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    start_with(OTLPSpanExporter(endpoint=endpoint, timeout=_ANSWER_S), role)


def start_with(exporter: SpanExporter, role: str) -> None:
    """The same with any exporter."""
    global _tracing
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    planned = threading.local()

    class Ids(RandomIdGenerator):
        """Random, but for the root span of a series."""

        def generate_span_id(self) -> int:
            return getattr(planned, "span_id", None) or super().generate_span_id()

        def generate_trace_id(self) -> int:
            return getattr(planned, "trace_id", None) or super().generate_trace_id()

    stop()
    resource = Resource.create({"service.name": "dicom-node", "service.instance.id": role})
    provider = TracerProvider(id_generator=Ids(), resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracing = _Tracing(provider=provider, tracer=provider.get_tracer("dicom_node"), planned=planned)


def stop() -> None:
    """What is not sent yet is sent, as long as that takes a moment."""
    global _tracing
    if _tracing is not None:
        # A collector that is down must not keep the role from its end.
        last = threading.Thread(target=_tracing.provider.shutdown, daemon=True)
        _tracing = None
        last.start()
        last.join(_LAST_WORD_S)


def is_on() -> bool:
    return _tracing is not None


def short_id(job_id: str) -> str:
    """The part of a job's id that is no UID: a hash of its set of Instances."""
    return job_id.rpartition("-")[2]


def trace_id(series_uid: str) -> int:
    return int.from_bytes(hashlib.sha256(f"dicom-node trace {series_uid}".encode()).digest()[:16], "big")


def _root_id(series_uid: str) -> int:
    return int.from_bytes(hashlib.sha256(f"dicom-node series {series_uid}".encode()).digest()[:8], "big")


def series_decided(series_uid: str, job_id: str, *, begun_at: float, ended_at: float, state: str) -> None:
    """The root of the series' trace, from its first Instance to its first job. Times: seconds since the epoch."""
    if _tracing is None:
        return
    from opentelemetry.context import Context

    with _ids(_tracing.planned, series_uid):
        span = _tracing.tracer.start_span(
            "series",
            context=Context(),
            start_time=_ns(begun_at),
            attributes={"dicom_node.job": short_id(job_id), "dicom_node.state": state},
        )
    span.end(_ns(ended_at))


def spent(
    name: str,
    series_uid: str,
    *,
    begun_at: float,
    ended_at: float,
    about: Mapping[str, str | int],
    job_id: str | None = None,
    parts_s: Mapping[str, float] | None = None,
) -> None:
    """A span of the series' trace, once it is over. parts_s: seconds of what happened in it, one after another.

    about: names and codes of ours, and counts. Nothing that a peer or a header said.
    """
    if _tracing is None:
        return
    from opentelemetry.trace import set_span_in_context

    shown: dict[str, Any] = {f"dicom_node.{key}": value for key, value in about.items()}
    if job_id is not None:
        shown["dicom_node.job"] = short_id(job_id)
    span = _tracing.tracer.start_span(name, context=_in_series(series_uid), start_time=_ns(begun_at), attributes=shown)
    at = begun_at
    for part, seconds in (parts_s or {}).items():
        inner: Span = _tracing.tracer.start_span(part, context=set_span_in_context(span), start_time=_ns(at))
        at += seconds
        inner.end(_ns(at))
    span.end(_ns(ended_at))


@contextmanager
def _ids(planned: threading.local, series_uid: str) -> Iterator[None]:
    planned.trace_id, planned.span_id = trace_id(series_uid), _root_id(series_uid)
    try:
        yield
    finally:
        planned.trace_id = planned.span_id = None


def _in_series(series_uid: str) -> Context:
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    root = SpanContext(
        trace_id=trace_id(series_uid),
        span_id=_root_id(series_uid),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
    return set_span_in_context(NonRecordingSpan(root))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
