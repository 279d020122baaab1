"""The node over HTTP: today, peers and their echo, models, settings, health, and who calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from dicom_node.agreements import agreement_of
from dicom_node.config import ModelConfig
from dicom_node.config.masked import resolved
from dicom_node.errors import ConfigError, DeliveryError
from dicom_node.promotion import Pair, pair_of, promotion_lines
from dicom_node.web import health, queries
from dicom_node.web.access.principal import Acts, Denied, Looks, ReadsSettings
from dicom_node.web.api import forms
from dicom_node.web.api.jobs import TheNode
from dicom_node.web.api.openapi import CONFLICT, NOT_FOUND
from dicom_node.web.node import Node

router = APIRouter(tags=["node"])

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
_MOST_CARD_BYTES = 200_000


@router.get("/session")
def session(who: Looks) -> forms.Session:
    """Who calls, and with which role."""
    return forms.Session(name=who.name, role=who.role, method=who.method, csrf_token=who.csrf)


@router.get("/today")
def today(_who: Looks, node: TheNode) -> forms.Today:
    """Series and jobs since midnight, in the node's own time zone."""
    found = queries.today(node.database, midnight(node.now()))
    values = asdict(found) | {
        "since": forms.when(found.since),
        "oldest_waiting_at": forms.when(found.oldest_waiting_at),
    }
    return forms.Today(**values)


@router.get("/peers")
def peers(_who: Looks, node: TheNode) -> list[forms.Peer]:
    """The peers of the settings, and what came of them and went to them."""
    since = midnight(node.now())
    return [_peer(node, name, since) for name in node.config.peers]


@router.post("/peers/{name}/echo", responses={**NOT_FOUND, **CONFLICT})
def echo(who: Acts, node: TheNode, name: Annotated[str, Path(pattern=_NAME)]) -> forms.Echo:
    """Call a peer by C-ECHO. It takes as long as the peer's timeouts allow."""
    from dicom_node.dimse.scu import echo as run_echo

    peer = node.config.peers.get(name)
    if peer is None:
        raise Denied(404, "There is no such peer.")
    if peer.port is None:
        raise Denied(409, "This peer has no port: it can't be called.")
    node.trail.changed(who, "peer echo", name)
    try:
        run_echo(peer, node.config.receive.ae_title)
    except DeliveryError as error:
        return forms.Echo(peer=name, ok=False, message=str(error))
    return forms.Echo(peer=name, ok=True, message=f"{peer.ae_title} at {peer.host}:{peer.port} answers")


@router.get("/models")
def models(_who: Looks, node: TheNode) -> list[forms.Model]:
    """The models of the settings, their cards, and which routes use them, promotions considered."""
    promotions = node.database.promotions()
    pairs = {route.name: pair_of(node.config, route, promotions) for route in node.config.routes}
    return [_model(pairs, name, model) for name, model in node.config.models.items()]


@router.get("/models/agreement")
def agreement(
    _who: Looks,
    node: TheNode,
    route: Annotated[str | None, Query(pattern=_NAME)] = None,
    days: Annotated[float | None, Query(ge=0, le=36500, description="Only series of so many last days.")] = None,
) -> dict[str, Any]:
    """How far the second model of a route agrees with the first, on series that both have seen; per pair of bundles."""
    since = 0.0 if days is None else node.now() - days * 86400
    return agreement_of(node.database, route=route, since=since)


@router.get("/config")
def config(_who: ReadsSettings, node: TheNode) -> dict[str, Any]:
    """The settings that the node goes by, defaults included, secrets masked; `promotions` stand over them."""
    lines = promotion_lines(node.config, node.database.promotions())
    promotions = [{"route": route, "in_force": in_force, "text": text} for route, in_force, text in lines]
    return {**resolved(node.config), "promotions": promotions}


@router.get("/health")
def node_health(_who: Looks, node: TheNode) -> forms.Health:
    """What /readyz looks at, in words."""
    found = health.checks(node)
    return forms.Health(
        ready=all(check.ok for check in found), checks=[forms.Check(**asdict(check)) for check in found]
    )


def midnight(now: float) -> float:
    """The last midnight of this machine's time zone, in seconds since the epoch."""
    return datetime.fromtimestamp(now).astimezone().replace(hour=0, minute=0, second=0, microsecond=0).timestamp()


def _peer(node: Node, name: str, since: float) -> forms.Peer:
    peer = node.config.peers[name]
    sent = queries.destination(node.database, name, since)
    came = queries.sender(node.database, peer.ae_title, since)
    return forms.Peer(
        name=name,
        ae_title=peer.ae_title,
        host=peer.host,
        port=peer.port,
        tls=peer.tls is not None,
        may_send=peer.may_send,
        may_receive=peer.may_receive,
        condition=sent.condition,
        unsent=sent.unsent,
        arrived_today=sent.arrived,
        last_sent_at=forms.when(sent.arrived_at),
        series_today=came.series,
        last_received_at=forms.when(came.last_at),
    )


def _model(pairs: Mapping[str, Pair], name: str, model: ModelConfig) -> forms.Model:
    where = {
        "routes": [route for route, pair in pairs.items() if pair.model == name],
        "promoted_routes": [route for route, pair in pairs.items() if pair.model == name and pair.promoted_over],
        "shadow_routes": [route for route, pair in pairs.items() if pair.shadow == name],
    }
    try:
        folder = model.folder()
        bundle = json.loads((folder / "bundle.json").read_text())
        with (folder / "MODEL_CARD.md").open(encoding="utf-8", errors="replace") as file:
            card = file.read(_MOST_CARD_BYTES)
        return forms.Model(
            name=name, bundle_name=str(bundle["name"]), version=str(bundle["version"]), card=card, **where
        )
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return forms.Model(name=name, bundle_name="cannot be read", version="", card="", **where)
