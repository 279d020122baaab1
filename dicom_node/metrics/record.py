"""What the roles call when something happened. Before `start`, in tests and in commands, nothing is counted.

The counts of a process are one place, as its log is: what happens deep in an Association or a workflow is counted
there, without a parameter through all that lies above.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dicom_node.metrics.catalogue import CATALOGUE, OTHER, UNKNOWN_PEER
from dicom_node.metrics.files import ProcessFiles
from dicom_node.metrics.vocabulary import Acquisition, kernel_label, scanner_label

log = logging.getLogger(__name__)

_MOST_SOURCES = 60
# As analysis.py and the detector name the parts of a job; what is none of these two is the detector's.
_READ = frozenset({"read", "volume"})
_BUILD = frozenset({"measure", "compare", "results", "pictures"})
_REJECTED = {
    (0x01, 0x01, 0x03): "calling",
    (0x01, 0x01, 0x07): "called",
    (0x01, 0x02, 0x02): "version",
    (0x02, 0x03, 0x02): "limit",
}
REJECTIONS = (*_REJECTED.values(), "not_opened")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counting:
    """scanners, kernels: allowed by the settings. sources: pairs of labels that were counted already."""

    files: ProcessFiles
    scanners: Collection[str]
    kernels: Collection[str]
    sources: set[tuple[str, str]] = field(default_factory=set)


_counting: _Counting | None = None


def start(folder: Path, role: str, *, scanners: Collection[str] = (), kernels: Collection[str] = ()) -> None:
    """This process counts from now on. Without room for its files it goes on uncounted: it has more important work."""
    global _counting
    stop()
    try:
        files = ProcessFiles(folder, role)
    except OSError as err:
        log.warning("nothing is counted", extra={"action": "metrics", "folder": str(folder), "why": err.strerror})
        return
    labels = files.labels_of(CATALOGUE["dicom_node_findings"])
    seen = {(each["scanner"], each["kernel"]) for each in labels}
    _counting = _Counting(files=files, scanners=scanners, kernels=kernels, sources=seen)
    _set("dicom_node_processes", {"role": role}, 1.0)


def stop() -> None:
    """The process ends in order; one that doesn't loses no count."""
    global _counting
    if _counting is not None:
        _counting.files.close()
        _counting = None


def instance_received(peer: str | None, status: int, size_bytes: int) -> None:
    """A C-STORE was answered. peer: its name in the settings, None where it has none."""
    labels = {"peer": peer or UNKNOWN_PEER, "status": f"0x{status:04X}"}
    _add("dicom_node_instances_received_total", labels)
    _add("dicom_node_received_bytes_total", labels, size_bytes)


def instance_retrieved(peer: str | None, by: str, status: int, size_bytes: int) -> None:
    """An Instance that we fetched is kept, or refused with a status. by: the peer's retrieve_by."""
    labels = {"peer": peer or UNKNOWN_PEER, "by": by, "status": f"0x{status:04X}"}
    _add("dicom_node_instances_retrieved_total", labels)
    _add("dicom_node_retrieved_bytes_total", labels, size_bytes)


def association_accepted(peer: str | None) -> None:
    _add("dicom_node_associations_total", {"peer": peer or UNKNOWN_PEER, "outcome": "accepted"})
    _add("dicom_node_associations_open", {})


def association_ended(peer: str | None, *, released: bool) -> None:
    """One that was accepted is over."""
    outcome = "released" if released else "aborted"
    _add("dicom_node_associations_total", {"peer": peer or UNKNOWN_PEER, "outcome": outcome})
    _add("dicom_node_associations_open", {}, -1.0)


def association_rejected(result: int, source: int, diagnostic: int) -> None:
    """As of PS3.8 Table 9-21; all zero: it came to no A-ASSOCIATE-RQ."""
    reason = _REJECTED.get((result, source, diagnostic), "not_opened")
    _add("dicom_node_associations_rejected_total", {"reason": reason})


def series_ended(outcome: str, reason: str = "") -> None:
    """A job came to its end. reason: a code, never a text."""
    _add("dicom_node_series_total", {"outcome": outcome, "reason": reason})


