"""One job's rows -> all that is known of it: evidence, findings, ledger, objects, timeline, what can be done now."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.db import Database, Row
from dicom_node.domain import RESEARCH_USE
from dicom_node.web import words
from dicom_node.web.answers.corrections import Correction, corrections_of_job
from dicom_node.web.answers.form import Form, moment, when
from dicom_node.web.answers.jobs import Facts, facts
from dicom_node.web.answers.statements import UNSENT, rows_of
from dicom_node.web.answers.timeline import Step, steps
from dicom_node.web.node import Node


class NoSuchJob(LookupError):
    """No job has this id, or a purge took it."""


class Delivery(Form):
    """An object at a destination. status: the DIMSE status that it answered last, like 0x0000, or null.

    commit_rounds: how often the destination said that it does not keep it. commit_due_at: when it is asked again.
    """

    destination: str
    kind: str
    sop_instance_uid: str
    state: str
    attempts: int
    status: str | None
    message: str | None
    changed_at: datetime
    commit_rounds: int
    commit_due_at: datetime | None


class Commitment(Form):
    """A request that a destination confirm what it keeps."""

    destination: str
    state: str
    message: str | None
    created_at: datetime


class Event(Form):
    """Something that happened to a job or its series; what there is to say of it, in details."""

    at: datetime
    action: str
    details: dict[str, Any]


class Object(Form):
    """A result object. url: where it is downloaded."""

    sop_instance_uid: str
    sop_class_uid: str
    kind: str
    size_bytes: int
    sha256: str
    url: str


class Shadow(Form):
    """What a second model made of the same input. findings: how many. problem: why it has no result."""

    model: str
    state: str
    findings: int
    problem: str | None


class Action(Form):
    """What an operator can do with the job as it stands: POST to its `verb`. word: on the button."""

    verb: str
    word: str


class OneJob(Facts):
    """revisions: ids of other jobs on the same series, oldest first. comparison: what became of the look for an earlier
    CT, null where none was looked for. promoted_over: the model of the settings, where a promoted one worked instead.
    findings: their values. deliveries: the ledger. events: its own and its series', oldest first; timeline: the same
    in words, with the images' reception. actions: what an operator can do.
    """

    evidence: dict[str, Any]
    explanation: list[str]
    timings_s: dict[str, float]
    model: dict[str, Any] | None
    promoted_over: str | None
    shadow: Shadow | None
    comparison: str | None
    comparison_text: str | None
    revisions: list[str]
    findings: list[dict[str, Any]]
    deliveries: list[Delivery]
    commitments: list[Commitment]
    corrections: list[Correction]
    events: list[Event]
    timeline: list[Step]
    objects: list[Object]
    actions: list[Action]
    notice: str


def one_job(node: Node, job_id: str) -> OneJob:
    """Raises NoSuchJob."""
    database, peer_text = node.database, node.config.web.patient_names == "show"
    job = database.job(job_id)
    if job is None:
        raise NoSuchJob(job_id)
    ledger, events = database.deliveries(job_id), _events(database, job)
    prior = database.prior(job_id)
    return OneJob(
        **facts(job),
        evidence=job["evidence"] or {},
        timings_s=job["timings_s"] or {},
        explanation=list(job["explanation"] or ()),
        model=job["model"],
        promoted_over=job["promoted_over"],
        shadow=_shadow(database, job_id),
        comparison=None if prior is None else prior["outcome"] or "looking",
        comparison_text=None if prior is None else prior["text"],
        revisions=_revisions(database, job),
        findings=database.findings(job_id),
        deliveries=[_delivery(row, peer_text) for row in ledger],
        commitments=[_commitment(row, peer_text) for row in database.commitments(job_id)],
        corrections=corrections_of_job(database, job_id),
        events=[Event(at=moment(row["at"]), action=row["action"], details=row["details"]) for row in events],
        timeline=steps(job, database.series(job["series_uid"]), events),
        objects=[_object(job_id, row) for row in database.results(job_id)],
        actions=_actions(job["state"], [row["state"] for row in ledger]),
        notice=RESEARCH_USE,
    )


def _events(database: Database, job: Row) -> list[Row]:
    e = schema.event.c
    of_series = sa.and_(e.series_uid == job["series_uid"], e.job_id.is_(None))
    mine = sa.or_(e.job_id == job["job_id"], of_series)
    return rows_of(database, sa.select(schema.event).where(mine).order_by(e.at, e.event_id))


def _revisions(database: Database, job: Row) -> list[str]:
    j = schema.job.c
    others = sa.select(j.job_id).where(j.series_uid == job["series_uid"], j.job_id != job["job_id"])
    return [row["job_id"] for row in rows_of(database, others.order_by(j.created_at))]


def _shadow(database: Database, job_id: str) -> Shadow | None:
    row = database.shadow(job_id)
    if row is None:
        return None
    findings = len(database.shadow_findings(job_id))
    return Shadow(model=row["model_name"], state=row["state"], findings=findings, problem=row["problem"])


def _delivery(row: Row, peer_text: bool) -> Delivery:
    names = ("destination", "kind", "sop_instance_uid", "state", "attempts", "commit_rounds")
    return Delivery(
        **{name: row[name] for name in names},
        message=words.last_word(row, peer_text=peer_text),
        status=None if row["status"] is None else f"0x{row['status']:04X}",
        changed_at=moment(row["changed_at"]),
        commit_due_at=when(row["commit_due_at"]),
    )


def _commitment(row: Row, peer_text: bool) -> Commitment:
    message = row["message"] if peer_text else None
    return Commitment(
        destination=row["destination"], state=row["state"], message=message, created_at=moment(row["created_at"])
    )


def _object(job_id: str, row: Row) -> Object:
    names = ("sop_instance_uid", "sop_class_uid", "kind", "size_bytes", "sha256")
    url = f"/api/v1/jobs/{job_id}/objects/{row['sop_instance_uid']}"
    return Object(**{name: row[name] for name in names}, url=url)


def _actions(state: str, ledger: Sequence[str]) -> list[Action]:
    may = {}
    if state in ("failed", "parked", "cancelled", "rejected"):
        may["retry"] = "Retry" if state != "rejected" else "Decide again"
    elif state == "complete" and any(each not in ("stored", "committed") for each in ledger):
        may["retry"] = "Retry delivery"
    if state in ("queued", "running", "failed", "parked") or any(each in UNSENT for each in ledger):
        may["cancel"] = "Cancel"
    if state in ("complete", "rejected") and ledger:
        may["send"] = "Send again"
    return [Action(verb=verb, word=word) for verb, word in may.items()]
