"""Errors -> answers: problem details (RFC 9457), or for people a redirect to the login. They tell no internals."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, urlencode

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from dicom_node.errors import DicomNodeError
from dicom_node.logs import describe
from dicom_node.web import templating
from dicom_node.web.access.caller import sent_from
from dicom_node.web.access.principal import Denied, for_people
from dicom_node.web.answers.job import NoSuchJob

log = logging.getLogger(__name__)

PROBLEM = "application/problem+json"
# Of a page's address what is chosen from a list, or a day.
_CHOSEN = ("state", "peer", "route", "since", "until", "level", "role")
# For people; programs get HTTP's own.
_TITLES = {500: "Something failed", 503: "Not now"}


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    return JSONResponse(body, status, dict(headers or {}), media_type=PROBLEM)


def add_to(app: FastAPI) -> None:
    for kind, answer in (
        (Denied, _denied),
        (HTTPException, _http),
        (RequestValidationError, _invalid),
        (DicomNodeError, _ours),
        (NoSuchJob, _no_such_job),
    ):
        app.add_exception_handler(kind, answer)


async def _denied(request: Request, error: Exception) -> Response:
    assert isinstance(error, Denied)  # noqa: S101  as it was registered
    if error.status == HTTPStatus.UNAUTHORIZED and for_people(request):
        # Back to the page that a form was on: what it asked for has not been done, which that page shows.
        page = request.url.components if request.method == "GET" else sent_from(request.headers)
        return RedirectResponse(f"/login?next={quote(_way_back(page), safe='')}", HTTPStatus.SEE_OTHER)
    return _told(request, error.status, error.detail, error.headers)


def _way_back(page: SplitResult) -> str:
    """Without what was typed: who comes to the login next is not always who searched for a name."""
    chosen = urlencode([(name, value) for name, value in parse_qsl(page.query) if name in _CHOSEN])
    return (page.path or "/") + (f"?{chosen}" if chosen else "")


def _told(request: Request, status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    if not for_people(request):
        return problem(status, detail, headers)
    title = _TITLES.get(status, HTTPStatus(status).phrase)
    # A form that was sent is for its sender to send again.
    passes = status == HTTPStatus.SERVICE_UNAVAILABLE and request.method == "GET"
    html = templating.render("error.html", status=status, title=title, detail=detail, passes=passes)
    return HTMLResponse(html, status, dict(headers or {}))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    detail = {
        HTTPStatus.NOT_FOUND: "There is nothing at this address: /api/v1/openapi.json lists what can be called.",
        HTTPStatus.METHOD_NOT_ALLOWED: f"This address does not take {request.method}: see the header Allow.",
    }.get(HTTPStatus(error.status_code), str(error.detail))
    return _told(request, error.status_code, detail, error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    # Without the values: they may be what should not be told, as a search for a name.
    errors = [{"where": [str(part) for part in one["loc"]], "what": one["msg"]} for one in error.errors()]
    detail = "The request does not fit what this needs: `errors` says where."
    if for_people(request):
        return _told(request, HTTPStatus.UNPROCESSABLE_ENTITY, "The address or the form holds what cannot be meant.")
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=errors)


async def _ours(request: Request, error: Exception) -> Response:
    """What we raise across our borders is written for people; what may pass by itself is the node's trouble."""
    assert isinstance(error, DicomNodeError)  # noqa: S101
    if error.retry_helps:
        log.warning("request failed", extra={"action": "unavailable", "why": type(error).__name__})
        detail = "Database or storage does not answer. Try again in a few seconds; dicom-node check says what is wrong."
        return _told(request, HTTPStatus.SERVICE_UNAVAILABLE, detail, {"Retry-After": "5"})
    return _told(request, HTTPStatus.CONFLICT, str(error))


async def _no_such_job(request: Request, _error: Exception) -> Response:
    detail = (
        "There is no such job: it was purged, or its series was decided on again. The list of jobs has those there are."
    )
    return _told(request, HTTPStatus.NOT_FOUND, detail)


def unexpected(request: Request, error: Exception) -> Response:
    """For what no handler knows. Without its text, which may quote a patient."""
    log.error("request failed", extra={"action": "request failed", "error": describe(error)})
    return _told(request, HTTPStatus.INTERNAL_SERVER_ERROR, "The node failed at this. Its log has more.")