def stage_took(stage: str, seconds: float) -> None:
    _observe("dicom_node_stage_seconds", {"stage": stage}, max(0.0, seconds))


def result_made(made_on: Acquisition, findings: Sequence[Mapping[str, Any]], timings_s: Mapping[str, float]) -> None:
    """A series was analysed. findings: as the job's rows have them. timings_s: seconds by part of the analysis."""
    stage_took("read", sum(seconds for part, seconds in timings_s.items() if part in _READ))
    stage_took("build", sum(seconds for part, seconds in timings_s.items() if part in _BUILD))
    stage_took("detect", sum(seconds for part, seconds in timings_s.items() if part not in _READ | _BUILD))
    labels = _source(made_on)
    _observe("dicom_node_findings", labels, len(findings))
    for finding in findings:
        _observe("dicom_node_finding_score", labels, finding["score"])
        _observe("dicom_node_finding_long_axis_mm", labels, finding["long_axis_mm"])


def delivery_settled(destination: str, status: str, *, took_s: float | None = None) -> None:
    """An attempt to deliver one object ended. took_s: since the object was due, where it is stored now."""
    _add("dicom_node_deliveries_total", {"destination": destination, "status": status})
    if took_s is not None:
        stage_took("deliver", took_s)


def commitment_settled(destination: str, *, committed: int, not_kept: int, parked: int) -> None:
    """A destination said of so many objects that it keeps them, or does not: those are sent again, or parked."""
    for status, objects in (("committed", committed), ("not_kept", not_kept), ("parked", parked)):
        if objects:
            _add("dicom_node_deliveries_total", {"destination": destination, "status": status}, objects)


def shadow_looked(model: str, outcome: str) -> None:
    _add("dicom_node_shadow_runs_total", {"model": model, "outcome": outcome})


def correction_taken(kind: str, state: str) -> None:
    _add("dicom_node_corrections_total", {"kind": kind, "state": state})


def series_deleted(cause: str, size_bytes: int) -> None:
    """cause: a word of ours, as the event has it."""
    labels = {"cause": cause.replace(" ", "_")}
    _add("dicom_node_series_deleted_total", labels)
    _add("dicom_node_deleted_bytes_total", labels, size_bytes)


def login_tried(outcome: str) -> None:
    _add("dicom_node_logins_total", {"outcome": outcome})


def audit_lost() -> None:
    _add("dicom_node_audit_lost_total", {})


def gpu_away(device: str) -> None:
    """The driver does not answer."""
    _set("dicom_node_gpu_up", {"device": device}, 0.0)


def gpu_sampled(device: str, *, used_bytes: int, total_bytes: int, use_ratio: float | None) -> None:
    """use_ratio: None where nothing on this machine can tell it."""
    _set("dicom_node_gpu_up", {"device": device}, 1.0)
    _set("dicom_node_gpu_memory_bytes", {"device": device, "kind": "used"}, used_bytes)
    _set("dicom_node_gpu_memory_bytes", {"device": device, "kind": "total"}, total_bytes)
    if use_ratio is not None:
        _set("dicom_node_gpu_use_ratio", {"device": device}, use_ratio)


def _source(made_on: Acquisition) -> dict[str, str]:
    """Bounded twice: by the vocabulary, and by the number of pairs."""
    counting = _counting
    if counting is None:
        return {}
    pair = scanner_label(made_on, counting.scanners), kernel_label(made_on, counting.kernels)
    if pair not in counting.sources and len(counting.sources) >= _MOST_SOURCES:
        pair = OTHER, OTHER
    counting.sources.add(pair)
    return {"scanner": pair[0], "kernel": pair[1]}


def _add(name: str, labels: Mapping[str, str], amount: float = 1.0) -> None:
    if _counting is not None:
        _counting.files.add(CATALOGUE[name], labels, amount)


def _set(name: str, labels: Mapping[str, str], value: float) -> None:
    if _counting is not None:
        _counting.files.set(CATALOGUE[name], labels, value)


def _observe(name: str, labels: Mapping[str, str], value: float) -> None:
    if _counting is not None:
        _counting.files.observe(CATALOGUE[name], labels, value)
