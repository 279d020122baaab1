"""The long-running processes that run the job engine, work and deliver, and what every role needs.

Start in order, wait for a signal, drain, stop in order. Nothing but the database and the storage root is between them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dicom_node import engine as job_engine
from dicom_node import metrics, tracing
from dicom_node.audit import Audit, Auditor, application_started, application_stopped
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.engine import Engine, EngineClient, Workflow
from dicom_node.errors import BundleError, ConfigError, DicomNodeError, StaleState
from dicom_node.heartbeat import Heartbeat
from dicom_node.life import Life
from dicom_node.peers import PeerConfig
from dicom_node.storage import Storage

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    # The receiver starts in half the time without what only the workflows need.
    from dicom_node.analysis import Detector
    from dicom_node.commitment import Keeper
    from dicom_node.completeness import ArchiveCount
    from dicom_node.delivery import SendOutcome
    from dicom_node.dimse.announce import Announcer
    from dicom_node.flow import Flow
    from dicom_node.lookback import FindPrior, Found, Missed

log = logging.getLogger(__name__)

SUPERVISED = "DICOM_NODE_SUPERVISOR_PID"
_HUNG = 70
# New settings: so long for what ran by the old ones to end first, while the main loop waits.
_HANDOVER_S = 5.0
# What is in the middle of something then ends it: nobody waits, and its own locks keep its successor from the same.
_NO_HURRY_S = 86400.0
# Beside work.drain_s, for what a part does once its time is over, like a pull's last announcements.
_LAST_WORD_S = 5.0


class Beside(Protocol):
    """What a role does beside its queues. `stop` may take so many seconds to end what it is at."""

    def start(self) -> None: ...

    def stop(self, wait_s: float) -> None: ...


def told_to_stop(parts: Sequence[Beside], wait_s: float) -> list[threading.Thread]:
    """Each part's `stop(wait_s)`, in a thread of its own: all hear of it at once, and none waits for another."""
    threads = [threading.Thread(target=part.stop, args=(wait_s,), name="stop", daemon=True) for part in parts]
    for thread in threads:
        thread.start()
    return threads


def join_all(threads: Sequence[threading.Thread], wait_s: float) -> list[threading.Thread]:
    """Wait so long for all of them together; those that still run."""
    deadline = time.monotonic() + wait_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [thread for thread in threads if thread.is_alive()]


class Stop:
    """Set by SIGTERM or SIGINT, or when the supervisor is gone: a child without it would never be stopped."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._reload = threading.Event()
        self._supervisor = int(os.environ.get(SUPERVISED, "0"))

    def on_signals(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.event.set())
        signal.signal(signal.SIGHUP, lambda *_: self._reload.set())
        # Whoever started this process may have held it back until now: see `hangup_held_back`.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        return self

    def reload_asked(self) -> bool:
        """Whether SIGHUP came since the last time that somebody asked."""
        asked = self._reload.is_set()
        self._reload.clear()
        return asked

    def wait(self, watch: Callable[[], None] = lambda: None, every_s: float = 1.0) -> None:
        """Until set; `watch` is called now and then."""
        while not self.event.wait(every_s):
            if self._supervisor and os.getppid() != self._supervisor:
                log.error("the supervisor is gone, stopping", extra={"action": "orphaned"})
                return
            watch()


@contextlib.contextmanager
def hangup_held_back() -> Iterator[None]:
    """For the start of a child: a SIGHUP that comes before the child can take it waits for its `Stop.on_signals`.

    Without a handler it would end the child, and ignored it would be lost, with settings that the child has read
    already. What is blocked stays so over fork and exec, and what came meanwhile stays pending (signal(7)).
    To be called from the main thread.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def open_state(config: Config) -> tuple[Storage, Database]:
    """Storage and database, their schema brought up to date. Any role may be the first to start."""
    storage = Storage(config.storage.root, min_free_gb=config.storage.min_free_gb)
    database = Database(config.database_url())
    database.migrate()
    job_engine.migrate(config.database_url())
    return storage, database


