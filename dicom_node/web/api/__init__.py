"""The JSON API under /api/v1: what the pages show and do, for programs."""

from fastapi import APIRouter

from dicom_node.web.api import job, jobs, log, models, node, peers
from dicom_node.web.api.openapi import PROBLEMS

router = APIRouter(prefix="/api/v1", responses=PROBLEMS)
for _subject in (jobs, job, log, peers, models, node):
    router.include_router(_subject.router)

__all__ = ["router"]
