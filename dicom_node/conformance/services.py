"""Which services, SOP Classes, Transfer Syntaxes and keys the code works with -> tables."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import get_args

from pydicom.datadict import dictionary_description

from dicom_node.config import ReceiveConfig, StorageClassGroup
from dicom_node.conformance import objects
from dicom_node.conformance.document import Table
from dicom_node.dimse.contexts import CT_IMAGE, STORAGE_CLASSES, STORAGE_COMMITMENT, VERIFICATION, name_of
from dicom_node.dimse.query import MODELS, UNIQUE_KEYS, Level
from dicom_node.dimse.retrieve import GET, MOVE, SeriesKey
from dicom_node.errors import Reason
from dicom_node.pull_selection import Selection, series_keys, study_keys
from dicom_node.series.multiframe import MULTIFRAME
from dicom_node.transfer_syntaxes import ACCEPTED

# Service, SOP Class UIDs (none: those of Storage), the Application Entity that is its SCU, the one that is its SCP.
_SERVICES: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("Verification", (VERIFICATION,), "Tools", "Receiver"),
    ("Storage", (), "Deliverer, Tools", "Receiver; Puller with C-GET"),
    ("Storage Commitment", (STORAGE_COMMITMENT,), "Deliverer; Receiver for reports", "Receiver; Deliverer for reports"),
    ("Query/Retrieve, C-FIND", MODELS, "Puller", ""),
    ("Query/Retrieve, C-MOVE", MOVE, "Puller", ""),
    ("Query/Retrieve, C-GET", GET, "Puller", ""),
)
_WEB_SERVICES = (
    ("Studies, Store (STOW-RS)", "Deliverer, Tools"),
    ("Studies, Search (QIDO-RS)", "Puller"),
    ("Studies, Retrieve (WADO-RS)", "Puller"),
)


def tables() -> Iterator[Table]:
    """All of them; the document says where each stands."""
    yield _content()
    yield Table(
        name="dimse_services",
        title="DIMSE Services",
        columns=("Service", "SOP Class", "SCU", "SCP"),
        rows=tuple(
            (service, name_of(uid) if uid else "each of 5.2.5.2; as SCU any other too", _yes(user), _yes(provider))
            for service, uids, user, provider in _SERVICES
            for uid in uids or ("",)
        ),
    )
    yield Table(
        name="web_services",
        title="DICOM Web Services",
        columns=("Service", "User Agent", "Origin Server"),
        rows=tuple((service, _yes(agent), "N") for service, agent in _WEB_SERVICES),
    )
    yield Table(
        name="mapping",
        title="Mapping of Services to Application Entities",
        columns=("Service", "Role", "Application Entity"),
        rows=tuple(_mapping()),
    )
    yield _accepted_classes()
    yield Table(
        name="accepted_syntaxes",
        title="Transfer Syntaxes accepted for Storage, in order of preference",
        columns=("Transfer Syntax Name", "Transfer Syntax UID", "Pixel coding", "Lossy"),
        rows=tuple((name_of(each.uid), each.uid, each.coding.value, each.lossy) for each in ACCEPTED),
    )
    yield _query_keys()
    yield Table(
        name="reasons",
        title="Reasons for no analysis",
        columns=("Code", "Meaning"),
        rows=tuple((reason.value, reason.meaning) for reason in Reason),
    )


def _yes(entity: str) -> str:
    return "Y" if entity else "N"


def _mapping() -> Iterator[tuple[str, str, str]]:
    for service, _, user, provider in _SERVICES:
        yield from ((service, role, entity) for role, entity in (("SCU", user), ("SCP", provider)) if entity)
    yield from ((service, "User Agent", agent) for service, agent in _WEB_SERVICES)


def _content() -> Table:
    rows = [(name_of(uid), "N", "Y", "Y", "Y") for uid in (CT_IMAGE, *MULTIFRAME)]
    rows += [(name_of(uid), "Y", "N", "Y", "Y") for uid in sorted(objects.created_classes())]
    rows.append(("further Storage SOP Classes of 5.2.5.2", "N", "N", "Y", "Y"))
    return Table(
        name="content",
        title="Content and Transfer",
        columns=("SOP Class", "Created", "Analysed", "Sent", "Received"),
        rows=tuple(rows),
    )


def _accepted_classes() -> Table:
    default = ReceiveConfig().also_accept
    rows = [(name_of(CT_IMAGE), CT_IMAGE, "always")]
    for group in get_args(StorageClassGroup):
        condition = f"`{group}`" + (" (default)" if group in default else "")
        rows += [(name_of(uid), uid, condition) for uid in STORAGE_CLASSES[group]]
    return Table(
        name="accepted_classes",
        title="Storage SOP Classes accepted",
        columns=("SOP Class Name", "SOP Class UID", "receive.also_accept"),
        rows=tuple(rows),
    )


def _query_keys() -> Table:
    """From the queries that a pull makes for everything that can be asked for."""
    asked = Selection(
        study_uid="1.2", series_uid="1.3", patient_id="1", accession="1", since=datetime(2026, 1, 1), match={}
    )
    levels: tuple[tuple[Level, dict[str, str]], ...] = (
        ("STUDY", study_keys(asked)),
        ("SERIES", series_keys(asked, "1.2", "1")),
        ("IMAGE", {**SeriesKey(study_uid="1.2", series_uid="1.3").keys(), UNIQUE_KEYS["IMAGE"]: ""}),
    )
    rows = []
    for level, keys in levels:
        for keyword, value in keys.items():
            use = "range" if value.endswith("-") else "single value, where asked for" if value else "return"
            rows.append((level, dictionary_description(keyword), objects.keyword_tag(keyword), use))
        if level != "IMAGE":
            rows.append((level, "those of `pulls.match` that are of this level", "", "as configured"))
    return Table(
        name="query_keys", title="Keys of queries", columns=("Level", "Attribute", "Tag", "Matching"), rows=tuple(rows)
    )
