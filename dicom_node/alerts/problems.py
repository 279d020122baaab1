"""Rows, disk and certificates -> everything that an operator should know of just now; each look by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from dicom_node.alert_rows import Problem
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.dimse.tls import certificate_files, days_left
from dicom_node.errors import ConfigError, DatabaseUnavailable
from dicom_node.logs import describe
from dicom_node.storage import Storage

log = logging.getLogger(__name__)

# Kind -> what one and what several of it are called.
KINDS = {
    "job_failed": ("job failed", "jobs failed"),
    "job_parked": ("job parked", "jobs parked"),
    "job_hung": ("job hangs", "jobs hang"),
    "object_parked": ("result not delivered", "results not delivered"),
    "destination_dead": ("destination takes nothing", "destinations take nothing"),
    "role_missing": ("role missing", "roles missing"),
    "queue_old": ("queue does not move", "queues do not move"),
    "storage_away": ("storage cannot be reached", "storages cannot be reached"),
    "disk_low": ("disk low", "disks low"),
    "disk_full": ("disk full: nothing is accepted", "disks full: nothing is accepted"),
    "certificate": ("certificate expires", "certificates expire"),
}
# A worker that hangs ends itself after `work.longest_analysis_s`, and another takes its job up within seconds.
_TAKEN_UP_S = 600.0
# A machine that does not come back for so long was given up.
_GIVEN_UP_S = 7 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """What is looked at, and how."""

    config: Config
    database: Database
    storage: Storage
    now: Callable[[], float]

    def problems(self, held: Iterable[Problem] = ()) -> list[Problem]:
        """What is wrong. held: what was at the last look; it stays where a look fails. Raises DatabaseUnavailable."""
        looks: tuple[tuple[Callable[[], Iterator[Problem]], set[str]], ...] = (
            (self._jobs, {"job_failed", "job_parked"}),
            (self._hung, {"job_hung"}),
            (self._objects, {"object_parked"}),
            (self._destinations, {"destination_dead"}),
            (self._roles, {"role_missing"}),
            (self._queues, {"queue_old"}),
            (self._storage, {"storage_away"}),
            (self._disk, {"disk_low", "disk_full"}),
            (self._certificates, {"certificate"}),
        )
        found: list[Problem] = []
        before = list(held)
        for look, kinds in looks:
            try:
                found += list(look())
            except DatabaseUnavailable:
                raise  # what is wrong is kept in rows: without them nothing can be told
            except Exception as err:  # noqa: BLE001  what one look cannot see, the others still tell
                what = {"action": "alert", "kinds": sorted(kinds), "error": describe(err)}
                log.error("alerts: a look failed", extra=what)
                found += [problem for problem in before if problem.kind in kinds]
        return found

    def _jobs(self) -> Iterator[Problem]:
        for row in self.database.broken_jobs():
            # Not reason_text: the node's own checks quote what they found, and that may be of a patient.
            text = f"{row['reason'] or row['state'].upper()}, route {row['route'] or 'none'}"
            yield Problem(kind=f"job_{row['state']}", subject=row["job_id"], text=text, job_id=row["job_id"])

    def _hung(self) -> Iterator[Problem]:
        longest_s = self.config.work.longest_analysis_s + _TAKEN_UP_S
        for row in self.database.running_since_before(self.now() - longest_s):
            text = f"runs for more than {longest_s / 60:.0f} min on {row['executor']}: is a work role running?"
            yield Problem(kind="job_hung", subject=row["job_id"], text=text, job_id=row["job_id"])

    def _objects(self) -> Iterator[Problem]:
        for row in self.database.parked_objects():
            text = f"{_count(row['count'], 'object')} parked at {row['destination']}"
            subject = f"{row['job_id']} at {row['destination']}"
            yield Problem(kind="object_parked", subject=subject, text=text, job_id=row["job_id"])

    def _destinations(self) -> Iterator[Problem]:
        if (minutes := self.config.alerts.dead_destination_min) is None:
            return
        since = self.now() - minutes * 60
        for row in self.database.waiting_at():
            if row["since"] < since and not self.database.arrived_since(row["destination"], since):
                text = f"{row['destination']}: nothing arrived for more than {minutes:g} min, though objects wait"
                yield Problem(kind="destination_dead", subject=row["destination"], text=text)

    def _roles(self) -> Iterator[Problem]:
        if (minutes := self.config.alerts.missing_role_min) is None:
            return
        now = self.now()
        for row in self.database.roles_missing(now - minutes * 60, not_before=now - _GIVEN_UP_S):
            who = row["role"] if row["name"] == row["role"] else f"{row['role']} {row['name']}"
            text = f"{who} on {row['host']} was not seen for more than {minutes:g} min, and did not stop in order"
            yield Problem(kind="role_missing", subject=f"{who} on {row['host']}", text=text)

    def _queues(self) -> Iterator[Problem]:
        if (minutes := self.config.alerts.queue_age_min) is None:
            return
        before = self.now() - minutes * 60
        if self.database.queued_since_before(before):
            text = f"jobs wait for more than {minutes:g} min: is a work role running?"
            yield Problem(kind="queue_old", subject="analyse", text=text)
        quiet_s = [peer.quiet_time_s or 0.0 for peer in self.config.peers.values()]
        longest_quiet_s = max([self.config.assemble.quiet_time_s, *quiet_s])
        if self.database.undecided_since_before(before - longest_quiet_s):
            text = f"series wait for more than {minutes:g} min to be decided on: is a work role running?"
            yield Problem(kind="queue_old", subject="assemble", text=text)

    def _storage(self) -> Iterator[Problem]:
        try:
            self.storage.free_bytes()
        except OSError as err:
            text = f"storage.root cannot be reached ({err.strerror}): nothing is received, analysed or sent"
            yield Problem(kind="storage_away", subject="storage.root", text=text)

    def _disk(self) -> Iterator[Problem]:
        free_gb, low_gb = self.storage.free_bytes() / 1e9, self.config.alerts.disk_below_gb
        refused_gb = self.config.storage.min_free_gb
        if free_gb < refused_gb:
            text = f"less than {refused_gb:g} GB free under storage.root: what is sent here is refused (0xA700)"
            yield Problem(kind="disk_full", subject="storage.root", text=text)
        elif low_gb is not None and free_gb < low_gb:
            text = f"less than {low_gb:g} GB free under storage.root"
            yield Problem(kind="disk_low", subject="storage.root", text=text)

    def _certificates(self) -> Iterator[Problem]:
        if (days := self.config.alerts.certificate_days) is None:
            return
        for file in certificate_files(self.config):
            try:
                left = days_left(file, self.now())
            except ConfigError:
                text = f"{file.setting}: expired, or unreadable: dicom-node check says which"
            else:
                if left >= days:
                    continue
                text = f"{file.setting}: {_count(left, 'day')} left"
            yield Problem(kind="certificate", subject=file.setting, text=text)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
