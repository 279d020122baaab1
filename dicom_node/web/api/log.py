"""A job's log lines over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query

from dicom_node.log_lines import MOST_LINES, Level, lines_of_job
from dicom_node.web.access.principal import Denied, Looks
from dicom_node.web.api.forms import Form, moment
from dicom_node.web.api.jobs import JobId, TheNode
from dicom_node.web.api.openapi import NOT_FOUND

router = APIRouter(tags=["jobs"])


class LogLine(Form):
    """host, process: whose line it is. values: what it tells beside its message. error: type and place of one."""

    at: datetime
    level: Level
    role: str
    host: str
    process: int
    message: str
    values: dict[str, str]
    error: str | None


class LogLines(Form):
    """Oldest first. earlier: how many there were before these."""

    lines: list[LogLine]
    earlier: int


@router.get("/jobs/{job_id}/log", responses=NOT_FOUND)
def job_log(
    _who: Looks,
    node: TheNode,
    job_id: JobId,
    level: Annotated[Level, Query(description="This one and those above it.")] = "debug",
    role: Annotated[str | None, Query(pattern=r"^[a-z]{1,16}$", description="Only of this one.")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LINES)] = MOST_LINES,
) -> LogLines:
    """What all roles on all hosts said of it and of its series: the last lines, merged by time."""
    if node.database.job(job_id) is None:
        raise Denied(404, "There is no such job.")
    found = lines_of_job(node.storage.root, job_id, level=level, role=role, most=limit)
    names = ("level", "role", "host", "process", "message", "error")
    lines = [
        LogLine(at=moment(line.at), values=dict(line.values), **{name: getattr(line, name) for name in names})
        for line in found.lines
    ]
    return LogLines(lines=lines, earlier=found.earlier)