def observe(life: Life, database: Database) -> list[Beside]:
    """This process counts and traces from now on. What shows the counts, where the settings want a port for it."""
    from dicom_node.metrics.exposition import Exposition
    from dicom_node.metrics.port import MetricsPort

    config = life.config
    allowed = {"scanners": config.metrics.scanners, "kernels": config.metrics.kernels}
    metrics.start(config.metrics_folder(), life.role, **allowed)
    if config.traces is not None:
        tracing.start(config.traces.endpoint, life.role)
    # A part of a role is not missed by itself: the role starts it again.
    beside: list[Beside] = [Heartbeat(life, database)] if life.is_role else []
    if config.metrics.port is not None:
        exposition = Exposition(config, database, latest=lambda: life.config)
        beside.append(MetricsPort(config.metrics.host, config.metrics.port, exposition))
    return beside


def unobserve() -> None:
    """The last words of a process that ends in order."""
    tracing.stop()
    metrics.stop()


def executor_id(role: str, name: str | None) -> str:
    """Stable over restarts, so that a process finds its own unfinished work again; one living process a name."""
    return f"{socket.gethostname()}/{name or role}"


def make_announcer(config: Config, client: EngineClient, latest: Callable[[], Config] | None = None) -> Announcer:
    """Tells the engine that a series grew, by the latest settings. Its thread is not started yet."""
    from dicom_node.dimse.announce import Announcer

    now = latest or (lambda: config)

    def bounce(series_uid: str, quiet_time_s: float) -> None:
        client.bounce("assemble", series_uid, quiet_time_s, series_uid, longest_s=now().assemble.longest_wait_s)

    def look(series_uid: str) -> None:
        # Not by a bounce, which the engine takes up a second later at worst. Each look is a workflow of its own.
        client.enqueue("assemble", f"{series_uid}:look:{uuid.uuid4().hex}", series_uid, priority="stat")

    return Announcer(
        bounce,
        lambda source_ae: now().quiet_time_s(source_ae),
        look=look,
        proven_quiet_time_s=config.assemble.proven_quiet_time_s,
    )


def work(
    config: Config, stop: Stop, name: str | None = None, *, source: Path | None = None, device: str | None = None
) -> None:
    """One process a GPU: assembles and analyses. source: the settings' file, read again on SIGHUP. device: where
    given, in the place of work.device."""
    storage, database = open_state(config)
    me = executor_id("work", name)
    audit = Auditor.of(config)
    chosen = device or config.work.device
    detector = _detectors(config, database, chosen)

    def flow(settings: Config) -> Flow:
        return _flow(settings, database, storage, me, audit, detector, _no_archive)

    life = Life(config, "work", source, name)
    observers = observe(life, database)
    if chosen.startswith("cuda"):
        from dicom_node.metrics.gpu import GpuWatch

        observers.append(GpuWatch(chosen))
    queues = ("assemble", "overdue", "analyse")
    _run_engine(life, flow, database, storage, stop, queues=queues, observers=observers)


def deliver(config: Config, stop: Stop, name: str | None = None, *, source: Path | None = None) -> None:
    """Sends results and has them committed, pulls on schedule, looks for earlier CTs, deletes what may go, tells
    operators of what is wrong; imports no torch.

    source: the settings' file, read again on SIGHUP.
    """
    from dicom_node.prior import PriorFinder

    storage, database = open_state(config)
    me = executor_id("deliver", name)
    audit = Auditor.of(config)
    client = EngineClient(config.database_url())

    def flow(settings: Config) -> Flow:
        find_prior = PriorFinder(config=settings, database=database, storage=storage, audit=audit)
        return _flow(settings, database, storage, me, audit, _no_detector, find_prior)

    def beside(settings: Config) -> list[Beside]:
        also: list[Beside] = [_keeper(settings, database, storage, client)]
        if settings.pulls:
            also.append(_pulls(settings, database, storage, client, audit))
        also.append(_retention(settings, database, storage, client, audit))
        return [*also, alerting(settings, database, storage)]

    life = Life(config, "deliver", source, name)
    queues, observers = ("deliver", "priors"), observe(life, database)
    _run_engine(life, flow, database, storage, stop, queues=queues, beside=beside, observers=observers)


