"""What holds for every request and answer: security headers, no large bodies, no plain line around the proxy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request

from dicom_node.config import WebConfig
from dicom_node.web.access.caller import caller
from dicom_node.web.problems import problem, unexpected

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MOST_BYTES = 64 * 1024
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "x-frame-options": "DENY",
}


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: Any, web: WebConfig) -> None:
        self._app, self._web = app, web

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        who = caller(scope, self._web)

        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                # Only what is the same for everybody may be kept anywhere.
                headers.setdefault("cache-control", "no-store")
            await send(message)

        if self._web.tls is None and not who.by_proxy and not who.local:
            await problem(403, "This node answers to its proxy only: call that one's address.")(scope, receive, guarded)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdigit() or int(length) > MOST_BYTES:
            await problem(413, f"The request is too large: {MOST_BYTES} bytes are read.")(scope, receive, guarded)
            return
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            # PostgreSQL has no NUL in text, and nothing of ours has one in its name.
            await problem(400, "There is a NUL in the address: no name or id here has one.")(scope, receive, guarded)
            return
        try:
            await self._app(scope, _counted(receive), guarded)
        except Exception as err:  # noqa: BLE001  the top of a request: the server would log it with its text
            answer = unexpected(Request(scope), err)
            if not started:
                await answer(scope, receive, guarded)


def _counted(receive: Receive) -> Receive:
    """A body without a length is cut off at the same size."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > MOST_BYTES:
                return {"type": "http.disconnect"}
        return message

    return counted
