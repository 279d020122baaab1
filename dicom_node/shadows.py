"""Rows of what a second model made of a job's input, and of promotions: which model works where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.errors import StaleState
from dicom_node.rows import Row, Rows

# Behind any job of any route.
SHADOW_PRIORITY = "last"
_UNENDED = ("queued", "running")
WITHOUT_RESULT = ("failed", "given up")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowRun:
    """One series that two models saw. row: of `shadow`. first, second: values of their findings, best first."""

    row: Row
    first: tuple[dict[str, Any], ...]
    second: tuple[dict[str, Any], ...]


def shadow_id(job_id: str) -> str:
    """The workflow of a job's second look. No destination's name has a slash, so it is none of the deliveries'."""
    return f"{job_id}/shadow"


def shadowed_job(workflow_id: str) -> str:
    """The job of `shadow_id`, of any turn."""
    return workflow_id.partition("/")[0]


class Shadows(Rows):
    """Statements on the second model's work and on promotions. Nothing here touches results or the ledger."""

    # -- the second model's work -------------------------------------------------------------------

    def shadow_wanted(self, job_id: str) -> bool:
        """A complete job whose route has a second model: that is to look, too. False where there is nothing to do.

        One that is there already stays as it is, unless it is that of an older job which was purged and came again.
        """
        j, s = schema.job.c, schema.shadow.c
        with self._begin() as connection:
            job = connection.execute(sa.select(schema.job).where(j.job_id == job_id)).mappings().first()
            if job is None or job["state"] != "complete" or job["shadow_model"] is None:
                return False
            old = sa.and_(s.job_id == job_id, s.job_created_at < job["created_at"])
            for table in (schema.shadow_finding, schema.shadow):
                of_old = table.c.job_id.in_(sa.select(s.job_id).where(old))
                connection.execute(sa.delete(table).where(of_old))
            values = {
                "job_created_at": job["created_at"],
                "route": job["route"],
                "model_name": job["shadow_model"],
                "first_name": job["working_model"],
                "state": "queued",
                "timings_s": {},
                "created_at": self._now(),
            }
            insert = self._insert(schema.shadow).values(job_id=job_id, **values)
            connection.execute(insert.on_conflict_do_nothing(index_elements=["job_id"]))
        return True

    def shadow(self, job_id: str) -> Row | None:
        """None where nothing ran in the shadow, or nothing has come of it yet."""
        return self._one(sa.select(schema.shadow).where(schema.shadow.c.job_id == job_id))

    def start_shadow(self, job_id: str, executor: str) -> Row:
        """queued -> running, or running -> running when the executor before us died. The row."""
        self._move_shadow(job_id, _UNENDED, "running", executor=executor)
        row = self.shadow(job_id)
        if row is None:
            raise StaleState(f"the second look at job {job_id} is gone")
        return row

    def shadow_gave_way(self, job_id: str) -> None:
        self._move_shadow(job_id, ("running",), "queued", executor=None)

    def fail_shadow(self, job_id: str, problem: str, *, given_up: bool = False) -> None:
        """given_up: its workers died over it."""
        state = "given up" if given_up else "failed"
        self._move_shadow(job_id, _UNENDED, state, problem=problem, finished_at=self._now())

    def failed_shadows(self, route: str | None = None) -> list[Row]:
        """Those that ended without a result, oldest first."""
        s = schema.shadow.c
        which = [s.state.in_(WITHOUT_RESULT)] + ([] if route is None else [s.route == route])
        return self._all(sa.select(schema.shadow).where(*which).order_by(s.finished_at, s.job_id))

    def requeue_shadow(self, job_id: str) -> None:
        """failed or given up -> queued."""
        ended = {"problem": None, "finished_at": None, "executor": None}
        self._move_shadow(job_id, WITHOUT_RESULT, "queued", **ended)

    def finish_shadow(
        self,
        job_id: str,
        executor: str,
        *,
        findings: Sequence[Mapping[str, Any]],
        model: Mapping[str, Any],
        timings_s: Mapping[str, float],
    ) -> None:
        """Its findings beside a copy of the first one's, in one transaction. Repeated by a recovered worker."""
        s, f = schema.shadow.c, schema.finding.c
        with self._begin() as connection:
            job = sa.select(schema.job.c.model).where(schema.job.c.job_id == job_id)
            first = connection.execute(job).scalar()
            of_first = sa.select(f["values"]).where(f.job_id == job_id).order_by(f.number)
            values = {"model": dict(model), "first": first, "timings_s": dict(timings_s), "finished_at": self._now()}
            done = connection.execute(
                sa.update(schema.shadow)
                .where(s.job_id == job_id, s.state == "running", s.executor == executor)
                .values(state="complete", **values)
            )
            if not done.rowcount or first is None:
                raise StaleState(f"the second look at job {job_id} is no longer ours")
            both = {False: list(connection.execute(of_first).scalars()), True: list(findings)}
            rows = [
                {"job_id": job_id, "of_shadow": of_shadow, "number": number, "values": _numbers(found)}
                for of_shadow, several in both.items()
                for number, found in enumerate(several, start=1)
            ]
            if rows:
                connection.execute(sa.insert(schema.shadow_finding), rows)
            self._event(connection, "shadow complete", job_id=job_id, findings=len(findings))

    def _move_shadow(self, job_id: str, expected: Sequence[str], state: str, **values: Any) -> None:
        s = schema.shadow.c
        with self._begin() as connection:
            done = connection.execute(
                sa.update(schema.shadow).where(s.job_id == job_id, s.state.in_(expected)).values(state=state, **values)
            )
            if not done.rowcount:
                raise StaleState(f"the second look at job {job_id} is not {' or '.join(expected)}")
            if state in WITHOUT_RESULT:
                self._event(connection, f"shadow {state}", job_id=job_id, problem=values["problem"])

    def shadow_findings(self, job_id: str) -> list[dict[str, Any]]:
        """The second model's, as `findings` has the first one's."""
        f = schema.shadow_finding.c
        query = sa.select(f["values"]).where(f.job_id == job_id, f.of_shadow.is_(True)).order_by(f.number)
        return [dict(row["values"]) for row in self._all(query)]

    def shadow_runs(self, *, route: str | None = None, since: float = 0.0, most: int | None = None) -> list[ShadowRun]:
        """Those that are complete since then, oldest first; most: no more than so many, the newest."""
        s, f = schema.shadow.c, schema.shadow_finding.c
        which = [s.state == "complete", s.finished_at >= since]
        if route is not None:
            which.append(s.route == route)
        newest = (s.finished_at.desc(), s.job_id.desc())
        rows = self._all(sa.select(schema.shadow).where(*which).order_by(*newest).limit(most))[::-1]
        found: dict[tuple[str, bool], list[dict[str, Any]]] = {}
        chosen = sa.select(s.job_id).where(*which).order_by(*newest).limit(most)
        for row in self._all(sa.select(schema.shadow_finding).where(f.job_id.in_(chosen)).order_by(f.number)):
            found.setdefault((row["job_id"], bool(row["of_shadow"])), []).append(dict(row["values"]))
        return [
            ShadowRun(
                row=row,
                first=tuple(found.get((row["job_id"], False), ())),
                second=tuple(found.get((row["job_id"], True), ())),
            )
            for row in rows
        ]

    def shadow_counts(self) -> list[Row]:
        """How many second looks of each model and route are in which state: model_name, route, state, number."""
        s = schema.shadow.c
        return self._all(
            sa.select(s.model_name, s.route, s.state, sa.func.count().label("number"))
            .group_by(s.model_name, s.route, s.state)
            .order_by(s.model_name, s.route, s.state)
        )

    def shadowed(self, route: str, bundle_sha256: str) -> int:
        """How many series of a route this very bundle has seen as the second one."""
        s = schema.shadow.c
        models = self._all(sa.select(s.model).where(s.state == "complete", s.route == route))
        # Not by a JSON path, of which the two databases have ways of their own.
        return sum(row["model"]["bundle_sha256"] == bundle_sha256 for row in models)

    def job_waits(self, before: float) -> bool:
        """Whether a job that was made before then waits for a worker, and not for an earlier CT."""
        j, p = schema.job.c, schema.prior.c
        looking = sa.select(p.job_id).where(p.job_id == j.job_id, p.outcome.is_(None))
        waiting = sa.select(j.job_id).where(j.state == "queued", j.created_at < before, ~looking.exists())
        return self._one(waiting.limit(1)) is not None

    # -- promotions --------------------------------------------------------------------------------

    def promotions(self) -> dict[str, Row]:
        """Of each route the latest promotion that was not rolled back."""
        p = schema.promotion.c
        rows = self._all(sa.select(schema.promotion).where(p.rolled_back_at.is_(None)).order_by(p.promotion_id))
        return {row["route"]: row for row in rows}

    def promotion_history(self) -> list[Row]:
        """All that ever were, newest first."""
        return self._all(sa.select(schema.promotion).order_by(schema.promotion.c.promotion_id.desc()))

    def promote(
        self, routes: Iterable[tuple[str, str]], *, model: str, bundle_sha256: str, forced: bool, by: str
    ) -> None:
        """`model` works on these (route, the model in the settings) from now on."""
        now = self._now()
        with self._begin() as connection:
            for route, in_file in routes:
                values = {"route": route, "in_file": in_file, "model": model, "bundle_sha256": bundle_sha256}
                connection.execute(
                    sa.insert(schema.promotion).values(forced=forced, promoted_at=now, promoted_by=by, **values)
                )
                self._event(connection, "model promoted", route=route, model=model, over=in_file, by=by)

    def roll_back(self, promotion_ids: Iterable[int], *, by: str) -> int:
        """Each counts no more; how many did until now."""
        p = schema.promotion.c
        ids = list(promotion_ids)
        with self._begin() as connection:
            done = connection.execute(
                sa.update(schema.promotion)
                .where(p.promotion_id.in_(ids), p.rolled_back_at.is_(None))
                .values(rolled_back_at=self._now(), rolled_back_by=by)
            )
            if done.rowcount:
                self._event(connection, "promotion rolled back", promotions=ids, by=by)
        return int(done.rowcount)


def _numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    """What two models are compared by, without the UID by which a report knows the finding: these rows stay longer."""
    return {key: value for key, value in found.items() if key != "tracking_uid"}
