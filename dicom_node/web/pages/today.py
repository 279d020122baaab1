"""The first page: today, what needs a look, the newest jobs."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from dicom_node.web.access.principal import Looks, the_node
from dicom_node.web.answers.jobs import JobFilter, jobs
from dicom_node.web.answers.today import today
from dicom_node.web.pages.page import page

router = APIRouter()

NEEDS_A_LOOK = JobFilter(states=("failed", "parked"))


@router.get("/")
def today_page(request: Request, principal: Looks) -> Response:
    node = the_node(request)
    return page(
        "today.html",
        request,
        principal,
        today=today(node),
        trouble=jobs(node.database, NEEDS_A_LOOK, limit=5),
        recent=jobs(node.database, limit=8),
    )
