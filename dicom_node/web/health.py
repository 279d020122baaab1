"""Whether the process lives, whether it can do its work, and what the node measures."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from dicom_node.metrics.exposition import CONTENT_TYPE
from dicom_node.web.access.principal import Denied, the_caller, the_node, this_principal
from dicom_node.web.answers.health import health

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
async def healthz() -> Response:
    """The process lives."""
    return JSONResponse({"alive": True})


@router.get("/readyz")
def readyz(request: Request) -> Response:
    """Database, storage and disk are there. What is wrong, /api/v1/health tells those who are logged in."""
    ready = health(the_node(request)).ready
    return JSONResponse({"ready": ready}, 200 if ready else 503)


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """What this machine's processes count, for Prometheus: to a token or a login, or to a process of this machine."""
    node = the_node(request)
    open_here = node.config.web.metrics == "loopback" and the_caller(request).local
    if not open_here and this_principal(request) is None:
        raise Denied(401, "Send a token.", {"WWW-Authenticate": "Bearer"})
    return Response(node.exposition.text(), media_type=CONTENT_TYPE)
