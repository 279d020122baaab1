"""What an operator does, by a button or by the API: changes a job, calls a peer, takes an object away. The audit trail
hears of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from dicom_node.control import retry_shadow
from dicom_node.db import Database
from dicom_node.engine import EngineClient
from dicom_node.errors import DicomNodeError
from dicom_node.web.access import Denied, Principal
from dicom_node.web.answers.job import NoSuchJob
from dicom_node.web.answers.peers import Echo
from dicom_node.web.node import Node

Change = Callable[[Database, EngineClient, str], str]


def act(node: Node, who: Principal, verb: str, job_id: str, change: Change, *, on: str = "job") -> str:
    """What was done, in words. Raises NoSuchJob, DicomNodeError where its state does not allow it.

    on: what the trail says was changed: the job, or its second look, "shadow".
    """
    if node.database.job(job_id) is None:
        raise NoSuchJob(job_id)
    asked = verb if on == "job" else f"{on} {verb}"
    node.database.add_event(f"{asked} asked", job_id=job_id, by=who.name)
    done = change(node.database, node.engine, job_id)
    node.trail.changed(who, f"{on} {verb}", job_id)
    return done


def look_again(node: Node, who: Principal, job_id: str) -> str:
    """Let the second model look again, as `act` does it."""
    return act(node, who, "retry", job_id, retry_shadow, on="shadow")


def call_peer(node: Node, who: Principal, name: str) -> Echo:
    """C-ECHO. It takes as long as the peer's timeouts allow. Raises Denied where there is nobody to call."""
    from dicom_node.dimse.scu import echo

    peer = node.config.peers.get(name)
    if peer is None:
        raise Denied(404, "There is no such peer: GET /api/v1/peers lists those there are.")
    if peer.port is None:
        raise Denied(409, f"This peer can't be called: give peers.{name}.port in config.yaml.")
    node.trail.changed(who, "peer echo", name)
    start = time.monotonic()
    try:
        echo(peer, node.config.receive.ae_title)
    except DicomNodeError as err:
        return Echo(peer=name, ok=False, message=str(err), took_s=None)
    answers = f"{peer.ae_title} at {peer.host}:{peer.port} answers"
    return Echo(peer=name, ok=True, message=answers, took_s=time.monotonic() - start)


def take_object(node: Node, who: Principal, job_id: str, sop_instance_uid: str) -> tuple[Path, str]:
    """A result object's file, and a name for it. Raises NoSuchJob, Denied. It names the patient."""
    job = node.database.job(job_id)
    if job is None:
        raise NoSuchJob(job_id)
    for row in node.database.results(job_id):
        if row["sop_instance_uid"] == sop_instance_uid:
            path = node.storage.path(row["path"])
            if not path.is_file():
                raise Denied(410, "The file is gone: a purge took it.")
            node.trail.downloaded(who, job["series_uid"], [row["sop_class_uid"]])
            return path, f"{row['kind']}-{sop_instance_uid}.dcm"
    raise Denied(404, "This job has no such object: its page lists those that it has.")
