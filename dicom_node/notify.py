"""What a role tells the service manager: ready, alive, reloading, stopping (sd_notify(3)); else nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping

SOCKET = "NOTIFY_SOCKET"


class Notifier:
    """Datagrams to the socket that the environment names. One that is lost is no reason to fail."""

    def __init__(
        self, environment: Mapping[str, str] = os.environ, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address, self._clock = environment.get(SOCKET, ""), clock
        if self._address.startswith("@"):  # in the abstract namespace of Linux
            self._address = "\0" + self._address[1:]

    def ready(self, status: str) -> None:
        self._send("READY=1", f"STATUS={status}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """`ready` must follow. CLOCK_MONOTONIC is what Python's monotonic clock reads on Linux."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={int(self._clock() * 1e6)}", "STATUS=reading the settings")

    def stopping(self) -> None:
        self._send("STOPPING=1", "STATUS=stopping")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line,
        ):
            line.setblocking(False)
            line.sendto("\n".join(lines).encode(), self._address)
