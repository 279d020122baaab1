"""What a scrape of /metrics costs over many jobs, on SQLite and PostgreSQL, and what counting costs a receiver.

scrape: milliseconds of an answer that asks the rows, medians, and of one within the seconds in which they are not asked
again; each must stay under 250 ms. The metrics' folder holds what five processes counted, with all the scanners and
kernels that are kept apart. writes: a transaction that a worker makes (the progress of a job), alone and while another
process scrapes without a pause and without remembering the rows, which is far more than any Prometheus does.

receiver: processor time (user and system) of the Storage SCP's process for an image, with and without counting, in
turns; the ratio is the median of same-round ratios, and how long counting one image takes by itself. The sender is
DCMTK's storescu.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from bench.receive import receiver_process, timed_send, write_images
from bench.web import ROUTES, seed
from dicom_node import logs, metrics
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.metrics.exposition import Exposition
from dicom_node.metrics.vocabulary import Acquisition
from tests.peers import run_postgres, tool

LIMIT_MS = 250.0
PLACES = ("receive", "work", "work", "deliver", "web")
KERNELS = 60
WRITES, CALLS = 400, 2000


def main() -> None:
    arguments = _parser().parse_args()
    logs.quiet_pydicom()
    if (storescu := tool("storescu")) is None:
        sys.exit("bench/metrics: needs DCMTK; tests/peers.sh installs it")
    with tempfile.TemporaryDirectory(prefix="bench-metrics-", dir=arguments.folder) as name:
        folder = Path(name)
        scrapes = {"SQLite": scrape(folder / "sqlite", None, arguments)}
        with run_postgres() as url:
            scrapes["PostgreSQL"] = scrape(folder / "postgresql", url, arguments)
        received = receive(storescu, folder / "receive", arguments)
    report = {
        "command": shlex.join(["bench/metrics", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}",
        "load": round(os.getloadavg()[0], 1),
        "jobs": arguments.jobs,
        "scrape": scrapes,
        "receive": received,
        "limit_ms": LIMIT_MS,
    }
    print(json.dumps(report, indent=1) if arguments.json else table(report))
    raise SystemExit(0 if all(each["asked_ms"] < LIMIT_MS for each in scrapes.values()) else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench/metrics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=100_000, help="default 100000")
    parser.add_argument("--rounds", type=int, default=9, help="default 9")
    parser.add_argument("--images", type=int, default=300, help="CT images of 512 x 512 a round (default 300)")
    parser.add_argument("--folder", type=Path, help="where everything is written")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


# -- the scrape ------------------------------------------------------------------------------------------


def scrape(folder: Path, url: str | None, arguments: argparse.Namespace) -> dict[str, float]:
    config = _config(folder, url)
    _fill(config)
    database = Database(config.database_url())
    database.migrate()
    seed(database, arguments.jobs, time.time())
    try:
        exposition = Exposition(config, database, cache_s=0.0)
        remembering = Exposition(config, database, cache_s=3600.0)
        asked = _laps_ms(exposition, arguments.rounds)
        job_id = next(row["job_id"] for row in database.jobs(limit=10) if row["state"] == "running")
        alone = _write_ms(database, job_id)
        with _scraping(config):
            beside = _write_ms(database, job_id)
    finally:
        database.close()
    return {
        "asked_ms": round(statistics.median(lap for lap, _ in asked), 1),
        "asked_cpu_ms": round(statistics.median(cpu for _, cpu in asked), 1),
        "remembered_ms": round(statistics.median(lap for lap, _ in _laps_ms(remembering, arguments.rounds)), 1),
        "kilobytes": round(len(exposition.text()) / 1000, 1),
        "write_alone_ms": round(alone, 2),
        "write_beside_scrapes_ms": round(beside, 2),
    }


def _config(folder: Path, url: str | None) -> Config:
    pacs = {"ae_title": "PACS", "host": "127.0.0.1", "port": 104, "may_commit": True}
    return Config.model_validate(
        {
            "storage": {"root": str(folder), "min_free_gb": 0},
            "peers": {"pacs": pacs, "ct": {"ae_title": "CT1", "host": "127.0.0.1", "may_send": True}},
            "models": {"lung_nodule": {"bundle": "builtin:lung_nodule_small"}},
            "routes": [{"name": name, "model": "lung_nodule", "destinations": ["pacs"]} for name in ROUTES],
            **({} if url is None else {"database": {"url": url}}),
        }
    )


def _fill(config: Config) -> None:
    """What five processes counted. Two have been workers at once, so that both keep files."""
    for place in PLACES:
        metrics.start(config.metrics_folder(), place)
        for number in range(KERNELS):
            made_on = Acquisition(manufacturer="GE", model=f"Revolution {number}", kernel="LUNG")
            metrics.result_made(made_on, [{"score": 0.9, "long_axis_mm": 7.0}], {"read": 1.0})
        metrics.stop()


def _laps_ms(exposition: Exposition, rounds: int) -> list[tuple[float, float]]:
    """Wall and processor time of each; the first one, which warms up, is left out."""
    laps = []
    for _ in range(1 + rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        exposition.text()
        laps.append((1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)))
    return laps[1:]


def _write_ms(database: Database, job_id: str) -> float:
    laps = []
    for number in range(WRITES):
        start = time.perf_counter()
        database.job_progress(job_id, "nobody", number / WRITES)
        database.add_event("bench", job_id=job_id)
        laps.append(1000 * (time.perf_counter() - start))
    return statistics.median(laps)


@contextlib.contextmanager
def _scraping(config: Config) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    begun, stop = context.Event(), context.Event()
    process = context.Process(target=_scrape_on, args=(config, begun, stop))
    process.start()
    try:
        begun.wait()
        yield
    finally:
        stop.set()
        process.join()


def _scrape_on(config: Config, begun: Event, stop: Event) -> None:
    database = Database(config.database_url())
    exposition = Exposition(config, database, cache_s=0.0)
    while not stop.is_set():
        exposition.text()
        begun.set()
    database.close()


# -- the receiver ----------------------------------------------------------------------------------------


def receive(storescu: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Processor milliseconds an image, and the ratio."""
    write_images(folder / "send", arguments.images)
    rounds: list[dict[bool, float]] = []
    for number in range(arguments.rounds):
        # In turns, so that neither is always the one behind the other.
        order = (True, False) if number % 2 else (False, True)
        rounds.append({counted: _cpu_ms(storescu, folder, arguments.images, counted=counted) for counted in order})
    return {
        "counted_cpu_ms": round(statistics.median(one[True] for one in rounds), 3),
        "uncounted_cpu_ms": round(statistics.median(one[False] for one in rounds), 3),
        "ratio": round(statistics.median(one[True] / one[False] for one in rounds), 3),
        "least_ratio": round(min(one[True] / one[False] for one in rounds), 3),
        "largest_ratio": round(max(one[True] / one[False] for one in rounds), 3),
        "count_us": round(_count_us(folder / "metrics"), 1),
    }


