"""The pages: each asks the functions of `answers` that the JSON API calls, and a template tells what they answer."""

from fastapi import APIRouter

from dicom_node.web.pages import configuration, job, jobs, live, log, models, peers, today

router = APIRouter(include_in_schema=False)
for _subject in (today, jobs, job, log, peers, models, configuration, live):
    router.include_router(_subject.router)

__all__ = ["router"]
