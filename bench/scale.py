"""Series an hour with 1, 2 and 4 workers, on a model of fixed cost.

A node on PostgreSQL receives, analyses and delivers small series, more of them at once than its workers can take. The
model only waits, as a worker does for its GPU: so two cores serve four workers, and what is measured is what the node
itself adds and whether workers hinder each other. efficiency: the rate over that of one worker, over their number.
As many series as workers come before the clock starts. busy: how much of the machine's cores was in use by anybody;
where that comes near 1, the cores are what is measured, and no workers on machines of their own.
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
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


IDLE_S = 5.0
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One run. cpu_s: processor time a series, by role. idle: of a core, what a worker takes that has nothing to do."""

    series_per_hour: float
    busy: float
    cpu_s: dict[str, float]
    idle: float


def main() -> None:
    arguments = _parser().parse_args()
    logs.quiet_pydicom()
    rounds = [
        {count: run(count, arguments, arguments.folder) for count in arguments.workers} for _ in range(arguments.rounds)
    ]
    report = summary(rounds, arguments)
    print(json.dumps(report, indent=1) if arguments.json else table(report))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/scale", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="how many at once; default 1 2 4")
    parser.add_argument("--cost-s", type=float, default=2.0, help="what the model takes for a series; default 2")
    parser.add_argument("--series", type=int, default=10, help="a worker, after the first; default 10")
    parser.add_argument("--rounds", type=int, default=3, help="all numbers of workers in turn; medians are told")
    parser.add_argument("--folder", type=Path, help="where everything is written")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def run(workers: int, arguments: argparse.Namespace, folder: Path | None) -> Seen:
    """From the first analysis that begins to the last that ends, after as many as there are workers."""
    count = workers * arguments.series
    with contextlib.ExitStack() as up:
        here = Path(up.enter_context(tempfile.TemporaryDirectory(prefix="bench-scale-", dir=folder)))
        planned = [write_series(here / "send", number) for number in range(workers + count)]
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
        stubs = up.enter_context(stub_workers(node, workers, arguments.cost_s))
        roles = {"receive": [node.processes["receive"].pid], "deliver": [node.processes["deliver"].pid], "work": stubs}
        send_all(node, planned[:workers])
        arrived(archive, workers, arguments.cost_s)
        idle = spent(stubs)
        time.sleep(IDLE_S)
        idle = (spent(stubs) - idle) / IDLE_S / workers
        before, machine = {role: spent(pids) for role, pids in roles.items()}, whole_machine()
        send_all(node, planned[workers:])
        arrived(archive, len(planned), arguments.cost_s)
        busy, cpu_s = (
            share(machine, whole_machine()),
            {role: spent(pids) - before[role] for role, pids in roles.items()},
        )
        jobs = [job for job in node.database.jobs(limit=2 * len(planned)) if job["state"] == "complete"]
        if len(jobs) != len(planned):
            raise SystemExit(f"{len(jobs)} of {len(planned)} series were analysed")
        counted = sorted(jobs, key=lambda job: job["started_at"])[workers:]
        took_s = max(job["finished_at"] for job in counted) - min(job["started_at"] for job in counted)
        return Seen(
            series_per_hour=3600 * count / took_s,
            busy=busy,
            cpu_s={role: seconds / count for role, seconds in cpu_s.items()},
            idle=idle,
        )


def arrived(archive: Archive, series: int, cost_s: float) -> None:
    if not archive.wait_for(2 * series, 60 + 4 * series * cost_s):
        raise SystemExit(f"only {len(archive.received())} of {2 * series} results came")


def spent(pids: Sequence[int]) -> float:
    """Seconds of processor time of these processes until now, all their threads'. proc_pid_stat(5): utime, stime."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / _TICKS_A_SECOND


def whole_machine() -> tuple[int, int]:
    """Ticks of all cores until now: those with work, and all. proc_stat(5): the 4th and 5th are idle and waiting."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def share(before: tuple[int, int], after: tuple[int, int]) -> float:
    return (after[0] - before[0]) / max(1, after[1] - before[1])


def write_series(folder: Path, number: int) -> list[Path]:
    header = {
        "PatientID": f"SCALE{number}",
        "StudyInstanceUID": f"{UID_ROOT}.{number}.1",
        "SeriesInstanceUID": f"{UID_ROOT}.{number}.2",
        "FrameOfReferenceUID": f"{UID_ROOT}.{number}.3",
    }
    return make_ct_series(folder / str(number), shape=(SLICES, 64, 64), header=header)


@contextlib.contextmanager
def stub_workers(node: Node, count: int, cost_s: float) -> Iterator[list[int]]:
    """So many at once, each under a name of its own; their process ids, once they are ready."""
    pids: list[int] = []
    paths = [node.folder / f"stub{number}.log" for number in range(count)]
    with contextlib.ExitStack() as up:
        for number, path in enumerate(paths):
            command = [sys.executable, "-m", "tests.stub_worker", str(node.config_path), str(cost_s), f"stub{number}"]
            with path.open("wb") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log)
            up.callback(process.wait)
            up.callback(process.terminate)
            pids.append(process.pid)
        node.wait(lambda: all(READY in path.read_text() for path in paths), "the workers")
        yield pids


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


def summary(rounds: Sequence[dict[int, Seen]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians of the rounds. An efficiency is that of one round, so that what else the machine did counts little."""
    least = min(arguments.workers)

    def of(count: int) -> dict[str, Any]:
        seen = [found[count] for found in rounds]
        rates = [found[count].series_per_hour / found[least].series_per_hour for found in rounds]
        return {
            "series_per_hour": round(statistics.median(one.series_per_hour for one in seen)),
            "efficiency": round(statistics.median(rates) * least / count, 3),
            "busy": round(statistics.median(one.busy for one in seen), 2),
            "cpu_s_a_series": {
                role: round(statistics.median(one.cpu_s[role] for one in seen), 2) for role in seen[0].cpu_s
            },
            "idle_worker": round(statistics.median(one.idle for one in seen), 3),
        }

    return {
        "command": shlex.join(["bench/scale", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}",
        "load": round(os.getloadavg()[1], 1),
        "cost_s": arguments.cost_s,
        "rounds": len(rounds),
        "workers": {count: of(count) for count in arguments.workers},
    }


def table(report: dict[str, Any]) -> str:
    lines = [report["command"], f"{report['machine']}, load {report['load']}, {report['rounds']} rounds", ""]
    lines.append(
        "workers  series/hour  efficiency  busy  CPU s a series: work, receive, deliver  idle worker, of a core"
    )
    for count, found in report["workers"].items():
        cpu_s = ", ".join(f"{found['cpu_s_a_series'][role]:.2f}" for role in ("work", "receive", "deliver"))
        lines.append(
            f"{count:7}  {found['series_per_hour']:11}  {found['efficiency']:10}  {found['busy']:4}  {cpu_s:>39}"
            f"  {found['idle_worker']:19}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
