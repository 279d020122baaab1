"""Whether the process lives, whether it can do its work, and what the node measures."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from dicom_node.errors import OutOfSpace, StorageError
from dicom_node.metrics.exposition import CONTENT_TYPE
from dicom_node.web.access.principal import Denied, the_caller, the_node, this_principal
from dicom_node.web.node import Node

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that the node needs. text: for those who are logged in."""

    name: str
    ok: bool
    text: str


def checks(node: Node) -> tuple[Check, ...]:
    return _database(node), _storage(node), _disk(node)


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


@router.get("/healthz")
async def healthz() -> Response:
    """The process lives."""
    return JSONResponse({"alive": True})


@router.get("/readyz")
def readyz(request: Request) -> Response:
    """Database, storage and disk are there. What is wrong, /api/v1/health tells those who are logged in."""
    ready = all(check.ok for check in checks(the_node(request)))
    return JSONResponse({"ready": ready}, 200 if ready else 503)


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """What this machine's processes count, for Prometheus: to a token or a login, or to a process of this machine."""
    node = the_node(request)
    open_here = node.config.web.metrics == "loopback" and the_caller(request).local
    if not open_here and this_principal(request) is None:
        raise Denied(401, "Send a token.", {"WWW-Authenticate": "Bearer"})
    return Response(node.exposition.text(), media_type=CONTENT_TYPE)
