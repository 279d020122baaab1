"""The models of config.yaml -> tables of what can be configured: default and range as the code checks them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter

from dicom_node.config import (
    AssembleConfig,
    DeliverConfig,
    PriorsConfig,
    PullConfig,
    ReceiveConfig,
    ReceiveTLS,
    RetentionConfig,
    RouteConfig,
    StorageConfig,
)
from dicom_node.conformance.document import Table
from dicom_node.fields import AE_TITLE_PATTERN
from dicom_node.peers import DicomWebConfig, PeerConfig, PeerTLS
from dicom_node.profiles import SiteProfile

_COLUMNS = ("Parameter", "Meaning", "Configurable", "Default", "Range")

_RECEIVE = {
    "ae_title": "our AE title: called by senders, calling where we open Associations",
    "host": "address to listen on",
    "port": "TCP port without TLS; null: only the port with TLS is open",
    "tls": "a port with TLS; see Secure Transport",
    "processes": "acceptor processes that share port and Associations",
    "journal_mb": "size of the journal of received Instances of one process, MB; 0: none",
    "max_pdu_bytes": "maximum PDU size that we receive, bytes",
    "max_associations": "maximum number of simultaneous Associations accepted",
    "max_associations_per_peer": "the same for one calling AE",
    "max_instance_mb": "largest Instance taken, MB",
    "associate_timeout_s": "seconds from connection to Association request (ARTIM timer)",
    "idle_timeout_s": "seconds an Association may be silent, also within a PDU; 0: for ever",
    "unknown_peers": "callers that are no peer: refused, or accepted by any AE title and address",
    "also_accept": "groups of Storage SOP Classes beside CT Image Storage; see 5.2.5.2",
}
_RECEIVE_TLS = {
    "port": "TCP port with TLS",
    "certificate": "our certificate, PEM",
    "key": "its key, PEM",
    "ca": "who vouches for certificates of callers, PEM",
    "client_certificate": "whether a caller must show a certificate",
    "min_version": "lowest TLS version",
}
_PEER_TLS = {
    "ca": "who vouches for the peer's certificate, PEM",
    "certificate": "our certificate where the peer asks for one, PEM",
    "key": "its key, PEM",
    "min_version": "lowest TLS version",
    "check_host": "the certificate must name the peer's host",
}
_PEER = {
    "ae_title": "its AE title",
    "host": "its name or IP address",
    "port": "its TCP port; null: it is never called",
    "tls": "calls to it use TLS; see Secure Transport",
    "dicomweb": "its DICOMweb services; see 6.3",
    "may_send": "its Associations are accepted",
    "may_receive": "objects may be sent to it",
    "may_be_queried": "it may be queried and retrieved from",
    "may_commit": "it is asked for Storage Commitment of what it stored",
    "may_correct": "whether corrected results that it stores here are compared with ours",
    "deliver_by": "how objects are sent to it",
    "profile": "which results it gets, and in which form; see A.A",
    "retrieve_by": "how objects are retrieved from it",
    "from": "addresses or networks it calls from; empty: its host alone",
    "certificate_names": "names, one of which its client certificate must bear",
    "quiet_time_s": "seconds without a new Instance until its series counts as complete; null: assemble.quiet_time_s",
    "called_as": "AE title by which it calls us; null: receive.ae_title",
    "max_associations": "its own limit of simultaneous Associations; null: receive.max_associations_per_peer",
    "accept_first": "Transfer Syntaxes that win where it offers several; empty: the order of 5.2.5.2",
    "max_pdu_bytes": "maximum PDU size that we receive on Associations to it, bytes",
    "connect_timeout_s": "seconds until the TCP connection stands",
    "response_timeout_s": "seconds for A-ASSOCIATE-AC, each DIMSE response and A-RELEASE-RP",
}
_STORAGE = {
    "min_free_gb": "GB that must be free for an Instance to be accepted",
    "clean_below_gb": "GB of free space below which series are deleted; null: none for want of space",
}
_ASSEMBLE = {
    "quiet_time_s": "seconds without a new Instance until a series counts as complete",
    "proven_quiet_time_s": "the same where its completeness is proven",
    "longest_wait_s": "seconds after which a series that still grows is analysed; the report is then PARTIAL",
}
_DELIVER = {
    "first_wait_s": "seconds before the first repetition of a failed C-STORE; each further wait doubles",
    "longest_wait_s": "longest of these waits, seconds",
    "give_up_after_h": "hours after which an object is parked for an operator",
}
_PROFILE = {
    "segmentation": "form of the Segmentation",
    "segmentation_frames": "sparse: no frames that hold nothing of their segment",
    "reports": "kinds of SR: Comprehensive 3D SR of TID 1500, Basic Text SR, Chest CAD SR",
    "narrative": "the findings as English text in the TID 1500 report",
    "captures": "Secondary Capture pages",
    "key_objects": "a Key Object Selection of the key images",
    "presentation_states": "Grayscale Softcopy Presentation States with the outlines",
    "pdf": "the pages as Encapsulated PDF",
    "like": "built-in profile with the switches that are not given",
}
_COMMIT = {"commit_wait_h": "hours without N-EVENT-REPORT after which commitment is requested again"}
_RETENTION = {"uncommitted_after_days": "days an object is kept at least whose storage a peer did not commit"}
_PULL = {
    "name": "name of the scheduled pull",
    "from": "peer that is queried",
    "every_min": "minutes between two queries",
    "since_h": "hours back that the query covers",
    "match": "matching keys of the query",
    "route": "route that decides for what was pulled; null: the rules",
    "max_series": "series fetched at most in one run",
}
_ROUTE = {
    "count_from": "peer that is queried for the number of Instances of a series; null: none",
    "compare_with": "peer whose archive is queried for earlier CTs of the patient and results on them; null: none",
}
_PRIORS = {
    "max_age_days": "days before the study's date that this query covers",
    "longest_wait_s": "seconds that query and retrieval may take; then nothing is compared",
}
_DICOMWEB = {
    "url": "service root of QIDO-RS, WADO-RS and STOW-RS",
    "username": "HTTP Basic authentication",
    "password_file": "file that holds its password",
    "token_file": "file that holds a bearer token",
    "ca": "who vouches for the server's certificate, PEM; null: the system's authorities",
}


def tables() -> Iterator[Table]:
    """One table a section of the settings that bears on DICOM."""
    yield _table(
        "general_parameters",
        "General Configuration Parameters",
        [*_rows("receive", ReceiveConfig, _RECEIVE)],
    )
    yield _table(
        "tls_parameters",
        "Secure Transport Configuration Parameters",
        [*_rows("receive.tls", ReceiveTLS, _RECEIVE_TLS), *_rows("peers.NAME.tls", PeerTLS, _PEER_TLS)],
    )
    yield _table("remote_ae_parameters", "Remote Application Entities", _rows("peers.NAME", PeerConfig, _PEER))
    yield _table(
        "storage_parameters",
        "Storage Service Configuration Parameters",
        [
            *_rows("storage", StorageConfig, _STORAGE),
            *_rows("assemble", AssembleConfig, _ASSEMBLE),
            *_rows("deliver", DeliverConfig, _DELIVER),
            *_rows("profiles.NAME", SiteProfile, _PROFILE),
        ],
    )
    yield _table(
        "commitment_parameters",
        "Storage Commitment Service Configuration Parameters",
        [*_rows("deliver", DeliverConfig, _COMMIT), *_rows("retention", RetentionConfig, _RETENTION)],
    )
    yield _table(
        "query_parameters",
        "Query/Retrieve Service Configuration Parameters",
        [
            *_rows("pulls", PullConfig, _PULL),
            *_rows("routes", RouteConfig, _ROUTE),
            *_rows("priors", PriorsConfig, _PRIORS),
        ],
    )
    yield _table(
        "web_parameters", "DICOMweb Configuration Parameters", _rows("peers.NAME.dicomweb", DicomWebConfig, _DICOMWEB)
    )


def _table(name: str, title: str, rows: Iterable[tuple[str, ...]]) -> Table:
    return Table(name=name, title=title, columns=_COLUMNS, rows=tuple(rows))


def _rows(prefix: str, model: type[BaseModel], meanings: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    schema = TypeAdapter(model).json_schema(by_alias=True)["properties"]
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    for key, meaning in meanings.items():
        field = fields[key]
        given = "none: must be given" if field.is_required() else _cell(field.get_default(call_default_factory=True))
        yield f"`{prefix}.{key}`", meaning, "Y", given, _range(schema[key])


def _cell(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case tuple():
            return ", ".join(map(str, value)) or "none"
        case dict():
            return ", ".join(f"{key}: {each}" for key, each in value.items()) or "none"
        case float() if value.is_integer():
            return str(int(value))
        case _:
            return str(value)


_KINDS = {"path": "file", "string": "text", "array": "list", "object": "section", "boolean": "true, false"}


def _range(schema: Mapping[str, Any]) -> str:
    """The limits that the schema of one setting has, else the kind of its values."""
    schema = next(each for each in schema.get("anyOf", [schema]) if each.get("type") != "null")
    choices = schema.get("items", schema).get("enum")
    if choices:
        return ", ".join(map(str, choices))
    if schema.get("type") in ("integer", "number"):
        low = _cell(schema["minimum"]) if "minimum" in schema else f"above {_cell(schema['exclusiveMinimum'])}"
        if "maximum" in schema:
            return f"{low} to {_cell(schema['maximum'])}"
        return low if low.startswith("above") else f"{low} or more"
    if schema.get("pattern") == AE_TITLE_PATTERN:
        return "1 to 16 characters"
    return _KINDS[schema.get("format") or schema.get("type", "object")]
