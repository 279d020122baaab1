"""Every metric: its name, kind, labels and meaning. Writers, the exposition and the documents read it here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

STAGES = ("wait", "read", "detect", "build", "deliver")
# No word of a caller: who is no peer of the settings is this one.
UNKNOWN_PEER = "unknown"
OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One metric. From `rows`: the whole node's, the same on each host; else this host's processes', added up.

    mode: how a gauge of several living processes becomes one. buckets: upper bounds of a histogram, without infinity.
    """

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    rows: bool = False
    mode: Literal["livesum", "livemax"] = "livesum"
    buckets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if (self.kind == "counter") != self.name.endswith("_total"):
            raise ValueError(f"{self.name}: a counter, and nothing else, ends with _total")
        if (self.kind == "histogram") != bool(self.buckets):
            raise ValueError(f"{self.name}: a histogram, and nothing else, has buckets")

    def samples(self) -> Iterator[str]:
        """The names under which its values are shown."""
        if self.kind == "histogram":
            yield from (f"{self.name}_bucket", f"{self.name}_sum", f"{self.name}_count")
        else:
            yield self.name


_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 14400.0)
_SCORES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
# The sizes at which guidelines decide (Fleischner 2017: 6 and 8 mm; 30 mm parts nodule from mass), and between.
_MILLIMETRES = (3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0)
_COUNTS = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0)

