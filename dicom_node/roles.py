"""The long-running processes that run the job engine, work and deliver, and what every role needs.

Start in order, wait for a signal, drain, stop in order. Nothing but the database and the storage root is between them.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dicom_node import engine as job_engine
from dicom_node import metrics, tracing
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.engine import Engine, EngineClient
from dicom_node.errors import DicomNodeError
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


class Beside(Protocol):
    """What a role does beside its queues. `stop` may take so many seconds to end what it is at."""

    def start(self) -> None: ...

    def stop(self, wait_s: float) -> None: ...


class Stop:
    """Set by SIGTERM or SIGINT, or when the supervisor is gone: a child without it would never be stopped."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._supervisor = int(os.environ.get(SUPERVISED, "0"))

    def on_signals(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.event.set())
        return self

    def wait(self, watch: Callable[[], None] = lambda: None, every_s: float = 1.0) -> None:
        """Until set; `watch` is called now and then."""
        while not self.event.wait(every_s):
            if self._supervisor and os.getppid() != self._supervisor:
                log.error("the supervisor is gone, stopping", extra={"action": "orphaned"})
                return
            watch()


def open_state(config: Config) -> tuple[Storage, Database]:
    """Storage and database, their schema brought up to date. Any role may be the first to start."""
    storage = Storage(config.storage.root, min_free_gb=config.storage.min_free_gb)
    database = Database(config.database_url())
    database.migrate()
    job_engine.migrate(config.database_url())
    return storage, database


def observe(config: Config, role: str, database: Database) -> list[Beside]:
    """This process counts and traces from now on. What shows the counts, where the settings want a port for it."""
    from dicom_node.metrics.exposition import Exposition
    from dicom_node.metrics.port import MetricsPort

    allowed = {"scanners": config.metrics.scanners, "kernels": config.metrics.kernels}
    metrics.start(config.metrics_folder(), role, **allowed)
    if config.traces is not None:
        tracing.start(config.traces.endpoint, role)
    if config.metrics.port is None:
        return []
    return [MetricsPort(config.metrics.host, config.metrics.port, Exposition(config, database))]


def unobserve() -> None:
    """The last words of a process that ends in order."""
    tracing.stop()
    metrics.stop()


def executor_id(role: str, name: str | None) -> str:
    """Stable over restarts, so that a process finds its own unfinished work again; one living process a name."""
    return f"{socket.gethostname()}/{name or role}"


def make_announcer(config: Config, client: EngineClient) -> Announcer:
    """Tells the engine that a series grew. Its thread is not started yet."""
    from dicom_node.dimse.announce import Announcer

    def bounce(series_uid: str, quiet_time_s: float) -> None:
        client.bounce("assemble", series_uid, quiet_time_s, series_uid, longest_s=config.assemble.longest_wait_s)

    def look(series_uid: str) -> None:
        # Not by a bounce, which the engine takes up a second later at worst. Each look is a workflow of its own.
        client.enqueue("assemble", f"{series_uid}:look:{uuid.uuid4().hex}", series_uid, priority="stat")

    return Announcer(bounce, config.quiet_time_s, look=look, proven_quiet_time_s=config.assemble.proven_quiet_time_s)


def work(config: Config, stop: Stop, name: str | None = None) -> None:
    """One process a GPU: assembles and analyses."""
    storage, database = open_state(config)
    me = executor_id("work", name)
    beside = observe(config, "work", database)
    detectors = _load_detectors(config)
    if config.work.device.startswith("cuda"):
        from dicom_node.metrics.gpu import GpuWatch

        beside.append(GpuWatch(config.work.device))
    flow = _flow(config, database, storage, me, lambda model: detectors[model], _no_archive)
    _run_engine(config, flow, database, stop, queues=("assemble", "overdue", "analyse"), beside=beside)


def deliver(config: Config, stop: Stop, name: str | None = None) -> None:
    """Sends results and has them committed, pulls on schedule, looks for earlier CTs; imports no torch."""
    from dicom_node.prior import PriorFinder

    storage, database = open_state(config)
    find_prior = PriorFinder(config=config, database=database, storage=storage)
    flow = _flow(config, database, storage, executor_id("deliver", name), _no_detector, find_prior)
    beside: list[Beside] = [*observe(config, "deliver", database), _keeper(config, database, storage)]
    if config.pulls:
        beside.append(_pulls(config, database, storage))
    _run_engine(config, flow, database, stop, queues=("deliver", "priors"), beside=beside)


def _keeper(config: Config, database: Database, storage: Storage) -> Keeper:
    from dicom_node.commitment import Commitments, Keeper

    client = EngineClient(config.database_url())
    return Keeper(Commitments(config=config, database=database, storage=storage, engine=client, now=time.time))


def _pulls(config: Config, database: Database, storage: Storage) -> Beside:
    from dicom_node.pull import Landing
    from dicom_node.pull_schedule import PullSchedule

    announcer = make_announcer(config, EngineClient(config.database_url()))
    return PullSchedule(config, database, Landing(storage, database, announcer))


def _load_detectors(config: Config) -> dict[str, Detector]:
    from dicom_node.model.detector import Detector as MaskRCNNDetector

    loaded: dict[str, Detector] = {}
    for name, model in config.models.items():
        loaded[name] = MaskRCNNDetector.load(model.folder(), config.work.device)
        log.info("model loaded", extra={"action": "model", "model": name, "device": config.work.device})
    return loaded


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
    detector: Callable[[str], Detector],
    find_prior: FindPrior,
) -> Flow:
    from dicom_node.flow import Flow

    return Flow(
        config=config,
        database=database,
        storage=storage,
        executor_id=me,
        detector=detector,
        send=_send,
        count=_count,
        find_prior=find_prior,
    )


def _run_engine(
    config: Config,
    flow: Flow,
    database: Database,
    stop: Stop,
    *,
    queues: Sequence[str],
    beside: Sequence[Beside] = (),
) -> None:
    """Does not return: threads of handed-back workflows must not write another word, and would keep us alive."""
    engine = Engine(config.database_url(), flow.executor_id, flow.workflows(), queues)
    engine.on_poison(lambda workflow_id, name: _park(database, workflow_id, name))
    engine.start()
    for other in beside:
        other.start()
    log.info("working", extra={"action": "ready", "executor": flow.executor_id, "queues": ",".join(queues)})

    def watch() -> None:
        if engine.lost.is_set():
            log.error("the lock of this executor is lost, stopping", extra={"action": "lost"})
            stop.event.set()
        if flow.stopwatch.seconds() > config.work.longest_analysis_s:
            # A step can't be interrupted: a hung one ends with its process, and the crash counts against the job.
            log.error("analysis hangs, ending the process", extra={"action": "hung"})
            logging.shutdown()
            os._exit(_HUNG)

    code = 1
    try:
        stop.wait(watch)
        log.info("stopping", extra={"action": "stopping"})
        for other in beside:
            other.stop(config.work.drain_s)
        drained = engine.stop(config.work.drain_s)
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
