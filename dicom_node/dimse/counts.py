"""Series -> C-FIND at SERIES level -> how many Instances the peer has, or why it could not tell. Never an error."""

from __future__ import annotations

import logging

from dicom_node.completeness import ArchiveCount
from dicom_node.dimse.query import QueryFailed, series_instance_count
from dicom_node.dimse.requestor import NothingAccepted, Rejected
from dicom_node.errors import DeliveryError
from dicom_node.peers import PeerConfig

log = logging.getLogger(__name__)


def count_instances(peer: PeerConfig, calling_ae: str, *, study_uid: str, series_uid: str) -> ArchiveCount:
    """By NumberOfSeriesRelatedInstances, or by the Instances themselves where the peer does not support that key.

    Takes as long as the peer's timeouts at most. The problem is one of few texts: reports quote it.
    """
    if peer.port is None:
        return ArchiveCount(ae_title=peer.ae_title, problem="has no port to be asked at")
    try:
        instances = series_instance_count(peer, calling_ae, study_uid, series_uid)
    except DeliveryError as err:
        log.warning("archive did not tell a count", extra={"action": "count", "peer": peer.ae_title, "why": str(err)})
        return ArchiveCount(ae_title=peer.ae_title, problem=_problem(err))
    if instances is None:
        return ArchiveCount(ae_title=peer.ae_title, problem="does not know the series")
    return ArchiveCount(ae_title=peer.ae_title, instances=instances)


def _problem(err: DeliveryError) -> str:
    if isinstance(err, QueryFailed | NothingAccepted):
        return "can't be asked for a count"
    return "refuses to be asked" if isinstance(err, Rejected) else "does not answer"
