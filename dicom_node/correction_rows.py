"""Rows of corrections: what came back of a result, which of our findings it is about, and what became of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.rows import Row, Rows

State = Literal["waiting", "compared", "ours", "refused"]
_UIDS_A_STATEMENT = 500


class CorrectionRows(Rows):
    """Statements on corrections, and on what they may refer to."""

    def results_among(self, sop_instance_uids: Collection[str]) -> list[Row]:
        """Result rows of ours among these, with the series and study that each is about; of the newest job first."""
        r, j = schema.result.c, schema.job.c
        found: list[Row] = []
        for some in _parts(sop_instance_uids):
            found += self._all(
                sa.select(r.sop_instance_uid, r.job_id, j.series_uid, j.study_uid, j.created_at)
                .join(schema.job, j.job_id == r.job_id)
                .where(r.sop_instance_uid.in_(some))
            )
        return sorted(found, key=lambda row: (-float(row["created_at"]), str(row["job_id"])))

    def result_of(self, sop_instance_uid: str) -> Row | None:
        """The row of a result by its own UID."""
        return self._one(sa.select(schema.result).where(schema.result.c.sop_instance_uid == sop_instance_uid))

    def analysed_series(self, study_uid: str) -> list[Row]:
        """The series of a study that have a job, with its newest one's state; newest first."""
        j = schema.job.c
        return self._all(
            sa.select(j.series_uid, j.job_id, j.state, j.reason, j.created_at)
            .where(j.study_uid == study_uid)
            .order_by(j.created_at.desc())
        )

    def was_purged(self, series_uid: str) -> bool:
        """Whether the series was here and was deleted, as long as events tell of it."""
        e = schema.event.c
        query = sa.select(e.event_id).where(e.series_uid == series_uid, e.action == "series purged").limit(1)
        return self._one(query) is not None

    def not_recognised(self, study_uid: str, sop_class_uids: Collection[str]) -> list[Row]:
        """Instances of a study that came when nothing told that they are corrections, each with its source_ae."""
        i, j, s, c = schema.instance.c, schema.job.c, schema.series.c, schema.correction.c
        return self._all(
            sa.select(schema.instance, s.source_ae)
            .join(schema.job, j.series_uid == i.series_uid)
            .join(schema.series, s.series_uid == i.series_uid)
            .where(
                j.study_uid == study_uid,
                j.reason == "NOT_CT",
                i.sop_class_uid.in_(sop_class_uids),
                ~sa.select(c.sop_instance_uid).where(c.sop_instance_uid == i.sop_instance_uid).exists(),
            )
            .distinct()
        )

    def record_correction(self, sop_instance_uid: str, **values: Any) -> None:
        """The row, or its newer version: the same Instance with other bytes is read again."""
        now = self._now()
        row = {"verdicts": [], "text": None, "job_id": None, **values, "changed_at": now}
        insert = self._insert(schema.correction).values(sop_instance_uid=sop_instance_uid, received_at=now, **row)
        statement = insert.on_conflict_do_update(index_elements=["sop_instance_uid"], set_=row)
        with self._begin() as connection:
            connection.execute(statement)
            counts = _counts(row["verdicts"])
            action = f"correction {row['state']}"
            self._event(connection, action, job_id=row["job_id"], series_uid=row["series_uid"], **counts)

    def cases_exported(self, cases: int, *, deidentified: bool) -> None:
        """That it happened, among the events."""
        with self._begin() as connection:
            self._event(connection, "cases exported", cases=cases, deidentified=deidentified)

    def corrections(
        self,
        *,
        job_id: str | None = None,
        of_series_uid: str | None = None,
        state: State | None = None,
        since: float | None = None,
        limit: int | None = None,
    ) -> list[Row]:
        """Newest first."""
        c = schema.correction.c
        query = sa.select(schema.correction).order_by(c.received_at.desc(), c.sop_instance_uid)
        for column, value in ((c.job_id, job_id), (c.of_series_uid, of_series_uid), (c.state, state)):
            if value is not None:
                query = query.where(column == value)
        if since is not None:
            query = query.where(c.changed_at >= since)
        return self._all(query.limit(limit) if limit else query)

    def correction(self, text: str) -> Row | None:
        """The one whose SOP Instance UID is, or holds, `text`; None for none or several."""
        c = schema.correction.c
        exact = self._one(sa.select(schema.correction).where(c.sop_instance_uid == text))
        if exact is not None:
            return exact
        holds = c.sop_instance_uid.contains(text, autoescape=True)
        found = self._all(sa.select(schema.correction).where(holds).limit(2))
        return found[0] if len(found) == 1 else None


def _counts(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for each in verdicts:
        counts[str(each["verdict"])] = counts.get(str(each["verdict"]), 0) + 1
    return counts


def _parts(uids: Collection[str]) -> list[list[str]]:
    ordered = sorted(uids)
    return [ordered[at : at + _UIDS_A_STATEMENT] for at in range(0, len(ordered), _UIDS_A_STATEMENT)]
