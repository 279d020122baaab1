"""The receive role: one process, or several that listen on one port. What one of them acknowledged no other can lose.

Each has a journal of its own. The first process mends what a crash left, watches over the others and starts again what
dies; the new one takes over the journal of the dead one. What a machine left that is gone, any of them takes over.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from dicom_node import logs
from dicom_node.audit import Auditor, application_started, application_stopped
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.dimse.intake import Intake
from dicom_node.dimse.scp import Receiver, mend
from dicom_node.dimse.tls import ExpiryWatch, certificate_files
from dicom_node.engine import EngineClient
from dicom_node.errors import DicomNodeError
from dicom_node.heartbeat import Heartbeat
from dicom_node.life import Life
from dicom_node.log_files import LineFiles
from dicom_node.notify import Notifier
from dicom_node.roles import SUPERVISED, Stop, hangup_held_back, make_announcer, observe, open_state, unobserve
from dicom_node.storage import Storage

log = logging.getLogger(__name__)

_LOOK_S = 0.2
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _HEALTHY_AFTER_S = 0.5, 30.0, 60.0
# Beside work.drain_s: for the last files, rows and announcements.
_END_S = 15.0


def receive(config: Config, stop: Stop, *, source: Path | None = None) -> None:
    """The Storage SCP. Imports neither torch nor pixel decoders. source: the settings' file, read again on SIGHUP."""
    audit = Auditor.of(config)
    audit.write(application_started("receive", ae_title=config.receive.ae_title))
    audit.start()
    try:
        _receive(config, stop, source)
    finally:
        audit.write(application_stopped("receive", ae_title=config.receive.ae_title))
        audit.stop()


def _receive(config: Config, stop: Stop, source: Path | None) -> None:
    if config.receive.processes == 1:
        expiry = ExpiryWatch(certificate_files(config))
        life = Life(config, "receive", source)
        _serve(life, stop, lambda port: log.info("receiving", extra=_ready(config, port)), expiry.look)
        return
    storage, database = open_state(config)
    with contextlib.closing(database), _mended(config, storage, database), _reserved(config) as shared:
        crew, expiry = Crew(shared, source), ExpiryWatch(certificate_files(config))
        life = Life(config, "receive", source)
        heartbeat = Heartbeat(life, database)
        heartbeat.start()

        def watch() -> None:
            crew.tend()
            expiry.look()
            life.beat(stop.reload_asked)

        try:
            port = crew.start()
            life.ready(f"receives on port {port}", healthy=crew.healthy, apply=crew.take_over)
            log.info("receiving", extra={**_ready(config, port), "processes": config.receive.processes})
            stop.wait(watch, every_s=_LOOK_S)
        finally:
            log.info("stopping", extra={"action": "stopping"})
            life.stopping()
            crew.end()
            heartbeat.stop(_END_S)


def _ready(config: Config, port: int) -> dict[str, object]:
    return {"action": "ready", "port": port, "ae_title": config.receive.ae_title}


def _serve(
    life: Life,
    stop: Stop,
    ready: Callable[[int], None],
    watch: Callable[[], None] = lambda: None,
    part: Callable[[Config], Config] = lambda config: config,
) -> None:
    """part: what this process takes of the node's limits."""
    config = part(life.config)
    storage, database = open_state(config)
    client = EngineClient(config.database_url())
    beside = observe(life, database)
    announcer = make_announcer(config, client, lambda: life.config)
    receiver = Receiver(config, storage, database, announcer, Auditor.of(config))
    port = receiver.start()
    life.ready(
        f"receives on port {port}", healthy=receiver.healthy, apply=lambda latest: receiver.take_over(part(latest))
    )
    ready(port)
    for other in beside:
        other.start()

    def look() -> None:
        receiver.tend()
        watch()
        life.beat(stop.reload_asked)

    try:
        stop.wait(look)
    finally:
        log.info("stopping", extra={"action": "stopping"})
        life.stopping()
        receiver.stop(drain_s=life.config.work.drain_s)
        for other in beside:
            other.stop(_END_S)
        unobserve()
        client.close()
        database.close()


# -- several processes ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _mended(config: Config, storage: Storage, database: Database) -> Iterator[None]:
    """What a crash left is mended, and no other receiver sweeps meanwhile."""
    intake = Intake(storage, database)
    ae_title, audit = config.receive.ae_title, Auditor.of(config)
    housekeeper = mend(storage, database, intake, ae_title=ae_title, audit=audit)
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

    def __init__(self, config: Config, source: Path | None = None) -> None:
        self._config, self._source = config, source
        self._members = [_Member() for _ in range(config.receive.processes)]

    def start(self) -> int:
        """Return the port when each listens. Raises DicomNodeError when one ends before it does."""
        lines = [self._start(member) for member in self._members]
        try:
            ports = [int(line.recv()) for line in lines]
        except EOFError as err:
            raise DicomNodeError("a receiving process ended at its start; its log says why") from err
        return ports[0]

    def healthy(self) -> bool:
        """True while any process receives: one that died alone is started again by `tend`."""
        return any(member.process is not None and member.process.is_alive() for member in self._members)

    def take_over(self, config: Config) -> None:
        """Other settings for what is started from now on; those that run read the file again themselves."""
        receive = self._config.receive
        ports = {"port": receive.port, "tls": receive.tls, "processes": receive.processes}
        self._config = config.model_copy(update={"receive": config.receive.model_copy(update=ports)})
        for member in self._members:
            if member.process is not None and member.process.pid is not None and member.process.is_alive():
                os.kill(member.process.pid, signal.SIGHUP)

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
        member.process = context.Process(
            target=_member, args=(self._config, self._source, os.getpid(), theirs), name="receive"
        )
        with hangup_held_back():
            member.process.start()
        theirs.close()
        member.started_at = time.monotonic()
        log.info("receiving process started", extra={"action": "started", "pid": member.process.pid})
        return ours


def _member(config: Config, source: Path | None, parent_pid: int, line: Connection) -> None:
    """Runs in a process of its own, and ends when the one that started it is gone."""
    os.environ[SUPERVISED] = str(parent_pid)
    stop = Stop().on_signals()
    files = LineFiles(config.storage.root, "receive")
    logs.configure(config.log.level_of("receive"), config.log.format, "receive", files)

    def ready(port: int) -> None:
        log.info("listening beside others", extra={"action": "joined", "port": port})
        with contextlib.suppress(OSError):  # nobody waits for one that was started again
            line.send(port)
        line.close()

    # The service manager and whoever asks for a reload speak to the process that started this one.
    life = Life(config, "receive", source, str(os.getpid()), notifier=Notifier({}), present=False)
    _serve(life, stop, ready, part=_share)
