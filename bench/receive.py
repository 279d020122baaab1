"""How many CT images a second our Storage SCP takes, beside DCMTK's storescp and Orthanc, on this machine.

The sender is DCMTK's storescu for all three, on one and on four Associations. Each measurement has a freshly started
receiver with an empty folder; within a round the receivers take turns in random order, so that other load on the
machine meets all alike. Ratios are medians of same-round ratios. Ours flushes each image into its journal before it
answers; files and rows follow, and are all there before a measurement counts, but not within its time: with more
images than the journal holds (--images 1500) their pace shows. The others flush nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import random
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_node import logs, metrics
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.dimse.announce import Announcer
from dicom_node.dimse.scp import Receiver
from dicom_node.storage import Storage
from tests.peers import free_port, run_orthanc, tool

AE_TITLE = "DICOMNODE"
SIDE = 512
ASSOCIATIONS = (1, 4)
# DCMTK leaves Nagle's algorithm on: each image would wait 40 ms.
ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}

# Debian puts it where only root's PATH leads.
ORTHANC_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"

# A started receiver: its port, and how many instances it holds.
Running = tuple[int, Callable[[], int]]
Receiving = Callable[[Path], contextlib.AbstractContextManager[Running]]


def main() -> None:
    arguments = _parser().parse_args()
    storescu = tool("storescu")
    if storescu is None or tool("storescp") is None or shutil.which("Orthanc", path=ORTHANC_PATH) is None:
        sys.exit("bench/receive: needs DCMTK and Orthanc; tests/peers.sh installs them")
    receivers = dict(RECEIVERS)
    if arguments.processes > 1:
        receivers["dicom_node"] = partial(our_role, processes=arguments.processes)
    with tempfile.TemporaryDirectory(prefix="bench-receive-", dir=arguments.folder) as name:
        folder = Path(name)
        sent_bytes = write_images(folder / "send", arguments.images)
        rounds = []
        for number in range(arguments.rounds):
            rounds.append(one_round(storescu, folder, arguments.images, receivers))
            if not arguments.json:
                print(f"round {number + 1}/{arguments.rounds}: {_one_line(rounds[-1])}", file=sys.stderr)
        report = summary(rounds, arguments.images, sent_bytes, folder)
    print(json.dumps(report, indent=1) if arguments.json else table(report))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/receive", description=__doc__)
    parser.add_argument("--images", type=int, default=300, help="CT images of 512 x 512 (default 300)")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--processes", type=int, default=1, help="receive.processes of ours (default 1)")
    parser.add_argument("--folder", type=Path, help="where files are written; its disk is measured too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def one_round(
    storescu: str, folder: Path, images: int, receivers: Mapping[str, Receiving]
) -> dict[str, dict[str, float]]:
    """receiver -> number of Associations -> seconds."""
    turns = [(name, associations) for name in RECEIVERS for associations in ASSOCIATIONS]
    random.shuffle(turns)
    seconds = {name: dict.fromkeys(map(str, ASSOCIATIONS), 0.0) for name in RECEIVERS}
    for name, associations in turns:
        with tempfile.TemporaryDirectory(dir=folder) as root, receivers[name](Path(root)) as (port, count):
            os.sync()  # what others wrote before must not be flushed on our time
            seconds[name][str(associations)] = timed_send(storescu, folder / "send", port, associations)
            if count() != images:
                sys.exit(f"bench/receive: {name} holds {count()} of {images} images")
    return seconds


def timed_send(storescu: str, folder: Path, port: int, associations: int) -> float:
    parts = sorted(folder.iterdir())
    per_sender = len(parts) // associations
    command = [storescu, "-xe", "-R", "+sd", "-aec", AE_TITLE, "127.0.0.1", str(port)]
    started = time.perf_counter()
    senders = [
        subprocess.Popen([*command, *map(str, parts[n * per_sender : (n + 1) * per_sender])], env=ENVIRONMENT)
        for n in range(associations)
    ]
    codes = [sender.wait() for sender in senders]
    seconds = time.perf_counter() - started
    if any(codes):
        sys.exit(f"bench/receive: storescu failed, exit codes {codes}")
    return seconds


# -- the receivers -------------------------------------------------------------------------------------


@contextlib.contextmanager
def our_receiver(folder: Path) -> Iterator[Running]:
    with receiver_process(folder) as running:
        yield running.port, running.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """port: of the Storage SCP. count: its rows, once all that it took has one. cpu_s: user and system, so far."""

    port: int
    count: Callable[[], int]
    cpu_s: Callable[[], float]


@contextlib.contextmanager
def receiver_process(folder: Path, *, counted: bool = True) -> Iterator[Process]:
    """The Receiver in a process of its own, as the receive role runs it; `counted`: with metrics."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(folder, theirs, counted))
    process.start()
    try:
        database = Database(f"sqlite:///{folder / 'node.sqlite'}")
        port = ours.recv()

        def count() -> int:
            ours.send("settle")  # rows follow their Success by a moment
            ours.recv()
            return sum(len(database.instances(s["series_uid"])) for s in database.series_to_assemble())

        def cpu_s() -> float:
            ours.send("cpu")
            return float(ours.recv())

        yield Process(port=port, count=count, cpu_s=cpu_s)
        database.close()
    finally:
        ours.send("stop")
        process.join()


