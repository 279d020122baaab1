"""Models, routes, and what was promoted on them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from dicom_node.check.item import Item, tried
from dicom_node.check.machine import has_database
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.errors import BundleError, ConfigError, DicomNodeError
from dicom_node.rows import Row


def model(config: Config, name: str) -> str:
    from dicom_node.model.bundle import load_bundle

    folder = config.models[name].folder()
    if not folder.is_dir():
        raise BundleError(f"{folder} is no folder: give models.{name}.bundle the folder of a bundle")
    form = load_bundle(folder).form
    return f"{form.name} {form.version}"


def routes(config: Config) -> str:
    if not config.routes:
        raise ConfigError("no routes: every series will be rejected with NO_ROUTE; add one under routes:")
    silent = [route.name for route in config.routes if not route.destinations]
    if silent:
        raise ConfigError(f"route {', '.join(silent)} has no destinations: its results stay in the storage root")
    if not any(peer.may_send for peer in config.peers.values()) and config.receive.unknown_peers == "refuse":
        raise ConfigError("no peer may send: set may_send: true for the PACS, or receive.unknown_peers: accept")
    return ", ".join(route.name for route in config.routes)


def promotions(config: Config) -> Iterator[Item]:
    """What works instead of the model that a route names here."""
    from dicom_node.promotion import promotion_lines

    if not has_database(config):
        return
    database = Database(config.database_url())
    try:
        rows = database.promotions() if database.has_table("promotion") else {}
    except (DicomNodeError, SQLAlchemyError):
        return  # the item of the database says so
    finally:
        database.close()
    for route, ok, text in promotion_lines(config, rows):
        yield tried(f"promotion on {route}", partial(_promotion, config, rows[route], ok, text))


def _promotion(config: Config, row: Row, ok: bool, text: str) -> str:
    """It has an effect, and its bundle is the one that was promoted."""
    from dicom_node.model.bundle import load_bundle

    if not ok:
        raise ConfigError(text)
    now = load_bundle(config.models[row["model"]].folder()).sha256
    if now != row["bundle_sha256"]:
        raise BundleError(
            f"{text}; but the bundle is another now (sha256 {now[:12]}, promoted was {row['bundle_sha256'][:12]}): "
            f"roll back, and promote it when it has run in the shadow"
        )
    return text
