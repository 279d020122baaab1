"""`serve`: the roles as child processes on one machine; what dies is started again, with growing pauses."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dicom_node.config import load_config
from dicom_node.errors import ConfigError
from dicom_node.notify import SOCKET
from dicom_node.roles import SUPERVISED, hangup_held_back

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
HEALTHY_AFTER_S = 60.0
_CALLED_WRONGLY = 2


@dataclass(slots=True)
class Child:
    """One role's process and when it may be started again."""

    role: str
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    pause_s: float = field(default=FIRST_PAUSE_S)


class Supervisor:
    """Runs the roles until SIGTERM or SIGINT; then ends them all and waits until each has drained."""

    def __init__(self, config_path: Path, roles: Sequence[str], *, drain_s: float) -> None:
        self._config_path, self._drain_s = config_path, drain_s
        self._children = [Child(role) for role in roles]
        self._stop = threading.Event()

    def run(self) -> int:
        """Exit code: 0 stopped in order, 2 a role can't use the settings."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        signal.signal(signal.SIGHUP, lambda *_: self._pass_on(signal.SIGHUP))
        code = 0
        while not self._stop.is_set() and code == 0:
            code = self._tend()
            self._stop.wait(0.2)
        self._end_all()
        return code

    def _tend(self) -> int:
        for child in self._children:
            if child.process is None:
                if time.monotonic() >= child.start_at:
                    self._start(child)
                continue
            code = child.process.poll()
            if code == _CALLED_WRONGLY:
                log.error("role cannot use its settings", extra={"action": "gave up", "child": child.role})
                return code
            if code is not None:
                self._plan_restart(child, code)
        return 0

    def _pass_on(self, number: signal.Signals) -> None:
        """Each role reads its settings again by itself."""
        for child in self._children:
            if child.process is not None:
                child.process.send_signal(number)

    def _start(self, child: Child) -> None:
        command = [sys.executable, "-m", "dicom_node", child.role, "--config", str(self._config_path)]
        environment = {**os.environ, SUPERVISED: str(os.getpid())}
        environment.pop(SOCKET, None)  # a manager of services hears of this process alone
        # A session of its own: Ctrl-C reaches us alone, and we end the children in order.
        with hangup_held_back():
            child.process = subprocess.Popen(command, start_new_session=True, env=environment)
        child.started_at = time.monotonic()
        log.info("role started", extra={"action": "started", "child": child.role, "pid": child.process.pid})

    def _plan_restart(self, child: Child, code: int) -> None:
        if time.monotonic() - child.started_at > HEALTHY_AFTER_S:
            child.pause_s = FIRST_PAUSE_S
        child.process, child.start_at = None, time.monotonic() + child.pause_s
        log.error(
            "role died, starting it again",
            extra={"action": "died", "child": child.role, "code": code, "pause_s": child.pause_s},
        )
        child.pause_s = min(LONGEST_PAUSE_S, child.pause_s * 2)

    def _longest_drain_s(self) -> float:
        """The roles may have taken a longer one over since: each ends by its own, and is killed only after both."""
        with contextlib.suppress(ConfigError):
            return max(self._drain_s, load_config(self._config_path).work.drain_s)
        return self._drain_s

    def _end_all(self) -> None:
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self._longest_drain_s() + 15.0
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("role did not end in time, killed", extra={"action": "killed", "pid": process.pid})
                process.kill()
                process.wait()
