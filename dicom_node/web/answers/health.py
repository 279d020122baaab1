"""Database, storage and disk, tried -> whether the node can do its work; and who calls."""

from __future__ import annotations

import os
import uuid

import sqlalchemy as sa

from dicom_node.errors import OutOfSpace, StorageError
from dicom_node.web.access.principal import Principal
from dicom_node.web.answers.form import Form
from dicom_node.web.node import Node


class Check(Form):
    """One thing that the node needs. text: for those who are logged in."""

    name: str
    ok: bool
    text: str


class Health(Form):
    """ready: whether all checks are ok."""

    ready: bool
    checks: list[Check]


class Session(Form):
    """Who calls. csrf_token: for the header X-CSRF-Token of a change by login; null for a token."""

    name: str
    role: str
    method: str
    csrf_token: str | None


def session(who: Principal) -> Session:
    return Session(name=who.name, role=who.role, method=who.method, csrf_token=who.csrf)


def health(node: Node) -> Health:
    checks = [_database(node), _storage(node), _disk(node)]
    return Health(ready=all(check.ok for check in checks), checks=checks)


def _database(node: Node) -> Check:
    try:
        with node.database.engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
    except sa.exc.SQLAlchemyError:
        return Check(name="database", ok=False, text="does not answer")
    return Check(name="database", ok=True, text="answers")


def _storage(node: Node) -> Check:
    """By a file of one byte: permissions alone don't tell of a file system that went read-only or away."""
    probe = node.storage.path(f".web-{uuid.uuid4().hex}")
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, b".")
        finally:
            os.close(descriptor)
            probe.unlink()
    except OSError as err:
        return Check(name="storage", ok=False, text=f"cannot be written to: {err.strerror}")
    return Check(name="storage", ok=True, text="can be written to")


def _disk(node: Node) -> Check:
    try:
        node.storage.check_space()
        return Check(name="disk", ok=True, text=f"{node.storage.free_bytes() / 1e9:.1f} GB free")
    except (OutOfSpace, StorageError) as err:
        return Check(name="disk", ok=False, text=str(err))
    except OSError as err:
        return Check(name="disk", ok=False, text=f"does not answer: {err.strerror}")
