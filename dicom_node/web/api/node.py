"""The node over HTTP: today, its settings, its health, and who calls."""

from __future__ import annotations

from fastapi import APIRouter

from dicom_node.web import answers
from dicom_node.web.access.principal import Looks, ReadsSettings
from dicom_node.web.answers.configuration import Configuration
from dicom_node.web.answers.health import Health, Session
from dicom_node.web.answers.today import Today
from dicom_node.web.api.parameters import TheNode

router = APIRouter(tags=["node"])


@router.get("/session")
def session(who: Looks) -> Session:
    """Who calls, and with which role."""
    return answers.health.session(who)


@router.get("/today")
def today(_who: Looks, node: TheNode) -> Today:
    """Series and jobs since midnight, in the node's own time zone; disk and destinations now."""
    return answers.today.today(node)


@router.get("/config")
def config(_who: ReadsSettings, node: TheNode) -> Configuration:
    """The settings that the node goes by, what stands over them, and what to look at again."""
    return answers.configuration.configuration(node)


@router.get("/health")
def health(_who: Looks, node: TheNode) -> Health:
    """What /readyz looks at, in words."""
    return answers.health.health(node)
