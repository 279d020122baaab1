"""Settings, ledger and series rows -> each peer: what came from it, what went to it, its certificates; its echo."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.dimse.tls import certificate_files, days_left
from dicom_node.errors import DicomNodeError
from dicom_node.ledger import ARRIVED
from dicom_node.web.answers.form import Form, midnight, when
from dicom_node.web.answers.statements import UNSENT, rows_of, value_of
from dicom_node.web.node import Node

Condition = Literal["up", "down", "idle"]


class Destination(Form):
    """What the ledger says of one destination. condition: as the last attempt to send ended; idle where nothing was
    ever sent. unsent: objects by state, of all times. arrived_today: objects. last_sent_at: the last one that it took;
    last_failed_at: the last one that it did not, of those still due."""

    name: str
    condition: Condition
    unsent: dict[str, int]
    arrived_today: int
    last_sent_at: datetime | None
    last_failed_at: datetime | None


class Sender(Form):
    """What came under one AE title. last_received_at: its last image of all times."""

    series_today: int
    last_received_at: datetime | None


class Certificate(Form):
    """A certificate that is used with a peer. use: its key in the settings. days_left: null: expired or unreadable."""

    use: str
    days_left: int | None


class Peer(Form):
    """sender: null where it may not send to us. destination: null where nothing can be sent to it.

    profile: which objects it gets. deliver_by: c_store or stow_rs.
    """

    name: str
    ae_title: str
    host: str
    port: int | None
    tls: bool
    may_send: bool
    may_receive: bool
    profile: str
    deliver_by: str
    sender: Sender | None
    destination: Destination | None
    certificates: list[Certificate]


class Echo(Form):
    """message: what came of it, in words. took_s: null where it did not answer."""

    peer: str
    ok: bool
    message: str
    took_s: float | None


def peers(node: Node) -> list[Peer]:
    since = midnight(node.now())
    return [_peer(node, name, since) for name in node.config.peers]


def destination(database: Database, name: str, since: float) -> Destination:
    d = schema.delivery.c
    due = sa.select(d.state, sa.func.count().label("count")).where(d.destination == name, d.state.in_(UNSENT))
    tried = sa.select(sa.func.max(d.changed_at)).where(
        d.destination == name, d.state.in_(("waiting", "unknown", "parked")), d.attempts > 0
    )
    last = [
        value_of(database, sa.select(sa.func.max(d.changed_at)).where(d.destination == name, d.state == state))
        for state in ARRIVED
    ]
    arrived = sa.select(sa.func.count()).where(d.destination == name, d.state.in_(ARRIVED), d.changed_at >= since)
    sent_at, failed_at = max((at for at in last if at is not None), default=None), value_of(database, tried)
    return Destination(
        name=name,
        condition=_condition(sent_at, failed_at),
        unsent={row["state"]: int(row["count"]) for row in rows_of(database, due.group_by(d.state))},
        arrived_today=int(value_of(database, arrived)),
        last_sent_at=when(sent_at),
        last_failed_at=when(failed_at),
    )


def _condition(sent_at: float | None, failed_at: float | None) -> Condition:
    if failed_at is not None and (sent_at is None or failed_at > sent_at):
        return "down"
    return "idle" if sent_at is None else "up"


def _peer(node: Node, name: str, since: float) -> Peer:
    peer = node.config.peers[name]
    return Peer(
        name=name,
        ae_title=peer.ae_title,
        host=peer.host,
        port=peer.port,
        tls=peer.tls is not None,
        may_send=peer.may_send,
        may_receive=peer.may_receive,
        profile=peer.profile,
        deliver_by=peer.deliver_by,
        sender=_sender(node.database, peer.ae_title, since) if peer.may_send else None,
        destination=destination(node.database, name, since) if peer.can_receive else None,
        certificates=_certificates(node.config, name, node.now()),
    )


def _sender(database: Database, ae_title: str, since: float) -> Sender:
    s = schema.series.c
    came = sa.select(sa.func.count()).where(s.source_ae == ae_title, s.last_at >= since)
    last = sa.select(sa.func.max(s.last_at)).where(s.source_ae == ae_title)
    return Sender(series_today=int(value_of(database, came)), last_received_at=when(value_of(database, last)))


def _certificates(config: Config, peer: str, now: float) -> list[Certificate]:
    found = []
    for file in certificate_files(config):
        if file.setting.startswith(f"peers.{peer}.tls."):
            try:
                days = days_left(file, now)
            except (DicomNodeError, OSError):
                days = None
            found.append(Certificate(use=file.setting.rpartition(".")[2], days_left=days))
    return found
