"""The receive role: one process, or several that listen on one port. What one of them acknowledged no other can lose.

Each has a journal of its own. The first process mends what a crash left, watches over the others and starts again what
dies; the new one takes over the journal of the dead one. What a machine left that is gone, any of them takes over.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from dicom_node import logs
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.dimse.intake import Intake
from dicom_node.dimse.scp import Receiver, mend
from dicom_node.dimse.tls import ExpiryWatch, certificate_files
from dicom_node.engine import EngineClient
from dicom_node.errors import DicomNodeError
from dicom_node.roles import SUPERVISED, Stop, make_announcer, observe, open_state, unobserve
from dicom_node.storage import Storage

log = logging.getLogger(__name__)

_LOOK_S = 0.2
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _HEALTHY_AFTER_S = 0.5, 30.0, 60.0
# Beside work.drain_s: for the last files, rows and announcements.
_END_S = 15.0


def receive(config: Config, stop: Stop) -> None:
    """The Storage SCP. Imports neither torch nor pixel decoders."""
    if config.receive.processes == 1:
        expiry = ExpiryWatch(certificate_files(config))
        _serve(config, stop, lambda port: log.info("receiving", extra=_ready(config, port)), expiry.look)
        return
    storage, database = open_state(config)
    with contextlib.closing(database), _mended(storage, database), _reserved(config) as shared:
        crew, expiry = Crew(_share(shared)), ExpiryWatch(certificate_files(config))

        def watch() -> None:
            crew.tend()
            expiry.look()

        try:
            port = crew.start()
            log.info("receiving", extra={**_ready(config, port), "processes": config.receive.processes})
            stop.wait(watch, every_s=_LOOK_S)
        finally:
            log.info("stopping", extra={"action": "stopping"})
            crew.end()


def _ready(config: Config, port: int) -> dict[str, object]:
    return {"action": "ready", "port": port, "ae_title": config.receive.ae_title}


def _serve(config: Config, stop: Stop, ready: Callable[[int], None], watch: Callable[[], None] = lambda: None) -> None:
    storage, database = open_state(config)
    client = EngineClient(config.database_url())
    beside = observe(config, "receive", database)
    receiver = Receiver(config, storage, database, make_announcer(config, client))
    ready(receiver.start())
    for other in beside:
        other.start()

    def look() -> None:
        receiver.tend()
        watch()

    try:
        stop.wait(look)
    finally:
        log.info("stopping", extra={"action": "stopping"})
        receiver.stop(drain_s=config.work.drain_s)
        for other in beside:
            other.stop(_END_S)
        unobserve()
        client.close()
        database.close()


# -- several processes ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _mended(storage: Storage, database: Database) -> Iterator[None]:
    """What a crash left is mended, and no other receiver sweeps meanwhile."""
    intake = Intake(storage, database)
    housekeeper = mend(storage, database, intake)
    try:
        yield
    finally:
        intake.stop()
        if housekeeper is not None:
            housekeeper.release()


@contextlib.contextmanager
def _reserved(config: Config) -> Iterator[Config]:
    """The settings with the ports on which all listen, kept for them while none does.

    Raises DicomNodeError when one is in use.
    """
    receive, tls = config.receive, config.receive.tls
    with contextlib.ExitStack() as kept:
        if receive.port is not None:
            receive = receive.model_copy(update={"port": kept.enter_context(_kept(receive.host, receive.port))})
        if tls is not None:
            tls = tls.model_copy(update={"port": kept.enter_context(_kept(receive.host, tls.port))})
        yield config.model_copy(update={"receive": receive.model_copy(update={"tls": tls})})


@contextlib.contextmanager
def _kept(host: str, port: int) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # Those that share a port say so; a stranger that listens there is found by one that doesn't.
        with _bound(family, host, port, reuse=False) as probe:
            port = probe.getsockname()[1]
        keeper = _bound(family, host, port, reuse=True)
    except OSError as err:
        raise DicomNodeError(f"cannot listen on {host} port {port}: {err.strerror or err}; is it in use?") from err
    with keeper:
        yield port


def _bound(family: int, host: str, port: int, *, reuse: bool) -> socket.socket:
    line = socket.socket(family, socket.SOCK_STREAM)
    try:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        line.bind((host, port))
    except BaseException:
        line.close()
        raise
    return line


def _share(config: Config) -> Config:
    """The settings of one of the processes. It takes its part of max_associations, rounded up."""
    receive = config.receive
    part = -(-receive.max_associations // receive.processes)
    return config.model_copy(update={"receive": receive.model_copy(update={"max_associations": part})})


@dataclass(slots=True)
class _Member:
    """One process, and when it may be started again."""

    process: SpawnProcess | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    pause_s: float = _FIRST_PAUSE_S


class Crew:
    """The processes that share one port; what dies is started again, with growing pauses."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._members = [_Member() for _ in range(config.receive.processes)]

    def start(self) -> int:
        """Return the port when each listens. Raises DicomNodeError when one ends before it does."""
        lines = [self._start(member) for member in self._members]
        try:
            ports = [int(line.recv()) for line in lines]
        except EOFError as err:
            raise DicomNodeError("a receiving process ended at its start; its log says why") from err
        return ports[0]

    def tend(self) -> None:
        now = time.monotonic()
        for member in self._members:
            if member.process is None:
                if now >= member.start_at:
                    self._start(member)
            elif member.process.exitcode is not None:
                if now - member.started_at > _HEALTHY_AFTER_S:
                    member.pause_s = _FIRST_PAUSE_S
                log.error(
                    "receiving process died, starting it again",
                    extra={"action": "died", "code": member.process.exitcode, "pause_s": member.pause_s},
                )
                member.process, member.start_at = None, now + member.pause_s
                member.pause_s = min(_LONGEST_PAUSE_S, 2 * member.pause_s)

    def end(self) -> None:
        """Return when all have drained."""
        running = [member.process for member in self._members if member.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self._config.work.drain_s + _END_S
        for process in running:
            process.join(max(0.1, deadline - time.monotonic()))
            if process.exitcode is None:
                log.error("process did not end in time, killed", extra={"action": "killed", "pid": process.pid})
                process.kill()
                process.join()

    def _start(self, member: _Member) -> Connection:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        member.process = context.Process(target=_member, args=(self._config, os.getpid(), theirs), name="receive")
        member.process.start()
        theirs.close()
        member.started_at = time.monotonic()
        log.info("receiving process started", extra={"action": "started", "pid": member.process.pid})
        return ours


def _member(config: Config, parent_pid: int, line: Connection) -> None:
    """Runs in a process of its own, and ends when the one that started it is gone."""
    logs.configure(config.log.level, config.log.format, "receive")
    os.environ[SUPERVISED] = str(parent_pid)

    def ready(port: int) -> None:
        log.info("listening beside others", extra={"action": "joined", "port": port})
        with contextlib.suppress(OSError):  # nobody waits for one that was started again
            line.send(port)
        line.close()

    _serve(config, Stop().on_signals(), ready)
