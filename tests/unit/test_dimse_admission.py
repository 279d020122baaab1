"""Who may open an Association."""

from __future__ import annotations

from typing import Any

import pytest

from dicom_node.config import Config
from dicom_node.dimse.admission import CALLED_UNKNOWN, CALLING_UNKNOWN, reject_reason

PEERS = {
    "pacs": {"ae_title": "PACS", "host": "192.0.2.10", "may_send": True},
    "cluster": {
        "ae_title": "CLUSTER",
        "host": "cluster.example",
        "may_send": True,
        "from": ["192.0.2.128/25", "2001:db8::/64"],
    },
    "named": {"ae_title": "NAMED", "host": "named.example", "may_send": True},
    "viewer": {"ae_title": "VIEWER", "host": "192.0.2.11", "port": 104},
    "old": {"ae_title": "OLD", "host": "192.0.2.12", "may_send": True, "called_as": "LEGACY"},
}
NAMES = {"named.example": ["192.0.2.20", "2001:db8:1::20"], "cluster.example": ["192.0.2.99"]}


def resolve(host: str) -> list[str]:
    return NAMES.get(host, [host])


def decide(calling: str, address: str, called: str = "NODE", **receive: Any) -> int | None:
    config = Config.model_validate(
        {"storage": {"root": "/nowhere"}, "receive": {"ae_title": "NODE", **receive}, "peers": PEERS}
    )
    rejection = reject_reason(config, calling=calling, called=called, address=address, resolve=resolve)
    return rejection.diagnostic if rejection is not None else None


@pytest.mark.parametrize(
    ("calling", "address"),
    [
        ("PACS", "192.0.2.10"),
        ("PACS", "::ffff:192.0.2.10"),
        ("CLUSTER", "192.0.2.200"),
        ("CLUSTER", "2001:db8::17"),
        ("NAMED", "192.0.2.20"),
        ("NAMED", "2001:db8:1::20"),
    ],
)
def test_a_known_peer_at_its_address_is_welcome(calling: str, address: str) -> None:
    assert decide(calling, address) is None


@pytest.mark.parametrize(
    ("calling", "address"),
    [
        ("STRANGER", "192.0.2.10"),
        ("PACS", "192.0.2.11"),
        ("CLUSTER", "192.0.2.99"),  # its host, but `from` says where it calls from
        ("NAMED", "192.0.2.21"),
        ("VIEWER", "192.0.2.11"),  # only a destination
        ("pacs", "192.0.2.10"),  # AE titles are case sensitive (PS3.5 6.2)
        ("", "192.0.2.10"),
    ],
)
def test_others_are_not_recognized(calling: str, address: str) -> None:
    assert decide(calling, address) == CALLING_UNKNOWN


def test_everybody_is_welcome_where_unknown_peers_are_accepted() -> None:
    assert decide("STRANGER", "198.51.100.1", unknown_peers="accept") is None


@pytest.mark.parametrize("unknown_peers", ["accept", "refuse"])
def test_a_wrong_called_title_is_refused_in_any_case(unknown_peers: str) -> None:
    assert decide("PACS", "192.0.2.10", called="OTHER", unknown_peers=unknown_peers) == CALLED_UNKNOWN


def test_a_peer_with_its_own_name_for_us_must_use_it() -> None:
    assert decide("OLD", "192.0.2.12", called="LEGACY") is None
    assert decide("OLD", "192.0.2.12", called="NODE") == CALLED_UNKNOWN
    assert decide("PACS", "192.0.2.10", called="LEGACY") == CALLED_UNKNOWN


def test_a_name_without_address_lets_nobody_in() -> None:
    NAMES["gone.example"] = []
    config = Config.model_validate(
        {"storage": {"root": "/nowhere"}, "peers": {"p": {"ae_title": "P", "host": "gone.example", "may_send": True}}}
    )
    rejection = reject_reason(config, calling="P", called="DICOMNODE", address="192.0.2.1", resolve=resolve)
    assert rejection is not None
    assert rejection.diagnostic == CALLING_UNKNOWN
