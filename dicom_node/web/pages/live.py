"""What an open page listens to: it asks for itself again when something changed."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from dicom_node.web.access.principal import Looks, still_counts

router = APIRouter()


@router.get("/events")
async def events(request: Request, principal: Looks) -> Response:
    # No buffering by a proxy before us: nginx looks at this header.
    headers = {"x-accel-buffering": "no"}
    stream = request.app.state.events.stream(partial(still_counts, request, principal))
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
