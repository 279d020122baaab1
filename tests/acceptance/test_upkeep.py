"""The deliver role as a process: it tells of a failed job once over restarts, and deletes what may go."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.fakes.shelf import Shelf, shelf
from tests.fakes.web import Asked, Said, serving


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[Shelf]:
    root = tmp_path / "root"
    root.mkdir()
    made = shelf(root, lambda: time.time() - 3 * 86400.0)
    yield made
    made.database.close()


@pytest.fixture
def deliver(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dicom_node", "deliver", "--config", str(tmp_path / "config.yaml")]
        with (tmp_path / "deliver.log").open("ab") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_the_deliver_role_tells_once_and_deletes_by_the_settings(
    tmp_path: Path, stock: Shelf, deliver: Callable[[], subprocess.Popen[bytes]]
) -> None:
    stock.add(1, "failed")
    stock.add(2, "committed")
    stock.add(3, "undelivered")
    got: queue.Queue[dict[str, object]] = queue.Queue()

    def answer(asked: Asked) -> Said:
        got.put(json.loads(asked.body))
        return Said(204)

    with serving(answer) as url:
        settings = {
            "storage": {"root": str(tmp_path / "root"), "min_free_gb": 0},
            "retention": {"committed_after_days": 2},
            "alerts": {"webhook": {"url": url}, "every_s": 0.2, "disk_below_gb": None, "group_every_min": 0},
            "peers": {"pacs": {"ae_title": "P", "host": "127.0.0.1", "port": 1}},
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
        first = deliver()
        kinds = {str(got.get(timeout=60)["kind"]) for _ in range(2)}
        assert kinds == {"job_failed", "destination_dead"}
        first.kill()
        first.wait()
        deliver()
        stock.add(4, "parked")
        told = got.get(timeout=60)
        assert (told["kind"], told["raised_count"]) == ("job_parked", 1), "the others were told before the kill"
        assert got.empty()
        bin_folder, deadline = tmp_path / "root" / "discarded", time.monotonic() + 30
        while "1.2.2" in stock.here() or any(bin_folder.glob("*")):
            assert time.monotonic() < deadline, (tmp_path / "deliver.log").read_text()
            time.sleep(0.05)  # another process does it: only rows and files tell
    assert stock.here() == {"1.2.1", "1.2.3", "1.2.4"}
    assert "series deleted" in (tmp_path / "deliver.log").read_text()
    stock.assert_whole()
