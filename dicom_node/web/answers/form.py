"""What every answer is made of. Times are ISO 8601 in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict


class Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def when(at: float | None) -> datetime | None:
    return None if at is None else moment(at)


def midnight(now: float) -> float:
    """The last midnight of this machine's time zone, in seconds since the epoch."""
    return datetime.fromtimestamp(now).astimezone().replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
