"""What an open page listens to: it asks for itself again when something changed."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from dicom_node.web.access.principal import Looks

router = APIRouter()


@router.get("/events")
async def events(request: Request, principal: Looks) -> Response:
    # No buffering by a proxy before us: nginx looks at this header.
    headers = {"x-accel-buffering": "no"}
    return StreamingResponse(request.app.state.events.stream(), media_type="text/event-stream", headers=headers)
