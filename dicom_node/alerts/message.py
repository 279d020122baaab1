"""Alerts of one kind -> one message: a title, text for people, JSON for programs. Pure."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dicom_node.alerts.problems import KINDS
from dicom_node.domain import RESEARCH_USE
from dicom_node.rows import Row

# So many are listed; of the others the number is told.
_LISTED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One alert. since: seconds since the epoch. told_at: when the channel heard of it before, if it did."""

    subject: str
    text: str
    since: float
    link: str | None = None
    job_id: str | None = None
    told_at: float | None = None

    @classmethod
    def of(cls, row: Row, link: str | None) -> Item:
        """`link`: where the node's pages are."""
        job_id = row["job_id"]
        return cls(
            subject=row["subject"],
            text=row["text"],
            since=row["since"],
            link=None if link is None or job_id is None else f"{link}/jobs/{job_id}",
            job_id=job_id,
            told_at=row["told_at"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What a channel sends. message_id: the same for the same content, so that a receiver can tell a repetition."""

    message_id: str
    kind: str
    title: str
    text: str
    payload: dict[str, Any]


def compose(node: str, kind: str, raised: Sequence[Item], over: Sequence[Item]) -> Message:
    """One message about all alerts of a kind that hold (`raised`) or do not any more (`over`)."""
    title = _title(kind, raised, over)
    content = [kind, *([one.subject, one.since, one.told_at] for one in raised), "over"]
    content += [[one.subject, one.since, one.told_at] for one in over]
    message_id = hashlib.sha256(json.dumps([node, *content]).encode()).hexdigest()[:32]
    lines = [f"{node}: {title}.", "", *_lines(raised)]
    if over:
        lines += ["", "Over:", *_lines(over)] if raised else _lines(over)
    lines += ["", "All of them: dicom-node alert list", f"{RESEARCH_USE}."]
    payload = {
        "type": "dicom_node.alert",
        "node": node,
        "kind": kind,
        "title": title,
        "raised": [_json(one) for one in raised[:_LISTED]],
        "raised_count": len(raised),
        "over": [_json(one) for one in over[:_LISTED]],
        "over_count": len(over),
        "notice": RESEARCH_USE,
    }
    return Message(message_id=message_id, kind=kind, title=title, text="\n".join(lines) + "\n", payload=payload)


def trial_message(node: str, now: float) -> Message:
    """What `alert test` sends."""
    item = Item(subject="test", text="a test: if you read this, alerts arrive here", since=now)
    return compose(node, "test", [item], [])


def _title(kind: str, raised: Sequence[Item], over: Sequence[Item]) -> str:
    one, many = KINDS.get(kind, (kind, kind))
    shown = raised or over
    title = one if len(shown) == 1 else f"{len(shown)} {many}"
    return title if raised else f"over: {title}"


def _lines(items: Sequence[Item]) -> list[str]:
    lines = []
    for item in items[:_LISTED]:
        lines.append(f"- {item.text} (since {_utc(item.since)})")
        lines += [f"  {item.link}" if item.link else f"  job {item.job_id}"] if item.job_id else []
    if len(items) > _LISTED:
        lines.append(f"- and {len(items) - _LISTED} more")
    return lines


def _json(item: Item) -> dict[str, Any]:
    return {
        "subject": item.subject,
        "text": item.text,
        "since": _utc(item.since),
        "job_id": item.job_id,
        "link": item.link,
        "repeated": item.told_at is not None,
    }


def _utc(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
