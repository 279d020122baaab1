"""One job over HTTP: all of it, its parts, its objects' files, and what an operator does to it."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from dicom_node import control
from dicom_node.web.access.principal import Acts, Downloads, Looks, Principal
from dicom_node.web.acts import Change, act, take_object
from dicom_node.web.answers.corrections import Correction
from dicom_node.web.answers.form import Form
from dicom_node.web.answers.job import Delivery, Event, Object, OneJob, one_job
from dicom_node.web.answers.timeline import Step
from dicom_node.web.api.openapi import CONFLICT, GONE, NOT_FOUND
from dicom_node.web.api.parameters import UID, Destination, JobId, TheNode
from dicom_node.web.node import Node

router = APIRouter(tags=["jobs"])


class Done(Form):
    """done: what was done, in words."""

    job_id: str
    done: str


@router.get("/jobs/{job_id}", responses=NOT_FOUND)
def show_job(_who: Looks, node: TheNode, job_id: JobId) -> OneJob:
    """All that is known of one job."""
    return one_job(node, job_id)


@router.get("/jobs/{job_id}/events", responses=NOT_FOUND)
def job_events(_who: Looks, node: TheNode, job_id: JobId) -> list[Event]:
    """What happened to it and to its series, oldest first."""
    return one_job(node, job_id).events


@router.get("/jobs/{job_id}/timeline", responses=NOT_FOUND)
def job_timeline(_who: Looks, node: TheNode, job_id: JobId) -> list[Step]:
    """The steps it went through since its first image, with the time that each took; oldest first."""
    return one_job(node, job_id).timeline


@router.get("/jobs/{job_id}/evidence", responses=NOT_FOUND)
def job_evidence(_who: Looks, node: TheNode, job_id: JobId) -> dict[str, Any]:
    """Why the series was taken for complete."""
    return one_job(node, job_id).evidence


@router.get("/jobs/{job_id}/deliveries", responses=NOT_FOUND)
def job_deliveries(_who: Looks, node: TheNode, job_id: JobId) -> list[Delivery]:
    """The ledger: what became of each object at each destination."""
    return one_job(node, job_id).deliveries


@router.get("/jobs/{job_id}/findings", responses=NOT_FOUND)
def job_findings(_who: Looks, node: TheNode, job_id: JobId) -> list[dict[str, Any]]:
    """The findings' values."""
    return one_job(node, job_id).findings


@router.get("/jobs/{job_id}/corrections", responses=NOT_FOUND)
def job_corrections(_who: Looks, node: TheNode, job_id: JobId) -> list[Correction]:
    """What a radiologist made of its findings, newest first."""
    return one_job(node, job_id).corrections


@router.get("/jobs/{job_id}/objects", responses=NOT_FOUND)
def job_objects(_who: Looks, node: TheNode, job_id: JobId) -> list[Object]:
    """The result objects that were made."""
    return one_job(node, job_id).objects


@router.get(
    "/jobs/{job_id}/objects/{sop_instance_uid}",
    response_class=Response,
    responses={**NOT_FOUND, **GONE, 200: {"description": "The file (PS3.10).", "content": {"application/dicom": {}}}},
)
def download_object(who: Downloads, node: TheNode, job_id: JobId, sop_instance_uid: UID) -> FileResponse:
    """A result object as a DICOM file. It names the patient, so this is in the audit trail."""
    path, name = take_object(node, who, job_id, sop_instance_uid)
    return FileResponse(path, media_type="application/dicom", filename=name)


@router.post("/jobs/{job_id}/retry", responses={**NOT_FOUND, **CONFLICT})
def retry_job(who: Acts, node: TheNode, job_id: JobId) -> Done:
    """Take the job up where it stopped: decide, analyse, or send what is not stored yet."""
    return _changed(node, who, "retry", job_id, control.retry)


@router.post("/jobs/{job_id}/cancel", responses={**NOT_FOUND, **CONFLICT})
def cancel_job(who: Acts, node: TheNode, job_id: JobId) -> Done:
    """Stop it, and take what it has not sent out of the queue."""
    return _changed(node, who, "cancel", job_id, control.cancel)


@router.post("/jobs/{job_id}/send", responses={**NOT_FOUND, **CONFLICT})
def send_job_again(who: Acts, node: TheNode, job_id: JobId, destination: Destination = None) -> Done:
    """Send its objects again, also those that a destination has stored."""
    return _changed(node, who, "send", job_id, partial(control.send_again, destination=destination))


def _changed(node: Node, who: Principal, verb: str, job_id: str, change: Change) -> Done:
    return Done(job_id=job_id, done=act(node, who, verb, job_id, change))
