"""`dicom-node check`, the web role's part: its port and certificate, who reaches it, who may log in."""

from __future__ import annotations

import http.client
import ipaddress
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

from dicom_node.check import Item, port_is_free, reachable
from dicom_node.config import Config, WebConfig, is_loopback
from dicom_node.errors import DicomNodeError
from dicom_node.web.access.users import UsersFile
from dicom_node.web.tls import tls_context

# A proxy is a few machines: more addresses than these are a site's network, and people sit in it.
_MOST_PROXIES = 256


def check_web(config: Config) -> Iterator[Item]:
    web = config.web
    if web.port is None:
        yield Item(name="web", ok=True, text="off: web.port is null, serve starts no web role")
        return
    try:
        yield Item(name="web", ok=True, text=_port(web, web.port))
    except DicomNodeError as err:
        yield Item(name="web", ok=False, text=str(err))
    yield from _proxy(web)
    try:
        yield from _users(web, config.web_users_file())
    except DicomNodeError as err:
        yield Item(name="web users", ok=False, text=str(err))


def _port(web: WebConfig, port: int) -> str:
    if web.tls is not None:
        tls_context(web.tls)
    if port == 0:
        return "any free port: web.port is 0"
    return port_is_free(web.host, port, "web.port", lambda: _answers(web, port), "a web role")


def _answers(web: WebConfig, port: int) -> bool:
    """Whether whoever listens there answers as this role does."""
    host = reachable(web.host)
    if web.tls is None:
        there = http.client.HTTPConnection(host, port, timeout=5)
    else:
        # Whose it is does not matter here, and its names are seldom those of loopback.
        there = http.client.HTTPSConnection(host, port, timeout=5, context=ssl._create_unverified_context())  # noqa: S323
    try:
        there.request("GET", "/healthz")
        return there.getresponse().read(64).replace(b" ", b"") == b'{"alive":true}'
    except (OSError, http.client.HTTPException):
        return False
    finally:
        there.close()


def _proxy(web: WebConfig) -> Iterator[Item]:
    """Beyond loopback there is TLS or a proxy, the settings see to that; this sees to the proxy being one."""
    wide = [
        network
        for network in (web.proxy.calls_from if web.proxy is not None else ())
        if ipaddress.ip_network(network, strict=False).num_addresses > _MOST_PROXIES
    ]
    if wide:
        text = f"everybody in {', '.join(wide)} may say who calls, and needs no TLS: name the proxy's own address"
        yield Item(name="web.proxy.from", ok=True, warns=True, text=text)


def _users(web: WebConfig, path: Path) -> Iterator[Item]:
    users = UsersFile(path).users()
    by_others = web.oidc is not None or (web.proxy is not None and web.proxy.user_header is not None)
    if not users and not by_others:
        text = "there are no users, so nobody can log in: dicom-node user add NAME --role admin"
        alone = is_loopback(web.host)
        yield Item(name="web users", ok=alone, warns=alone, text=text)
    elif users and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        text = f"{path} holds hashes of passwords and is open to others than its owner: chmod 600 {path}"
        yield Item(name="web users", ok=True, warns=True, text=text)
    else:
        how = f"{len(users)} by password" + (", others by the provider or proxy" if by_others else "")
        yield Item(name="web users", ok=True, text=how)
