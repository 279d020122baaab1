"""Values -> words on a page: states with their signs, times, durations, sizes, what a destination said last."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from dicom_node.dimse.statuses import OTHER, SUCCESS, store_meaning
from dicom_node.rows import Row

# Each state has a sign and a word; colour only repeats them.
SIGNS = {
    "queued": "○", "running": "◐", "complete": "✓", "rejected": "⊘", "failed": "✕", "parked": "‖", "cancelled": "-",
    "waiting": "○", "sending": "◐", "unknown": "?", "stored": "✓", "committed": "✓✓", "given up": "✕",
    "up": "✓", "down": "✕", "idle": "-", "asking": "◐", "asked": "○", "answered": "✓", "refused": "✕", "lapsed": "?",
}  # fmt: skip
TONES = {
    "complete": "good", "stored": "good", "committed": "good", "up": "good", "answered": "good",
    "running": "busy", "sending": "busy", "asking": "busy",
    "failed": "bad", "given up": "bad", "parked": "bad", "down": "bad", "refused": "bad",
    "rejected": "warn", "unknown": "warn", "lapsed": "warn",
}  # fmt: skip


def sign(state: str) -> str:
    return SIGNS.get(state, "·")


def tone(state: str) -> str:
    return TONES.get(state, "calm")


def clock(at: datetime) -> str:
    """On the node's own clock, as `moment`."""
    return at.astimezone().strftime("%H:%M:%S")


def clock_ms(at: datetime) -> str:
    return f"{clock(at)}.{at.microsecond // 1000:03}"


def day(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d")


def moment(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def iso(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def between(begin: datetime, end: datetime) -> str:
    """How long from one to the other."""
    return duration((end - begin).total_seconds())


def duration(seconds: float) -> str:
    """Like 0.4 s, 12 s, 3 min 5 s, 2 h 10 min, 4 d 3 h."""
    if not math.isfinite(seconds):
        return "?"
    if abs(seconds) < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"


def size(count: float) -> str:
    """Like 820 B, 1.2 MB; powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def short(job_id: str) -> str:
    """The end of a job's id, enough to find it by."""
    return job_id.rpartition("-")[2][:10]


def last_word(delivery: Row, *, peer_text: bool) -> str | None:
    """What became of an object at a destination. peer_text: with the peer's own comment, which may name the patient;
    it comes with a status other than success alone."""
    message, status = delivery["message"], delivery["status"]
    if peer_text or not message or status in (None, SUCCESS):
        return None if message is None else str(message)
    meaning = store_meaning(status)
    return None if meaning is OTHER else meaning.text
