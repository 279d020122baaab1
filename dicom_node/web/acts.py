"""What an operator does to a job, by a button or by the API -> an event of the job, the change, the audit trail."""

from __future__ import annotations

from collections.abc import Callable

from dicom_node.db import Database
from dicom_node.engine import EngineClient
from dicom_node.web.access import Principal
from dicom_node.web.node import Node

Change = Callable[[Database, EngineClient, str], str]


def act(node: Node, who: Principal, verb: str, job_id: str, change: Change) -> str:
    """What was done. The job must be there. Raises DicomNodeError where its state does not allow it."""
    node.database.add_event(f"{verb} asked", job_id=job_id, by=who.name)
    done = change(node.database, node.engine, job_id)
    node.trail.changed(who, f"job {verb}", job_id)
    return done
