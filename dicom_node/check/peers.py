"""Each peer, by what it is used for: it answers, commits, speaks DICOMweb, has earlier CTs, can be pulled from."""

from __future__ import annotations

from datetime import datetime

from dicom_node.check.machine import has_database
from dicom_node.config import Config, PullConfig, RouteConfig
from dicom_node.db import Database
from dicom_node.errors import DeliveryError
from dicom_node.peers import PeerConfig
from dicom_node.rows import Row


def echo(config: Config, name: str) -> str:
    from dicom_node.dimse.scu import echo

    peer = config.peers[name]
    echo(peer, config.receive.ae_title)
    return f"{peer.ae_title} at {peer.host}:{peer.port} answers"


def commitment(config: Config, name: str) -> str:
    from dicom_node.dimse.commitment import negotiate

    peer = config.peers[name]
    negotiate(peer, config.receive.ae_title)
    return f"{peer.ae_title} takes requests for Storage Commitment"


def dicomweb(peer: PeerConfig) -> str:
    from dicom_node.dicomweb.client import service_answers, settings

    service_answers(peer)
    return f"{settings(peer).url} answers"


def comparison(config: Config, route: RouteConfig) -> str:
    """The archive answers a query, and is ready to give back what we once sent it."""
    from dicom_node.dimse.contexts import CT_IMAGE, REPORT_CLASS, SEGMENTATION_CLASSES
    from dicom_node.dimse.retrieve import sends_on_get
    from dicom_node.pull import archive_answers

    name = str(route.compare_with)
    peer = config.peers[name]
    archive_answers(config, name, peer)
    if peer.retrieve_by == "c_get":
        wanted = {CT_IMAGE: "CT", REPORT_CLASS: "our SR", SEGMENTATION_CLASSES[0]: "our SEG"}
        sent = sends_on_get(peer, config.receive.ae_title, tuple(wanted))
        lacking = [what for uid, what in wanted.items() if uid not in sent]
        if lacking:
            raise DeliveryError(f"{name} sends no {' and no '.join(lacking)} on C-GET: set its retrieve_by to c_move")
    text = f"{name} answers queries"
    if name not in route.destinations:
        text += "; results of this route do not go there: only what it gets otherwise is found"
    return text


def pull(config: Config, pull: PullConfig) -> str:
    """The archive answers a query, and the last round had no problem.

    Whether it knows us for C-MOVE only a C-MOVE of what it has can tell, and that is the round's own work.
    """
    from dicom_node.pull import archive_answers

    archive_answers(config, pull.source, config.peers[pull.source])
    last = _last_round(config, pull.name)
    if last is None:
        return f"{pull.source} answers queries; no round has run yet"
    ended = "runs, or was cut short" if last["ended_at"] is None else f"fetched {last['fetched']} series"
    when = datetime.fromtimestamp(last["started_at"]).astimezone()
    text = f"the round of {when:%Y-%m-%d %H:%M} {ended}, {last['left_over']} are left"
    if last["problem"]:
        raise DeliveryError(f"{text}: {last['problem']}")
    return f"{pull.source} answers queries; {text}"


def _last_round(config: Config, name: str) -> Row | None:
    if not has_database(config):
        return None
    database = Database(config.database_url())
    try:
        return database.pull_round(name) if database.has_table("pull_round") else None
    finally:
        database.close()
