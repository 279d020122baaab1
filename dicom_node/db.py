"""Rows: every state change of ours, each one statement that names the old state it expects.

No row changed means that somebody else owns the row: StaleState. Everything here may be done twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from dicom_node import arrivals, carriers, schema
from dicom_node.alert_rows import AlertRows
from dicom_node.arrivals import Arrival, Received, ReceivedInstance
from dicom_node.commitments import Commitments
from dicom_node.connection import no_answer
from dicom_node.correction_rows import CorrectionRows
from dicom_node.errors import ConfigError, DicomNodeError, StaleState
from dicom_node.ledger import SENDING_ORDER, Ledger
from dicom_node.locks import exclusive
from dicom_node.priors import Priors
from dicom_node.pulls import Pulls
from dicom_node.purges import Purges
from dicom_node.role_rows import RoleRows
from dicom_node.rows import Row
from dicom_node.shadows import Shadows

if TYPE_CHECKING:
    from alembic.config import Config as AlembicConfig

__all__ = ["FINISHED", "Arrival", "Database", "ReceivedInstance", "ResultObject", "Row", "knows_schema"]


# A peer waits for its response meanwhile, and gives up on it after 30 seconds or so.
_LOCK_WAIT_S = 5.0
FINISHED = ("complete", "rejected", "failed", "parked", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultObject:
    """A durable result file and who gets it. path: relative to the storage root. kind: one of profiles.KINDS."""

    sop_instance_uid: str
    sop_class_uid: str
    kind: str
    path: str
    sha256: str
    size_bytes: int
    destinations: frozenset[str]


class Database(Ledger, Purges, Commitments, Pulls, Priors, Shadows, CorrectionRows, AlertRows, RoleRows):
    """One database, SQLite or PostgreSQL, by its SQLAlchemy URL. Safe to share between threads."""

    def migrate(self) -> None:
        """Bring the schema to this version's. Several processes may call it at once.

        Raises DicomNodeError when the database does not answer: a later try may find it up.
        """
        from alembic import command
        from alembic.util import CommandError

        settings = _alembic()
        try:
            with exclusive(self.url, "migrate"), self.engine.begin() as connection:
                settings.attributes["connection"] = connection
                command.upgrade(settings, "head")
        except sa.exc.OperationalError as err:
            raise DicomNodeError(no_answer(err)) from err
        except CommandError as err:
            # It has no step for the revision that it finds.
            raise ConfigError(
                "the database's schema is newer than this version of dicom-node: install the newer version again, "
                "or restore the backup that was made before the upgrade"
            ) from err

    def check(self) -> str:
        """What answers: dialect and schema version. Raises ConfigError with what to do."""
        version = self.schema_version()
        if version is None:
            return f"{self.engine.dialect.name}; its tables are made at the first start"
        return f"{self.engine.dialect.name}, schema {version}"

    def schema_version(self) -> str | None:
        """None before its first start. Raises ConfigError with what to do where it does not answer."""
        try:
            with self.engine.connect().execution_options(read_only=True) as connection:
                if not sa.inspect(connection).has_table("alembic_version"):
                    return None
                found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        except sa.exc.SQLAlchemyError as err:
            raise ConfigError(no_answer(err)) from err
        return None if found is None else str(found)

    # -- instances ---------------------------------------------------------------------------------

    def record_instance(self, new: ReceivedInstance, *, source_ae: str, source_ip: str) -> Arrival:
        """The row of a durable file, committed on return. A known instance with equal bytes changes nothing."""
        [arrival] = self.record_instances([Received(instance=new, source_ae=source_ae, source_ip=source_ip)])
        return arrival

    def record_instances(self, received: Sequence[Received]) -> list[Arrival]:
        """The rows of durable files, all committed on return."""
        now = self._now()
        with self._begin() as connection:
            found = arrivals.record(connection, self._insert, received, now)
            for one, arrival in zip(received, found, strict=True):
                if arrival == "replaced":
                    self._event(connection, "instance replaced", series_uid=one.instance.series_uid)
        return found

    def instance(self, sop_instance_uid: str) -> Row | None:
        return self._one(sa.select(schema.instance).where(schema.instance.c.sop_instance_uid == sop_instance_uid))

    def instances(self, series_uid: str) -> list[Row]:
        """The rows of one series by SOP Instance UID."""
        return self._all(
            sa.select(schema.instance)
            .where(schema.instance.c.series_uid == series_uid)
            .order_by(schema.instance.c.sop_instance_uid)
        )

    def association_began(self, series_uid: str, association: str) -> None:
        """An Association brings something new of this series; until it ends the series can't be complete by release."""
        with self._begin(lock_wait_s=_LOCK_WAIT_S) as connection:
            carriers.began(connection, self._insert, series_uid, association)

    def association_ended(self, series_uids: Sequence[str], association: str, *, released: bool) -> None:
        """One that `association_began` counted is over: in order, which is evidence of completeness, or by an abort."""
        with self._begin() as connection:
            carriers.ended(connection, series_uids, association, released=released)

    def association_marks(self) -> set[str]:
        """The marks of all that count an Association, the living ones' and the dead ones'."""
        with self._begin() as connection:
            return carriers.marks(connection)

    def associations_lost(self, dead: Collection[str]) -> list[str]:
        """The processes of these marks died, and their Associations with them. The series that were coming."""
        with self._begin() as connection:
            return carriers.lost(connection, dead)

    def series(self, series_uid: str) -> Row | None:
        return self._one(sa.select(schema.series).where(schema.series.c.series_uid == series_uid))

    def series_assembled(self, series_uid: str, manifest_sha256: str, seen_until: float) -> None:
        """Assemble decided on what came up to `seen_until`; anything later still needs a look."""
        s = schema.series.c
        with self._begin() as connection:
            connection.execute(
                sa.update(schema.series)
                .where(s.series_uid == series_uid)
                .values(
                    assembled_sha256=manifest_sha256,
                    assembled_at=seen_until,
                    aborted=sa.and_(s.aborted, s.last_at > seen_until),
                )
            )

    def series_to_assemble(self) -> list[Row]:
        """Series that grew since assemble last saw them: what a crash may have left unannounced."""
        s = schema.series
        return self._all(
            sa.select(s)
            .where(sa.or_(s.c.assembled_at.is_(None), s.c.last_at > s.c.assembled_at))
            .order_by(s.c.first_at)
        )

    # -- jobs --------------------------------------------------------------------------------------

    def create_job(self, job_id: str, *, state: Literal["queued", "rejected", "failed"], **values: Any) -> bool:
        """Insert the job unless it exists. True when this call made it."""
        now = self._now()
        row = {
            "progress": 0.0,
            "timings_s": {},
            "created_at": now,
            "finished_at": None if state == "queued" else now,
            **values,
        }
        with self._begin() as connection:
            # Not by its row count, which the driver of PostgreSQL does not tell for an insert.
            made = connection.execute(
                self._insert(schema.job)
                .values(job_id=job_id, state=state, **row)
                .on_conflict_do_nothing(index_elements=["job_id"])
                .returning(schema.job.c.job_id)
            ).all()
            if made:
                details = {k: values[k] for k in ("reason", "route", "priority") if values.get(k)}
                self._event(connection, f"job {state}", job_id=job_id, series_uid=values["series_uid"], **details)
        return bool(made)

    def start_job(self, job_id: str, executor: str) -> None:
        """queued -> running, or running -> running when the executor before us died."""
        self._move_job(
            job_id, ("queued", "running"), "running", executor=executor, started_at=self._now(), progress=0.0
        )

    def job_progress(self, job_id: str, executor: str, progress: float) -> bool:
        """False when the job is no longer ours to run: cancelled, or taken over."""
        j = schema.job.c
        with self._begin() as connection:
            done = connection.execute(
                sa.update(schema.job)
                .where(j.job_id == job_id, j.state == "running", j.executor == executor)
                .values(progress=progress)
            )
        return bool(done.rowcount)

    def fail_job(self, job_id: str, text: str) -> None:
        self._move_job(
            job_id,
            ("queued", "running"),
            "failed",
            reason="FAILED",
            reason_text=text,
            finished_at=self._now(),
        )

    def park_job(self, job_id: str, text: str) -> bool:
        """A poison job: its workers died too often. False when it has ended otherwise."""
        with contextlib.suppress(StaleState):
            self._move_job(
                job_id,
                ("queued", "running"),
                "parked",
                reason="PARKED",
                reason_text=text,
                finished_at=self._now(),
            )
            return True
        return False

    def withhold_job(self, job_id: str, text: str) -> None:
        """What was made failed the node's own checks: nothing of it is recorded, nothing leaves."""
        self._move_job(
            job_id,
            ("running", "rejected"),
            "parked",
            reason="WITHHELD",
            reason_text=text,
            finished_at=self._now(),
        )

    def cancel_job(self, job_id: str) -> None:
        self._move_job(job_id, ("queued", "running", "failed", "parked"), "cancelled", finished_at=self._now())

    def requeue_job(self, job_id: str) -> None:
        """Also a running one, whose workflow the caller has seen to be over."""
        self._move_job(
            job_id,
            ("failed", "parked", "cancelled", "running"),
            "queued",
            reason=None,
            reason_text=None,
            executor=None,
            progress=0.0,
            finished_at=None,
        )

    def finish_job(
        self,
        job_id: str,
        *,
        state: Literal["complete", "rejected"],
        objects: Sequence[ResultObject],
        findings: Sequence[Mapping[str, Any]] = (),
        timings_s: Mapping[str, float] | None = None,
        model: Mapping[str, Any] | None = None,
        reason: str | None = None,
        reason_text: str | None = None,
    ) -> None:
        """Results, findings, ledger rows and the job's end in one transaction. Repeated by a recovered worker.

        A job that was rejected already only gains its report.
        """
        now = self._now()
        values: dict[str, Any] = {
            "progress": 1.0,
            "finished_at": now,
            "reason": reason,
            "reason_text": reason_text,
        }
        if timings_s is not None:
            values["timings_s"] = dict(timings_s)
        if model is not None:
            values["model"] = dict(model)
        with self._begin() as connection:
            expected = ("running", "complete") if state == "complete" else ("running", "rejected")
            self._move(connection, job_id, expected, state, **values)
            self._record_results(connection, job_id, objects, findings, now)

    def _record_results(
        self,
        connection: sa.Connection,
        job_id: str,
        objects: Sequence[ResultObject],
        findings: Sequence[Mapping[str, Any]],
        now: float,
    ) -> None:
        for number, found in enumerate(findings, start=1):
            insert = self._insert(schema.finding).values(job_id=job_id, number=number, values=dict(found))
            connection.execute(insert.on_conflict_do_nothing())
        for made in objects:
            row = {name: getattr(made, name) for name in made.__dataclass_fields__ if name != "destinations"}
            connection.execute(self._insert(schema.result).values(job_id=job_id, **row).on_conflict_do_nothing())
            for destination in sorted(made.destinations):
                insert = self._insert(schema.delivery).values(
                    sop_instance_uid=made.sop_instance_uid,
                    destination=destination,
                    job_id=job_id,
                    state="waiting",
                    attempts=0,
                    created_at=now,
                    changed_at=now,
                )
                connection.execute(insert.on_conflict_do_nothing())

    def _move_job(self, job_id: str, expected: Sequence[str], state: str, **values: Any) -> None:
        with self._begin() as connection:
            self._move(connection, job_id, expected, state, **values)

    def _move(self, connection: sa.Connection, job_id: str, expected: Sequence[str], state: str, **values: Any) -> None:
        j = schema.job.c
        done = connection.execute(
            sa.update(schema.job).where(j.job_id == job_id, j.state.in_(expected)).values(state=state, **values)
        )
        if not done.rowcount:
            raise StaleState(f"job {job_id} is not {' or '.join(expected)}, so it cannot become {state}")
        details = {k: values[k] for k in ("reason", "executor") if values.get(k)}
        self._event(connection, f"job {state}", job_id=job_id, **details)

    def job(self, job_id: str) -> Row | None:
        return self._one(sa.select(schema.job).where(schema.job.c.job_id == job_id))

    def find_job(self, text: str) -> str:
        """The one job whose id holds `text`. Raises DicomNodeError for none or several."""
        j = schema.job.c.job_id
        exact = self.job(text)
        found = [text] if exact else [row["job_id"] for row in self._all(sa.select(j).where(_holds(j, text)).limit(2))]
        if len(found) == 1:
            return found[0]
        if found:
            raise DicomNodeError(f"more than one job id holds {text!r}; give more of it")
        raise DicomNodeError(f"no job {text}; dicom-node jobs list shows the jobs there are")

    def jobs(self, *, state: str | None = None, series_uid: str | None = None, limit: int = 100) -> list[Row]:
        """Newest first."""
        query = sa.select(schema.job).order_by(schema.job.c.created_at.desc()).limit(limit)
        if state is not None:
            query = query.where(schema.job.c.state == state)
        if series_uid is not None:
            query = query.where(schema.job.c.series_uid == series_uid)
        return self._all(query)

    def findings(self, job_id: str) -> list[dict[str, Any]]:
        rows = self._all(
            sa.select(schema.finding).where(schema.finding.c.job_id == job_id).order_by(schema.finding.c.number)
        )
        return [dict(row["values"]) for row in rows]

    def results(self, job_id: str) -> list[Row]:
        return self._all(
            sa.select(schema.result)
            .where(schema.result.c.job_id == job_id)
            .order_by(SENDING_ORDER, schema.result.c.path)
        )


def _holds(column: sa.ColumnElement[str], text: str) -> sa.ColumnElement[bool]:
    return column.contains(text, autoescape=True)


def knows_schema(version: str | None) -> bool:
    """Whether this version of dicom-node can use a database of that schema, as it is or brought up to date."""
    from alembic.script import ScriptDirectory

    known = (script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions())
    return version is None or version in known


def _alembic() -> AlembicConfig:
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return settings
