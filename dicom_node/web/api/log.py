"""A job's log lines over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from dicom_node.log_lines import MOST_LINES, Level
from dicom_node.web.access.principal import Looks
from dicom_node.web.answers.log import LogLines, log_lines
from dicom_node.web.api.openapi import NOT_FOUND
from dicom_node.web.api.parameters import JobId, TheNode

router = APIRouter(tags=["jobs"])


@router.get("/jobs/{job_id}/log", responses=NOT_FOUND)
def job_log(
    _who: Looks,
    node: TheNode,
    job_id: JobId,
    level: Annotated[Level, Query(description="This one and those above it.")] = "debug",
    role: Annotated[str | None, Query(pattern=r"^[a-z]{1,16}$", description="Only of this one.")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LINES, description="How many at most, the last.")] = MOST_LINES,
) -> LogLines:
    """What all roles on all hosts said of it and of its series: the last lines, merged by time."""
    return log_lines(node, job_id, level=level, role=role, most=limit)
