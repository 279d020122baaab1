"""Log lines as events: an action and its values, text or JSON, to standard error. Never a patient's data.

Each line about a series holds `series`, an id of 12 characters that every role derives from the Series Instance UID:
one search finds what receive, work and deliver said of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# A record's attribute for the UID itself, which no line shows.
_ABOUT = "_about_series"
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message", _ABOUT}
# A Series Instance UID, alone or before the hash that makes it a job's id, and what a workflow's id has more.
_SERIES_UID = re.compile(r"([0-9]+(?:\.[0-9]+)+)(?:$|[-:])")
# Where a line's values name the series.
_NAMED_BY = ("series", "job", "workflow")
# Levels as sd-daemon(3) wants them before a line.
_PRIORITIES = ((logging.ERROR, "<3>"), (logging.WARNING, "<4>"), (logging.INFO, "<6>"), (logging.DEBUG, "<7>"))
_OF_HTTP = ("dicomweb_client", "requests", "urllib3")


_about: ContextVar[str | None] = ContextVar("about", default=None)


@contextmanager
def about(name: str) -> Iterator[None]:
    """Each line from within is about this series. name: its UID, or the id of one of its jobs or workflows."""
    token = _about.set(_uid_in(name))
    try:
        yield
    finally:
        _about.reset(token)


def _uid_in(name: str) -> str | None:
    match = _SERIES_UID.match(name)
    return None if match is None else match[1]


def series_id(name: str) -> str | None:
    """The id of a series in log lines. name: as for `about`; None where it names no series."""
    uid = _uid_in(name)
    return None if uid is None else hashlib.sha256(uid.encode()).hexdigest()[:12]


def series_of(record: logging.LogRecord) -> str | None:
    """The Series Instance UID of a line that `name_series` has seen; None where it is about no series."""
    uid: str | None = record.__dict__.get(_ABOUT)
    return uid


def name_series(record: logging.LogRecord) -> bool:
    """A filter that lets everything pass, with its series."""
    values = record.__dict__
    if _ABOUT in values:
        return True  # by another handler's filter already
    for name in _NAMED_BY:
        if isinstance(values.get(name), str) and (uid := _uid_in(values[name])) is not None:
            if name == "series":
                values["series_uid"] = values["series"]
            values[_ABOUT], values["series"] = uid, series_id(uid)
            return True
    if "series" not in values and (current := _about.get()) is not None:
        values[_ABOUT], values["series"] = current, series_id(current)
    return True


def configure(level: str, form: str, role: str, *also: logging.Handler) -> None:
    """Set up this process's logging; called once, by its entry point. also: get the same lines."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = _JsonFormatter(role) if form == "json" else _TextFormatter(role)
    handler.setFormatter(_JournalFormatter(formatter) if _is_journal() else formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler, *also]
    for each in root.handlers:
        each.addFilter(name_series)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    # These narrate every PDU and plugin at INFO and below, and quote elements of data sets in their warnings.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # what matters of it we say ourselves, with the peer
    # Those of HTTP quote URLs, whose query may hold a patient's id.
    for name in (
        "pydicom",
        "highdicom",
        "alembic",
        "sqlalchemy",
        "PIL",
        "pylibjpeg",
        "matplotlib",
        "py.warnings",
        *_OF_HTTP,
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet_pydicom()


def quiet_pydicom() -> None:
    """Odd values of received data sets are not ours to warn about: the warnings would quote patient data."""
    import pydicom.config  # a second of start-up time, which commands that only speak to the database do without

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def values_of(record: logging.LogRecord) -> dict[str, Any]:
    """The values of a line."""
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


def _is_journal() -> bool:
    """Whether standard error goes to systemd's journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        here = os.fstat(sys.stderr.fileno())
        return os.environ.get("JOURNAL_STREAM") == f"{here.st_dev}:{here.st_ino}"
    except (OSError, ValueError):
        return False


class _JournalFormatter(logging.Formatter):
    """Another's lines, each with its priority: the journal takes it off and lets it be searched."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        priority = next((text for level, text in _PRIORITIES if record.levelno >= level), "<7>")
        return "\n".join(priority + line for line in self._inner.format(record).splitlines())


class _TextFormatter(logging.Formatter):
    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        extras = "".join(f" {key}={value}" for key, value in values_of(record).items() if key != "action")
        # One event, one line: what a peer sent (an AE title, a comment) must not forge another.
        said = "".join(c if c.isprintable() else "?" for c in f"{record.getMessage()}{extras}")
        line = f"{at}Z {self._role} {record.levelname.lower()} {said}"
        return f"{line}\n{where(record)}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "at": record.created,
            "role": self._role,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **values_of(record),
        }
        if record.exc_info:
            event["error"] = where(record)
        return json.dumps(event, default=str)


def where(record: logging.LogRecord) -> str:
    """Type and place of a line's exception. Its text is left out: libraries quote values of data sets in theirs."""
    assert record.exc_info is not None  # noqa: S101  the callers looked
    error = record.exc_info[1]
    return describe(error) if error is not None else ""


def describe(error: BaseException) -> str:
    """An unexpected error without its text: its types and places, outermost first."""
    parts = []
    seen: BaseException | None = error
    while seen is not None:
        frames = []
        trace = seen.__traceback__
        while trace is not None:
            frames.append(f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}")
            trace = trace.tb_next
        parts.append(f"{type(seen).__name__} at {' > '.join(frames[-4:])}")
        seen = seen.__cause__
    return "; from ".join(parts)
