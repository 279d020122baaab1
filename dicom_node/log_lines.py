"""The files of `log_files` -> a series' log lines, of all hosts and roles, merged by time.

Hosts' clocks may differ: lines of different hosts are in order as far as those agree.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dicom_node.errors import StorageError
from dicom_node.log_files import MOST_BYTES, OLDER, SUFFIX, folder_of

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = get_args(Level)
# The newest, where restarts made many; and what is shown of all their lines.
_MOST_FILES, MOST_LINES = 64, 500
_JOB_ID = re.compile(r"[0-9.]{1,64}-[0-9a-f]+")
# A value that names a job, alone or as the beginning of a workflow's id.
_NAMES_A_JOB = ("job", "workflow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """at: seconds since the epoch. process: its id on `host`. values: what the line tells beside its message.
    error: type and place of an exception."""

    at: float
    host: str
    role: str
    process: int
    level: Level
    message: str
    values: Mapping[str, str]
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """lines: oldest first. earlier: how many more there were before them. roles: of all lines, asked for or not."""

    lines: tuple[Line, ...]
    earlier: int
    roles: tuple[str, ...]


def lines_of_job(
    root: Path, job_id: str, *, level: Level = "debug", role: str | None = None, most: int = MOST_LINES
) -> Lines:
    """The last lines about a job or its series, but for those about another job of the series.

    level: the lowest. Empty where nothing was kept; raises StorageError where the storage root cannot be read.
    """
    try:
        lines = [line for line in _lines(root, job_id.partition("-")[0]) if _concerns(line, job_id)]
    except OSError as err:
        raise StorageError(f"log lines cannot be read: {err.strerror}") from err
    found = [line for line in lines if LEVELS.index(line.level) >= LEVELS.index(level) and role in (None, line.role)]
    first = max(0, len(found) - most)
    return Lines(lines=tuple(found[first:]), earlier=first, roles=tuple(sorted({line.role for line in lines})))


def _concerns(line: Line, job_id: str) -> bool:
    named = [match[0] for key in _NAMES_A_JOB if (match := _JOB_ID.match(line.values.get(key, ""))) is not None]
    return not named or job_id in named


def _lines(root: Path, series_uid: str) -> list[Line]:
    """Oldest first."""
    lines: list[Line] = []
    for path in _files(folder_of(root, series_uid)):
        host, role, process = _writer(path).split(".")
        # A file that goes while we look went with its series.
        with contextlib.suppress(FileNotFoundError):
            for text in _tail(path).split(b"\n"):
                if (line := _line(text, host, role, int(process))) is not None:
                    lines.append(line)
    return sorted(lines, key=lambda line: line.at)


def _files(folder: Path) -> Sequence[Path]:
    """Older ones of a process before its newer ones: lines of one moment stay in order."""
    try:
        found = [(entry.stat().st_mtime, Path(entry.path)) for entry in os.scandir(folder) if _is_ours(entry.name)]
    except FileNotFoundError:
        return []
    newest = sorted(found, reverse=True)[:_MOST_FILES]
    return sorted((path for _, path in newest), key=lambda path: (_writer(path), path.name.endswith(SUFFIX)))


def _writer(path: Path) -> str:
    """HOST.ROLE.PROCESS"""
    return path.name.removesuffix(OLDER).removesuffix(SUFFIX)


def _is_ours(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9-]+\.[a-z]+\.[0-9]{1,10}\.jsonl(\.1)?", name) is not None


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        # More than that no process of ours wrote.
        file.seek(max(0, size - MOST_BYTES))
        return file.read(MOST_BYTES)


def _line(text: bytes, host: str, role: str, process: int) -> Line | None:
    """None for what is no line: a torn one, of a process that was killed."""
    try:
        event: Any = json.loads(text)
        return Line(
            at=float(event["at"]),
            host=host,
            role=role,
            process=process,
            level=_level(event["level"]),
            message=_printable(str(event["message"])),
            values={_printable(str(key)): _printable(str(value)) for key, value in event["values"].items()},
            error=_printable(str(event["error"])) if event.get("error") else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _level(text: str) -> Level:
    known: Mapping[str, Level] = {level: level for level in LEVELS}
    return known.get(text, "error" if text == "critical" else "info")


def _printable(text: str) -> str:
    """What a peer sent must not move a terminal's cursor."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