def _keeper(config: Config, database: Database, storage: Storage, client: EngineClient) -> Keeper:
    from dicom_node.commitment import Commitments, Keeper

    return Keeper(Commitments(config=config, database=database, storage=storage, engine=client, now=time.time))


def _pulls(config: Config, database: Database, storage: Storage, client: EngineClient, audit: Audit) -> Beside:
    from dicom_node.pull import Landing
    from dicom_node.pull_schedule import PullSchedule

    announcer = make_announcer(config, client)
    return PullSchedule(config, database, Landing(storage, database, announcer), audit=audit)


def _retention(config: Config, database: Database, storage: Storage, client: EngineClient, audit: Audit) -> Beside:
    from dicom_node.retention import Purger, audited
    from dicom_node.retention_schedule import RetentionSchedule

    purger = Purger(database=database, engine=client, storage=storage, deleted=audited(audit))
    return RetentionSchedule(config, database, storage, purger)


def alerting(config: Config, database: Database, storage: Storage) -> Beside:
    """Looks at what is wrong and tells, while no other process does: one of `deliver` or `web`, on any machine."""
    from dicom_node.alerts.problems import Looks
    from dicom_node.alerts.schedule import AlertSchedule, alerts_of

    looks = Looks(config=config, database=database, storage=storage, now=time.time)
    return AlertSchedule(alerts_of(config, database, looks))


def _detectors(config: Config, database: Database, device: str) -> Callable[[str], Detector]:
    """All bundles of models:, loaded. One that only ever runs in the shadow keeps no node from working."""
    from dicom_node.model.detector import Detector as MaskRCNNDetector
    from dicom_node.promotion import pair_of

    pairs = [pair_of(config, route, database.promotions()) for route in config.routes]
    shadows = {pair.shadow for pair in pairs} - {pair.model for pair in pairs}
    loaded: dict[str, Detector] = {}
    problems: dict[str, str] = {}
    for name, model in config.models.items():
        try:
            loaded[name] = MaskRCNNDetector.load(model.folder(), device)
        except BundleError as err:
            if name not in shadows:
                raise
            problems[name] = str(err)
            log.error("model not loaded", extra={"action": "model", "model": name, "problem": str(err)})
        else:
            log.info("model loaded", extra={"action": "model", "model": name, "device": device})

    def detector(name: str) -> Detector:
        if name not in loaded:
            text = problems.get(name, "bring it back in models: and start the work role again, then retry")
            raise ConfigError(f"model {name} is not loaded: {text}")
        return loaded[name]

    return detector


def _no_detector(model: str) -> Detector:
    raise DicomNodeError(f"this process has no model {model}: only the work role analyses")


def _no_archive(
    job_id: str, archive: str, header: Dataset, until: float, settle: Callable[[Found], None]
) -> Missed | None:
    raise DicomNodeError(f"this process does not look in {archive}: only the deliver role has the network")


def _send(files: Sequence[Path], peer: PeerConfig, calling_ae: str) -> Sequence[SendOutcome]:
    from dicom_node.sending import send

    return list(send(files, peer, calling_ae))


def _count(peer: PeerConfig, calling_ae: str, *, study_uid: str, series_uid: str) -> ArchiveCount:
    from dicom_node.dimse.counts import count_instances

    return count_instances(peer, calling_ae, study_uid=study_uid, series_uid=series_uid)


def _flow(
    config: Config,
    database: Database,
    storage: Storage,
    me: str,
    audit: Audit,
    detector: Callable[[str], Detector],
    find_prior: FindPrior,
) -> Flow:
    from dicom_node.flow import Flow

    return Flow(
        config=config,
        database=database,
        storage=storage,
        executor_id=me,
        audit=audit,
        detector=detector,
        send=_send,
        count=_count,
        find_prior=find_prior,
    )


