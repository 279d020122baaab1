"""A day's load in small: many series from four senders at once, and kill -9 of a random role every few seconds.

A whole node (`dicom-node serve`) takes series of real geometry, a part of them compressed, a part of them interrupted
and sent again, analyses them with a model on a coarse grid, and delivers to an archive. Whatever is killed meanwhile,
each series must be analysed once as a whole, and each result must lie in the archive once. Exits with 1 where not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless, RLELossless

from dicom_node.dimse.archive import Archive
from dicom_node.dimse.scu import send
from dicom_node.peers import PeerConfig
from tests.node import TINY, Node

ROLES = ("receive", "work", "deliver")
SENDERS = 4
# Every third series travels compressed, every fifth is cut off at first.
COMPRESSED_EVERY, INTERRUPTED_EVERY = 3, 5
SYNTAXES = (JPEGLSLossless, RLELossless)
UID_ROOT = "1.2.826.0.1.3680043.8.498.78"
SETTLE_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SentSeries:
    """One series to send: `files` in the order of sending."""

    series_uid: str
    sop_instance_uids: tuple[str, ...]
    files: tuple[Path, ...]
    compressed: bool
    interrupted: bool


@dataclass(slots=True)
class Tally:
    """What happened, counted from several threads."""

    kills: Counter[str] = field(default_factory=Counter)
    repeated_sends: int = 0
    interruptions: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def main() -> None:
    arguments = _parser().parse_args()
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="bench-soak-", dir=arguments.folder) as name:
        report = soak(Path(name), arguments, generator)
    print(json.dumps(report, indent=1) if arguments.json else table(report))
    sys.exit(0 if not report["wrong"] else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/soak", description=__doc__)
    parser.add_argument("--series", type=int, default=200, help="default 200")
    parser.add_argument("--kill-every-s", type=float, default=20.0, help="kill -9 of a random role; 0: never")
    parser.add_argument("--seed", type=int, default=1, help="of what is cut off and what is killed")
    parser.add_argument("--folder", type=Path, help="where everything is written")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def soak(folder: Path, arguments: argparse.Namespace, generator: random.Random) -> dict[str, Any]:
    planned = [write_series(folder / "send", number) for number in range(arguments.series)]
    archive = Archive(folder / "archive", "SOAKPACS")
    port = archive.start()
    node = Node(
        folder / "node",
        peers={"pacs": {"ae_title": "SOAKPACS", "host": "127.0.0.1", "port": port}},
        # Longer than a killed receiver needs to come back, so that what was cut off counts as one series.
        assemble={"quiet_time_s": 15},
    )
    lighten(node.folder / "bundle" / "bundle.json")
    tally, started = Tally(), time.monotonic()
    try:
        with serving(node), killing(node, arguments.kill_every_s, generator, tally):
            send_all(node, planned, generator, tally)
            sent_s = time.monotonic() - started
            wait_until_settled(node, planned, sent_s)
        took_s = time.monotonic() - started
        return verdict(node, archive, planned, tally, sent_s=sent_s, took_s=took_s)
    finally:
        archive.stop()
        node.close()


def lighten(form_path: Path) -> None:
    """Every twelfth slice, and the one best finding: the load is on the path, not on the model."""
    form = json.loads(form_path.read_text())
    form["preprocessing"]["slice_step"] = 12
    form["thresholds"]["operating_point"] = 0.1
    form_path.write_text(json.dumps(form))


# -- what is sent ----------------------------------------------------------------------------------------


def write_series(folder: Path, number: int) -> SentSeries:
    """The small real scan under UIDs of its own."""
    compressed = number % COMPRESSED_EVERY == 1
    syntax = SYNTAXES[number // COMPRESSED_EVERY % len(SYNTAXES)]
    here = folder / f"{number:04}"
    here.mkdir(parents=True)
    uids, files = [], []
    for index, path in enumerate(sorted(TINY.glob("*.dcm"))):
        dataset = _renamed(pydicom.dcmread(path), number, index)
        if compressed:
            dataset.compress(syntax, generate_instance_uid=False)
        files.append(here / f"{index:03}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
        uids.append(str(dataset.SOPInstanceUID))
    return SentSeries(
        series_uid=f"{UID_ROOT}.{number}.2",
        sop_instance_uids=tuple(uids),
        files=tuple(files),
        compressed=compressed,
        interrupted=number % INTERRUPTED_EVERY == 2,
    )


def _renamed(dataset: Dataset, number: int, index: int) -> Dataset:
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{UID_ROOT}.{number}.1", f"{UID_ROOT}.{number}.2"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{UID_ROOT}.{number}.3.{index + 1}"
    dataset.PatientID, dataset.PatientName = f"SOAK{number}", f"Soak^{number}"
    return dataset


# -- senders ---------------------------------------------------------------------------------------------


def send_all(node: Node, planned: Sequence[SentSeries], generator: random.Random, tally: Tally) -> None:
    cuts = {one.series_uid: generator.uniform(0.2, 0.9) for one in planned}
    with ThreadPoolExecutor(SENDERS, thread_name_prefix="sender") as senders:
        for future in [senders.submit(send_one, node, one, cuts[one.series_uid], tally) for one in planned]:
            future.result()


def send_one(node: Node, series: SentSeries, cut: float, tally: Tally) -> None:
    """Until all of it is acknowledged. A series to interrupt is cut off once, and sent again from its start."""
    peer = PeerConfig(ae_title="DICOMNODE", host="127.0.0.1", port=node.port, response_timeout_s=30)
    if series.interrupted:
        _send_and_die(node.port, series.files[: int(cut * len(series.files))])
        with tally.lock:
            tally.interruptions += 1
    left = list(series.files)
    while left:
        outcomes = list(send(left, peer, "SOAK"))
        left = [one.path for one in outcomes if one.kind != "stored"]
        if left:
            with tally.lock:
                tally.repeated_sends += 1
            time.sleep(0.5)  # the receiver is being started again


def _send_and_die(port: int, files: Sequence[Path]) -> None:
    """A sender that ends with its Association open, as one does whose machine loses power."""
    code = """
