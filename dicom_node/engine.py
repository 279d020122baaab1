"""The job engine: durable workflows on DBOS, and liveness by lock. Nothing else in the project names DBOS.

A workflow is a function of (Run, *small JSON values); what it does happens in steps, whose results are
checkpointed. Killed anywhere, it goes on after its last finished step: at once when its executor comes
back, else on another executor that finds the dead one's lock free.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from dbos import (
    DBOS,
    DBOSClient,
    DBOSConfig,
    DBOSPortableJSONSerializer,
    Debouncer,
    DebouncerClient,
    EnqueueOptions,
    StepOptions,
)

from dicom_node.connection import patient_url
from dicom_node.errors import DicomNodeError, StaleState
from dicom_node.locks import Lock, exclusive, try_lock
from dicom_node.logs import describe

log = logging.getLogger(__name__)

Json = Any

# Bump only after a drain: a workflow of another version is left alone by executors of this one.
ENGINE_VERSION = "1"
# Unset would be 0, which is the highest.
PRIORITIES = {"stat": 1, "high": 10, "routine": 100, "low": 1000, "last": 10_000}
QUEUES: Mapping[str, dict[str, Any]] = {
    "assemble": {"worker_concurrency": 2},
    # Waits for archives, mostly: a slow one must not hold up what another has.
    "priors": {"worker_concurrency": 4},
    "overdue": {"worker_concurrency": 1},
    "analyse": {"worker_concurrency": 1},
    # One at a time to a destination: a dead PACS holds up its own queue and no other.
    "deliver": {"partition_worker_concurrency": 1},
}
# A job that kills its worker three times is parked. Only the analysis runs code that can: a delivery may
# well be handed on by many restarts of the node while its destination is down.
MAX_CRASHES = {"assemble": 10, "priors": 3, "overdue": 10, "analyse": 3, "shadow": 3, "deliver": 10_000}
# A workflow has a queue of its own name but for these: one analysis at a time, whoever wants it.
_ELSEWHERE = {"shadow": "analyse"}
_POLL_S = 0.4
_LIVENESS_S = 2.0
_LAST_WORD_S = 10.0
# Longer than a look takes whose database does not answer.
_HUNG_S = 180.0


class Run(Protocol):
    """What a workflow may do. Each call is checkpointed, so it must be reached in the same order every time."""

    def step(self, name: str, function: Callable[..., Json], *args: Json) -> Json: ...

    def enqueue(
        self,
        workflow: str,
        workflow_id: str,
        *args: Json,
        priority: str,
        partition: str | None = None,
        delay_s: float | None = None,
    ) -> None: ...

    def bounce(self, workflow: str, key: str, delay_s: float, *args: Json, longest_s: float) -> None: ...

    def sleep(self, seconds: float) -> None: ...


Workflow = Callable[..., None]


class _Steps:
    """Counts the steps that run, so that a stop can wait for them and for nothing else (a sleep may take hours)."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._stopping = False

    def run(self, function: Callable[[], Json]) -> Json:
        with self._changed:
            # Once we stop, no step begins: the workflow waits here until the process ends, and is handed back.
            while self._stopping:
                self._changed.wait()
            self._running += 1
        try:
            return function()
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Within a step. When a stop begins meanwhile it does not return: an error would end the workflow for good."""
        with self._changed:
            if self._changed.wait_for(lambda: self._stopping, seconds):
                self._running -= 1
                self._changed.notify_all()
                while True:
                    self._changed.wait()

    def drain(self, seconds: float) -> bool:
        """Let no further step begin; True when the running ones ended in time."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._running == 0, seconds)


