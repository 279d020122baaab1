"""What the pages show and the JSON API answers with: one module a subject, its forms and what makes them.

A page and its twin under /api/v1 call the same function here. Nothing here writes, or names a patient.
"""

from dicom_node.web.answers import configuration, corrections, health, job, jobs, live, models, peers, today

__all__ = ["configuration", "corrections", "health", "job", "jobs", "live", "models", "peers", "today"]
