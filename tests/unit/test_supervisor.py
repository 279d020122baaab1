"""The supervisor with real child processes: what dies is started again, and nothing outlives it."""

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

from dicom_node import supervisor
from dicom_node.supervisor import Child, Supervisor

# Stands for `python -m dicom_node ROLE --config PATH`; what it does is told by files in its folder.
CHILD = """#!{python} -ES
import os, pathlib, signal, sys, time
folder, role = pathlib.Path(__file__).parent, sys.argv[3]
def note(event):
    with open(folder / "journal", "a") as file:
        file.write(f"{{role}} {{event}}\\n")
def ended(*_):
    note("ended")
    os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if (folder / f"{{role}}.stubborn").exists() else ended)
note(f"started {{os.getpid()}} {{os.environ['DICOM_NODE_SUPERVISOR_PID']}} {{' '.join(sys.argv[1:])}}")
if (folder / f"{{role}}.exit").exists():
    sys.exit(int((folder / f"{{role}}.exit").read_text()))
if (folder / f"{{role}}.stop").exists():
    os.execv({python!r}, [{python!r}, "-c", (folder / f"{{role}}.stop").read_text(), str(folder / "journal")])
while True:
    signal.pause()
"""
DRIVER = """
import pathlib, sys
from dicom_node import logs
from dicom_node.supervisor import Supervisor
folder = pathlib.Path(sys.argv[1])
sys.executable = str(folder / "child")
logs.configure("info", "json", "serve")
sys.exit(Supervisor(folder / "config.yaml", ("receive", "work"), drain_s=float(sys.argv[2])).run())
"""
# A role of the node as far as its end goes: it waits for the signal, or for its supervisor to be gone.
STOP = """
import sys
from dicom_node.roles import Stop
with open(sys.argv[1], "a") as file:
    print("work waits", file=file, flush=True)
    Stop().on_signals().wait(every_s=0.1)
    print("work orphaned", file=file, flush=True)
"""
# And as far as a reload goes.
RELOADS = """
import sys
from dicom_node.roles import Stop
stop = Stop().on_signals()
with open(sys.argv[1], "a", buffering=1) as file:
    print("{role} waits", file=file)
    stop.wait(lambda: stop.reload_asked() and print("{role} reloads", file=file), every_s=0.1)
"""
# A role that takes long to load what it needs, like torch.
SLOW = """
import pathlib, sys, time
from dicom_node.roles import Stop
journal = pathlib.Path(sys.argv[1])
def note(event):
    with journal.open("a") as file:
        file.write(f"work {event}\\n")
note("loads")
while not (journal.parent / "loaded").exists():
    time.sleep(0.02)
note(f"asked {Stop().on_signals().reload_asked()}")
"""


