"""The list of jobs over HTTP, what it can be filtered by, and what came back of their results."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from dicom_node.web import answers
from dicom_node.web.access.principal import Denied, Looks
from dicom_node.web.answers.corrections import Correction
from dicom_node.web.answers.jobs import PAGE_ROWS, Cursor, Filters, JobFilter, JobPage
from dicom_node.web.api.parameters import Limit, Place, Seconds, State, TheNode, Words

router = APIRouter(tags=["jobs"])


@router.get("/jobs")
def list_jobs(
    _who: Looks,
    node: TheNode,
    state: Annotated[list[State] | None, Query(description="Any of these.")] = None,
    peer: Annotated[Words | None, Query(description="AE title that sent the series.")] = None,
    route: Annotated[Words | None, Query(description="Route that was chosen.")] = None,
    since: Annotated[Seconds | None, Query(description="Made then or later; seconds since 1970, UTC.")] = None,
    before: Annotated[Seconds | None, Query(description="Made before then.")] = None,
    text: Annotated[Words | None, Query(description="Part of a job's id or of a UID, or a reason code.")] = None,
    older_than: Annotated[Place | None, Query(description="`older` of the page before.")] = None,
    newer_than: Annotated[Place | None, Query(description="`newer` of the page before; not with older_than.")] = None,
    limit: Limit = PAGE_ROWS,
) -> JobPage:
    """A page of jobs, newest first. All conditions that are given hold."""
    if older_than is not None and newer_than is not None:
        raise Denied(422, "Give older_than or newer_than, not both.")
    which = JobFilter(
        states=tuple(dict.fromkeys(state or ())), peer=peer, route=route, since=since, before=before, text=text
    )
    return answers.jobs.jobs(
        node.database, which, older_than=_cursor(older_than), newer_than=_cursor(newer_than), limit=limit
    )


@router.get("/jobs/filters")
def job_filters(_who: Looks, node: TheNode) -> Filters:
    """What the list can be filtered by: states, and the peers and routes that its jobs have."""
    return answers.jobs.filters(node.database)


@router.get("/corrections")
def list_corrections(_who: Looks, node: TheNode, limit: Limit = PAGE_ROWS) -> list[Correction]:
    """The newest corrections of our results that came back, with what became of each finding."""
    return answers.corrections.corrections(node.database, limit)


def _cursor(text: str | None) -> Cursor | None:
    return None if text is None else Cursor.parse(text)
