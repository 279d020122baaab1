"""Settings -> what the node goes by, secrets masked, and what an administrator may want to look at again."""

from __future__ import annotations

from typing import Any

from dicom_node.config import Config
from dicom_node.config.masked import resolved
from dicom_node.dimse.tls import CertificateFile, certificate_files, days_left
from dicom_node.errors import DicomNodeError
from dicom_node.promotion import promotion_lines
from dicom_node.web.answers.form import Form
from dicom_node.web.node import Node

_SOON_DAYS = 30


class Promotion(Form):
    """A model that works instead of the one that the settings name. in_force: false: it has no effect, as text says."""

    route: str
    in_force: bool
    text: str


class Configuration(Form):
    """settings: as the process read them, defaults included, secrets masked. promotions: what stands over them."""

    settings: dict[str, Any]
    promotions: list[Promotion]
    warnings: list[str]


def configuration(node: Node) -> Configuration:
    lines = promotion_lines(node.config, node.database.promotions())
    return Configuration(
        settings=resolved(node.config),
        promotions=[Promotion(route=route, in_force=in_force, text=text) for route, in_force, text in lines],
        warnings=warnings(node.config, node.now()),
    )


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
        if (text := _expiry(file, now)) is not None:
            found.append(text)
    return found


def _expiry(file: CertificateFile, now: float) -> str | None:
    """A sentence where a certificate ends soon or cannot be read."""
    try:
        days = days_left(file, now)
    except (DicomNodeError, OSError):
        return f"{file.setting} has expired or cannot be read."
    return f"{file.setting} expires in {days} days." if days < _SOON_DAYS else None
