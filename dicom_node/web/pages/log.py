"""A job's log lines -> a part of its page, and that part alone for an open page that asks for it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from dicom_node.db import FINISHED
from dicom_node.errors import StorageError
from dicom_node.log_lines import LEVELS, Level
from dicom_node.web import templating, words
from dicom_node.web.access.principal import Looks, is_of_the_page, the_node
from dicom_node.web.answers.job import NoSuchJob
from dicom_node.web.answers.log import LogLine, LogLines, log_lines
from dicom_node.web.node import Node

router = APIRouter()

_NOBODY = LogLines(lines=[], earlier=0, roles=[])
# Said of each line by the page that it is on.
_SAID_ALREADY = ("action", "job", "workflow")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLog:
    """level, role: as they were asked for; role is "" for all. live: more may come."""

    job_id: str
    lines: LogLines
    level: Level
    role: str
    problem: str | None
    live: bool
    here: str
    several_hosts: bool

    def roles(self) -> list[str]:
        """To choose from, among them what was chosen."""
        return sorted({*self.lines.roles, *filter(None, [self.role])})


def job_log(node: Node, job_id: str, state: str, asked: Mapping[str, str]) -> JobLog:
    """state: of the job. asked: of a page's address: level and role. What cannot be meant asks for everything."""
    level: Level = next((each for each in LEVELS if each == asked.get("level")), "debug")
    role = asked.get("role", "")[:16] if asked.get("role", "").isalpha() else ""
    lines, problem = _NOBODY, None
    try:
        lines = log_lines(node, job_id, level=level, role=role or None)
    except StorageError:
        problem = "The log lines cannot be read: the storage root is away."
    return JobLog(
        job_id=job_id,
        lines=lines,
        level=level,
        role=role,
        problem=problem,
        live=state not in FINISHED,
        here=f"/jobs/{quote(job_id)}/log?{urlencode({'level': level, 'role': role})}",
        several_hosts=len({line.host for line in lines.lines}) > 1,
    )


def values(line: LogLine) -> list[tuple[str, str]]:
    """What a line tells beside its message."""
    return [(name.replace("_", " "), value) for name, value in line.values.items() if name not in _SAID_ALREADY]


@router.get("/jobs/{job_id}/log")
def job_log_part(request: Request, _who: Looks, job_id: str) -> Response:
    node = the_node(request)
    job = node.database.job(job_id)
    if job is None:
        raise NoSuchJob(job_id)
    if not is_of_the_page(request):
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"/jobs/{quote(job_id)}{query}#log", 303)
    shown = job_log(node, job_id, job["state"], request.query_params)
    return HTMLResponse(templating.render("_log.html", log=shown, values_of=values, words=words))
