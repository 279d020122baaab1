"""Settings as nested values -> rows to read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def sections(settings: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Section -> its keys with values as text."""
    return {name: list(_flat(value, "")) for name, value in settings.items()}


def _flat(value: Any, at: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _flat(below, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for number, below in enumerate(value):
            name = str(below.get("name", number)) if isinstance(below, dict) else str(number)
            yield from _flat(below, f"{at}.{name}" if at else name)
    elif isinstance(value, list):
        yield at, ", ".join(map(str, value)) or "none"
    elif isinstance(value, dict) or value is None:
        yield at, "not set"
    else:
        yield at, ("yes" if value else "no") if isinstance(value, bool) else str(value)
