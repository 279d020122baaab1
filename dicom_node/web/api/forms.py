"""What the JSON API answers with. Times are ISO 8601 in UTC. Nothing here names a patient."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict


class Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


def moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def when(at: float | None) -> datetime | None:
    return None if at is None else moment(at)


class Job(Form):
    """A job in a list. objects: how many deliveries are in which state."""

    job_id: str
    series_instance_uid: str
    study_instance_uid: str
    instances: int
    source_ae: str
    state: str
    reason: str | None
    reason_text: str | None
    route: str | None
    priority: str
    progress: float
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    findings: int
    objects: dict[str, int]


class JobPage(Form):
    """Newest first. older, newer: the `cursor` of the next page in that direction, null at the end."""

    jobs: list[Job]
    older: str | None
    newer: str | None


class Delivery(Form):
    destination: str
    kind: str
    sop_instance_uid: str
    state: str
    attempts: int
    status: str | None
    message: str | None
    changed_at: datetime


class Event(Form):
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


class OneJob(Form):
    """revisions: ids of other jobs on the same series. comparison: what became of the look for an earlier CT."""

    job_id: str
    series_instance_uid: str
    study_instance_uid: str
    instances: int
    source_ae: str
    state: str
    reason: str | None
    reason_text: str | None
    route: str | None
    priority: str
    progress: float
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    evidence: Any
    explanation: Any
    timings_s: dict[str, float]
    model: dict[str, Any] | None
    comparison: str | None
    revisions: list[str]
    findings: list[dict[str, Any]]
    deliveries: list[Delivery]
    events: list[Event]
    objects: list[Object]
    notice: str


class Done(Form):
    """done: what was done, in words."""

    job_id: str
    done: str


class Percentiles(Form):
    count: int
    median_s: float | None
    p95_s: float | None


class Today(Form):
    """Since `since`; waiting, running, arriving and attention are of now. attention: failed and parked jobs."""

    since: datetime
    received: int
    arriving: int
    waiting: int
    running: int
    delivered: int
    undelivered: int
    failed: int
    rejected: int
    attention: int
    oldest_waiting_at: datetime | None
    last_image_to_result: Percentiles


class Peer(Form):
    """condition: up, down or idle, as the last attempt to send ended. unsent: objects by state."""

    name: str
    ae_title: str
    host: str
    port: int | None
    tls: bool
    may_send: bool
    may_receive: bool
    condition: str
    unsent: dict[str, int]
    arrived_today: int
    last_sent_at: datetime | None
    series_today: int
    last_received_at: datetime | None


class Echo(Form):
    peer: str
    ok: bool
    message: str


class Model(Form):
    """routes: where it works. promoted_routes: of those, where the settings name another. shadow_routes: where it looks
    at the same input, and nothing of it is delivered. card: MODEL_CARD.md."""

    name: str
    bundle_name: str
    version: str
    routes: list[str]
    promoted_routes: list[str]
    shadow_routes: list[str]
    card: str


class Check(Form):
    name: str
    ok: bool
    text: str


class Health(Form):
    ready: bool
    checks: list[Check]


class Session(Form):
    """Who calls. csrf_token: for the header X-CSRF-Token of a change by login; null for a token."""

    name: str
    role: str
    method: str
    csrf_token: str | None
