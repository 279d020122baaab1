"""How Associations are proposed, accepted, limited and ended -> tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dicom_node.config import ReceiveConfig, ReceiveTLS
from dicom_node.conformance.document import Table
from dicom_node.dimse import commitment, query
from dicom_node.dimse.admission import REJECTIONS
from dicom_node.dimse.contexts import (
    STORAGE_COMMITMENT,
    VERIFICATION,
    VERIFICATION_SYNTAXES,
    commitment_context,
    name_of,
)
from dicom_node.dimse.retrieve import GET, MOVE
from dicom_node.dimse.scu import FALLBACK
from dicom_node.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.peers import PeerConfig

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"  # PS3.7 A.2.1

_RESULTS = {0x01: "1 (rejected-permanent)", 0x02: "2 (rejected-transient)"}
_SOURCES = {0x01: "1 (service-user)", 0x02: "2 (service-provider, ACSE)", 0x03: "3 (service-provider, presentation)"}
_FAILURES = (
    ("no TCP or TLS connection, Association rejected or not answered in time", "Deliverer", "sent again later"),
    ("no Presentation Context accepted", "Deliverer", "the objects are parked for an operator"),
    (
        "abort, lost connection or no response in time",
        "Deliverer",
        "the object counts as unknown, and is sent again on a new Association",
    ),
    ("any of these", "Puller, Tools", "reported, with what to check; what came is kept"),
    ("abort or lost connection", "Receiver", "Instances answered with Success are kept, of an unfinished one nothing"),
    ("no A-ASSOCIATE-RQ, TLS handshake included, within the ARTIM time", "Receiver", "the connection is closed"),
    ("silence longer than the idle time", "Receiver", "the Association is aborted"),
    ("what is no PDU, or none that is due", "Receiver", "A-ABORT, and the connection is closed"),
)


def tables() -> Iterator[Table]:
    """All of them; the document says where each stands."""
    yield _parameters("receive_association", "Receiver")
    yield _parameters("deliver_association", "Deliverer", "1 to each destination, and 1 for Storage Commitment")
    yield _parameters("pull_association", "Puller", "1 for each pull")
    yield _accepted_contexts()
    yield _deliver_contexts()
    yield _pull_contexts()
    yield Table(
        name="rejections",
        title="Association Rejection by the Receiver",
        columns=("Result", "Source", "Reason/Diagnostic", "Condition"),
        rows=tuple(
            (_RESULTS[result], _SOURCES[source], f"{diagnostic} ({meaning})", when)
            for (result, source, diagnostic), (meaning, when) in REJECTIONS.items()
        ),
    )
    yield Table(
        name="failures",
        title="Communication Failure Behavior",
        columns=("Exception", "Application Entity", "Behavior"),
        rows=_FAILURES,
    )
    yield _ports()


def _parameters(name: str, entity: str, initiated: str = "") -> Table:
    """initiated: how many Associations it initiates at once; empty for the acceptor."""
    rows = [
        ("Application Context Name", APPLICATION_CONTEXT),
        ("Implementation Class UID", IMPLEMENTATION_CLASS_UID),
        ("Implementation Version Name", IMPLEMENTATION_VERSION_NAME),
        *(_initiator(initiated) if initiated else _acceptor()),
        ("Maximum number of outstanding asynchronous transactions", "1: not negotiated"),
        ("SOP Class Extended Negotiation, User Identity Negotiation", "not used"),
    ]
    return Table(name=name, title=f"Association Parameters for {entity}", columns=("Name", "Value"), rows=tuple(rows))


def _acceptor() -> list[tuple[str, str]]:
    receive = ReceiveConfig()
    return [
        ("Maximum PDU Length", f"{receive.max_pdu_bytes} (default)"),
        ("ARTIM Timeout", f"{receive.associate_timeout_s:g} s (default)"),
        ("Idle Timeout", f"{receive.idle_timeout_s:g} s (default)"),
        ("Maximum number of simultaneous Associations", f"{receive.max_associations} (default)"),
        ("The same for one peer", f"{receive.max_associations_per_peer} (default)"),
        ("Maximum size of an Instance", f"{receive.max_instance_mb} MB (default)"),
    ]


def _initiator(initiated: str) -> list[tuple[str, str]]:
    peer = PeerConfig.model_fields
    return [
        ("Maximum PDU Length", f"{peer['max_pdu_bytes'].default} (default)"),
        ("TCP Connect Timeout", f"{peer['connect_timeout_s'].default:g} s (default)"),
        ("Response Timeout (Association, DIMSE, release)", f"{peer['response_timeout_s'].default:g} s (default)"),
        ("Maximum number of simultaneous Associations", initiated),
    ]


def _accepted_contexts() -> Table:
    return _contexts(
        "accepted_contexts",
        "Presentation Contexts accepted by the Receiver",
        (name_of(VERIFICATION), VERIFICATION, _syntaxes(VERIFICATION_SYNTAXES), "SCP"),
        (
            name_of(STORAGE_COMMITMENT),
            STORAGE_COMMITMENT,
            _syntaxes(commitment_context().transfer_syntax),
            "SCP; SCU by SCP/SCU Role Selection",
        ),
        ("each of 5.2.5.2", "as there", "each of 5.2.5.2", "SCP"),
    )


def _deliver_contexts() -> Table:
    return _contexts(
        "deliver_contexts",
        "Presentation Contexts proposed by the Deliverer",
        ("that of each object", "as there", "the object's own", "SCU"),
        ("that of each object", "as there", _syntaxes(FALLBACK), "SCU"),
        (
            name_of(STORAGE_COMMITMENT),
            STORAGE_COMMITMENT,
            _syntaxes(commitment.SYNTAXES),
            "SCU; to report SCP by SCP/SCU Role Selection",
        ),
    )


def _pull_contexts() -> Table:
    return _contexts(
        "pull_contexts",
        "Presentation Contexts proposed by the Puller",
        *((name_of(uid), uid, _syntaxes(query.SYNTAXES), "SCU") for uid in (*query.MODELS, *MOVE, *GET)),
        (
            "each that is accepted, and the results of 5.2.5.2",
            "as there",
            "each of 5.2.5.2",
            "SCP by SCP/SCU Role Selection, with C-GET",
        ),
    )


def _contexts(name: str, title: str, *rows: tuple[str, str, str, str]) -> Table:
    columns = ("Abstract Syntax Name", "UID", "Transfer Syntaxes", "Role", "Extended Negotiation")
    return Table(name=name, title=title, columns=columns, rows=tuple((*row, "None") for row in rows))


def _syntaxes(uids: Iterable[str]) -> str:
    return ", ".join(f"{name_of(uid)} ({uid})" for uid in uids)


def _ports() -> Table:
    receive, secure = ReceiveConfig(), ReceiveTLS.model_fields
    return Table(
        name="ports",
        title="TCP Ports",
        columns=("Port", "Direction", "Default", "Use"),
        rows=(
            ("`receive.port`", "in", str(receive.port), "DICOM without TLS"),
            ("`receive.tls.port`", "in", f"{secure['port'].default}, open with `receive.tls` only", "DICOM with TLS"),
            ("`peers.NAME.port`", "out", "none", "DICOM to the peer"),
            ("that of `peers.NAME.dicomweb.url`", "out", "none", "HTTP or HTTPS to the peer"),
        ),
    )
