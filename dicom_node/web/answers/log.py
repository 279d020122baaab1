"""The log lines that the roles kept about a job -> what the page of the job and the API tell of them."""

from __future__ import annotations

from datetime import datetime

from dicom_node.log_lines import MOST_LINES, Level, lines_of_job
from dicom_node.web.answers.form import Form, moment
from dicom_node.web.answers.job import NoSuchJob
from dicom_node.web.node import Node


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
    """lines: oldest first. earlier: how many there were before these. roles: that said something, asked for or not."""

    lines: list[LogLine]
    earlier: int
    roles: list[str]


def log_lines(
    node: Node, job_id: str, *, level: Level = "debug", role: str | None = None, most: int = MOST_LINES
) -> LogLines:
    """The last lines of this level and above, of this role or of all.

    Raises NoSuchJob, and StorageError where the storage root is away.
    """
    if node.database.job(job_id) is None:
        raise NoSuchJob(job_id)
    found = lines_of_job(node.storage.root, job_id, level=level, role=role, most=most)
    names = ("level", "role", "host", "process", "message", "error")
    lines = [
        LogLine(at=moment(line.at), values=dict(line.values), **{name: getattr(line, name) for name in names})
        for line in found.lines
    ]
    return LogLines(lines=lines, earlier=found.earlier, roles=list(found.roles))
