"""Rows of the earlier CT that a job is compared with, and of series that an archive sends us for a comparison alone."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.rows import Row, Rows


class Priors(Rows):
    """Statements on what a job is compared with."""

    def prior_wanted(self, job_id: str, archive: str) -> None:
        """An earlier CT is to be looked for; once a job."""
        with self._begin() as connection:
            made = connection.execute(
                self._insert(schema.prior)
                .values(job_id=job_id, archive=archive, wanted_at=self._now())
                .on_conflict_do_nothing()
                .returning(schema.prior.c.job_id)
            ).all()
            if made:
                self._event(connection, "prior wanted", job_id=job_id, archive=archive)

    def prior_wanted_again(self, job_id: str) -> bool:
        """A look that never came to its end has its whole time once more. False where there is none to begin."""
        p = schema.prior.c
        with self._begin() as connection:
            done = connection.execute(
                sa.update(schema.prior).where(p.job_id == job_id, p.outcome.is_(None)).values(wanted_at=self._now())
            )
        return bool(done.rowcount)

    def prior(self, job_id: str) -> Row | None:
        """None where the job's route compares with nothing."""
        return self._one(sa.select(schema.prior).where(schema.prior.c.job_id == job_id))

    def prior_settled(
        self,
        job_id: str,
        outcome: str,
        text: str,
        *,
        why: str = "",
        folder: str | None = None,
        study_uid: str | None = None,
        series_uid: str | None = None,
        size_bytes: int = 0,
    ) -> bool:
        """What the job is compared with, for good: the first word counts. False where there was one already.

        why: for the operator, beside `text`, which a report quotes.
        """
        p = schema.prior.c
        values = {
            "outcome": outcome,
            "text": text,
            "folder": folder,
            "study_uid": study_uid,
            "series_uid": series_uid,
            "size_bytes": size_bytes,
            "settled_at": self._now(),
        }
        with self._begin() as connection:
            done = connection.execute(
                sa.update(schema.prior).where(p.job_id == job_id, p.outcome.is_(None)).values(**values)
            )
            if done.rowcount:
                details = {"why": why} if why else {}
                self._event(connection, "prior settled", job_id=job_id, outcome=outcome, **details)
        return bool(done.rowcount)

    def prior_compared(self, job_id: str, outcome: str, text: str) -> None:
        """What the analysis made of an earlier CT that was found; the same again where it runs twice."""
        p = schema.prior.c
        with self._begin() as connection:
            connection.execute(
                sa.update(schema.prior)
                .where(p.job_id == job_id, p.folder.is_not(None))
                .values(outcome=outcome, text=text)
            )

    def prior_folders(self, series_uid: str) -> list[Row]:
        """Jobs that were compared with this series, each with the folder of its files."""
        p = schema.prior.c
        return self._all(sa.select(p.job_id, p.folder).where(p.series_uid == series_uid, p.folder.is_not(None)))

    # -- series that come for a comparison alone -----------------------------------------------------

    def series_expected(self, series_uid: str, archive: str, until: float) -> None:
        """What comes of this series before `until` is for a comparison. To be said before its first Instance comes."""
        values = {"archive": archive, "asked_at": self._now(), "until": until}
        insert = self._insert(schema.prior_series).values(series_uid=series_uid, **values)
        with self._begin() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["series_uid"], set_=values))

    def is_expected(self, series_uid: str) -> bool:
        """Whether what comes of this series just now is for a comparison alone."""
        p = schema.prior_series.c
        found = self._one(sa.select(p.series_uid).where(p.series_uid == series_uid, p.until > self._now()))
        return found is not None

    def series_fetched(self, series_uid: str, until: float, remove_files: Callable[[], None]) -> None:
        """A series that was expected is where it is needed: here it goes, unless something was made of it.

        until: stragglers that come before are still for the comparison. remove_files is called while nobody else
        can write the series' row, before the commit.
        """
        s, p, j = schema.series.c, schema.prior_series.c, schema.job.c
        with self._begin() as connection:
            expected = sa.update(schema.prior_series).where(p.series_uid == series_uid).values(until=until)
            if not connection.execute(expected).rowcount:
                return
            row = sa.select(s.series_uid).where(s.series_uid == series_uid)
            job = sa.select(j.job_id).where(j.series_uid == series_uid)
            if connection.execute(row.with_for_update()).first() and connection.execute(job).first() is None:
                for table in (schema.instance, schema.carrier, schema.series):
                    connection.execute(sa.delete(table).where(table.c.series_uid == series_uid))
                remove_files()
