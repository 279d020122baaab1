"""A command -> a process of its own, forked from one that has imported everything: roles start at once.

The imports of a worker take ten times as long as its start. The parent runs none of our code and starts no thread;
each child gets arguments, environment, folder and log as a started command would, and runs the program's `main`. What a
test asks of a process is what it asks of a subprocess.Popen. None outlives the test session, also where that is killed.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

# What the roles import, torch too: a role that must not load it is tested where it is started as a command.
_IMPORTS = (
    "dicom_node.cli", "dicom_node.receivers", "dicom_node.web.server", "dicom_node.web.app", "dicom_node.flow",
    "dicom_node.commitment", "dicom_node.pull_schedule", "dicom_node.prior", "dicom_node.retention_schedule",
    "dicom_node.alerts.schedule", "dicom_node.model.detector", "alembic.command", "dicom_node.dicomweb.client",
)  # fmt: skip


class Forked:
    """A process, with as much of subprocess.Popen as tests use."""

    def __init__(self, server: _Server, pid: int, args: list[str]) -> None:
        self._server, self.pid, self.args = server, pid, args
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if self.poll() is None:  # else the id may be another process's by now
            handle = os.pidfd_open(self.pid)
            try:
                select.select([handle], [], [], timeout)
            finally:
                os.close(handle)
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class _Server:
    """The parent of all processes of this test session, and its only client."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parents[1],
        )
        theirs.close()
        with ours:  # open as long as its file is
            self._lines, self._lock = ours.makefile("rw"), threading.Lock()

    def ask(self, request: dict[str, Any]) -> Any:
        with self._lock:
            self._lines.write(json.dumps(request) + "\n")
            self._lines.flush()
            answer = self._lines.readline()
        assert answer, "the parent of the roles is gone"
        return json.loads(answer)

    def end(self) -> None:
        self._lines.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()


@functools.cache
def _server() -> _Server:
    return _Server()


def start(*words: str, log: Path, program: str = "dicom_node.cli") -> Forked:
    """`dicom-node WORDS`, or another program, its output appended to `log`. program: a module with a `main`."""
    server, about = _server(), {"environment": dict(os.environ), "folder": str(Path.cwd()), "log": str(log)}
    return Forked(server, server.ask({"program": program, "words": words, **about}), [program, *words])


def end() -> None:
    """The parent ends with the session, so that what it measured of coverage is there in time."""
    if _server.cache_info().currsize:
        _server().end()
        _server.cache_clear()


# -- the parent ----------------------------------------------------------------------------------------


def _serve(lines: Any) -> dict[str, Any] | None:
    """Answers until the session ends; in a child, what it was asked to run."""
    living: set[int] = set()
    for line in lines:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
            living.discard(pid)
        else:
            answer = os.fork()
            if answer == 0:
                return dict(request)
            living.add(answer)
        lines.write(json.dumps(answer) + "\n")
        lines.flush()
    for pid in living:  # zombies at least until we end, so no id is another process's
        os.kill(pid, signal.SIGKILL)
    return None


def _become(request: dict[str, Any]) -> None:
    """As a started command has it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(log)
    sys.argv = [request["program"], *request["words"]]


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the session ends by itself, and we with it
    for name in _IMPORTS:
        importlib.import_module(name)
    with socket.socket(fileno=int(sys.argv[1])) as channel, channel.makefile("rw") as lines:
        request = _serve(lines)
    if request is not None:
        _become(request)
        importlib.import_module(request["program"]).main()


if __name__ == "__main__":
    _main()
