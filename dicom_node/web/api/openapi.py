"""The OpenAPI document: each answer that is no success is a problem (RFC 9457); how callers show who they are."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from dicom_node.web.problems import PROBLEM


def _problem(status: int, description: str, detail: str) -> dict[int | str, dict[str, Any]]:
    """detail: of the example."""
    example = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    content = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}}
    return {status: {"description": description, "content": content}}


PROBLEMS = {
    **_problem(400, "The address is none.", "There is a NUL in the address: no name or id here has one."),
    **_problem(401, "No login and no token, or one that does not count.", "Log in first, or send a token."),
    **_problem(
        403,
        "The role does not allow it, or a change was not meant by a page of ours.",
        "This needs the role operator, you have viewer: ask who runs the node.",
    ),
    **_problem(413, "The body is too large.", "The request is too large: 65536 bytes are read."),
    **_problem(422, "The request does not fit.", "The request does not fit what this needs: `errors` says where."),
    **_problem(
        503,
        "Database or storage does not answer now; the header Retry-After says when to try again.",
        "Database or storage does not answer. Try again in a few seconds; dicom-node check says what is wrong.",
    ),
}
NOT_FOUND = _problem(
    404,
    "There is no such thing.",
    "There is no such job: it was purged, or its series was decided on again. See the list of jobs.",
)
GONE = _problem(410, "The file is gone.", "The file is gone: a purge took it.")
CONFLICT = _problem(
    409, "Its state does not allow it; `detail` says why.", "job 1.2.3-0a1b2c3d4e5f6071 is running; nothing to retry"
)

_PROBLEM = {
    "type": "object",
    "description": "Why a request was refused (RFC 9457), and what to do, in `detail`. errors: where it does not fit.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["where", "what"],
                "properties": {
                    "where": {"type": "array", "items": {"type": "string"}},
                    "what": {"type": "string"},
                },
            },
        },
    },
}
_SCHEMES = {
    "token": {"type": "http", "scheme": "bearer", "description": "`dicom-node token add`"},
    "login": {
        "type": "apiKey",
        "in": "cookie",
        "name": "dicom_node",
        "description": "A login in the browser; with TLS the cookie is called __Host-dicom_node. A change also needs "
        "the header X-CSRF-Token with the `csrf_token` of /api/v1/session, and an Origin of ours.",
    },
}


def document(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """For app.openapi. Made once."""

    def made() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for operation in (each for path in schema["paths"].values() for each in path.values()):
                # The name of a function says less than the sentence below it.
                operation["summary"] = operation["description"].partition("\n")[0].rstrip(".")
            components = schema.setdefault("components", {})
            components.setdefault("schemas", {})["Problem"] = _PROBLEM
            components["securitySchemes"] = _SCHEMES
            schema["security"] = [{"token": []}, {"login": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    return made
