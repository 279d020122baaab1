"""Who may open an Association."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dicom_node.config import Config
from dicom_node.dimse.admission import CALLED_UNKNOWN, CALLING_UNKNOWN, Rejection, Welcome, admission, callers

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
    decided = admission(config, calling=calling, called=called, address=address, resolve=resolve)
    return decided.diagnostic if isinstance(decided, Rejection) else None


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
    rejection = admission(config, calling="P", called="DICOMNODE", address="192.0.2.1", resolve=resolve)
    assert isinstance(rejection, Rejection)
    assert (rejection.result, rejection.source, rejection.diagnostic) == (0x01, 0x01, CALLING_UNKNOWN)


def terms(peers: dict[str, Any], calling: str, *names: str, **receive: Any) -> Rejection | Welcome:
    """For a caller from 192.0.2.10 that shows a certificate with these names."""
    config = Config.model_validate({"storage": {"root": "/nowhere"}, "receive": receive, "peers": peers})
    shown = frozenset(names)
    return admission(config, calling=calling, called="DICOMNODE", address="192.0.2.10", certificate_names=shown)


CERTIFIED = {
    "ct": {"ae_title": "CT", "host": "192.0.2.10", "may_send": True, "certificate_names": ["CT.example", "ct2.example"]}
}


@pytest.mark.parametrize("unknown_peers", ["accept", "refuse"])
def test_a_title_with_certificate_names_is_only_for_who_shows_one_of_them(unknown_peers: str) -> None:
    assert terms(CERTIFIED, "CT", "ct2.example", "other", unknown_peers=unknown_peers) == Welcome(peer="ct")
    assert terms(CERTIFIED, "CT", "ct.example", unknown_peers=unknown_peers) == Welcome(peer="ct")
    for names in ([], ["pacs.example"]):
        refused = terms(CERTIFIED, "CT", *names, unknown_peers=unknown_peers)
        assert isinstance(refused, Rejection)
        assert "no client certificate with one of its names" in refused.text


def test_a_certificate_does_not_stand_in_for_the_address() -> None:
    elsewhere = {"ct": {**CERTIFIED["ct"], "host": "192.0.2.11"}}
    refused = terms(elsewhere, "CT", "ct.example")
    assert isinstance(refused, Rejection)
    assert "from an address that is not its own" in refused.text


def test_the_terms_are_those_of_the_peer() -> None:
    peer = {"ae_title": "CT", "host": "192.0.2.10", "may_send": True, "max_associations": 2}
    first = "1.2.840.10008.1.2.4.70"
    assert terms({"ct": {**peer, "accept_first": [first]}}, "CT") == Welcome(
        peer="ct", max_associations=2, accept_first=(first,)
    )
    assert terms({"ct": peer}, "OTHER", unknown_peers="accept") == Welcome()


KEEPER = {"ae_title": "KEEPER", "host": "192.0.2.10", "port": 104, "may_commit": True}


def test_a_destination_that_commits_may_call_and_store_nothing() -> None:
    assert terms({"keeper": KEEPER}, "KEEPER") == Welcome(peer="keeper", may_store=False)
    assert terms({"keeper": {**KEEPER, "may_send": True}}, "KEEPER") == Welcome(peer="keeper")
    assert terms({"keeper": KEEPER}, "KEEPER", unknown_peers="accept") == Welcome(peer="keeper")
    elsewhere = terms({"keeper": {**KEEPER, "host": "192.0.2.11"}}, "KEEPER")
    assert isinstance(elsewhere, Rejection)


def test_a_caller_is_each_peer_whose_title_address_and_certificate_it_has() -> None:
    peers = {
        "keeper": KEEPER,
        "same": {**KEEPER, "may_send": True},
        "elsewhere": {**KEEPER, "host": "192.0.2.11"},
        "certified": {**KEEPER, "certificate_names": ["keeper.example"]},
        "other": {**KEEPER, "ae_title": "OTHER"},
    }
    config = Config.model_validate({"storage": {"root": "/nowhere"}, "peers": peers})
    assert callers(config, calling="KEEPER", address="192.0.2.10") == ["keeper", "same"]
    shown = frozenset({"keeper.example"})
    assert callers(config, calling="KEEPER", address="192.0.2.10", certificate_names=shown) == [
        "keeper",
        "same",
        "certified",
    ]


@pytest.mark.parametrize(
    ("route", "peer", "may"),
    [
        ({"compare_with": "pacs"}, {}, True),
        ({}, {}, False),
        ({"compare_with": "other"}, {}, False),
        ({"compare_with": "pacs"}, {"retrieve_by": "c_get"}, False),
    ],
)
def test_only_an_archive_that_is_compared_with_by_c_move_may_send_results(
    node_config: Callable[..., Config], route: dict[str, str], peer: dict[str, str], may: bool
) -> None:
    asked = {"host": "192.0.2.1", "port": 104, "may_send": True, "may_be_queried": True}
    config = node_config(
        peers={"pacs": {"ae_title": "PACS", **asked, **peer}, "other": {"ae_title": "OTHER", **asked}},
        models={"m": {"bundle": "builtin:lung_nodule_small"}},
        routes=[{"name": "r", "model": "m", **route}],
    )
    welcome = admission(config, calling="PACS", called="DICOMNODE", address="192.0.2.1")
    assert isinstance(welcome, Welcome)
    assert welcome.sends_results == may
