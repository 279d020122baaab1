"""Requests -> pages: today, jobs, one job, peers, models, configuration. queries.py reads, a template tells.

What a button changes goes through control.py. An open page asks for itself again when `/events` says that something
changed.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response, StreamingResponse
from markupsafe import Markup
from starlette.exceptions import HTTPException

from dicom_node import control
from dicom_node.agreement_plot import bland_altman_svg
from dicom_node.agreements import agreement_of
from dicom_node.db import FINISHED
from dicom_node.dimse.scu import echo
from dicom_node.errors import ConfigError, DicomNodeError, FileGone, SeriesRejected
from dicom_node.patients import patient_of
from dicom_node.promotion import promotion_lines
from dicom_node.quicklook.page import as_json, part
from dicom_node.reviews import corrections_of
from dicom_node.schema import JOB_STATES
from dicom_node.storage import Storage, checked_uid
from dicom_node.web import cards, job_log, queries, settings, templating, timeline, words
from dicom_node.web.access.principal import Acts, Downloads, Looks, Principal, ReadsSettings, still_counts, the_node
from dicom_node.web.acts import Change, act
from dicom_node.web.queries import Cursor, JobFilter

router = APIRouter(include_in_schema=False)

DAY_S = 86400.0
# What the models page tells of agreement; the command and the API tell of all.
AGREEMENT_DAYS, AGREEMENT_SERIES = 90, 1000
_DONE = {"retry": "The job is taken up again.", "cancel": "Cancelled.", "send": "All objects are sent again."}


def page(name: str, request: Request, principal: Principal, status: int = 200, **values: Any) -> HTMLResponse:
    here = request.url.path.strip("/").partition("/")[0] or "today"
    text = templating.render(
        name, here=here, path=request.url.path, principal=principal, now=the_node(request).now(), words=words, **values
    )
    return HTMLResponse(text, status)


def midnight(now: float) -> float:
    """Of the day that it is on the node's clock."""
    return time.mktime((*time.localtime(now)[:3], 0, 0, 0, 0, 0, -1))


@router.get("/")
def today_page(request: Request, principal: Looks) -> Response:
    node = the_node(request)
    since = midnight(node.now())
    return page(
        "today.html",
        request,
        principal,
        today=queries.today(node.database, since),
        destinations=[
            queries.destination(node.database, name, since)
            for name, peer in node.config.peers.items()
            if peer.can_receive
        ],
        free=_free_bytes(node.storage),
        least=node.config.storage.min_free_gb * 1e9,
        trouble=queries.jobs(node.database, JobFilter(states=("failed", "parked")), limit=5).jobs,
        recent=queries.jobs(node.database, limit=8).jobs,
    )


def _free_bytes(storage: Storage) -> int | None:
    """None where the storage root is away: the page is wanted most then."""
    try:
        return storage.free_bytes()
    except OSError:
        return None


@router.get("/jobs")
def jobs_page(
    request: Request,
    principal: Looks,
    state: str = "",
    peer: str = "",
    route: str = "",
    since: str = "",
    until: str = "",
    text: str = "",
    older: str = "",
    newer: str = "",
) -> Response:
    node = the_node(request)
    asked = {"state": state, "peer": peer, "route": route, "since": since, "until": until, "text": text[:128]}
    which = _filter(asked)
    try:
        before, after = (Cursor.parse(older) if older else None), (Cursor.parse(newer) if newer else None)
    except ValueError as err:
        raise HTTPException(404, "There is no such place in the list of jobs.") from err
    found = queries.jobs(node.database, which, older_than=before, newer_than=None if before else after)
    if after is not None and found.newer is None:
        found = queries.jobs(node.database, which)

    def link(**place: Cursor | None) -> str:
        given = {key: str(value) for key, value in {**asked, **place}.items() if value}
        return "/jobs" + (f"?{urlencode(given)}" if given else "")

    return page(
        "jobs.html",
        request,
        principal,
        asked=asked,
        filtered=any(asked.values()),
        found=found,
        count=queries.count_jobs(node.database, which) if found.older or found.newer else len(found.jobs),
        most=queries.MOST_COUNTED,
        choices=queries.choices(node.database),
        states=JOB_STATES,
        first=link() if before or after else None,
        newer=link(newer=found.newer) if found.newer else None,
        older=link(older=found.older) if found.older else None,
        live=request.url.path + (f"?{request.url.query}" if request.url.query else ""),
    )


def _filter(asked: dict[str, str]) -> JobFilter:
    """What cannot be meant asks for nothing; `until` is the last day that counts."""
    states = (asked["state"],) if asked["state"] in JOB_STATES else ()
    until = _day(asked["until"])
    return JobFilter(
        states=states,
        peer=asked["peer"] or None,
        route=asked["route"] or None,
        since=_day(asked["since"]),
        before=None if until is None else midnight(until + 1.5 * DAY_S),
        text=asked["text"].strip() or None,
    )


def _day(text: str) -> float | None:
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%d"))
    except (ValueError, OverflowError):
        return None


# -- one job -----------------------------------------------------------------------------------------


@router.get("/jobs/{job_id}")
def job_page(request: Request, principal: Looks, job_id: str, done: str = "") -> Response:
    return _job(request, principal, job_id, said=_DONE.get(done))


