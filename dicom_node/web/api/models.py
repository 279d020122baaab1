"""The models over HTTP: cards, routes, how far two of them agree, and second looks that failed."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from dicom_node.web import answers
from dicom_node.web.access.principal import Acts, Looks
from dicom_node.web.acts import look_again
from dicom_node.web.answers.jobs import PAGE_ROWS
from dicom_node.web.answers.models import Agreement, FailedLook, Model
from dicom_node.web.api.job import Done
from dicom_node.web.api.openapi import CONFLICT, NOT_FOUND
from dicom_node.web.api.parameters import JobId, Limit, RouteName, TheNode

router = APIRouter(tags=["models"])


@router.get("/models")
def models(_who: Looks, node: TheNode) -> list[Model]:
    """The models of the settings, their cards, and which routes use them, promotions considered."""
    return answers.models.models(node)


@router.get("/models/agreement")
def agreement(
    _who: Looks,
    node: TheNode,
    route: RouteName = None,
    days: Annotated[float | None, Query(ge=0, le=36500, description="Only series of so many last days.")] = None,
    most: Annotated[int | None, Query(ge=1, le=100_000, description="Only so many series, the newest.")] = None,
) -> Agreement:
    """How far the second model of a route agrees with the first, on series that both have seen; per pair of bundles."""
    return answers.models.agreement(node, route=route, days=days, most=most)


@router.get("/models/shadows")
def failed_looks(_who: Looks, node: TheNode, limit: Limit = PAGE_ROWS) -> list[FailedLook]:
    """The jobs at which a second model looked in vain, and why; the newest first."""
    return answers.models.failed_looks(node.database, limit)


@router.post("/models/shadows/{job_id}/retry", responses={**NOT_FOUND, **CONFLICT})
def retry_shadow(who: Acts, node: TheNode, job_id: JobId) -> Done:
    """Let the second model look at a job again for which it came to no result. It runs behind all jobs."""
    return Done(job_id=job_id, done=look_again(node, who, job_id))
