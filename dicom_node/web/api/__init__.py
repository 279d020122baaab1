"""The JSON API under /api/v1: what the pages show and do, for programs."""

from fastapi import APIRouter

from dicom_node.web.api import jobs, log, node
from dicom_node.web.api.openapi import PROBLEMS

router = APIRouter(prefix="/api/v1", responses=PROBLEMS)
router.include_router(jobs.router)
router.include_router(log.router)
router.include_router(node.router)

__all__ = ["router"]
