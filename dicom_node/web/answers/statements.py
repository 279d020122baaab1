"""A statement -> its rows, read only; what every subject reads by."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from dicom_node.connection import answered
from dicom_node.db import Database, Row

# An object in one of these states is still to be sent.
UNSENT = ("waiting", "sending", "unknown", "parked")


def rows_of(database: Database, query: sa.Select[Any]) -> list[Row]:
    with answered(), database.engine.connect().execution_options(read_only=True) as connection:
        return list(connection.execute(query).mappings())


def value_of(database: Database, query: sa.Select[Any]) -> Any:
    with answered(), database.engine.connect().execution_options(read_only=True) as connection:
        return connection.execute(query).scalar()
