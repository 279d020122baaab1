"""A job with its events -> the steps it went through, each with the time since the one before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dicom_node.web.queries import OneJob

_NAMES = {"job queued": "Queued for analysis", "job running": "Analysis began", "job complete": "Results recorded"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """at: seconds since the epoch. after_s: since the step before; None for the first one."""

    at: float
    name: str
    details: str
    after_s: float | None


def steps(known: OneJob) -> list[Step]:
    """Oldest first: the images' reception, then what the events tell."""
    found: list[tuple[float, str, str]] = []
    if known.first_at is not None:
        found.append((known.first_at, "First image received", f"from {known.job['source_ae']}"))
    if known.last_at is not None and known.last_at != known.first_at:
        found.append((known.last_at, "Last image received", f"{known.job['instance_count']} images in this job"))
    for event in known.events:
        action = str(event["action"])
        found.append((event["at"], _NAMES.get(action, action.capitalize()), _details(event["details"])))
    found.sort(key=lambda step: step[0])
    afters = [None, *(later[0] - earlier[0] for earlier, later in pairwise(found))]
    return [
        Step(at=at, name=name, details=details, after_s=after)
        for (at, name, details), after in zip(found, afters, strict=False)
    ]


def _details(details: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in details.items())
