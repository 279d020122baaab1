"""The work role as a process of its own: what ends it, what does not, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml

from dicom_node import engine, schema
from dicom_node.config import Config, load_config
from dicom_node.engine import EngineClient
from tests.unit.test_flow import SETTINGS, Node

# `roles.work` with a detector of its own. argv: settings, then "hangs", "breaks" (its watch does) or "works".
WORK = """
import sys, time
from pathlib import Path
from dicom_node import logs, roles
from dicom_node.config import load_config
from dicom_node.flow import Stopwatch
from tests.unit.test_flow import FakeDetector
detector = FakeDetector()
def broken(self):
    raise RuntimeError("Canary^Secret")
if sys.argv[2] == "hangs":
    detector.also = lambda: time.sleep(600)
if sys.argv[2] == "breaks":
    Stopwatch.seconds = broken
roles._detectors = lambda config, database, device: lambda name: detector
logs.configure("info", "json", "work")
roles.work(load_config(Path(sys.argv[1])), roles.Stop().on_signals(), "w1")
"""


class Working:
    """A node with one worker process at a time; it may analyse for two seconds."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config_path, self.log_path = folder / "config.yaml", folder / "log"
        self.config_path.write_text(yaml.safe_dump(json.loads(config.model_dump_json(exclude_unset=True))))
        self.node = Node(load_config(self.config_path), folder)
        engine.migrate(self.node.database.url)
        self.client = EngineClient(self.node.database.url)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, mode: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WORK, str(self.config_path), mode]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, cwd=Path(__file__).parents[2], env=dict(os.environ))
        return self.process

    def log(self) -> str:
        return self.log_path.read_text()

    def wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def queue(self) -> str:
        self.node.receive()
        [(_, job_id, _, _)] = self.node.assemble().enqueued
        self.client.enqueue("analyse", job_id, job_id, priority="routine")
        return str(job_id)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.client.close()
        self.node.database.close()


@pytest.fixture
def working(node_config: Callable[..., Config], tmp_path: Path) -> Iterator[Working]:
    made = Working(node_config(**SETTINGS, work={"longest_analysis_s": 2, "drain_s": 0}), tmp_path)
    yield made
    made.close()


def test_an_analysis_that_hangs_ends_its_process_and_the_job_waits_for_the_next(working: Working) -> None:
    job_id = working.queue()
    assert working.start("hangs").wait(60) == 70
    assert '"action": "hung"' in working.log()
    assert working.node.job()["state"] == "running"
    working.start("works")
    working.wait(lambda: working.node.job()["state"] == "complete")
    assert working.node.job()["job_id"] == job_id


def test_a_row_that_a_former_process_left_running_ends_nobody(working: Working) -> None:
    working.node.receive()
    [(_, job_id, _, _)] = working.node.assemble().enqueued
    process = working.start("works")
    working.wait(lambda: '"action": "ready"' in working.log())
    [started] = [json.loads(line) for line in working.log().splitlines() if '"action": "ready"' in line]
    working.node.database.start_job(job_id, started["executor"])
    with working.node.database.engine.begin() as connection:
        connection.execute(sa.update(schema.job).values(started_at=0.0))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(4)  # two limits and four looks
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_a_process_whose_watch_fails_ends_with_code_1_and_no_secret(working: Working) -> None:
    assert working.start("breaks").wait(60) == 1
    assert "RuntimeError at " in working.log()
    assert "Canary" not in working.log()
