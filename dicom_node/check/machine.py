"""What this machine must have: space, a database, certificates that are valid, a device."""

from __future__ import annotations

import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.dimse.contexts import check_preferences
from dicom_node.dimse.tls import DAY_S, WARN_DAYS, CertificateFile, days_left
from dicom_node.errors import StorageError


def storage(config: Config) -> str:
    # Nothing is made here: whoever checks may be another user than the one who runs the node.
    root, least_gb = config.storage.root.absolute(), config.storage.min_free_gb
    nearest = next(folder for folder in (root, *root.parents) if folder.exists())
    if not nearest.is_dir():
        raise StorageError(f"storage.root cannot be written to: {nearest} is no folder")
    if not os.access(nearest, os.W_OK):
        missing = "" if nearest == root else f"storage.root {root} is not there, and "
        raise StorageError(f"{missing}{nearest} cannot be written to by this user")
    free_gb = shutil.disk_usage(nearest).free / 1e9
    if free_gb < least_gb:
        raise StorageError(f"{free_gb:.1f} GB free, storage.min_free_gb is {least_gb}: free some space")
    return f"{free_gb:.1f} GB free in {nearest}" + ("" if nearest == root else f"; {root} is made at the first start")


def has_database(config: Config) -> bool:
    """Whether there is one to look into: to open SQLite's would make its file, as a file of whoever checks."""
    url = sa.make_url(config.database_url())
    if url.get_backend_name() == "sqlite":
        try:
            Path(str(url.database)).stat()
        except FileNotFoundError:
            return False
        except OSError:
            pass  # the look into it says what is wrong
    return True


def database(config: Config) -> str:
    if not has_database(config):
        return "sqlite; its tables are made at the first start"
    database = Database(config.database_url())
    try:
        return database.check()
    finally:
        database.close()


def preferences(config: Config) -> str:
    check_preferences(config)
    return "each peer's accept_first can be received"


def traces(config: Config) -> str:
    from dicom_node import tracing

    tracing.check()
    assert config.traces is not None  # noqa: S101  the caller looked
    return f"each series' trace goes to {config.traces.endpoint}"


def certificate(file: CertificateFile) -> str:
    days = days_left(file, time.time())
    if days < WARN_DAYS:
        return f"{file.path} expires in {days} days: renew it, then restart"
    until = datetime.fromtimestamp(time.time() + days * DAY_S, UTC)
    return f"{file.path} is valid until {until:%Y-%m-%d} ({days} days)"


def device(config: Config) -> str:
    from dicom_node.model.detector import checked_device

    return f"{checked_device(config.work.device)} is here"