_ALL = (
    Definition(
        name="dicom_node_instances_received_total",
        kind="counter",
        labels=("peer", "status"),
        text="Instances that came by C-STORE, by peer of the settings and status of the answer",
    ),
    Definition(
        name="dicom_node_received_bytes_total",
        kind="counter",
        labels=("peer", "status"),
        text="Bytes of the data sets of these instances",
    ),
    Definition(
        name="dicom_node_instances_retrieved_total",
        kind="counter",
        labels=("peer", "by", "status"),
        text="Instances fetched by C-GET or WADO-RS, in pulls and for comparisons; a C-MOVE brings them by C-STORE",
    ),
    Definition(
        name="dicom_node_retrieved_bytes_total",
        kind="counter",
        labels=("peer", "by", "status"),
        text="Bytes of the data sets of these instances",
    ),
    Definition(
        name="dicom_node_associations_total",
        kind="counter",
        labels=("peer", "outcome"),
        text="Associations that peers opened: accepted, and how they ended: released, aborted",
    ),
    Definition(
        name="dicom_node_associations_rejected_total",
        kind="counter",
        labels=("reason",),
        text="Associations refused: calling, called, version, limit; not_opened: no A-ASSOCIATE-RQ or TLS came about",
    ),
    Definition(name="dicom_node_associations_open", kind="gauge", text="Associations open now"),
    Definition(
        name="dicom_node_series_total",
        kind="counter",
        labels=("outcome", "reason"),
        text="Series decided on: complete, rejected, failed, parked, cancelled; with the reason code",
    ),
    Definition(
        name="dicom_node_stage_seconds",
        kind="histogram",
        labels=("stage",),
        buckets=_SECONDS,
        text="How long a stage of a job took: wait (for a worker), read, detect, build, deliver (until stored)",
    ),
    Definition(
        name="dicom_node_deliveries_total",
        kind="counter",
        labels=("destination", "status"),
        text="Attempts to deliver an object: stored, waiting (again later), unknown, parked; then committed, not_kept",
    ),
    Definition(
        name="dicom_node_shadow_runs_total",
        kind="counter",
        labels=("model", "outcome"),
        text="Second looks of a model in the shadow: complete, failed, given_up, gave_way (to a job; looks again)",
    ),
    Definition(
        name="dicom_node_corrections_total",
        kind="counter",
        labels=("kind", "state"),
        text="Corrections that came (seg, sr, rtstruct): compared, ours (came back as it was), refused, waiting",
    ),
    Definition(
        name="dicom_node_series_deleted_total",
        kind="counter",
        labels=("cause",),
        text="Series that retention deleted, by cause: age, disk_low, by_hand",
    ),
    Definition(
        name="dicom_node_deleted_bytes_total",
        kind="counter",
        labels=("cause",),
        text="Bytes of the files of these series and of their results",
    ),
    Definition(
        name="dicom_node_logins_total",
        kind="counter",
        labels=("outcome",),
        text="Logins to the web role: ok, failed, limited (too many tries; not looked at)",
    ),
    Definition(
        name="dicom_node_audit_lost_total",
        kind="counter",
        text="Audit messages that could not be written to the trail",
    ),
    Definition(
        name="dicom_node_findings",
        kind="histogram",
        labels=("scanner", "kernel"),
        buckets=_COUNTS,
        text="Findings a series, by scanner and kernel",
    ),
    Definition(
        name="dicom_node_finding_score",
        kind="histogram",
        labels=("scanner", "kernel"),
        buckets=_SCORES,
        text="The model's score of each finding, by scanner and kernel: a change is drift",
    ),
    Definition(
        name="dicom_node_finding_long_axis_mm",
        kind="histogram",
        labels=("scanner", "kernel"),
        buckets=_MILLIMETRES,
        text="The long axis of each finding in mm, by scanner and kernel",
    ),
    Definition(
        name="dicom_node_gpu_up",
        kind="gauge",
        labels=("device",),
        mode="livemax",
        text="1: the driver answers for this GPU; 0: it does not, and memory and use are those of before",
    ),
    Definition(
        name="dicom_node_gpu_memory_bytes",
        kind="gauge",
        labels=("device", "kind"),
        mode="livemax",
        text="Memory of the GPU: used (by all programs), total",
    ),
    Definition(
        name="dicom_node_gpu_use_ratio",
        kind="gauge",
        labels=("device",),
        mode="livemax",
        text="Share of the time in which the GPU worked, 0 to 1; with the extra `gpu`",
    ),
    Definition(name="dicom_node_processes", kind="gauge", labels=("role",), text="Living processes of this host"),
    Definition(
        name="dicom_node_database_up",
        kind="gauge",
        rows=True,
        text="1: the database answers; 0: what rows say is absent",
    ),
    Definition(
        name="dicom_node_series_waiting",
        kind="gauge",
        rows=True,
        text="Series not decided on: they grow, or are quiet yet",
    ),
    Definition(
        name="dicom_node_series_waiting_oldest_seconds",
        kind="gauge",
        rows=True,
        text="Since when the longest of these waits, by its last image",
    ),
    Definition(
        name="dicom_node_jobs",
        kind="gauge",
        labels=("state",),
        rows=True,
        text="Jobs that wait, run, or want an operator: queued, running, failed, parked",
    ),
    Definition(
        name="dicom_node_jobs_oldest_seconds",
        kind="gauge",
        labels=("state",),
        rows=True,
        text="Age of the oldest job of the state queued or running",
    ),
    Definition(
        name="dicom_node_deliveries_open",
        kind="gauge",
        labels=("destination", "state"),
        rows=True,
        text="Objects not delivered: waiting, sending, unknown, parked",
    ),
    Definition(
        name="dicom_node_deliveries_oldest_seconds",
        kind="gauge",
        labels=("destination", "state"),
        rows=True,
        text="Age of the oldest of these",
    ),
    Definition(
        name="dicom_node_commitments_open",
        kind="gauge",
        labels=("destination",),
        rows=True,
        text="Objects stored at a destination that commits (may_commit) and not committed yet",
    ),
    Definition(
        name="dicom_node_commitments_oldest_seconds",
        kind="gauge",
        labels=("destination",),
        rows=True,
        text="Since when the longest of these is stored",
    ),
    Definition(
        name="dicom_node_audit_waiting_bytes",
        kind="gauge",
        text="What of this host's audit trail the syslog server has not got; with audit.syslog",
    ),
    Definition(
        name="dicom_node_audit_waiting_oldest_seconds",
        kind="gauge",
        text="Age of the oldest message of it",
    ),
    Definition(name="dicom_node_storage_free_bytes", kind="gauge", text="Free space of storage.root"),
    Definition(name="dicom_node_storage_size_bytes", kind="gauge", text="Size of the file system of storage.root"),
    Definition(
        name="dicom_node_storage_reserve_bytes", kind="gauge", text="storage.min_free_gb: below it, C-STORE is refused"
    ),
    Definition(name="dicom_node_build", kind="gauge", labels=("version",), text="1, with the version that answers"),
)

CATALOGUE = MappingProxyType({each.name: each for each in _ALL})
