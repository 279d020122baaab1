"""Who may open an Association: AE titles, addresses and certificates against the settings; and on which terms.

Pure but for resolving host names.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dicom_node.config import Config
from dicom_node.peers import PeerConfig

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str], Iterable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why an Association is refused: result, source and diagnostic as in PS3.8 Table 9-21, of REJECTIONS' rows."""

    result: int = 0x01
    source: int = 0x01
    diagnostic: int
    text: str

    def __post_init__(self) -> None:
        if (self.result, self.source, self.diagnostic) not in REJECTIONS:
            raise ValueError(f"no row of REJECTIONS: {self.result}, {self.source}, {self.diagnostic}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The terms of an Association. `peer`: the caller's name in the settings; None: only its address is known.

    max_associations: how many this peer may hold at once; None: as many as any. accept_first: as of the settings.
    may_store: else it is offered no storage class. sends_results: it may also store results of ours, which a route
    compares with.
    """

    peer: str | None = None
    max_associations: int | None = None
    accept_first: tuple[str, ...] = ()
    may_store: bool = True
    sends_results: bool = False


# By the service user, for good.
CALLING_UNKNOWN = 0x03
CALLED_UNKNOWN = 0x07

# (result, source, diagnostic) -> meaning, and when it is given; also for the conformance statement.
REJECTIONS: Mapping[tuple[int, int, int], tuple[str, str]] = MappingProxyType(
    {
        (0x01, 0x01, CALLED_UNKNOWN): ("called AE title not recognized", "the called AE title is not ours"),
        (0x01, 0x01, CALLING_UNKNOWN): (
            "calling AE title not recognized",
            "the caller is no peer that may send or commit, calls from an address that is not its own, or shows no "
            "certificate with one of its names",
        ),
        (0x01, 0x02, 0x02): ("protocol version not supported", "another version than 1"),
        (0x02, 0x03, 0x02): ("local limit exceeded", "all Associations, or all of this peer, are in use"),
    }
)


def over_limit(text: str) -> Rejection:
    """Transient, by the service provider (presentation), local limit exceeded: the caller may try again."""
    return Rejection(result=0x02, source=0x03, diagnostic=0x02, text=text)


def resolve(host: str) -> list[str]:
    """The addresses of a host name; none when it has no address."""
    try:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError:
        return []


def admission(
    config: Config,
    *,
    calling: str,
    called: str,
    address: str,
    certificate_names: frozenset[str] = frozenset(),
    resolve: Resolve = resolve,
) -> Rejection | Welcome:
    """Whether this caller is welcome, and on which terms.

    The called AE title must be ours (receive.ae_title, or the peer's own `called_as`); the calling one must be
    a peer that may send, or that is asked for Storage Commitment, at one of its addresses, unless
    receive.unknown_peers accepts everybody. An AE title whose peer has `certificate_names` is only for who shows a
    certificate with one of them.
    """
    at_home, titled, certified = _matching(config, calling, address, certificate_names, resolve)
    # Storage Commitment is reported by the destination, on an Association that it opens (PS3.4 J.3.3).
    known = {name: p for name, p in at_home.items() if p.may_send or p.may_commit}
    if called not in _our_titles(config, list(known.values())):
        return Rejection(diagnostic=CALLED_UNKNOWN, text="called AE title is not ours")
    everybody = config.receive.unknown_peers == "accept" and (bool(certified) or not titled)
    if not known and not everybody:
        return Rejection(diagnostic=CALLING_UNKNOWN, text=f"calling AE title {_wrong(titled, certified)}")
    senders = {name: p for name, p in known.items() if p.may_send}
    for name, peer in (senders or known or at_home).items():
        return Welcome(
            peer=name,
            max_associations=peer.max_associations,
            accept_first=peer.accept_first,
            may_store=bool(senders) or everybody,
            sends_results=peer.retrieve_by == "c_move" and any(r.compare_with == name for r in config.routes),
        )
    return Welcome()


def callers(
    config: Config,
    *,
    calling: str,
    address: str,
    certificate_names: frozenset[str] = frozenset(),
    resolve: Resolve = resolve,
) -> list[str]:
    """The peers of the settings that a caller with this AE title, address and certificate is."""
    return list(_matching(config, calling, address, certificate_names, resolve)[0])


_Peers = Mapping[str, PeerConfig]


def _matching(
    config: Config, calling: str, address: str, certificate_names: frozenset[str], resolve: Resolve
) -> tuple[_Peers, _Peers, _Peers]:
    """Peers with this AE title, at one of their addresses and with their certificate; with the title; those of them
    whose certificate was shown."""
    caller = _parsed(address)
    titled = {name: p for name, p in config.peers.items() if p.ae_title == calling}
    certified = {name: p for name, p in titled.items() if _is_certified(p, certificate_names)}
    at_home = {name: p for name, p in certified.items() if _calls_from(p, caller, resolve)}
    return at_home, titled, certified


def _wrong(titled: Mapping[str, PeerConfig], certified: Mapping[str, PeerConfig]) -> str:
    if any(peer.may_send or peer.may_commit for peer in certified.values()):
        return "calls from an address that is not its own"
    if len(certified) < len(titled):
        return "shows no client certificate with one of its names"
    return "is no peer that may send or commit"


def _is_certified(peer: PeerConfig, certificate_names: frozenset[str]) -> bool:
    # Names of hosts know no case (RFC 4343); those of certificates come in lower case.
    return not peer.certificate_names or any(name.lower() in certificate_names for name in peer.certificate_names)


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
