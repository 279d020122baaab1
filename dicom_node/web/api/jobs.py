"""Jobs over HTTP: a page of them, one of them, its parts, and what an operator does to it."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import FileResponse, Response

from dicom_node import control
from dicom_node.db import Row
from dicom_node.domain import RESEARCH_USE
from dicom_node.web import queries, words
from dicom_node.web.access.principal import Acts, Denied, Downloads, Looks, Principal, the_node
from dicom_node.web.acts import Change, act
from dicom_node.web.api import forms
from dicom_node.web.api.openapi import CONFLICT, GONE, NOT_FOUND
from dicom_node.web.node import Node
from dicom_node.web.queries import Cursor, JobFilter

router = APIRouter(tags=["jobs"])

TheNode = Annotated[Node, Depends(the_node)]
JobId = Annotated[str, Path(pattern=r"^[0-9][0-9.]{0,63}-[0-9a-f]{16}$", description="As in a list of jobs.")]
UID = Annotated[str, Path(pattern=r"^[0-9][0-9.]{0,63}$")]
State = Literal["queued", "running", "complete", "rejected", "failed", "parked", "cancelled"]
# Text that a database takes: PostgreSQL has no NUL in text, and a lone surrogate is no text at all.
Words = Annotated[str, Query(min_length=1, max_length=64, pattern=r"^[ -~]+$")]
Seconds = Annotated[float, Query(ge=0, le=4102444800, description="Seconds since 1970, UTC.")]
Place = Annotated[str, Query(max_length=140, pattern=r"^[0-9]{1,12}(\.[0-9]{1,9})?_[0-9.]{1,64}-[0-9a-f]{16}$")]


@router.get("/jobs")
def list_jobs(
    _who: Looks,
    node: TheNode,
    state: Annotated[list[State] | None, Query(description="Any of these.")] = None,
    peer: Annotated[Words | None, Query(description="AE title that sent the series.")] = None,
    route: Words | None = None,
    since: Seconds | None = None,
    before: Seconds | None = None,
    text: Annotated[Words | None, Query(description="Part of a job's id or of a UID, or a reason code.")] = None,
    older_than: Annotated[Place | None, Query(description="`older` of the page before.")] = None,
    newer_than: Annotated[Place | None, Query(description="`newer` of the page before; not with older_than.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> forms.JobPage:
    """A page of jobs, newest first. All conditions that are given hold."""
    if older_than is not None and newer_than is not None:
        raise Denied(422, "Give older_than or newer_than, not both.")
    which = JobFilter(
        states=tuple(dict.fromkeys(state or ())), peer=peer, route=route, since=since, before=before, text=text
    )
    page = queries.jobs(
        node.database, which, older_than=_cursor(older_than), newer_than=_cursor(newer_than), limit=limit
    )
    return forms.JobPage(
        jobs=[_listed(job) for job in page.jobs],
        older=None if page.older is None else str(page.older),
        newer=None if page.newer is None else str(page.newer),
    )


@router.get("/jobs/{job_id}", responses=NOT_FOUND)
def show_job(_who: Looks, node: TheNode, job_id: JobId) -> forms.OneJob:
    """All that is known of one job."""
    known = _known(node, job_id)
    job = known.job
    comparison = None
    if known.prior is not None:
        comparison = known.prior["outcome"] or "looking"
    return forms.OneJob(
        **_common(job),
        evidence=job["evidence"],
        explanation=job["explanation"],
        timings_s=job["timings_s"],
        model=job["model"],
        comparison=comparison,
        revisions=list(known.revisions),
        findings=list(known.findings),
        deliveries=[_delivery(node, row) for row in known.deliveries],
        events=[_event(row) for row in known.events],
        objects=[_object(job_id, row) for row in known.results],
        notice=RESEARCH_USE,
    )


@router.get("/jobs/{job_id}/events", responses=NOT_FOUND)
def job_events(_who: Looks, node: TheNode, job_id: JobId) -> list[forms.Event]:
    """What happened to it and to its series, oldest first."""
    return [_event(row) for row in _known(node, job_id).events]


@router.get("/jobs/{job_id}/deliveries", responses=NOT_FOUND)
def job_deliveries(_who: Looks, node: TheNode, job_id: JobId) -> list[forms.Delivery]:
    """The ledger: what became of each object at each destination."""
    return [_delivery(node, row) for row in _known(node, job_id).deliveries]


@router.get("/jobs/{job_id}/findings", responses=NOT_FOUND)
def job_findings(_who: Looks, node: TheNode, job_id: JobId) -> list[dict[str, Any]]:
    """The findings' values."""
    return list(_known(node, job_id).findings)


