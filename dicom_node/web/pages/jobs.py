"""The list of jobs: what a form asks for -> a page of it, with links to the next ones."""

from __future__ import annotations

import time
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import Response

from dicom_node.schema import JOB_STATES
from dicom_node.web.access.principal import Denied, Looks, the_node
from dicom_node.web.answers.form import midnight
from dicom_node.web.answers.jobs import Cursor, JobFilter, filters, jobs
from dicom_node.web.pages.page import page

router = APIRouter()

_DAY_S = 86400.0


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
    which, before, after = _filter(asked), _place(older), _place(newer)
    found = jobs(node.database, which, older_than=before, newer_than=None if before else after)
    if after is not None and found.newer is None:
        found = jobs(node.database, which)

    def link(**place: str | None) -> str:
        given = {key: value for key, value in {**asked, **place}.items() if value}
        return "/jobs" + (f"?{urlencode(given)}" if given else "")

    return page(
        "jobs.html",
        request,
        principal,
        found=found,
        filters=filters(node.database),
        asked=asked,
        first=link() if before or after else None,
        newer=link(newer=found.newer) if found.newer else None,
        older=link(older=found.older) if found.older else None,
        live=request.url.path + (f"?{request.url.query}" if request.url.query else ""),
    )


def _place(text: str) -> Cursor | None:
    try:
        return Cursor.parse(text) if text else None
    except ValueError as err:
        raise Denied(404, "There is no such place in the list of jobs: begin at the newest.") from err


def _filter(asked: dict[str, str]) -> JobFilter:
    """What cannot be meant asks for nothing; `until` is the last day that counts."""
    until = _day(asked["until"])
    return JobFilter(
        states=(asked["state"],) if asked["state"] in JOB_STATES else (),
        peer=asked["peer"] or None,
        route=asked["route"] or None,
        since=_day(asked["since"]),
        before=None if until is None else midnight(until + 1.5 * _DAY_S),
        text=asked["text"].strip() or None,
    )


def _day(text: str) -> float | None:
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%d"))
    except (ValueError, OverflowError):
        return None
