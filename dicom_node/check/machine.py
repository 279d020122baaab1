"""What this machine must have: space, a database, certificates that are valid, a device."""

from __future__ import annotations

import os
import shutil
import time
from datetime import UTC, datetime

from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.dimse.contexts import check_preferences
from dicom_node.dimse.tls import DAY_S, WARN_DAYS, CertificateFile, days_left
from dicom_node.errors import StorageError
from dicom_node.storage import Storage


def storage(config: Config) -> str:
    root, least_gb = config.storage.root, config.storage.min_free_gb
    if root.exists():
        storage = Storage(root, min_free_gb=least_gb)
        storage.check_space()
        return f"{storage.free_bytes() / 1e9:.1f} GB free in {root}"
    # Nothing is made here: whoever checks may be another user than the one who runs the node.
    nearest = next(folder for folder in root.absolute().parents if folder.exists())
    if not os.access(nearest, os.W_OK):
        raise StorageError(f"storage.root {root} is not there, and {nearest} cannot be written to by this user")
    free_gb = shutil.disk_usage(nearest).free / 1e9
    if free_gb < least_gb:
        raise StorageError(f"{free_gb:.1f} GB free, storage.min_free_gb is {least_gb}: free some space")
    return f"{free_gb:.1f} GB free in {nearest}; {root} is made at the first start"


def database(config: Config) -> str:
    if config.database.url is None and not config.storage.root.exists():
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
