"""A template and what it tells -> a page."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse

from dicom_node.web import templating, words
from dicom_node.web.access.principal import Principal, the_node
from dicom_node.web.answers.form import moment


def page(name: str, request: Request, principal: Principal, status: int = 200, **values: Any) -> HTMLResponse:
    here = request.url.path.strip("/").partition("/")[0] or "today"
    now = moment(the_node(request).now())
    text = templating.render(
        name, here=here, path=request.url.path, principal=principal, now=now, words=words, **values
    )
    return HTMLResponse(text, status)
