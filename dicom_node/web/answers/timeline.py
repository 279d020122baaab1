"""A job with its events -> the steps it went through, each with the time since the one before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from dicom_node.db import Row
from dicom_node.web.answers.form import Form, moment

_NAMES = {"job queued": "Queued for analysis", "job running": "Analysis began", "job complete": "Results recorded"}


class Step(Form):
    """after_s: since the step before; null for the first one."""

    at: datetime
    name: str
    details: str
    after_s: float | None


def steps(job: Row, series: Row | None, events: Sequence[Row]) -> list[Step]:
    """Oldest first: the images' reception, then what the events tell. series: None where its row is gone."""
    found: list[tuple[float, str, str]] = []
    if series is not None:
        found.append((series["first_at"], "First image received", f"from {job['source_ae']}"))
        if series["last_at"] != series["first_at"]:
            found.append((series["last_at"], "Last image received", f"{job['instance_count']} images in this job"))
    for event in events:
        action = str(event["action"])
        found.append((event["at"], _NAMES.get(action, action.capitalize()), _details(event["details"])))
    found.sort(key=lambda step: step[0])
    afters = [None, *(later[0] - earlier[0] for earlier, later in pairwise(found))]
    return [
        Step(at=moment(at), name=name, details=details, after_s=after)
        for (at, name, details), after in zip(found, afters, strict=False)
    ]


def _details(details: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in details.items())