class _DurableRun:
    """Run, by DBOS."""

    def __init__(self, steps: _Steps) -> None:
        self._steps = steps

    def step(self, name: str, function: Callable[..., Json], *args: Json) -> Json:
        return self._steps.run(lambda: DBOS.run_step(StepOptions(name=name), self._patiently, name, function, *args))

    def _patiently(self, name: str, function: Callable[..., Json], *args: Json) -> Json:
        """What may pass (no database, no space) is waited out, else it would end the workflow for good.

        The engine keeps the text of errors: a foreign one may quote a patient's data, so only its place is kept.
        """
        pause_s = 1.0
        while True:
            try:
                return function(*args)
            except DicomNodeError as err:
                if not err.retry_helps:
                    raise
                log.warning("step is tried again", extra={"action": "again", "step": name, "why": str(err)})
            except Exception as err:  # noqa: BLE001  raised again, without its text
                raise DicomNodeError(describe(err)) from None
            self._steps.pause(pause_s)
            pause_s = min(60.0, 2 * pause_s)

    def enqueue(
        self,
        workflow: str,
        workflow_id: str,
        *args: Json,
        priority: str,
        partition: str | None = None,
        delay_s: float | None = None,
    ) -> None:
        options = _options(workflow, workflow_id, priority, partition)
        if delay_s is not None:
            options["delay_seconds"] = delay_s
        DBOS.enqueue_workflow_with_options(options, *args)

    def bounce(self, workflow: str, key: str, delay_s: float, *args: Json, longest_s: float) -> None:
        """As EngineClient.bounce: the two share their keys."""
        Debouncer[..., None](workflow, debounce_timeout_sec=longest_s, queue=workflow).debounce(key, delay_s, *args)

    def sleep(self, seconds: float) -> None:
        DBOS.sleep(seconds)


def _options(workflow: str, workflow_id: str, priority: str, partition: str | None) -> EnqueueOptions:
    options = EnqueueOptions(
        workflow_name=workflow,
        queue_name=_queue(workflow),
        workflow_id=workflow_id,
        app_version=ENGINE_VERSION,
        priority=PRIORITIES[priority],
    )
    if partition is not None:
        options["queue_partition_key"] = partition
    return options


def _queue(workflow: str) -> str:
    return _ELSEWHERE.get(workflow, workflow)


def engine_url(url: str) -> str:
    """Where the engine keeps its tables: a file beside ours on SQLite (one writer each), a schema on PostgreSQL."""
    if not url.startswith("sqlite"):
        # A firewall forgets a connection that was idle for long and drops what comes on it: the library's own settings
        # would have a bounce wait for a quarter of an hour then.
        return patient_url(url)
    database = Path(str(sa.make_url(url).database))
    return f"sqlite:///{database.with_name('engine.sqlite')}"


def migrate(url: str) -> None:
    """Make or update the engine's tables. Several processes may call it at once."""
    quiet_library_log()
    with exclusive(url, "migrate-engine"):
        if url.startswith("sqlite"):
            # Before the first table: with the default journal each enqueue costs four flushes instead of one.
            engine = sa.create_engine(engine_url(url))
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            engine.dispose()
        DBOS.migrate(engine_url(url))


def quiet_library_log() -> None:
    """The library logs to the console by itself, some of it advertising; its warnings go through our logging."""
    logger = logging.getLogger("dbos")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)
    if not any(isinstance(known, _OwnWords) for known in logger.filters):
        logger.addFilter(_OwnWords())