def _count_us(folder: Path) -> float:
    """Processor microseconds of counting one Instance, which the difference of two noisy figures hides."""
    metrics.start(folder, "receive")
    laps = []
    for _ in range(9):
        start = time.process_time()
        for _ in range(CALLS):
            metrics.instance_received("ct", 0, 500_000)
        laps.append(1e6 * (time.process_time() - start) / CALLS)
    metrics.stop()
    return statistics.median(laps)


def _cpu_ms(storescu: str, folder: Path, images: int, *, counted: bool) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as root, receiver_process(Path(root), counted=counted) as running:
        before = running.cpu_s()
        timed_send(storescu, folder / "send", running.port, 1)
        if running.count() != images:  # waits for files and rows, which are part of the work
            sys.exit(f"bench/metrics: {running.count()} of {images} images came")
        return 1000 * (running.cpu_s() - before) / images


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['jobs']} jobs, {report['machine']}, load {report['load']}; limit {report['limit_ms']:g} ms",
        "",
        "| database | scrape, ms | of the processor | rows remembered | kB | write alone, ms | beside scrapes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in report["scrape"].items():
        lines.append(f"| {name} | " + " | ".join(f"{value:g}" for value in one.values()) + " |")
    receive = report["receive"]
    return "\n".join(
        [
            *lines,
            "",
            f"receiver: {receive['counted_cpu_ms']:g} ms of the processor an image counted, "
            f"{receive['uncounted_cpu_ms']:g} ms uncounted, ratio {receive['ratio']:g} "
            f"({receive['least_ratio']:g} to {receive['largest_ratio']:g}); "
            f"counting one takes {receive['count_us']:g} us",
        ]
    )


if __name__ == "__main__":
    main()
