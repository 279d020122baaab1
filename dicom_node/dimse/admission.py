"""Who may open an Association: AE titles and addresses against the settings. Pure but for resolving host names."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from dicom_node.config import Config
from dicom_node.peers import PeerConfig

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str], Iterable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why an Association is refused. `diagnostic` as in PS3.8 Table 9-21, permanent, by the service user."""

    diagnostic: Literal[0x03, 0x07]
    text: str


CALLING_UNKNOWN: Literal[0x03] = 0x03
CALLED_UNKNOWN: Literal[0x07] = 0x07


def resolve(host: str) -> list[str]:
    """The addresses of a host name; none when it has no address."""
    try:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError:
        return []


def reject_reason(
    config: Config, *, calling: str, called: str, address: str, resolve: Resolve = resolve
) -> Rejection | None:
    """None when this caller is welcome.

    The called AE title must be ours (receive.ae_title, or the peer's own `called_as`); the calling one must be
    a peer that may send, or that is asked for Storage Commitment, at one of its addresses, unless
    receive.unknown_peers accepts everybody.
    """
    caller = _parsed(address)
    peers = [p for p in config.peers.values() if _may_call(p) and p.ae_title == calling]
    known = [p for p in peers if _calls_from(p, caller, resolve)]
    if called not in _our_titles(config, known):
        return Rejection(diagnostic=CALLED_UNKNOWN, text="called AE title is not ours")
    if known or config.receive.unknown_peers == "accept":
        return None
    what = "calls from an address that is not its own" if peers else "is no peer that may send or commit"
    return Rejection(diagnostic=CALLING_UNKNOWN, text=f"calling AE title {what}")


def callers(config: Config, *, calling: str, address: str, resolve: Resolve = resolve) -> list[str]:
    """The peers of the settings that a caller with this AE title and address is."""
    caller = _parsed(address)
    return [n for n, p in config.peers.items() if p.ae_title == calling and _calls_from(p, caller, resolve)]


def may_store(config: Config, names: Iterable[str]) -> bool:
    """Whether one who is these peers may store to us; of somebody unknown the settings say so."""
    known = [config.peers[name] for name in names if _may_call(config.peers[name])]
    return any(peer.may_send for peer in known) or config.receive.unknown_peers == "accept"


def _may_call(peer: PeerConfig) -> bool:
    # Storage Commitment is reported by the destination, on an Association that it opens (PS3.4 J.3.3).
    return peer.may_send or peer.may_commit


def _our_titles(config: Config, known: list[PeerConfig]) -> set[str]:
    if not known:
        return {config.receive.ae_title} | {p.called_as for p in config.peers.values() if p.called_as}
    return {p.called_as or config.receive.ae_title for p in known}


def _calls_from(peer: PeerConfig, caller: Address, resolve: Resolve) -> bool:
    if peer.calls_from:
        return any(caller in ipaddress.ip_network(network, strict=False) for network in peer.calls_from)
    return any(caller == _parsed(address) for address in resolve(peer.host))


def _parsed(address: str) -> Address:
    # A link-local address may carry its interface ("fe80::1%eth0"); IPv4 callers of a dual-stack socket look like
    # "::ffff:192.0.2.1".
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed
