"""Which Associations bring a series just now, and how the others ended: rows for the evidence that it is complete.

A row of `carrier` is an Association that brought something new of a series and is not over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import sqlalchemy as sa

from dicom_node.marks import LENGTH
from dicom_node.schema import carrier, series

Insert = Callable[[sa.Table], Any]

_MARK = sa.func.substr(carrier.c.association, 1, LENGTH)


def began(connection: sa.Connection, insert: Insert, series_uid: str, association: str) -> None:
    """The series' own row may still be on its way."""
    row = {"series_uid": series_uid, "association": association}
    connection.execute(insert(carrier).values(row).on_conflict_do_nothing())
    connection.execute(sa.update(series).where(series.c.series_uid == series_uid).values(released=False))


def ended(connection: sa.Connection, series_uids: Sequence[str], association: str, *, released: bool) -> None:
    """Released counts where no other Association is open and none broke off since the series was decided on."""
    these = series.c.series_uid.in_(series_uids)
    # First, for it locks the rows: of two Associations that end at once the second sees that the first is over.
    connection.execute(
        sa.update(series).where(these).values(aborted=sa.or_(series.c.aborted, sa.literal(not released)))
    )
    connection.execute(sa.delete(carrier).where(carrier.c.association == association))
    still_open = sa.select(carrier.c.association).where(carrier.c.series_uid == series.c.series_uid).exists()
    connection.execute(sa.update(series).where(these).values(released=sa.and_(~series.c.aborted, ~still_open)))


def marks(connection: sa.Connection) -> set[str]:
    """Of the processes that count an Association here: each begins with its own (`dicom_node.marks`)."""
    return set(connection.execute(sa.select(_MARK).distinct()).scalars())


def lost(connection: sa.Connection, dead: Collection[str]) -> list[str]:
    """What processes of these marks brought counts as aborted. The series that they were bringing."""
    theirs = _MARK.in_(dead)
    left = sa.select(carrier.c.series_uid).where(theirs)
    connection.execute(sa.update(series).where(series.c.series_uid.in_(left)).values(aborted=True))
    cut = list(connection.execute(left.distinct().order_by(carrier.c.series_uid)).scalars())
    connection.execute(sa.delete(carrier).where(theirs))
    return cut
