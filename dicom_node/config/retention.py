"""Which series may be deleted, and when: by state and age, and when the disk runs low."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from dicom_node.fields import Section

# What a series is to retention; the first that fits, in this order. purges.py tells it from the rows:
# undelivered: an object has not arrived. parked, failed: so is a job. cancelled: an operator cancelled a job or an
# object. local: results that go nowhere. stored: all objects arrived. committed: and each is committed. correction: of
# results of ours. rejected: the gate refused it, its report arrived. unused: nothing was made of it.
SeriesState = Literal[
    "undelivered", "parked", "failed", "cancelled", "local", "stored", "committed", "correction", "rejected", "unused"
]
SERIES_STATES: tuple[SeriesState, ...] = get_args(SeriesState)

Days = Annotated[float, Field(ge=0, le=36500)]


class RetentionConfig(Section):
    """STATE_after_days: a series of that state goes when for so long nothing happened to it; null: it is kept.

    uncommitted_after_days: what a peer stored and never committed is kept at least so long, where it `may_commit`.
    under_pressure: the states that go below `storage.clean_below_gb`, in this order, each oldest first;
    spared_h: not what something happened to within so many hours. every_min: between two rounds by age.
    history_after_days: events of what is gone, and the engine's records of what ended, go then.
    """

    committed_after_days: Days | None = None
    stored_after_days: Days | None = None
    correction_after_days: Days | None = None
    rejected_after_days: Days | None = None
    unused_after_days: Days | None = None
    cancelled_after_days: Days | None = None
    local_after_days: Days | None = None
    failed_after_days: Days | None = None
    parked_after_days: Days | None = None
    undelivered_after_days: Days | None = None
    uncommitted_after_days: float = Field(default=30.0, ge=0)
    under_pressure: tuple[SeriesState, ...] = ("committed", "stored")
    spared_h: float = Field(default=1.0, ge=0)
    every_min: float = Field(default=60.0, gt=0, le=7 * 1440)
    history_after_days: Days | None = 90.0

    def after_days(self) -> dict[SeriesState, float]:
        """Of each state that is ever deleted by age, after how many days: what is safest elsewhere first."""
        days: dict[SeriesState, float | None] = {
            "committed": self.committed_after_days,
            "stored": self.stored_after_days,
            "correction": self.correction_after_days,
            "rejected": self.rejected_after_days,
            "unused": self.unused_after_days,
            "cancelled": self.cancelled_after_days,
            "local": self.local_after_days,
            "failed": self.failed_after_days,
            "parked": self.parked_after_days,
            "undelivered": self.undelivered_after_days,
        }
        return {state: after for state, after in days.items() if after is not None}
