"""Series that may go -> folders out of sight, rows and event gone in one transaction, then the files.

What may go is told by state and age (purges.py). A kill at any point loses nothing: rows that stayed get their files
back, rows that went take theirs with them, at the next `settle`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dicom_node import metrics
from dicom_node.audit import Audit, Patient, Study, User, studies_deleted
from dicom_node.config import Config, RetentionConfig, SeriesState
from dicom_node.db import Database, Row
from dicom_node.discarded import Discarded
from dicom_node.errors import DicomNodeError, StorageError
from dicom_node.locks import try_lock
from dicom_node.log_files import FOLDER as LINES
from dicom_node.log_files import old_folders
from dicom_node.purges import Kept
from dicom_node.storage import Storage
from dicom_node.subjects import patient_of

if TYPE_CHECKING:
    from dicom_node.engine import EngineClient

log = logging.getLogger(__name__)

# Who deletes holds it. What lies aside while nobody does is left by one that died: `settle` may judge it.
LOCK = "retention"
_ASK_AGAIN_S = 0.1
DAY_S = 86400.0
# Results whose job has no row yet are being made, or their rows are from a backup: both are over by then.
LEFTOVER_S = 7 * DAY_S
# After so many that cannot be deleted it is not the series, but the disk.
_MOST_FAILED = 10
# So many candidates at a time, where it may be over with any of them.
_BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """A series that was deleted. state, why: empty where only its files tell of it, after a crash.

    header_file: one of its images, there until `deleted` has returned.
    """

    series_uid: str
    study_uid: str
    state: str = ""
    why: str = ""
    instances: int = 0
    jobs: int = 0
    bytes: int = 0
    header_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What a purge removed, or would remove. states: how many series were of which."""

    series: int = 0
    jobs: int = 0
    bytes: int = 0
    states: Mapping[str, int] = field(default_factory=dict)

    def with_(self, gone: Gone) -> Purged:
        states = {**self.states, gone.state: self.states.get(gone.state, 0) + 1}
        return Purged(series=self.series + 1, jobs=self.jobs + gone.jobs, bytes=self.bytes + gone.bytes, states=states)


def kept(config: Config, now: float) -> Kept:
    """What `stored` is worth at each destination, as the settings stand."""
    return Kept(
        committing=tuple(name for name, peer in config.peers.items() if peer.may_commit),
        uncommitted_before=now - config.retention.uncommitted_after_days * DAY_S,
    )


def due_by_age(settings: RetentionConfig, now: float) -> dict[SeriesState, float]:
    """Of each state that is ever deleted by age, before when nothing more may have happened."""
    return {state: now - days * DAY_S for state, days in settings.after_days().items()}


def due_under_pressure(settings: RetentionConfig, now: float) -> dict[SeriesState, float]:
    """The same where the disk runs low, in the order in which they go."""
    return dict.fromkeys(settings.under_pressure, now - settings.spared_h * 3600)


@contextlib.contextmanager
def alone(url: str, *, wait_s: float) -> Iterator[None]:
    """Over the block nobody else deletes. Raises DicomNodeError where somebody still does after `wait_s`."""
    deadline = time.monotonic() + wait_s
    while (lock := try_lock(url, LOCK)) is None:
        if time.monotonic() >= deadline:
            raise DicomNodeError("retention is deleting just now, here or on another machine: try again later")
        time.sleep(_ASK_AGAIN_S)
    try:
        yield
    finally:
        lock.release()


def _told_nobody(gone: Gone) -> None:
    """The event and the log have it all the same."""


def audited(audit: Audit, user: User | None = None) -> Callable[[Gone], None]:
    """Tells the audit trail of each series that was deleted, by `user` or by the node itself."""

    def deleted(gone: Gone) -> None:
        patient = Patient() if gone.header_file is None else patient_of(gone.header_file)
        study = Study(uid=gone.study_uid, patient=patient, series_uids=(gone.series_uid,))
        audit.write(studies_deleted([study], user=user, text=": ".join(filter(None, (gone.state, gone.why))) or None))

    return deleted


