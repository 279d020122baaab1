"""The models with their cards, how far those in the shadow agree, and a button where one came to no result."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from dicom_node.agreement_plot import bland_altman_svg
from dicom_node.errors import DicomNodeError
from dicom_node.web.access.principal import Acts, Looks, Principal, the_node
from dicom_node.web.acts import look_again
from dicom_node.web.answers.jobs import PAGE_ROWS
from dicom_node.web.answers.models import agreement, failed_looks, models
from dicom_node.web.cards import markdown
from dicom_node.web.pages.page import page

router = APIRouter()

# Of agreement the page tells this much; the command and the API tell of all.
AGREEMENT_DAYS, AGREEMENT_SERIES = 90, 1000
_DONE = {"retry": "The second model looks again, behind all jobs."}


@router.get("/models")
def models_page(request: Request, principal: Looks, done: str = "") -> Response:
    return _models(request, principal, said=_DONE.get(done))


@router.post("/models/shadows/{job_id}/retry")
def retry_shadow(request: Request, principal: Acts, job_id: str) -> Response:
    try:
        look_again(the_node(request), principal, job_id)
    except DicomNodeError as err:
        if err.retry_helps:
            raise
        return _models(request, principal, refused=str(err))
    return RedirectResponse("/models?done=retry", 303)


def _models(request: Request, principal: Principal, *, said: str | None = None, refused: str | None = None) -> Response:
    node = the_node(request)
    return page(
        "models.html",
        request,
        principal,
        409 if refused else 200,
        models=models(node),
        agreement=agreement(node, days=AGREEMENT_DAYS, most=AGREEMENT_SERIES),
        agreement_over=f"the last {AGREEMENT_DAYS} days, at most {AGREEMENT_SERIES} series",
        failed_looks=failed_looks(node.database, PAGE_ROWS),
        said=said,
        refused=refused,
        plot=bland_altman_svg,
        markdown=markdown,
    )
