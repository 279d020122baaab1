"""Config -> plain values to show, with every secret masked."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import make_url

from dicom_node.config.node import Config

MASK = "***"
_SECRET = re.compile(r"(^|_)(password|secret|token|api_key)$")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def resolved(config: Config) -> dict[str, Any]:
    """What the node goes by, defaults included. Files of secrets are named, not read."""
    shown: dict[str, Any] = config.model_dump(mode="json", by_alias=True)
    shown["database"]["url"] = make_url(config.database_url()).render_as_string(hide_password=True)
    masked: dict[str, Any] = _masked(shown)
    return masked


def _masked(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _masked(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_masked(one, key) for one in value]
    if isinstance(value, str):
        return MASK if _SECRET.search(key) and value else _CREDENTIALS.sub(MASK, value)
    return value
