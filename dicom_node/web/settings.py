"""Config -> the settings as rows to read, secrets masked, and what an administrator may want to look at again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dicom_node.config import Config
from dicom_node.config.masked import resolved
from dicom_node.dimse.tls import CertificateFile, certificate_files, days_left
from dicom_node.errors import ConfigError, DicomNodeError

_SOON_DAYS = 30


def sections(config: Config) -> dict[str, list[tuple[str, str]]]:
    """Section -> its keys with values as text. Files that hold secrets are named, never read."""
    return {name: list(_flat(value, "")) for name, value in resolved(config).items()}


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


def warnings(config: Config, now: float) -> list[str]:
    found = []
    if config.receive.unknown_peers == "accept":
        found.append("receive.unknown_peers is accept: anybody who reaches the port may store images.")
    if config.receive.tls is None:
        found.append("receive.tls is not set: images arrive unencrypted.")
    if config.gate.lossy == "accept":
        found.append("gate.lossy is accept: images that were compressed with loss are analysed.")
    if not config.routes:
        found.append("There are no routes: no series is analysed.")
    for route in config.routes:
        if not route.destinations:
            found.append(f"Route {route.name} has no destinations: its results stay on the node.")
    for file in certificate_files(config):
        if (text := expiry(file, now)) is not None:
            found.append(text)
    return found


def expiry(file: CertificateFile, now: float) -> str | None:
    """A sentence where a certificate ends soon or cannot be read."""
    try:
        days = days_left(file, now)
    except (ConfigError, DicomNodeError, OSError):
        return f"{file.setting} has expired or cannot be read."
    return f"{file.setting} expires in {days} days." if days < _SOON_DAYS else None


def peer_certificates(config: Config, peer: str, now: float) -> list[str]:
    """When the certificates end that are used with a peer."""
    said = []
    for file in certificate_files(config):
        if file.setting.startswith(f"peers.{peer}.tls."):
            try:
                said.append(f"{file.setting.rpartition('.')[2]}: {days_left(file, now)} days left")
            except (ConfigError, DicomNodeError, OSError):
                said.append(f"{file.setting.rpartition('.')[2]}: expired or unreadable")
    return said
