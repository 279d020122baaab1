"""A node that exists -> its rows, files and queues, for as long as a command needs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node import logs
from dicom_node.config import Config, load_config
from dicom_node.errors import ConfigError

if TYPE_CHECKING:
    from dicom_node.db import Database
    from dicom_node.engine import EngineClient
    from dicom_node.storage import Storage


@contextmanager
def rows(config: Path, *, called: str = "cli") -> Iterator[tuple[Config, Database]]:
    """Settings and database. called: what log lines say of this process.

    Raises ConfigError where no node has run with these settings.
    """
    from dicom_node.db import Database

    settings = load_config(config)
    logs.configure("error", "text", called)
    if settings.database.url is None and not settings.storage.root.is_dir():
        raise ConfigError(f"no node has run with {config} yet: storage.root {settings.storage.root} is not there")
    database = Database(settings.database_url())
    try:
        database.migrate()
        yield settings, database
    finally:
        database.close()


@contextmanager
def counted(settings: Config) -> Iterator[None]:
    """What the command does is counted beside what the roles do, and shown by them.

    Not as another user than theirs, as root: its files would be closed to them, and a folder that it made to their own.
    """
    from dicom_node import metrics

    folder = settings.metrics_folder()
    nearest = next(each for each in (folder, *folder.parents) if each.exists())
    if nearest.stat().st_uid == os.geteuid():
        metrics.start(folder, "command")
    try:
        yield
    finally:
        metrics.stop()


@contextmanager
def rows_and_files(config: Path) -> Iterator[tuple[Storage, Database]]:
    """Storage and database."""
    from dicom_node.storage import Storage

    with rows(config) as (settings, database):
        yield Storage(settings.storage.root), database


@contextmanager
def rows_and_queues(config: Path) -> Iterator[tuple[Database, EngineClient]]:
    """Database and job engine, which takes a while to import."""
    from dicom_node.engine import EngineClient, migrate

    with rows(config) as (settings, database), counted(settings):
        migrate(settings.database_url())
        client = EngineClient(settings.database_url())
        try:
            yield database, client
        finally:
            client.close()
