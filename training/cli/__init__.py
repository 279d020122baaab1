"""`python -m training`: parse, call the library, print. Exit code 0, 1 (it failed, and why) or 2 (called wrongly)."""

from __future__ import annotations

import logging
import sys
from typing import NoReturn

import typer

from dicom_node.domain import RESEARCH_USE
from dicom_node.errors import ConfigError, DicomNodeError
from training.cli import data, judging, learning, packaging, reproduction

app = typer.Typer(
    help=f"Train, judge and package a nodule model. {RESEARCH_USE}.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# In the order of the help text.
for _subject in (data, learning, judging, packaging, reproduction):
    _subject.add_to(app)


class EventFormatter(logging.Formatter):
    """The event and its numbers on one line."""

    def format(self, record: logging.LogRecord) -> str:
        known = logging.makeLogRecord({}).__dict__
        extra = {k: v for k, v in record.__dict__.items() if k not in known and k not in ("message", "asctime")}
        extra.pop("action", None)
        numbers = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in extra.items())
        return " ".join([self.formatTime(record, "%H:%M:%S"), record.getMessage(), *numbers])


def main() -> NoReturn:
    """Entry point of `python -m training`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EventFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        app()
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except DicomNodeError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    sys.exit(0)