class _Latest:
    """The workflows by the latest settings. A run that began keeps those of its start."""

    def __init__(
        self, build: Callable[[Config], Flow], beside: Callable[[Config], list[Beside]], config: Config
    ) -> None:
        self._build, self._make_beside = build, beside
        self.flow = build(config)
        self._beside: list[Beside] = []
        self._ending: list[threading.Thread] = []

    def workflows(self) -> dict[str, Workflow]:
        return {name: self._latest(name) for name in self.flow.workflows()}

    def _latest(self, name: str) -> Workflow:
        return lambda run, *args: self.flow.workflows()[name](run, *args)

    def start(self, config: Config) -> None:
        self._beside = self._make_beside(config)
        for other in self._beside:
            other.start()

    def told_to_stop(self, wait_s: float) -> list[threading.Thread]:
        """Threads that run until what runs beside the queues has ended, by whichever settings it was begun."""
        return [*told_to_stop(self._beside, wait_s), *self._ending]

    def take_over(self, config: Config) -> None:
        """What runs beside the queues keeps nothing in memory: it is ended and begun anew.

        Called from the main loop, which a watchdog watches: what ends late ends beside its successor.
        """
        self.flow = replace(self._build(config), stopwatch=self.flow.stopwatch)
        self._ending = join_all(self.told_to_stop(_NO_HURRY_S), _HANDOVER_S)
        self.start(config)


def _run_engine(
    life: Life,
    build: Callable[[Config], Flow],
    database: Database,
    storage: Storage,
    stop: Stop,
    *,
    queues: Sequence[str],
    beside: Callable[[Config], list[Beside]] = lambda _config: [],
    observers: Sequence[Beside] = (),
) -> None:
    """Does not return: threads of handed-back workflows must not write another word, and would keep us alive.

    beside: begun anew with new settings. observers: go on through them.
    """
    latest = _Latest(build, beside, life.config)
    me = latest.flow.executor_id
    engine = Engine(life.config.database_url(), me, latest.workflows(), queues)
    engine.on_poison(lambda workflow_id, name: _park(database, workflow_id, name))
    engine.start()
    latest.start(life.config)
    for observer in observers:
        observer.start()

    def take_over(config: Config) -> None:
        storage.keep_free(config.storage.min_free_gb)
        latest.take_over(config)

    audit = latest.flow.audit
    audit.write(application_started(life.role))
    audit.start()
    life.ready(f"works off {', '.join(queues)}", healthy=engine.healthy, apply=take_over)
    log.info("working", extra={"action": "ready", "executor": me, "queues": ",".join(queues)})

    def watch() -> None:
        life.beat(stop.reload_asked)
        if engine.lost.is_set():
            log.error("the lock of this executor is lost, stopping", extra={"action": "lost"})
            stop.event.set()
        if latest.flow.stopwatch.seconds() > life.config.work.longest_analysis_s:
            # A step can't be interrupted: a hung one ends with its process, and the crash counts against the job.
            log.error("analysis hangs, ending the process", extra={"action": "hung"})
            logging.shutdown()
            os._exit(_HUNG)

    code = 1
    try:
        stop.wait(watch)
        log.info("stopping", extra={"action": "stopping"})
        life.stopping()
        # All at once, and with one deadline: the service manager and the supervisor allow little more than drain_s.
        drain_s, began = life.config.work.drain_s, time.monotonic()
        ending = [*latest.told_to_stop(drain_s), *told_to_stop(observers, drain_s)]
        drained = engine.stop(drain_s)
        join_all(ending, drain_s + _LAST_WORD_S - (time.monotonic() - began))
        audit.write(application_stopped(life.role))
        audit.stop()
        log.info("stopped", extra={"action": "stopped", "drained": drained})
        code = 0
    except Exception:
        log.exception("process failed", extra={"action": "failed"})
    finally:
        unobserve()
        logging.shutdown()
        os._exit(code)


def _park(database: Database, workflow_id: str, name: str) -> None:
    log.error("workflow parked: its workers died", extra={"action": "parked", "workflow": workflow_id, "kind": name})
    text = "its workers died while they ran it; jobs retry tries again"
    if name == "analyse" and database.park_job(workflow_id, text):
        metrics.series_ended("parked", "PARKED")
    elif name == "shadow":
        from dicom_node.shadows import shadowed_job

        with contextlib.suppress(StaleState):
            job_id = shadowed_job(workflow_id)
            database.fail_shadow(job_id, "its workers died while they ran it", given_up=True)
            if (row := database.shadow(job_id)) is not None:
                metrics.shadow_looked(row["model_name"], "given_up")
