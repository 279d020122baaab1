"""The models over HTTP: cards, routes, and how far two of them agree."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from dicom_node.web import answers
from dicom_node.web.access.principal import Looks
from dicom_node.web.answers.models import Agreement, Model
from dicom_node.web.api.parameters import RouteName, TheNode

router = APIRouter(tags=["models"])


@router.get("/models")
def models(_who: Looks, node: TheNode) -> list[Model]:
    """The models of the settings, their cards, and which routes use them, promotions considered."""
    return answers.models.models(node)


@router.get("/models/agreement")
def agreement(
    _who: Looks,
    node: TheNode,
    route: RouteName = None,
    days: Annotated[float | None, Query(ge=0, le=36500, description="Only series of so many last days.")] = None,
    most: Annotated[int | None, Query(ge=1, le=100_000, description="Only so many series, the newest.")] = None,
) -> Agreement:
    """How far the second model of a route agrees with the first, on series that both have seen; per pair of bundles."""
    return answers.models.agreement(node, route=route, days=days, most=most)
