"""The peers over HTTP, and their echo."""

from __future__ import annotations

from fastapi import APIRouter

from dicom_node.web import answers
from dicom_node.web.access.principal import Acts, Looks
from dicom_node.web.acts import call_peer
from dicom_node.web.answers.peers import Echo, Peer
from dicom_node.web.api.openapi import CONFLICT, NOT_FOUND
from dicom_node.web.api.parameters import PeerName, TheNode

router = APIRouter(tags=["peers"])


@router.get("/peers")
def peers(_who: Looks, node: TheNode) -> list[Peer]:
    """The peers of the settings, and what came of them and went to them."""
    return answers.peers.peers(node)


@router.post("/peers/{name}/echo", responses={**NOT_FOUND, **CONFLICT})
def echo(who: Acts, node: TheNode, name: PeerName) -> Echo:
    """Call a peer by C-ECHO. It takes as long as the peer's timeouts allow."""
    return call_peer(node, who, name)
