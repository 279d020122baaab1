"""A request's connection and headers -> its address, whether it came by TLS, and who the proxy says it is."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers

from dicom_node.config import WebConfig, WebProxy, WebRole, is_loopback

Scope = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """address: of the client, "" where it is not known. secure: its line is TLS. by_proxy: the proxy of the settings
    passed it on. local: a process of this machine calls, with no proxy between."""

    address: str
    secure: bool
    by_proxy: bool
    local: bool


def caller(scope: Scope, web: WebConfig) -> Caller:
    peer = scope["client"][0] if scope.get("client") else ""
    secure = scope["scheme"] in ("https", "wss")
    if web.proxy is None or not _within(peer, web.proxy):
        return Caller(address=peer, secure=secure, by_proxy=False, local=is_loopback(peer))
    headers = Headers(scope=scope)
    forwarded = headers.getlist("x-forwarded-proto")
    proto = forwarded[-1].split(",")[-1].strip().lower() if forwarded else ("https" if secure else "http")
    return Caller(address=_client(headers, web.proxy) or peer, secure=proto == "https", by_proxy=True, local=False)


def proxy_user(scope: Scope, proxy: WebProxy) -> tuple[str, WebRole | None] | None:
    """Who the proxy says it is, and the role of their groups. Only for a request that is by_proxy."""
    headers = Headers(scope=scope)
    if proxy.user_header is None or not (user := headers.get(proxy.user_header, "").strip()):
        return None
    listed = "" if proxy.groups_header is None else ",".join(headers.getlist(proxy.groups_header))
    groups = [group.strip() for group in listed.split(",")]
    return user[:128], role_of(groups, proxy.roles, proxy.default_role)


def role_of(groups: list[str], roles: dict[str, WebRole], default: WebRole | None) -> WebRole | None:
    """The highest role that a group gives."""
    given = {roles[group] for group in groups if group in roles}
    for role in ("admin", "operator", "viewer"):
        if role in given:
            return role
    return default


def own_origins(scope: Scope, web: WebConfig, who: Caller) -> set[str]:
    """How pages of ours say where they come from."""
    host = Headers(scope=scope).get("host", "")
    own = {f"{'https' if who.secure else 'http'}://{host}".lower()}
    return own if web.public_url is None else own | {web.public_url.lower()}


def from_ourselves(scope: Scope, web: WebConfig, who: Caller) -> bool:
    """Whether the browser says that a page of ours made this request. One that says nothing has to say it otherwise."""
    headers = Headers(scope=scope)
    said = headers.get("origin")
    if said is None:
        referer = sent_from(headers)
        said = f"{referer.scheme}://{referer.netloc}"
    return said.lower() in own_origins(scope, web, who)


def sent_from(headers: Headers) -> SplitResult:
    """The page that a request came from, as the browser says; empty where it says nothing that can be meant."""
    try:
        return urlsplit(headers.get("referer", ""))
    except ValueError:
        return urlsplit("")


def _client(headers: Headers, proxy: WebProxy) -> str | None:
    """The last address that is no proxy of ours: what stands before it anybody may have written."""
    hops = [hop.strip() for value in headers.getlist("x-forwarded-for") for hop in value.split(",")]
    for hop in reversed(hops):
        try:
            ipaddress.ip_address(hop)
        except ValueError:
            return None
        if not _within(hop, proxy):
            return hop
    return None


def _within(address: str, proxy: WebProxy) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return any(ip in ipaddress.ip_network(text, strict=False) for text in proxy.calls_from)