import os, sys
from pathlib import Path
from dicom_node.dimse.scu import send
from dicom_node.peers import PeerConfig
files = [Path(name) for name in sys.argv[2:]]
outcomes = send(files, PeerConfig(ae_title="DICOMNODE", host="127.0.0.1", port=int(sys.argv[1])), "SOAK")
for _ in files[1:]:
    next(outcomes)
os._exit(1)
"""
    subprocess.run([sys.executable, "-c", code, str(port), *map(str, files)], check=False, stderr=subprocess.DEVNULL)


# -- the node --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(node: Node) -> Iterator[None]:
    """`dicom-node serve`, whose supervisor starts again what is killed."""
    node.start("serve")
    try:
        yield
    finally:
        node.stop()


@contextlib.contextmanager
def killing(node: Node, every_s: float, generator: random.Random, tally: Tally) -> Iterator[None]:
    """kill -9 of a random role, every `every_s`, until the block ends."""
    over = threading.Event()

    def run() -> None:
        while every_s and not over.wait(every_s):
            role = generator.choice(ROLES)
            for pid in processes(node, role):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    tally.kills[role] += 1

    thread = threading.Thread(target=run, name="killer", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def processes(node: Node, role: str) -> list[int]:
    """The processes of one role of this very node."""
    words = [role, "--config", str(node.config_path)]
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().decode(errors="replace").split("\0")
            if command[-4:-1] == words:
                found.append(int(path.parent.name))
    return found


def wait_until_settled(node: Node, planned: Sequence[SentSeries], sent_s: float) -> None:
    """Until every series has ended and is delivered; what is wrong then is the verdict's to say."""
    deadline = time.monotonic() + SETTLE_S + sent_s
    left = {node.job_of(list(one.sop_instance_uids), one.series_uid) for one in planned}
    while left and time.monotonic() < deadline:
        left = {job_id for job_id in left if not _settled(node, job_id)}
        time.sleep(1.0)