def _serve(folder: Path, channel: Connection, counted: bool) -> None:
    logs.configure("error", "text", "receive")
    config = Config.model_validate(
        {
            "storage": {"root": str(folder), "min_free_gb": 0},
            "receive": {"ae_title": AE_TITLE, "host": "127.0.0.1", "port": 0, "unknown_peers": "accept"},
        }
    )
    database = Database(config.database_url())
    database.migrate()
    if counted:
        metrics.start(config.metrics_folder(), "receive")
    announcer = Announcer(lambda series_uid, quiet_time_s: None, config.quiet_time_s)
    receiver = Receiver(config, Storage(folder), database, announcer)
    channel.send(receiver.start())
    while (asked := channel.recv()) != "stop":
        channel.send(receiver.settle() if asked == "settle" else time.process_time())
    receiver.stop(10.0)
    metrics.stop()
    database.close()


@contextlib.contextmanager
def our_role(folder: Path, processes: int) -> Iterator[Running]:
    """`dicom-node receive` with several processes on its port."""
    port = free_port()
    receive = {"ae_title": AE_TITLE, "host": "127.0.0.1", "port": port, "unknown_peers": "accept"}
    settings = {
        "storage": {"root": str(folder / "node"), "min_free_gb": 0},
        "receive": {**receive, "processes": processes},
        "log": {"format": "json"},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))
    database = Database(f"sqlite:///{folder / 'node' / 'node.sqlite'}")

    def count() -> int:
        found = 0
        for _ in range(200):  # rows follow their Success by a moment
            before, found = found, sum(len(database.instances(s["series_uid"])) for s in database.series_to_assemble())
            if found and found == before:
                break
            time.sleep(1.0)
        return found

    command = [sys.executable, "-m", "dicom_node", "receive", "--config", str(folder / "config.yaml")]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            while '"action": "ready"' not in (folder / "log").read_text():
                time.sleep(0.05)
                if process.poll() is not None:
                    sys.exit(f"bench/receive: the role ended: {(folder / 'log').read_text()}")
            yield port, count
        finally:
            process.terminate()
            database.close()


@contextlib.contextmanager
def storescp(folder: Path) -> Iterator[Running]:
    port = free_port()
    command = [str(tool("storescp")), "--fork", "--max-pdu", "131072", "+xa", "-od", str(folder), str(port)]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for_port(port)
            yield port, lambda: len(list(folder.iterdir()))
        finally:
            process.terminate()


@contextlib.contextmanager
def orthanc(folder: Path) -> Iterator[Running]:
    with run_orthanc(folder, {"Plugins": [], "DicomCheckCalledAet": False}) as running:
        yield running.dicom_port, lambda: int(running.get("/statistics")["CountInstances"])


def _wait_for_port(port: int) -> None:
    for _ in range(500):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.01)
    sys.exit("bench/receive: storescp does not listen")