def _job(
    request: Request, principal: Principal, job_id: str, *, said: str | None = None, refused: str | None = None
) -> Response:
    known = _known(request, job_id)
    job, database = known.job, the_node(request).database
    return page(
        "job.html",
        request,
        principal,
        409 if refused else 200,
        known=known,
        job=job,
        shadow=database.shadow(job_id),
        shadow_findings=len(database.shadow_findings(job_id)),
        corrections=corrections_of(database, job_id),
        log=job_log.job_log(the_node(request), job_id, job["state"], request.query_params),
        values_of=job_log.values,
        steps=timeline.steps(known),
        stages=[(name, float(seconds)) for name, seconds in dict(job["timings_s"] or {}).items()],
        arrived=bool(known.deliveries) and all(row["state"] in ("stored", "committed") for row in known.deliveries),
        may=_buttons(known) if principal.may("act") else {},
        ended=job["state"] in FINISHED,
        peer_text=the_node(request).config.web.patient_names == "show",
        said=said,
        refused=refused,
    )


def _buttons(known: queries.OneJob) -> dict[str, str]:
    """What can be done with the job as it stands -> the word on the button."""
    state = known.job["state"]
    unsent = any(row["state"] in queries.UNSENT for row in known.deliveries)
    may = {}
    if state in ("failed", "parked", "cancelled", "rejected"):
        may["retry"] = "Retry" if state != "rejected" else "Decide again"
    elif state == "complete" and any(row["state"] not in ("stored", "committed") for row in known.deliveries):
        may["retry"] = "Retry delivery"
    if state in ("queued", "running", "failed", "parked") or unsent:
        may["cancel"] = "Cancel"
    if state in ("complete", "rejected") and known.deliveries:
        may["send"] = "Send again"
    return may


def _known(request: Request, job_id: str) -> queries.OneJob:
    try:
        return queries.one_job(the_node(request).database, job_id)
    except queries.NoSuchJob as err:
        raise HTTPException(404, "This job is not here: it was purged, or its series was decided on again.") from err


def _act(request: Request, principal: Principal, job_id: str, verb: str, change: Change) -> Response:
    node = the_node(request)
    _known(request, job_id)
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
    _known(request, job_id)
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
        raise HTTPException(404, "This slice is not here.") from err
    # Forgotten at logout, which sends Clear-Site-Data.
    return Response(picture, media_type="image/webp", headers={"cache-control": "private, max-age=600"})


@router.get("/jobs/{job_id}/objects/{sop_instance_uid}")
def job_object(request: Request, principal: Downloads, job_id: str, sop_instance_uid: str) -> Response:
    node, known = the_node(request), _known(request, job_id)
    for made in known.results:
        if made["sop_instance_uid"] == sop_instance_uid:
            path = node.storage.path(made["path"])
            if not path.is_file():
                break
            node.trail.downloaded(principal, known.job["series_uid"], [made["sop_class_uid"]])
            name = f"{made['kind']}-{checked_uid(sop_instance_uid, 'SOPInstanceUID')[-12:]}.dcm"
            return FileResponse(path, media_type="application/dicom", filename=name)
    raise HTTPException(404, "This object is not here any more.")


# -- peers, models, configuration --------------------------------------------------------------------


@router.get("/peers")
def peers_page(request: Request, principal: Looks) -> Response:
    return _peers(request, principal, {})


@router.post("/peers/{name}/echo")
def echo_peer(request: Request, principal: Acts, name: str) -> Response:
    node = the_node(request)
    peer = node.config.peers.get(name)
    if peer is None or peer.port is None:
        raise HTTPException(404, "There is no such peer, or it has no port.")
    node.trail.changed(principal, "peer echo", name)
    start = time.monotonic()
    try:
        echo(peer, node.config.receive.ae_title)
        said = ("up", f"answers after {words.duration(time.monotonic() - start)}")
    except DicomNodeError as err:
        said = ("down", str(err))
    return _peers(request, principal, {name: said})


def _peers(request: Request, principal: Principal, said: dict[str, tuple[str, str]]) -> Response:
    node = the_node(request)
    since = midnight(node.now())
    rows = [
        {
            "name": name,
            "peer": peer,
            "sender": queries.sender(node.database, peer.ae_title, since) if peer.may_send else None,
            "destination": queries.destination(node.database, name, since) if peer.can_receive else None,
            "certificates": settings.peer_certificates(node.config, name, node.now()),
            "echo": said.get(name),
        }
        for name, peer in node.config.peers.items()
    ]
    return page("peers.html", request, principal, rows=rows)


@router.get("/models")
def models_page(request: Request, principal: Looks) -> Response:
    node = the_node(request)
    since = node.now() - 7 * DAY_S
    counts = {route.name: queries.route_counts(node.database, route.name, since).jobs for route in node.config.routes}
    return page(
        "models.html",
        request,
        principal,
        cards=cards.cards(node.config, node.database.promotions()),
        counts=counts,
        agreement=agreement_of(node.database, since=node.now() - AGREEMENT_DAYS * DAY_S, most=AGREEMENT_SERIES),
        agreement_over=f"the last {AGREEMENT_DAYS} days, at most {AGREEMENT_SERIES} series",
        plot=bland_altman_svg,
    )


@router.get("/configuration")
def configuration_page(request: Request, principal: ReadsSettings) -> Response:
    node = the_node(request)
    config, promotions = node.config, promotion_lines(node.config, node.database.promotions())
    return page(
        "configuration.html",
        request,
        principal,
        sections=settings.sections(config),
        warnings=[*(f"{route}: {said}" for route, _, said in promotions), *settings.warnings(config, node.now())],
    )


@router.get("/viewer.js")
def viewer_script() -> Response:
    """Quicklook's: the page scrolls through slices as a quick look does."""
    return Response(part("page.js"), media_type="text/javascript", headers={"cache-control": "max-age=3600"})


@router.get("/events")
async def events(request: Request, principal: Looks) -> Response:
    # No buffering by a proxy before us: nginx looks at this header.
    headers = {"x-accel-buffering": "no"}
    stream = request.app.state.events.stream(partial(still_counts, request, principal))
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
