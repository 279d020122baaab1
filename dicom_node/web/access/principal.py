"""A request -> its Principal: by API token, by login cookie, or by the proxy's word; and what it may do."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import Depends, Request

from dicom_node.config import ROLES, WebRole
from dicom_node.web.access.caller import Caller, caller, from_ourselves, proxy_user

if TYPE_CHECKING:
    from dicom_node.web.node import Node

CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf_token"
Deed = Literal["look", "download", "act", "read settings"]
# Who may what, on pages and in the API: the role, or a higher one. A viewer takes nothing away that names a patient.
ALLOWED: dict[Deed, WebRole] = {
    "look": "viewer",
    "download": "operator",
    "act": "operator",
    "read settings": "operator",
}
_SAFE = ("GET", "HEAD", "OPTIONS")
_PRINTABLE = re.compile(r"[\x21-\x7e]{1,200}")
_HASH = hashlib.sha256


class Denied(Exception):
    """The request is refused. `detail` is for the caller: it tells nothing of what is inside."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who calls. csrf: what a form or script of our pages must send along with a change; None for a token, which no
    browser sends by itself. secret: of the login's cookie, where there is one."""

    name: str
    role: WebRole
    method: Literal["password", "oidc", "proxy", "token"]
    address: str
    csrf: str | None = None
    secret: str | None = field(default=None, repr=False)

    def may(self, deed: Deed) -> bool:
        return ROLES.index(self.role) >= ROLES.index(ALLOWED[deed])


def the_node(request: Request) -> Node:
    node: Node = request.app.state.node
    return node


def the_caller(request: Request) -> Caller:
    return caller(request.scope, the_node(request).config.web)


def for_people(request: Request) -> bool:
    """Whether a browser shows the answer; else it goes to a program."""
    return not request.url.path.startswith("/api/") and "text/html" in request.headers.get("accept", "")


def cookie_name(secure: bool) -> str:
    # RFC 6265bis 4.1.3.2: with __Host- no other host, path or plain line can plant one.
    return "__Host-dicom_node" if secure else "dicom_node"


def this_principal(request: Request) -> Principal | None:
    """Who calls, or None. Raises Denied for a token or a login that does not count. Looked up once a request."""
    if not hasattr(request.state, "principal"):
        request.state.principal = _look(request)
    principal: Principal | None = request.state.principal
    return principal


def _look(request: Request) -> Principal | None:
    node, who = the_node(request), the_caller(request)
    # Bearer alone: what a proxy asked of a browser (Basic) comes through to us and is not ours to judge.
    scheme, _, given = request.headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer":
        return _by_token(node, given.strip(), who)
    web = node.config.web
    if who.by_proxy and web.proxy is not None and (said := proxy_user(request.scope, web.proxy)) is not None:
        user, role = said
        if role is None:
            raise Denied(403, "You are logged in, but no group of yours may use this node.")
        csrf = hmac.new(node.access.proxy_key, user.encode(), _HASH).hexdigest()
        return Principal(name=user, role=role, method="proxy", address=who.address, csrf=csrf)
    secret = request.cookies.get(cookie_name(who.secure))
    return None if secret is None else _by_cookie(node, secret, who)


def _by_token(node: Node, token: str, who: Caller) -> Principal:
    found = node.access.rows.token(token) if _PRINTABLE.fullmatch(token) else None
    if found is None:
        raise Denied(
            401,
            "This token is not known, or has expired: dicom-node token add makes one.",
            {"WWW-Authenticate": "Bearer"},
        )
    name, role = found
    return Principal(name=f"token:{name}", role=role, method="token", address=who.address)


def _by_cookie(node: Node, secret: str, who: Caller) -> Principal | None:
    web = node.config.web
    if not _PRINTABLE.fullmatch(secret):
        return None
    session = node.access.rows.session(secret, idle_s=60 * web.idle_min, longest_s=3600 * web.longest_login_h)
    if session is None:
        return None
    role = session.role
    if session.method == "password":
        # The file decides anew each time: who was taken out of it, or has another password, is out at once.
        user = node.access.users.users().get(session.user)
        if user is None or user.mark != session.mark:
            return None
        role = user.role
    method: Any = session.method
    return Principal(
        name=session.user, role=role, method=method, address=who.address, csrf=csrf_of(secret), secret=secret
    )


def csrf_of(secret: str) -> str:
    """Each login has one. It follows from the cookie's secret, which no page of another origin can read."""
    return hmac.new(secret.encode(), b"csrf", _HASH).hexdigest()


def require(deed: Deed) -> Callable[..., Any]:
    """A dependency: the Principal, whose role allows this; and a change was meant by a page of ours, or a token's.

    Raises Denied: 401 (who are you?) or 403.
    """

    async def check(request: Request, principal: Annotated[Principal | None, Depends(this_principal)]) -> Principal:
        if principal is None:
            raise Denied(401, "Log in first, or send a token.", {"WWW-Authenticate": "Bearer"})
        if not principal.may(deed):
            raise Denied(403, f"This needs the role {ALLOWED[deed]}, you have {principal.role}: ask who runs the node.")
        if request.method not in _SAFE and principal.csrf is not None:
            await _check_csrf(request, principal.csrf)
        return principal

    return check


# For the signatures of routes.
Looks = Annotated[Principal, Depends(require("look"))]
Downloads = Annotated[Principal, Depends(require("download"))]
Acts = Annotated[Principal, Depends(require("act"))]
ReadsSettings = Annotated[Principal, Depends(require("read settings"))]


async def _check_csrf(request: Request, expected: str) -> None:
    if not from_ourselves(request.scope, the_node(request).config.web, the_caller(request)):
        raise Denied(403, "This request does not come from a page of this node. A program sends a token instead.")
    given = request.headers.get(CSRF_HEADER)
    if given is None and request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        value = (await request.form()).get(CSRF_FIELD)
        given = value if isinstance(value, str) else None
    if given is None or not hmac.compare_digest(given.encode(), expected.encode()):
        raise Denied(403, "The page is too old for this, or the header X-CSRF-Token is missing: load it again.")