def _settled(node: Node, job_id: str) -> bool:
    job = node.database.job(job_id)
    if job is None or job["finished_at"] is None:
        return False
    rows = node.database.deliveries(job_id)
    return bool(rows) and all(row["state"] in ("stored", "committed", "parked") for row in rows)


# -- what it says ----------------------------------------------------------------------------------------


def verdict(
    node: Node, archive: Archive, planned: Sequence[SentSeries], tally: Tally, *, sent_s: float, took_s: float
) -> dict[str, Any]:
    wrong: list[str] = []
    waits, made, revisions = [], set(), 0
    held = Counter(one.sop_instance_uid for one in archive.received())
    for series in planned:
        job_id = node.job_of(list(series.sop_instance_uids), series.series_uid)
        revisions += len(node.database.jobs(series_uid=series.series_uid)) - 1
        job = node.database.job(job_id)
        if job is None or job["state"] != "complete":
            wrong.append(f"{series.series_uid}: {'no job' if job is None else job['state']}")
            continue
        waits.append(job["finished_at"] - max(row["received_at"] for row in node.database.instances(series.series_uid)))
        wrong += [f"{job_id}: {row['state']}" for row in node.database.deliveries(job_id) if row["state"] != "stored"]
        made |= {row["sop_instance_uid"] for row in node.database.results(job_id)}
    jobs = [job["job_id"] for job in node.database.jobs(limit=10**6)]
    all_made = {row["sop_instance_uid"] for job_id in jobs for row in node.database.results(job_id)}
    begun = sum(event["action"] == "job running" for job_id in jobs for event in node.database.events(job_id))
    wrong += [f"not in the archive: {uid}" for uid in sorted(made - held.keys())]
    wrong += [f"in the archive and no result: {uid}" for uid in sorted(held.keys() - all_made)]
    wrong += [f"half-written: {path.name}" for path in node.storage.root.rglob("*.part")]
    return {
        "command": shlex.join(["bench/soak", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} x {_processor()}, Python {platform.python_version()}",
        "series": len(planned),
        "instances": sum(len(one.files) for one in planned),
        "compressed_series": sum(one.compressed for one in planned),
        "interrupted_series": tally.interruptions,
        "kills": dict(sorted(tally.kills.items())),
        "sends_repeated": tally.repeated_sends,
        "series_analysed": len(waits),
        "analyses_begun_again": begun - len(jobs),
        "further_revisions": revisions,
        "results_made": len(made),
        "results_in_archive": len(made & held.keys()),
        "results_sent_again": sum(held.values()) - len(held),
        "sending_s": round(sent_s, 1),
        "took_s": round(took_s, 1),
        "series_per_hour": round(3600 * len(waits) / took_s),
        "image_to_result_s": round(statistics.median(waits), 1) if waits else None,
        "wrong": wrong,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if "model name" in line:
            return line.partition(":")[2].strip()
    return platform.machine()


def table(report: dict[str, Any]) -> str:
    words = {
        "series": "series sent by four senders",
        "instances": "their instances",
        "compressed_series": "series that came compressed",
        "interrupted_series": "series cut off and sent again",
        "kills": "kill -9",
        "sends_repeated": "sends that had to be repeated",
        "series_analysed": "series analysed as a whole",
        "analyses_begun_again": "analyses begun again after a kill",
        "further_revisions": "further revisions",
        "results_made": "results of these",
        "results_in_archive": "of them in the archive",
        "results_sent_again": "sent again under the same UID",
        "sending_s": "seconds of sending",
        "took_s": "seconds until the last result",
        "series_per_hour": "series an hour",
        "image_to_result_s": "median seconds from last image to result",
    }
    rows = [f"{words[key]:42} {report[key]}" for key in words]
    return "\n".join([report["command"], report["machine"], "", *rows, *(f"WRONG {one}" for one in report["wrong"])])


if __name__ == "__main__":
    main()