class _OwnWords(logging.Filter):
    """Leaves out what looks like a crash and is none: a failed or cancelled job, of which we tell ourselves."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return "Exception encountered in background workflow" not in said and "no longer owned" not in said


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowState:
    """One workflow as the engine sees it."""

    workflow_id: str
    name: str
    status: str
    executor_id: str | None


class EngineClient:
    """Enqueue, debounce, list, cancel and retry from any process; runs nothing itself."""

    def __init__(self, url: str) -> None:
        quiet_library_log()
        self._client = DBOSClient(system_database_url=engine_url(url), serializer=DBOSPortableJSONSerializer())

    def close(self) -> None:
        self._client.destroy()

    def bounce(self, workflow: str, key: str, delay_s: float, *args: Json, longest_s: float) -> None:
        """Run `workflow(*args)` once, `delay_s` after the last bounce of `key`, or `longest_s` after the first."""
        options = EnqueueOptions(workflow_name=workflow, queue_name=workflow, app_version=ENGINE_VERSION)
        DebouncerClient(self._client, options, debounce_timeout_sec=longest_s).debounce(key, delay_s, *args)

    def enqueue(
        self, workflow: str, workflow_id: str, *args: Json, priority: str, partition: str | None = None
    ) -> None:
        """A second enqueue of the same id changes nothing."""
        self._client.enqueue(_options(workflow, workflow_id, priority, partition), *args)

    def state(self, workflow_id: str) -> WorkflowState | None:
        found = self._client.list_workflows(workflow_ids=[workflow_id], load_input=False, load_output=False)
        return _state(found[0]) if found else None

    def ids(self, prefix: str) -> list[str]:
        """Of the workflows whose ids begin so."""
        rows = self._client.list_workflows(workflow_id_prefix=prefix, load_input=False, load_output=False)
        return [row.workflow_id for row in rows]

    def states(self, *, status: Sequence[str] | None = None, name: str | None = None) -> list[WorkflowState]:
        rows = self._client.list_workflows(
            status=list(status) if status else None, name=name, load_input=False, load_output=False
        )
        return [_state(row) for row in rows]

    def cancel(self, workflow_id: str) -> None:
        """A queued one never starts; a running one ends after its present step."""
        self._client.cancel_workflow(workflow_id)

    def resume(self, state: WorkflowState) -> None:
        """Put a workflow that does not run back on its queue."""
        self._client.resume_workflow(state.workflow_id, queue_name=_queue(state.name))

    def forget_ended(self, before: float) -> None:
        """Delete the workflows that ended before that time."""
        at = datetime.fromtimestamp(before, UTC).isoformat()
        while rows := self._client.list_workflows(
            status=["SUCCESS", "CANCELLED"], completed_before=at, limit=500, load_input=False, load_output=False
        ):
            self._delete([row.workflow_id for row in rows])

    def forget(self, prefix: str) -> None:
        """Delete the workflows whose ids begin so and that do not run just now: their ids are free again."""
        rows = self._client.list_workflows(workflow_id_prefix=prefix, load_input=False, load_output=False)
        self._delete([row.workflow_id for row in rows if row.status != "PENDING"])

    def abandon(self, prefix: str) -> None:
        """The same with those that wait or run: they end after their present step."""
        for row in self._client.list_workflows(workflow_id_prefix=prefix, load_input=False, load_output=False):
            if row.status in ("PENDING", "ENQUEUED", "DELAYED"):
                self.cancel(row.workflow_id)
        self.forget(prefix)

    def _delete(self, workflow_ids: Sequence[str]) -> None:
        if workflow_ids:
            self._client.delete_workflows(list(workflow_ids))

    def retry(self, workflow_id: str, *, partition: str | None = None) -> None:
        """Run an ended workflow again from the step that failed; what its earlier steps did is kept."""
        state = self.state(workflow_id)
        if state is None:
            raise StaleState(f"no workflow {workflow_id} is known to the engine: its record may have been cleaned away")
        failed = [s["function_id"] for s in self._client.list_workflow_steps(workflow_id) if s["error"] is not None]
        start = min(failed) if failed else None
        if start is None and state.status in ("CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"):
            self.resume(state)
            return
        self._client.rewind_workflow(
            workflow_id,
            start_step=start,
            application_version=ENGINE_VERSION,
            queue_name=_queue(state.name),
            queue_partition_key=partition,
        )


def _state(row: Any) -> WorkflowState:
    return WorkflowState(
        workflow_id=row.workflow_id,
        name=row.name,
        status=row.status,
        executor_id=row.executor_id,
    )


class Engine:
    """Runs the workflows of some queues in this process, as executor `executor_id`. One a process."""

    def __init__(
        self,
        url: str,
        executor_id: str,
        workflows: Mapping[str, Workflow],
        queues: Sequence[str],
        *,
        name_wait_s: float = 30.0,
    ) -> None:
        self._name_wait_s = name_wait_s
        self._url, self.executor_id, self._queues = url, executor_id, tuple(queues)
        self._workflows = dict(workflows)
        self._lock: Lock | None = None
        self._steps = _Steps()
        self._stop = threading.Event()
        self._liveness: threading.Thread | None = None
        self._looked_at = 0.0
        self.lost = threading.Event()
        self._on_poison: Callable[[str, str], None] = lambda _workflow_id, _name: None

    def on_poison(self, function: Callable[[str, str], None]) -> None:
        """`function(workflow_id, name)` hears of each workflow that was parked for killing its executors."""
        self._on_poison = function

    def start(self) -> None:
        """Raises DicomNodeError when a living process runs under this name and goes on doing so."""
        deadline = time.monotonic() + self._name_wait_s
        while (lock := try_lock(self._url, _lock_name(self.executor_id))) is None:
            # Held for a moment by a process that takes over our work, or for as long as a server needs to see that
            # the process before us is dead.
            if time.monotonic() > deadline:
                raise DicomNodeError(f"another process runs as {self.executor_id}; give this one another --name")
            time.sleep(0.2)
        self._lock = lock
        config = DBOSConfig(
            name="dicom-node",
            system_database_url=engine_url(self._url),
            executor_id=self.executor_id,
            application_version=ENGINE_VERSION,
            serializer=DBOSPortableJSONSerializer(),
            log_level="WARNING",
            run_migrations=False,
            use_listen_notify=False,
        )
        DBOS(config=config)
        quiet_library_log()
        for name, function in self._workflows.items():
            DBOS.workflow(name=name, max_recovery_attempts=MAX_CRASHES[name])(self._bound(function))
        DBOS.listen_queues(list(self._queues))
        DBOS.launch()
        for name in self._queues:
            DBOS.register_queue(name, polling_interval_sec=_POLL_S, on_conflict="always_update", **QUEUES[name])
        self._looked_at = time.monotonic()
        self._liveness = threading.Thread(target=self._watch, name="liveness", daemon=True)
        self._liveness.start()

    def healthy(self) -> bool:
        """False once its threads are dead or hang: nothing would be taken up any more."""
        alive = self._liveness is not None and self._liveness.is_alive()
        return alive and time.monotonic() - self._looked_at < _HUNG_S

    def stop(self, drain_s: float) -> bool:
        """Begin nothing new and give running steps `drain_s` to end; hand back what did not end or still waits.

        True when all steps ended. Else the process should end at once: what it still does counts for nothing.
        """
        self._stop.set()
        drained = self._steps.drain(drain_s)
        DBOS.destroy(workflow_completion_timeout_sec=0, destroy_registry=True)
        # Neither waits for a database that does not come back: what we leave is taken over like a dead one's.
        if self._liveness is not None:
            self._liveness.join(_LAST_WORD_S)
        hand_back = threading.Thread(target=self._hand_back, name="hand-back", daemon=True)
        hand_back.start()
        hand_back.join(_LAST_WORD_S)
        if self._lock is not None:
            self._lock.release()
        return drained

    def _hand_back(self) -> None:
        """Our unfinished workflows to their queues; unlike a crash this does not count against them."""
        client = EngineClient(self._url)
        try:
            for state in client.states(status=["PENDING"]):
                if state.executor_id == self.executor_id:
                    client.resume(state)
        finally:
            client.close()

    def _bound(self, function: Workflow) -> Callable[..., None]:
        def run(*args: Json) -> None:
            function(_DurableRun(self._steps), *args)

        return run

    def _watch(self) -> None:
        client = EngineClient(self._url)
        told: set[str] = set()
        try:
            while not self._stop.wait(_LIVENESS_S):
                self._looked_at = time.monotonic()
                try:
                    self._look(client, told)
                except (sa.exc.SQLAlchemyError, DicomNodeError, OSError) as err:
                    log.warning("liveness check failed", extra={"action": "liveness", "error": type(err).__name__})
        finally:
            client.close()

    def _look(self, client: EngineClient, told: set[str]) -> None:
        if self._lock is not None and not self._lock.still_held():
            # Others may have taken our jobs: what we would still write could be a dead one's late word.
            self.lost.set()
            return
        for executor_id in {s.executor_id for s in client.states(status=["PENDING"])} - {self.executor_id, None}:
            self._take_over(str(executor_id))
        poisoned = {s.workflow_id: s.name for s in client.states(status=["MAX_RECOVERY_ATTEMPTS_EXCEEDED"])}
        told &= poisoned.keys()  # one that was retried since may be poisoned again
        for workflow_id in poisoned.keys() - told:
            self._on_poison(workflow_id, poisoned[workflow_id])
            told.add(workflow_id)

    def _take_over(self, executor_id: str) -> None:
        lock = try_lock(self._url, _lock_name(executor_id))
        if lock is None:
            return
        try:
            log.warning("executor is dead, taking over", extra={"action": "takeover", "executor": executor_id})
            # The public way (resume) would reset the count of crashes that parks a poison job.
            DBOS._recover_pending_workflows([executor_id])
        finally:
            lock.release()


def _lock_name(executor_id: str) -> str:
    return f"executor:{executor_id}"
