"""The peers, and a button that calls one."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from dicom_node.web.access.principal import Acts, Looks, Principal, the_node
from dicom_node.web.acts import call_peer
from dicom_node.web.answers.peers import Echo, peers
from dicom_node.web.pages.page import page

router = APIRouter()


@router.get("/peers")
def peers_page(request: Request, principal: Looks) -> Response:
    return _peers(request, principal, None)


@router.post("/peers/{name}/echo")
def echo_peer(request: Request, principal: Acts, name: str) -> Response:
    return _peers(request, principal, call_peer(the_node(request), principal, name))


def _peers(request: Request, principal: Principal, echo: Echo | None) -> Response:
    return page("peers.html", request, principal, peers=peers(the_node(request)), echo=echo)