@dataclass(frozen=True, kw_only=True)
class Purger:
    """Deletes series. `deleted` hears of each, at least once, before its files are gone for good.

    Who calls `purge` or `settle` holds LOCK.
    """

    database: Database
    engine: EngineClient
    storage: Storage
    deleted: Callable[[Gone], None] = _told_nobody

    @cached_property
    def _discarded(self) -> Discarded:
        return Discarded(self.storage.root)

    def purge(
        self,
        before: Mapping[SeriesState, float],
        kept: Kept,
        *,
        why: str,
        enough: Callable[[Purged], bool] = lambda _removed: False,
        go_on: Callable[[], bool] = lambda: True,
    ) -> Purged:
        """Delete what is `purgeable`, in its order, until that is `enough`, or not to `go_on`.

        Raises StorageError where the files of many can't be moved, as with a file system that is read-only.
        """
        removed, tried, failed = Purged(), set[str](), 0
        while rows := self._candidates(before, kept, tried):
            for row in rows:
                if enough(removed) or not go_on():
                    return removed
                tried.add(row["series_uid"])
                try:
                    gone = self._remove(row, before[row["state"]], kept, why)
                except OSError as err:
                    # Of another user, on a broken disk: it stays whole, and holds up no other.
                    failed += 1
                    extra = {"action": "purge", "series": row["series_uid"], "why": err.strerror or type(err).__name__}
                    log.error("series cannot be deleted", extra=extra)
                    if failed >= _MOST_FAILED:
                        raise StorageError(f"{failed} series cannot be deleted, the last one: {extra['why']}") from err
                    continue
                removed = removed if gone is None else removed.with_(gone)
        return removed

    def would_purge(self, before: Mapping[SeriesState, float], kept: Kept) -> Purged:
        """What `purge` would remove, all of it."""
        removed = Purged()
        for row in self.database.purgeable(before, kept):
            gone, _ = self._measured(row, "")
            removed = removed.with_(gone)
        return removed

    def _candidates(self, before: Mapping[SeriesState, float], kept: Kept, tried: set[str]) -> list[Row]:
        # Those that did not go after all are found again: look past them.
        rows = self.database.purgeable(before, kept, limit=_BATCH + len(tried))
        return [row for row in rows if row["series_uid"] not in tried]

    def _measured(self, row: Row, why: str) -> tuple[Gone, list[str]]:
        """A series with what goes with it, and its folders."""
        series_uid = row["series_uid"]
        instances = self.database.instances(series_uid)
        jobs = [job["job_id"] for job in self.database.jobs(series_uid=series_uid)]
        size = sum(instance["size_bytes"] for instance in instances)
        size += sum(made["size_bytes"] for job_id in jobs for made in self.database.results(job_id))
        size += sum(prior["size_bytes"] for job_id in jobs if (prior := self.database.prior(job_id)) is not None)
        folders = {str(PurePosixPath(instance["path"]).parent) for instance in instances}
        gone = Gone(
            series_uid=series_uid,
            study_uid=row["study_uid"],
            state=row["state"],
            why=why,
            instances=len(instances),
            jobs=len(jobs),
            bytes=size,
        )
        return gone, sorted(folders | {f"results/{job_id}" for job_id in jobs})

    def _remove(self, row: Row, before: float, kept: Kept, why: str) -> Gone | None:
        """None for a series that is not what it was: it brought something new, or a job was taken up again."""
        gone, folders = self._measured(row, why)
        aside: list[str] = []
        went = self.database.purge_series(
            gone.series_uid,
            before,
            lambda: aside.append(self._set_aside(folders)),
            kept,
            states=(row["state"],),
            why=why,
            instances=gone.instances,
            jobs=gone.jobs,
            bytes=gone.bytes,
        )
        if not went:
            return None
        metrics.series_deleted(why, gone.bytes)
        extra = {"action": "purge", "series": gone.series_uid, "state": gone.state, "why": why}
        log.info("series deleted", extra={**extra, "jobs": gone.jobs, "bytes": gone.bytes})
        gone = replace(gone, header_file=next(filter(None, map(self._discarded.header_file, aside)), None))
        # Whatever follows is made good by `settle` where we are killed before the files are cleared.
        self._let_go(gone, (folder.removeprefix("results/") for folder in folders if folder.startswith("results/")))
        for name in aside:
            self._discarded.clear(name)
        return gone

    def _let_go(self, gone: Gone, job_ids: Iterable[str]) -> None:
        """The same series may come again: the ids of its workflows must be free then."""
        for job_id in job_ids:
            self.engine.abandon(job_id)
        self.deleted(gone)
        self._discard_lines(gone.series_uid)

    def _discard_lines(self, series_uid: str) -> None:
        """They hold up nothing: what cannot be moved is tried again by the next `sweep`."""
        try:
            self.storage.discard(f"{LINES}/{series_uid}")
        except OSError as err:
            extra = {"action": "purge", "series": series_uid, "why": err.strerror or type(err).__name__}
            log.error("log lines of a deleted series stay", extra=extra)

    def _set_aside(self, folders: Iterable[str]) -> str:
        return self._discarded.set_aside(folders)

    # -- after a crash -----------------------------------------------------------------------------

    def unsettled(self) -> bool:
        """Whether anything lies aside: of a purge that runs just now, or was killed."""
        return bool(self._discarded.aside())

    def settle(self) -> None:
        """What a killed purge left: files whose rows stayed come back, the others go, half deleted ones too."""
        for name in self._discarded.aside():
            files = self._discarded.files(name)
            for series_uid in sorted({_series_of(path) for path in files}):
                self._settle_series(name, series_uid, [path for path in files if _series_of(path) == series_uid])
            self._discarded.clear(name)
        self._discarded.sweep()

    def _settle_series(self, name: str, series_uid: str, files: Sequence[str]) -> None:
        stayed: list[bool] = []

        def settle(paths: frozenset[str], jobs: frozenset[str]) -> None:
            wanted = [path for path in files if path in paths or _job_of(path) in jobs]
            back = self._discarded.put_back(name, wanted)
            stayed.append(bool(paths or jobs))
            if back:
                extra = {"action": "purge", "series": series_uid, "files": back}
                log.warning("files of a broken purge put back", extra=extra)

        self.database.with_series(series_uid, settle)
        if not any(stayed):
            studies = [PurePosixPath(path).parts[1] for path in files if _job_of(path) is None]
            gone = Gone(
                series_uid=series_uid,
                study_uid=studies[0] if studies else "",
                header_file=self._discarded.header_file(name),
            )
            self._let_go(gone, sorted({job_id for path in files if (job_id := _job_of(path)) is not None}))

    # -- what nobody needs -------------------------------------------------------------------------

    def forget(self, before: float) -> None:
        """Events of what is gone, and the engine's records of what ended."""
        self.engine.forget_ended(before)
        self.database.purge_events(before)

    def sweep(self, now: float) -> int:
        """Results whose job has no row, log lines whose series has none, folders of studies without a series, rubbish.
        How many there were."""
        swept = self._discarded.sweep() + self.storage.sweep_empty(now - DAY_S)
        for job_id in sorted(self.database.unknown_jobs(self.storage.old_results(now - LEFTOVER_S))):
            log.warning("results without a job deleted", extra={"action": "sweep", "job": job_id})
            self.storage.discard(f"results/{job_id}")
            swept += 1
        for series_uid in sorted(self.database.unknown_series(old_folders(self.storage.root, now - LEFTOVER_S))):
            self._discard_lines(series_uid)
            swept += 1
        return swept


def _job_of(path: str) -> str | None:
    """Of results/JOB/..., relative to the storage root; None for a received file."""
    parts = PurePosixPath(path).parts
    return parts[1] if parts[0] == "results" else None


def _series_of(path: str) -> str:
    """Of incoming/STUDY/SERIES/FILE or results/SERIES-HASH/..."""
    job_id = _job_of(path)
    return PurePosixPath(path).parts[2] if job_id is None else job_id.partition("-")[0]
