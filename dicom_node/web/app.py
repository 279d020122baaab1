"""Node -> the web role's application: pages, login, JSON API, health and metrics, behind one guard."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from dicom_node import __version__
from dicom_node.domain import RESEARCH_USE
from dicom_node.web import api, health, job_log, pages, problems, queries
from dicom_node.web.access import login, oidc
from dicom_node.web.api.openapi import document
from dicom_node.web.events import Events
from dicom_node.web.guard import Guard
from dicom_node.web.node import Node
from dicom_node.web.slices import Slices


def create_app(node: Node) -> FastAPI:
    app = FastAPI(
        title="dicom-node",
        version=__version__,
        description=f"A DICOM node that finds lung nodules in CT. {RESEARCH_USE}.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    app.state.node = node
    app.state.events = Events(lambda: queries.version(node.database))
    app.state.slices = Slices(node.database, node.storage)
    app.openapi = document(app)  # type: ignore[method-assign]  # FastAPI's own way to extend the document
    for part in (health, login, oidc, pages, job_log, api):
        app.include_router(part.router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    problems.add_to(app)
    app.add_middleware(Guard, web=node.config.web)
    return app