RECEIVERS: dict[str, Receiving] = {
    "dicom_node": our_receiver,
    "storescp": storescp,
    "orthanc": orthanc,
}


# -- what is sent ----------------------------------------------------------------------------------------


def write_images(folder: Path, images: int) -> int:
    """Series of CT images that look like CT to a compressor: tissue, air, noise. Spread over four folders."""
    rows, columns = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    body = np.where(np.hypot(rows, columns) < 0.9, 40, -1000) + np.where(np.hypot(rows, columns) < 0.6, -880, 0)
    noise = np.random.default_rng(1).normal(0, 25, (SIDE, SIDE))
    total = 0
    for number in range(images):
        pixels = (body + np.roll(noise, number * 997)).astype(np.int16)
        part = folder / str(number * max(ASSOCIATIONS) // images)
        part.mkdir(parents=True, exist_ok=True)
        path = part / f"{number:04}.dcm"
        _image(number, pixels).save_as(path, enforce_file_format=True)
        total += path.stat().st_size
    return total


def _image(number: int, pixels: np.ndarray) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.77.3.{number + 1}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.77.1", "1.2.826.0.1.3680043.8.498.77.2"
    ds.PatientName, ds.PatientID, ds.Modality = "Bench^Receive", "BENCH", "CT"
    ds.InstanceNumber, ds.ImagePositionPatient = number + 1, [0, 0, number]
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelData = pixels.tobytes()
    return ds


# -- what it says ----------------------------------------------------------------------------------------


def summary(rounds: list[dict[str, dict[str, float]]], images: int, sent_bytes: int, folder: Path) -> dict[str, object]:
    def median(name: str, associations: str) -> float:
        return statistics.median(images / one[name][associations] for one in rounds)

    def ratio(other: str) -> dict[str, float]:
        return {
            n: round(statistics.median(one[other][n] / one["dicom_node"][n] for one in rounds), 3)
            for n in map(str, ASSOCIATIONS)
        }

    per_image_mb = sent_bytes / images / 1e6
    return {
        "command": shlex.join(["bench/receive", *sys.argv[1:]]),
        "machine": _machine(folder),
        "images": images,
        "megabytes": round(sent_bytes / 1e6, 1),
        "rounds": len(rounds),
        "images_per_s": {name: {n: round(median(name, n), 1) for n in map(str, ASSOCIATIONS)} for name in RECEIVERS},
        "mb_per_s": {
            name: {n: round(median(name, n) * per_image_mb, 1) for n in map(str, ASSOCIATIONS)} for name in RECEIVERS
        },
        "ratio_orthanc": ratio("orthanc"),
        "ratio_storescp": ratio("storescp"),
        "seconds": rounds,
    }


def _machine(folder: Path) -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    kind = max((m for m in mounts if folder.is_relative_to(m[0])), key=lambda m: len(m[0]), default=["", "unknown"])[1]
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} x {model}, {kind}, Python {platform.python_version()}, load {load:.1f} at the end"


def table(report: dict[str, object]) -> str:
    images, megabytes = report["images_per_s"], report["mb_per_s"]
    assert isinstance(images, dict)
    assert isinstance(megabytes, dict)
    lines = [
        f"{report['command']}",
        f"{report['machine']}",
        f"{report['images']} images of {SIDE} x {SIDE}, {report['megabytes']} MB, medians of {report['rounds']} rounds",
        "",
        f"{'receiver':12}{'1 Association':>26}{'4 Associations':>26}",
    ]
    for name in RECEIVERS:
        cells = "".join(f"{images[name][n]:12.1f}/s {megabytes[name][n]:7.1f} MB/s" for n in map(str, ASSOCIATIONS))
        lines.append(f"{name:12}{cells}")
    for name in ("ratio_orthanc", "ratio_storescp"):
        ratio = report[name]
        assert isinstance(ratio, dict)
        lines.append(f"{name} " + " ".join(f"{n}:{value}" for n, value in ratio.items()))
    return "\n".join(lines)


def _one_line(one: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{name} " + "/".join(f"{s:.2f}" for s in by.values()) + " s" for name, by in one.items())


if __name__ == "__main__":
    main()