@router.get("/jobs/{job_id}/objects", responses=NOT_FOUND)
def job_objects(_who: Looks, node: TheNode, job_id: JobId) -> list[forms.Object]:
    """The result objects that were made."""
    return [_object(job_id, row) for row in _known(node, job_id).results]


@router.get(
    "/jobs/{job_id}/objects/{sop_instance_uid}",
    response_class=Response,
    responses={**NOT_FOUND, **GONE, 200: {"description": "The file (PS3.10).", "content": {"application/dicom": {}}}},
)
def download_object(who: Downloads, node: TheNode, job_id: JobId, sop_instance_uid: UID) -> FileResponse:
    """A result object as a DICOM file. It names the patient, so this is in the audit trail."""
    job = _known(node, job_id).job
    for row in node.database.results(job_id):
        if row["sop_instance_uid"] == sop_instance_uid:
            path = node.storage.path(row["path"])
            if not path.is_file():
                raise Denied(410, "The file is gone: a purge took it.")
            node.trail.downloaded(who, job["series_uid"], [row["sop_class_uid"]])
            return FileResponse(path, media_type="application/dicom", filename=f"{row['kind']}-{sop_instance_uid}.dcm")
    raise Denied(404, "This job has no such object.")


@router.post("/jobs/{job_id}/retry", responses={**NOT_FOUND, **CONFLICT})
def retry_job(who: Acts, node: TheNode, job_id: JobId) -> forms.Done:
    """Take the job up where it stopped: decide, analyse, or send what is not stored yet."""
    return _changed(node, who, "retry", job_id, control.retry)


@router.post("/jobs/{job_id}/cancel", responses={**NOT_FOUND, **CONFLICT})
def cancel_job(who: Acts, node: TheNode, job_id: JobId) -> forms.Done:
    """Stop it, and take what it has not sent out of the queue."""
    return _changed(node, who, "cancel", job_id, control.cancel)


@router.post("/jobs/{job_id}/send", responses={**NOT_FOUND, **CONFLICT})
def send_job_again(
    who: Acts,
    node: TheNode,
    job_id: JobId,
    destination: Annotated[
        str | None, Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$", description="Only to this one.")
    ] = None,
) -> forms.Done:
    """Send its objects again, also those that a destination has stored."""
    return _changed(node, who, "send", job_id, partial(control.send_again, destination=destination))


def _changed(node: Node, who: Principal, verb: str, job_id: str, change: Change) -> forms.Done:
    if node.database.job(job_id) is None:
        raise Denied(404, "There is no such job.")
    return forms.Done(job_id=job_id, done=act(node, who, verb, job_id, change))


def _known(node: Node, job_id: str) -> queries.OneJob:
    try:
        return queries.one_job(node.database, job_id)
    except queries.NoSuchJob:
        raise Denied(404, "There is no such job.") from None


def _cursor(text: str | None) -> Cursor | None:
    return None if text is None else Cursor.parse(text)


def _common(job: Any) -> dict[str, Any]:
    names = ("job_id", "source_ae", "state", "reason", "reason_text", "route", "priority", "progress")
    return {
        **{name: job[name] for name in names},
        "series_instance_uid": job["series_uid"],
        "study_instance_uid": job["study_uid"],
        "instances": job["instance_count"],
        **{name: forms.when(job[name]) for name in ("created_at", "started_at", "finished_at")},
    }


def _listed(job: queries.JobRow) -> forms.Job:
    values = {name: getattr(job, name) for name in job.__dataclass_fields__}
    return forms.Job(**_common(values), findings=job.findings, objects=job.objects)


def _delivery(node: Node, row: Row) -> forms.Delivery:
    names = ("destination", "kind", "sop_instance_uid", "state", "attempts")
    return forms.Delivery(
        **{name: row[name] for name in names},
        message=words.last_word(row, peer_text=node.config.web.patient_names == "show"),
        status=None if row["status"] is None else f"0x{row['status']:04X}",
        changed_at=forms.moment(row["changed_at"]),
    )


def _event(row: Row) -> forms.Event:
    return forms.Event(at=forms.moment(row["at"]), action=row["action"], details=row["details"])


def _object(job_id: str, row: Row) -> forms.Object:
    names = ("sop_instance_uid", "sop_class_uid", "kind", "size_bytes", "sha256")
    url = f"/api/v1/jobs/{job_id}/objects/{row['sop_instance_uid']}"
    return forms.Object(**{name: row[name] for name in names}, url=url)
