"""Series an hour with 1, 2 and 4 workers, on a model of fixed cost.

A node on PostgreSQL receives, analyses and delivers small series, more of them at once than its workers can take. The
model only waits, as a worker does for its GPU: so two cores serve four workers, and what is measured is what the node
itself adds and whether workers hinder each other. efficiency: the rate over that of one worker, over their number.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dicom_node import logs
from dicom_node.dimse.archive import Archive
from dicom_node.dimse.scu import send
from dicom_node.peers import PeerConfig
from tests.fakes.ct import make_ct_series
from tests.node import READY, Node
from tests.peers import run_postgres

SENDERS = 2
TRIES = 3
SLICES = 44
UID_ROOT = "1.2.826.0.1.3680043.8.498.80"


def main() -> None:
    arguments = _parser().parse_args()
    logs.quiet_pydicom()
    rounds = [
        {count: rate(count, arguments, arguments.folder) for count in arguments.workers}
        for _ in range(arguments.rounds)
    ]
    report = summary(rounds, arguments)
    print(json.dumps(report, indent=1) if arguments.json else table(report))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/scale", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="how many at once; default 1 2 4")
    parser.add_argument("--cost-s", type=float, default=2.0, help="what the model takes for a series; default 2")
    parser.add_argument("--series", type=int, default=10, help="a worker; default 10")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where everything is written")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def rate(workers: int, arguments: argparse.Namespace, folder: Path | None) -> float:
    """Series an hour, from the first analysis that begins to the last that ends."""
    count = workers * arguments.series
    with contextlib.ExitStack() as up:
        here = Path(up.enter_context(tempfile.TemporaryDirectory(prefix="bench-scale-", dir=folder)))
        planned = [write_series(here / "send", number) for number in range(count)]
        archive = Archive(here / "archive", "SCALEPACS")
        port = archive.start()
        up.callback(archive.stop)
        node = Node(
            here / "node",
            peers={"pacs": {"ae_title": "SCALEPACS", "host": "127.0.0.1", "port": port}},
            database={"url": up.enter_context(run_postgres())},
        )
        up.callback(node.close)
        node.start("receive", "deliver")
        up.enter_context(stub_workers(node, workers, arguments.cost_s))
        send_all(node, planned)
        if not archive.wait_for(2 * count, 60 + 4 * count * arguments.cost_s):
            raise SystemExit(f"only {len(archive.received())} of {2 * count} results came")
        jobs = [job for job in node.database.jobs(limit=2 * count) if job["state"] == "complete"]
        if len(jobs) != count:
            raise SystemExit(f"{len(jobs)} of {count} series were analysed")
        took_s = max(job["finished_at"] for job in jobs) - min(job["started_at"] for job in jobs)
        return 3600 * count / took_s


def write_series(folder: Path, number: int) -> list[Path]:
    header = {
        "PatientID": f"SCALE{number}",
        "StudyInstanceUID": f"{UID_ROOT}.{number}.1",
        "SeriesInstanceUID": f"{UID_ROOT}.{number}.2",
        "FrameOfReferenceUID": f"{UID_ROOT}.{number}.3",
    }
    return make_ct_series(folder / str(number), shape=(SLICES, 64, 64), header=header)


@contextlib.contextmanager
def stub_workers(node: Node, count: int, cost_s: float) -> Iterator[None]:
    """So many at once, each under a name of its own; ready when this yields."""
    paths = [node.folder / f"stub{number}.log" for number in range(count)]
    with contextlib.ExitStack() as up:
        for number, path in enumerate(paths):
            command = [sys.executable, "-m", "tests.stub_worker", str(node.config_path), str(cost_s), f"stub{number}"]
            with path.open("wb") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log)
            up.callback(process.wait)
            up.callback(process.terminate)
        node.wait(lambda: all(READY in path.read_text() for path in paths), "the workers")
        yield


def send_all(node: Node, planned: Sequence[Sequence[Path]]) -> None:
    peer = PeerConfig(ae_title="DICOMNODE", host="127.0.0.1", port=node.port, response_timeout_s=60)

    def one(files: Sequence[Path]) -> None:
        """A busy machine may answer late: what had no answer is sent again."""
        left, tries = list(files), 0
        while left:
            outcomes = list(send(left, peer, "SCALE"))
            left, tries = [outcome.path for outcome in outcomes if outcome.kind != "stored"], tries + 1
            if left and tries == TRIES:
                raise SystemExit(f"the node did not take a series: {outcomes[-1].message}")

    with ThreadPoolExecutor(SENDERS, thread_name_prefix="sender") as senders:
        list(senders.map(one, planned))


def summary(rounds: Sequence[dict[int, float]], arguments: argparse.Namespace) -> dict[str, Any]:
    least = min(arguments.workers)
    return {
        "command": shlex.join(["bench/scale", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}",
        "load": round(os.getloadavg()[1], 1),
        "cost_s": arguments.cost_s,
        "rounds": len(rounds),
        "workers": {
            count: {
                "series_per_hour": round(statistics.median(found[count] for found in rounds)),
                "efficiency": round(statistics.median(_efficiency(found, count, least) for found in rounds), 3),
            }
            for count in arguments.workers
        },
    }


def _efficiency(rates: dict[int, float], count: int, least: int) -> float:
    """Of one round, so that what else the machine did counts as little as can be."""
    return rates[count] * least / (rates[least] * count)


def table(report: dict[str, Any]) -> str:
    lines = [report["command"], f"{report['machine']}, load {report['load']}", ""]
    lines.append("workers  series/hour  efficiency")
    for count, found in report["workers"].items():
        lines.append(f"{count:7}  {found['series_per_hour']:11}  {found['efficiency']:10}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
