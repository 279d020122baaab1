"""Log lines as events: an action and its values, text or JSON, to standard error. Never a patient's data."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}
_OF_HTTP = ("dicomweb_client", "requests", "urllib3")


def configure(level: str, form: str, role: str) -> None:
    """Set up this process's logging; called once, by its entry point."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(role) if form == "json" else _TextFormatter(role))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    # These narrate every PDU and plugin at INFO and below, and quote elements of data sets in their warnings.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # what matters of it we say ourselves, with the peer
    # Those of HTTP quote URLs, whose query may hold a patient's id.
    for name in ("pydicom", "highdicom", "alembic", "sqlalchemy", "PIL", "matplotlib", "py.warnings", *_OF_HTTP):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet_pydicom()


def quiet_pydicom() -> None:
    """Odd values of received data sets are not ours to warn about: the warnings would quote patient data."""
    import pydicom.config  # a second of start-up time, which commands that only speak to the database do without

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


class _TextFormatter(logging.Formatter):
    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        extras = "".join(f" {key}={value}" for key, value in _extras(record).items() if key != "action")
        # One event, one line: what a peer sent (an AE title, a comment) must not forge another.
        said = "".join(c if c.isprintable() else "?" for c in f"{record.getMessage()}{extras}")
        line = f"{at}Z {self._role} {record.levelname.lower()} {said}"
        return f"{line}\n{_where(record)}" if record.exc_info else line


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
            **_extras(record),
        }
        if record.exc_info:
            event["error"] = _where(record)
        return json.dumps(event, default=str)


def _where(record: logging.LogRecord) -> str:
    """Type and place of an exception. Its text is left out: libraries quote values of data sets in theirs."""
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