class Supervised:
    def __init__(self, folder: Path) -> None:
        self.folder, self.journal, self.log = folder, folder / "journal", folder / "log"
        self.journal.touch()
        child = folder / "child"
        child.write_text(CHILD.format(python=sys.executable))
        child.chmod(0o755)
        self.process: subprocess.Popen[bytes] | None = None

    def tell(self, role: str, what: str, text: str = "") -> None:
        (self.folder / f"{role}.{what}").write_text(text)

    def start(self, drain_s: float = 5.0) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", DRIVER, str(self.folder), str(drain_s)]
        # To a file: the children inherit it, and would keep a pipe open.
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log)
        return self.process

    def lines(self, *start: str) -> list[list[str]]:
        found = [line.split() for line in self.journal.read_text().splitlines()]
        return [line for line in found if line[: len(start)] == list(start)]

    def wait(self, condition: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.journal.read_text()
            time.sleep(0.02)

    def wait_for(self, *start: str, times: int = 1) -> None:
        self.wait(lambda: len(self.lines(*start)) >= times)

    def end(self) -> list[dict[str, object]]:
        """What it logged, once it has ended."""
        assert self.process is not None
        self.process.wait(60)
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def pids(self) -> list[int]:
        return [int(line[2]) for line in self.lines() if line[1] == "started"]


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    made = Supervised(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()
    for pid in made.pids():
        if _lives(pid):
            os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _pending(pid: int, number: signal.Signals) -> bool:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("ShdPnd")]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def test_each_role_is_started_with_the_settings_and_knows_its_supervisor(supervised: Supervised) -> None:
    process = supervised.start()
    supervised.wait_for("receive", "started")
    supervised.wait_for("work", "started")
    for role in ("receive", "work"):
        [line] = supervised.lines(role, "started")
        assert line[3] == str(process.pid)
        assert line[4:] == ["-m", "dicom_node", role, "--config", str(supervised.folder / "config.yaml")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_roles_in_order(supervised: Supervised, number: signal.Signals) -> None:
    process = supervised.start()
    supervised.wait_for("receive", "started")
    supervised.wait_for("work", "started")
    process.send_signal(number)
    supervised.end()
    assert process.returncode == 0
    assert sorted(line[0] for line in supervised.lines() if line[1] == "ended") == ["receive", "work"]
    assert not any(_lives(pid) for pid in supervised.pids())


def test_a_role_that_dies_is_started_again_with_growing_pauses(supervised: Supervised) -> None:
    supervised.tell("work", "exit", "1")
    process = supervised.start()
    supervised.wait_for("work", "started", times=3)
    process.terminate()
    died = [line for line in supervised.end() if line.get("action") == "died"]
    assert [(line["child"], line["code"], line["pause_s"]) for line in died][:2] == [("work", 1, 0.5), ("work", 1, 1.0)]
    assert len(supervised.lines("receive", "started")) == 1


def test_a_killed_role_is_started_again(supervised: Supervised) -> None:
    supervised.start()
    supervised.wait_for("receive", "started")
    os.kill(int(supervised.lines("receive", "started")[0][2]), signal.SIGKILL)
    supervised.wait_for("receive", "started", times=2)
    assert len(supervised.lines("work", "started")) <= 1


def test_settings_that_a_role_cannot_use_end_the_node_with_code_2(supervised: Supervised) -> None:
    supervised.tell("work", "exit", "2")
    process = supervised.start()
    logged = supervised.end()
    assert process.returncode == 2
    assert [line["child"] for line in logged if line.get("action") == "gave up"] == ["work"]
    assert len(supervised.lines("work", "started")) == 1
    assert not any(_lives(pid) for pid in supervised.pids())


def test_a_role_that_does_not_end_in_time_is_killed(supervised: Supervised) -> None:
    supervised.tell("work", "stubborn")
    process = supervised.start(drain_s=-14.5)  # fifteen seconds of grace come on top
    supervised.wait_for("receive", "started")
    supervised.wait_for("work", "started")
    process.terminate()
    logged = supervised.end()
    assert process.returncode == 0
    assert [line["action"] for line in logged if line["level"] == "error"] == ["killed"]
    assert not any(_lives(pid) for pid in supervised.pids())


def test_a_role_ends_when_its_supervisor_was_killed(supervised: Supervised) -> None:
    supervised.tell("work", "stop", STOP)
    process = supervised.start()
    supervised.wait_for("work", "waits")
    process.kill()
    process.wait()
    supervised.wait_for("work", "orphaned")
    pid = int(supervised.lines("work", "started")[0][2])
    supervised.wait(lambda: not _lives(pid))


def test_a_reload_waits_for_a_role_that_is_still_starting(supervised: Supervised) -> None:
    supervised.tell("work", "stop", SLOW)
    process = supervised.start()
    supervised.wait_for("work", "loads")
    process.send_signal(signal.SIGHUP)
    pid = int(supervised.lines("work", "started")[0][2])
    supervised.wait(lambda: _pending(pid, signal.SIGHUP) or not _lives(pid))
    (supervised.folder / "loaded").touch()
    supervised.wait_for("work", "asked", "True")


def test_a_hangup_of_the_supervisor_reaches_every_role(supervised: Supervised) -> None:
    for role in ("receive", "work"):
        supervised.tell(role, "stop", RELOADS.format(role=role))
    process = supervised.start()
    for role in ("receive", "work"):
        supervised.wait_for(role, "waits")
    process.send_signal(signal.SIGHUP)
    for role in ("receive", "work"):
        supervised.wait_for(role, "reloads")


def test_a_longer_drain_that_the_roles_took_over_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    made = Supervisor(path, ("work",), drain_s=5)
    for written, longest_s in ((300, 300), (1, 5), ("soon", 5)):
        path.write_text(f"storage: {{root: /srv/node}}\nwork: {{drain_s: {written}}}\n")
        assert made._longest_drain_s() == longest_s
    path.unlink()
    assert made._longest_drain_s() == 5


@pytest.mark.parametrize(("lived_s", "pause_s"), [(supervisor.HEALTHY_AFTER_S + 1, supervisor.FIRST_PAUSE_S), (1, 8.0)])
def test_a_role_that_ran_well_for_a_while_is_started_again_soon(lived_s: float, pause_s: float) -> None:
    made = Supervisor(Path("config.yaml"), ("work",), drain_s=1)
    child = Child("work", started_at=time.monotonic() - lived_s, pause_s=8.0)
    before = time.monotonic()
    made._plan_restart(child, 1)
    assert child.process is None
    assert before + pause_s <= child.start_at <= time.monotonic() + pause_s


def test_the_pause_has_an_end() -> None:
    made, child = Supervisor(Path("config.yaml"), ("work",), drain_s=1), Child("work")
    for _ in range(20):
        child.started_at = time.monotonic()
        made._plan_restart(child, 1)
    assert child.pause_s == supervisor.LONGEST_PAUSE_S
