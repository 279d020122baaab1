"""Login and logout of people: by password here; by an OpenID provider in `oidc`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from dicom_node.config import WebRole
from dicom_node.web import templating
from dicom_node.web.access.caller import from_ourselves
from dicom_node.web.access.principal import (
    Denied,
    Looks,
    cookie_name,
    for_people,
    the_caller,
    the_node,
    this_principal,
)

router = APIRouter(include_in_schema=False)

_WRONG = "Wrong user name or password."


@router.get("/login")
def login_page(request: Request, next: str = "/") -> Response:
    if this_principal(request) is not None:
        return RedirectResponse(inside(next), 303)
    return _page(request, inside(next))


@router.post("/login")
def log_in(
    request: Request,
    user: Annotated[str, Form(max_length=128)],
    password: Annotated[str, Form(max_length=1024)],
    next: Annotated[str, Form()] = "/",
) -> Response:
    node, who = the_node(request), the_caller(request)
    if not from_ourselves(request.scope, node.config.web, who):
        # Else a foreign page could log a browser in as somebody else.
        raise Denied(403, "This request does not come from a page of this node.")
    wait_s = node.access.rows.begin_login(user, who.address)
    if wait_s > 0:
        text = f"Too many tries. Wait {max(1, round(wait_s / 60))} min."
        return _refused(request, next, 429, text, {"retry-after": str(int(wait_s) + 1)})
    known = node.access.users.verify(user, password)
    if known is None:
        # A name that nobody has may be a password that went into the wrong field.
        node.trail.login(user if user in node.access.users.users() else "unknown", ok=False, address=who.address)
        return _refused(request, next, 401, _WRONG)
    node.access.rows.login_succeeded(user, who.address)
    return logged_in(request, known.name, known.role, "password", known.mark, inside(next))


@router.post("/logout")
def log_out(request: Request, principal: Looks) -> Response:
    if principal.secret is not None:
        the_node(request).access.rows.close_session(principal.secret)
    the_node(request).trail.logout(principal)
    answer = RedirectResponse("/login", 303)
    secure = the_caller(request).secure
    answer.delete_cookie(cookie_name(secure), secure=secure, httponly=True, samesite="lax")
    # Also what the browser kept of our pages.
    answer.headers["clear-site-data"] = '"cache", "storage"'
    return answer


def logged_in(request: Request, user: str, role: WebRole, method: str, mark: str | None, to: str) -> Response:
    """Always a new secret, so that one that was planted before the login is worth nothing after it."""
    node, secure = the_node(request), the_caller(request).secure
    longest_s = 3600 * node.config.web.longest_login_h
    node.trail.login(user, ok=True, address=the_caller(request).address)
    secret = node.access.rows.open_session(user, role, method, mark, longest_s=longest_s)
    answer = RedirectResponse(to, 303)
    # Lax, not Strict: with that, who comes by a link in a mail would stand before the login though logged in.
    answer.set_cookie(
        cookie_name(secure), secret, path="/", secure=secure, httponly=True, samesite="lax", max_age=int(longest_s)
    )
    return answer


def inside(path: str) -> str:
    """`path` if it leads to a page of ours, else the first page."""
    plain = path.startswith("/") and not path.startswith("//") and all(c.isprintable() and c != "\\" for c in path)
    return path if plain else "/"


def _refused(
    request: Request, to: str, status: int, text: str, headers: Mapping[str, str] | None = None
) -> HTMLResponse:
    """The login again, with why; for a program, raises Denied."""
    if not for_people(request):
        raise Denied(status, text, headers)
    page = _page(request, inside(to), text, status)
    page.headers.update(headers or {})
    return page


def _page(request: Request, to: str, problem: str | None = None, status: int = 200) -> HTMLResponse:
    oidc = the_node(request).config.web.oidc is not None
    return HTMLResponse(templating.render("login.html", next=to, problem=problem, oidc=oidc), status)
