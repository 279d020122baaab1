"""The settings as rows to read, and what to look at again."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from dicom_node.web.access.principal import ReadsSettings, the_node
from dicom_node.web.answers.configuration import configuration
from dicom_node.web.pages.page import page
from dicom_node.web.pages.settings import sections

router = APIRouter()


@router.get("/configuration")
def configuration_page(request: Request, principal: ReadsSettings) -> Response:
    return page(
        "configuration.html",
        request,
        principal,
        configuration=configuration(the_node(request)),
        sections=sections,
    )
