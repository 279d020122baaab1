"""What the web role works with."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.engine import EngineClient
from dicom_node.metrics.exposition import Exposition
from dicom_node.storage import Storage
from dicom_node.web.access.rows import AccessRows
from dicom_node.web.access.users import UsersFile
from dicom_node.web.trail import Trail


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Whom the node knows. proxy_key: of this process: where the proxy logs in, CSRF tokens are made by it."""

    users: UsersFile
    rows: AccessRows
    proxy_key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """now: seconds since the epoch."""

    config: Config
    database: Database
    storage: Storage
    engine: EngineClient
    access: Access
    trail: Trail
    exposition: Exposition
    now: Callable[[], float] = time.time


def open_access(config: Config, *, now: Callable[[], float] = time.time) -> Access:
    """The database must be up to date."""
    return Access(users=UsersFile(config.web_users_file()), rows=AccessRows(config.database_url(), now=now))
