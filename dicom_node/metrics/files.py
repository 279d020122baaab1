"""Counts of one process -> a file that the next process in its place goes on with; all files of a host -> their sum.

In the files of prometheus-client's multi-process mode, of which its collector makes the sums. A file belongs to a
place ("receive-0"), not to a process id: a process takes the first place whose lock is free, so there are never more
files than processes lived at once, and counters go on after a restart.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample

from dicom_node.metrics.catalogue import CATALOGUE, Definition

log = logging.getLogger(__name__)

# A histogram of scanner and kernel takes some 4 kB a pair.
_SIZE_BYTES = {"counter": 128 * 1024, "gauge_livesum": 16 * 1024, "gauge_livemax": 16 * 1024, "histogram": 1024 * 1024}
# The longest key and its value; a file that has no more room takes no new label values.
_ROOM_BYTES = 512
_MOST_PLACES = 256
# Who shows the metrics holds a lock for a moment to see whether it is free.
_TRIES, _TRY_AGAIN_S = 4, 0.01


class ProcessFiles:
    """The files of this process. Safe to call from many threads; raises OSError when they can't be had."""

    def __init__(self, folder: Path, role: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._place, self._descriptor = _take_place(folder, role)
        self._files = {kind: _opened(folder, kind, self._place) for kind in _SIZE_BYTES}
        self._values: dict[str, float] = {}

    def add(self, definition: Definition, labels: Mapping[str, str], amount: float) -> None:
        """Add to a counter, or to a gauge."""
        self._write(definition, definition.name, labels, amount, add=True)

    def set(self, definition: Definition, labels: Mapping[str, str], value: float) -> None:
        """The value of a gauge."""
        self._write(definition, definition.name, labels, value, add=False)

    def observe(self, definition: Definition, labels: Mapping[str, str], value: float) -> None:
        """One more value of a histogram. A bucket's own count is kept; the collector adds them up."""
        bound = next((str(bound) for bound in definition.buckets if value <= bound), "+Inf")
        self._write(definition, f"{definition.name}_bucket", {**labels, "le": bound}, 1.0, add=True)
        self._write(definition, f"{definition.name}_sum", labels, value, add=True)

    def labels_of(self, definition: Definition) -> Iterator[dict[str, str]]:
        """The label values under which a histogram has been counted, by this process or one before it."""
        for key, *_ in self._files["histogram"].read_all_values():
            name, _, labels, _ = json.loads(key)
            if name == definition.name:
                yield labels

    def close(self) -> None:
        """The place is free for the next process."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()
            os.close(self._descriptor)

    def _write(self, definition: Definition, name: str, labels: Mapping[str, str], amount: float, *, add: bool) -> None:
        # The text stands in the catalogue: in each key it would fill the file.
        key = mmap_key(definition.name.removesuffix("_total"), name, list(labels), list(labels.values()), "")
        with self._lock:
            file = self._files.get(_kind(definition))
            if file is None:
                return  # closed: a thread that outlives its role
            before = self._values.get(key)
            if before is None:
                if not _has_room(file, key):
                    return
                before = file.read_value(key)[0]
            self._values[key] = amount if not add else before + amount
            file.write_value(key, self._values[key], 0.0)


def merged(folder: Path) -> list[Metric]:
    """The metrics of all processes of this host, gauges of the living ones alone; the text as in the catalogue."""
    metrics = MultiProcessCollector.merge([str(path) for path in _readable(folder)])
    found = []
    for metric in metrics:
        definition = CATALOGUE.get(metric.name if metric.type != "counter" else f"{metric.name}_total")
        if definition is not None:  # else counted by another version
            metric.documentation = definition.text
            if definition.kind == "histogram":
                metric.samples = list(_whole(definition, metric.samples))
            found.append(metric)
    return found


def _whole(definition: Definition, samples: Iterable[Sample]) -> Iterator[Sample]:
    """A histogram with all its buckets: the files hold those alone that were hit. Prometheus makes no quantile without
    the one up to infinity, and takes a bucket to reach down to the next one that there is."""
    hit: dict[tuple[str, ...], dict[str, float]] = {}
    for sample in samples:
        if sample.name != f"{definition.name}_bucket":
            yield sample
            continue
        values = tuple(sample.labels[label] for label in definition.labels)
        hit.setdefault(values, {})[sample.labels["le"]] = sample.value
    for values, counts in hit.items():
        up_to = 0.0
        for bound in (*map(str, definition.buckets), "+Inf"):
            up_to = counts.get(bound, up_to)
            labels = {**dict(zip(definition.labels, values, strict=True)), "le": bound}
            yield Sample(f"{definition.name}_bucket", labels, up_to)


def _readable(folder: Path) -> Iterator[Path]:
    alive: dict[str, bool] = {}
    for path in sorted(folder.glob("*.db")):
        kind, _, place = path.stem.rpartition("_")
        if kind.startswith("gauge") and not alive.setdefault(place, _is_taken(folder / f"{place}.lock")):
            continue
        if _is_sound(path):
            yield path  # else it is damaged, or being made: its process makes it anew


def _kind(definition: Definition) -> str:
    return f"gauge_{definition.mode}" if definition.kind == "gauge" else definition.kind


def _take_place(folder: Path, role: str) -> tuple[str, int]:
    for number in range(_MOST_PLACES):
        place = f"{role}-{number}"
        descriptor = os.open(folder / f"{place}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        for _ in range(_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_TRY_AGAIN_S)
            else:
                return place, descriptor
        os.close(descriptor)
    raise OSError(f"{_MOST_PLACES} processes of the role {role} count on this machine already")


def _is_taken(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _opened(folder: Path, kind: str, place: str) -> MmapedDict:
    path = folder / f"{kind}_{place}.db"
    if kind.startswith("gauge"):
        path.unlink(missing_ok=True)  # what a process before us saw holds no more
    _allocate(path, _SIZE_BYTES[kind])
    if not _is_sound(path):
        log.warning("damaged counts thrown away", extra={"action": "metrics", "file": path.name})
        path.unlink()
        _allocate(path, _SIZE_BYTES[kind])
    return MmapedDict(str(path))


def _is_sound(path: Path) -> bool:
    """Whether all of the file's keys can be read. One that no process has written to yet has none."""
    try:
        [used] = struct.unpack_from("i", (data := path.read_bytes()))
        if used and not 8 <= used <= len(data):
            return False
        for key, *_ in MmapedDict.read_all_values_from_file(str(path)) if used else ():
            json.loads(key)
    except (RuntimeError, struct.error, ValueError, OSError):
        return False
    return True


def _allocate(path: Path, size_bytes: int) -> None:
    # A page that has no block yet is a SIGBUS when it is written to on a full disk: all blocks are taken now.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        if os.fstat(descriptor).st_size < size_bytes:
            os.posix_fallocate(descriptor, 0, size_bytes)
    finally:
        os.close(descriptor)


def _has_room(file: MmapedDict, key: str) -> bool:
    known: Iterable[str] = file._positions
    return key in known or file._used + len(key) + _ROOM_BYTES <= file._capacity
