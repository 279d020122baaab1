"""The OpenAPI document: each answer that is no success is a problem (RFC 9457); how callers show who they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from dicom_node.web.problems import PROBLEM

_CONTENT = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The address is none.", "content": _CONTENT},
    401: {"description": "No login and no token, or one that does not count.", "content": _CONTENT},
    403: {
        "description": "The role does not allow it, or a change was not meant by a page of ours.",
        "content": _CONTENT,
    },
    413: {"description": "The body is too large.", "content": _CONTENT},
    422: {"description": "The request does not fit the form.", "content": _CONTENT},
    503: {"description": "The database or the storage does not answer now.", "content": _CONTENT},
}
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such thing.", "content": _CONTENT}}
GONE: dict[int | str, dict[str, Any]] = {410: {"description": "The file is gone.", "content": _CONTENT}}
CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"description": "Its state does not allow it; `detail` says why.", "content": _CONTENT}
}

_PROBLEM = {
    "type": "object",
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
            components = schema.setdefault("components", {})
            components.setdefault("schemas", {})["Problem"] = _PROBLEM
            components["securitySchemes"] = _SCHEMES
            schema["security"] = [{"token": []}, {"login": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    return made
