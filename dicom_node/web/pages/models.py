"""The models with their cards, and how far those in the shadow agree."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from dicom_node.agreement_plot import bland_altman_svg
from dicom_node.web.access.principal import Looks, the_node
from dicom_node.web.answers.models import agreement, models
from dicom_node.web.cards import markdown
from dicom_node.web.pages.page import page

router = APIRouter()

# Of agreement the page tells this much; the command and the API tell of all.
AGREEMENT_DAYS, AGREEMENT_SERIES = 90, 1000


@router.get("/models")
def models_page(request: Request, principal: Looks) -> Response:
    node = the_node(request)
    return page(
        "models.html",
        request,
        principal,
        models=models(node),
        agreement=agreement(node, days=AGREEMENT_DAYS, most=AGREEMENT_SERIES),
        agreement_over=f"the last {AGREEMENT_DAYS} days, at most {AGREEMENT_SERIES} series",
        plot=bland_altman_svg,
        markdown=markdown,
    )
