"""One job: its page, its buttons, its slices, its objects."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from markupsafe import Markup

from dicom_node import control
from dicom_node.db import FINISHED
from dicom_node.errors import ConfigError, DicomNodeError, FileGone, SeriesRejected
from dicom_node.patients import patient_of
from dicom_node.quicklook.page import as_json, part
from dicom_node.web.access.principal import Acts, Denied, Downloads, Looks, Principal, is_of_the_page, the_node
from dicom_node.web.acts import Change, act, take_object
from dicom_node.web.answers.job import NoSuchJob, one_job
from dicom_node.web.pages.log import job_log, values
from dicom_node.web.pages.page import page

router = APIRouter()

_DONE = {"retry": "The job is taken up again.", "cancel": "Cancelled.", "send": "All objects are sent again."}


@router.get("/jobs/{job_id}")
def job_page(request: Request, principal: Looks, job_id: str, done: str = "") -> Response:
    return _job(request, principal, job_id, said=_DONE.get(done))


def _job(
    request: Request, principal: Principal, job_id: str, *, said: str | None = None, refused: str | None = None
) -> Response:
    node = the_node(request)
    job = one_job(node, job_id)
    # An open page asks for the log lines by themselves: their files are not read for the rest of it, too.
    log = None if is_of_the_page(request) else job_log(node, job_id, job.state, request.query_params)
    return page(
        "job.html",
        request,
        principal,
        409 if refused else 200,
        job=job,
        ended=job.state in FINISHED,
        said=said,
        refused=refused,
        log=log,
        values_of=values,
    )


def _act(request: Request, principal: Principal, job_id: str, verb: str, change: Change) -> Response:
    node = the_node(request)
    try:
        act(node, principal, verb, job_id, change)
    except DicomNodeError as err:
        if err.retry_helps:
            raise
        return _job(request, principal, job_id, refused=str(err))
    gone = node.database.job(job_id) is None
    return RedirectResponse("/jobs" if gone else f"/jobs/{job_id}?done={verb}", 303)


@router.post("/jobs/{job_id}/retry")
def retry_job(request: Request, principal: Acts, job_id: str) -> Response:
    return _act(request, principal, job_id, "retry", control.retry)


@router.post("/jobs/{job_id}/cancel")
def cancel_job(request: Request, principal: Acts, job_id: str) -> Response:
    return _act(request, principal, job_id, "cancel", control.cancel)


@router.post("/jobs/{job_id}/send")
def send_job(request: Request, principal: Acts, job_id: str) -> Response:
    return _act(request, principal, job_id, "send", control.send_again)


@router.get("/jobs/{job_id}/pictures")
def job_pictures(request: Request, principal: Looks, job_id: str) -> Response:
    """The part of a job's page that needs its files: asked for when it comes into sight."""
    node = the_node(request)
    if node.database.job(job_id) is None:
        raise NoSuchJob(job_id)
    try:
        stack = request.app.state.slices.stack(job_id)
    except (ConfigError, SeriesRejected, FileGone) as err:
        text = str(err) if isinstance(err, SeriesRejected) else "The images of this job are not here."
        return page("pictures.html", request, principal, problem=text)
    node.trail.viewed(principal, stack.series.series_uid)
    patient = patient_of(stack.series.header) if node.config.web.patient_names == "show" else None
    scene = as_json(stack.data)
    return page(
        "pictures.html",
        request,
        principal,
        problem=None,
        scene=Markup(scene),  # noqa: S704  as_json writes < as an escape of JSON
        viewer=Markup(part("viewer.html")),  # noqa: S704  a file of ours
        notes=stack.scene.notes,
        patient=patient,
    )


@router.get("/jobs/{job_id}/slices/{number}.webp")
def job_slice(request: Request, principal: Looks, job_id: str, number: int) -> Response:
    try:
        picture = request.app.state.slices.picture(job_id, number)
    except (IndexError, ConfigError, SeriesRejected, FileGone) as err:
        raise Denied(404, "This slice is not here.") from err
    # Forgotten at logout, which sends Clear-Site-Data.
    return Response(picture, media_type="image/webp", headers={"cache-control": "private, max-age=600"})


@router.get("/jobs/{job_id}/objects/{sop_instance_uid}")
def job_object(request: Request, principal: Downloads, job_id: str, sop_instance_uid: str) -> Response:
    path, name = take_object(the_node(request), principal, job_id, sop_instance_uid)
    return FileResponse(path, media_type="application/dicom", filename=name)


@router.get("/viewer.js")
def viewer_script() -> Response:
    """Quicklook's: the page scrolls through slices as a quick look does."""
    return Response(part("page.js"), media_type="text/javascript", headers={"cache-control": "max-age=3600"})
