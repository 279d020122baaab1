"""Config -> plain values to show, with every secret masked."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import make_url

from dicom_node.config.node import Config

MASK = "***"
_SECRET = re.compile(r"(^|_)(password|secret|token|api_key)$")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_QUERY = re.compile(r"(?<=://)([^?\s]*)\?\S*")


def resolved(config: Config) -> dict[str, Any]:
    """What the node goes by, defaults included. Files of secrets are named, not read."""
    shown: dict[str, Any] = config.model_dump(mode="json", by_alias=True)
    webhook = shown["alerts"]["webhook"]
    if webhook is not None:
        webhook["url"] = _host_of(webhook["url"])
    masked: dict[str, Any] = _masked(shown)
    masked["database"]["url"] = _database_url(config)
    return masked


def _database_url(config: Config) -> str:
    """Without the password, and without the query: that may hold one too."""
    return make_url(config.database_url()).set(query={}).render_as_string(hide_password=True)


def _host_of(url: str) -> str:
    """Who has the path of a webhook may post to it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/{MASK}"


def _masked(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _masked(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_masked(one, key) for one in value]
    if isinstance(value, str):
        shown = _QUERY.sub(r"\1", _CREDENTIALS.sub(MASK, value))
        return MASK if _SECRET.search(key) and value else shown
    return value
