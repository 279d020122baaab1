"""A web role with rows and files to show, served by a real uvicorn on loopback; hostile values among them."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI

from dicom_node import engine as job_engine
from dicom_node import logs, schema
from dicom_node.audit import NoAudit
from dicom_node.config import Config
from dicom_node.db import Database, ReceivedInstance, ResultObject
from dicom_node.engine import EngineClient
from dicom_node.log_files import LineFiles
from dicom_node.metrics.exposition import Exposition
from dicom_node.profiles import BUILT_IN_PROFILES
from dicom_node.results import finding_rows, to_bytes
from dicom_node.storage import Storage
from dicom_node.web.app import create_app
from dicom_node.web.node import Node, open_access
from dicom_node.web.trail import Trail
from tests.golden import made_of
from tests.golden.cases import cases
from tests.peers import free_port

PASSWORD = "correct horse battery"
HOSTILE = "<img src=x onerror=alert(1)>&\"'"
AXE = Path(__file__).resolve().parent.parent / "cache" / "axe-core-4.10.3" / "axe.min.js"


# Seconds, level, message, values.
Said = tuple[float, str, str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """complete: a job with files, two findings and their pictures. failed: one with hostile texts. later_s: added to
    what the role takes for now."""

    url: str
    app: FastAPI
    node: Node
    complete: str
    failed: str
    later_s: list[float]


def settings(root: Path, **sections: Any) -> Config:
    return Config.model_validate(
        {
            **sections,
            "storage": {"root": str(root), "min_free_gb": 0},
            "peers": {
                "pacs": {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": free_port(), "may_send": True},
                "archive": {"ae_title": "ARCHIVE", "host": "127.0.0.1", "port": free_port()},
            },
            "models": {"lung_nodule": {"bundle": "builtin:lung_nodule_small"}},
            "routes": [{"name": "chest-ct", "model": "lung_nodule", "destinations": ["pacs", "archive"]}],
        }
    )


@contextlib.contextmanager
def run_dashboard(folder: Path, *, root: Path | None = None, rows: bool = True, **sections: Any) -> Iterator[Dashboard]:
    """root: the storage root, below `folder` unless given. sections: of the settings, beside those of all dashboards
    here."""
    config = settings(root or folder / "node", **sections)
    storage, database = Storage(config.storage.root), Database(config.database_url())
    database.migrate()
    job_engine.migrate(config.database_url())
    engine = EngineClient(config.database_url())
    later_s = [0.0]

    def now() -> float:
        return time.time() + later_s[0]

    access = open_access(config, now=now)
    for role in ("viewer", "operator"):
        access.users.add(role, role, PASSWORD)
    node = Node(
        config=config,
        database=database,
        storage=storage,
        engine=engine,
        access=access,
        trail=Trail(audit=NoAudit(), database=database, storage=storage),
        exposition=Exposition(config, database),
        now=now,
    )
    complete, failed = _fill(node, folder) if rows else ("", "")
    port, app = free_port(), create_app(node)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield Dashboard(
            url=f"http://127.0.0.1:{port}", app=app, node=node, complete=complete, failed=failed, later_s=later_s
        )
    finally:
        server.should_exit = True
        thread.join(10)
        access.rows.close()
        engine.close()
        database.close()


def _fill(node: Node, folder: Path) -> tuple[str, str]:
    """Jobs of every state, the first of them with all its files."""
    database = node.database
    complete = _analysed(node, folder)
    for number, state in enumerate(schema.JOB_STATES * 9):
        series = f"1.2.3.{number}"
        made = "failed" if state == "failed" else ("rejected" if state == "rejected" else "queued")
        reason = {"failed": "FAILED", "rejected": "SLICE_GAP"}.get(made)
        job_id = f"{series}-{number:08x}"
        job(
            database,
            job_id,
            series,
            state=made,
            reason=reason,
            text="gap of 5.0 mm after slice 112" if reason else None,
        )
        if state in ("running", "parked"):
            database.start_job(job_id, "work")
        if state == "running":
            database.job_progress(job_id, "work", 0.4)
        if state == "parked":
            database.park_job(job_id, "its workers died while they ran it; jobs retry tries again")
        if state == "cancelled":
            database.cancel_job(job_id)
        if state == "complete":
            database.start_job(job_id, "work")
            database.finish_job(job_id, state="complete", objects=[])
            if number == 2:
                fail_second_look(database, job_id, "bundle candidate: weights.safetensors is missing")
    _said_of(node.storage, complete)
    failed = "1.2.9.1-00000bad"
    say(node.storage, failed, "work", [(0.0, "ERROR", f"analysis failed {HOSTILE}", {"peer": HOSTILE})])
    job(database, failed, "1.2.9.1", state="failed", reason="FAILED", text=f"slice {HOSTILE}", explanation=[HOSTILE])
    with database.engine.begin() as connection:
        connection.execute(sa.update(schema.job).where(schema.job.c.job_id == failed).values(source_ae="<b>CT</b>"))
    return complete, failed


def job(
    database: Database,
    job_id: str,
    series: str,
    *,
    state: str = "queued",
    reason: str | None = None,
    text: str | None = None,
    explanation: list[str] | None = None,
    images: int = 300,
    study: str = "1.2.3.4",
) -> None:
    made = database.create_job(
        job_id,
        state=state,  # type: ignore[arg-type]
        series_uid=series,
        study_uid=study,
        manifest_sha256="ab" * 32,
        instance_count=images,
        source_ae="ORTHANC",
        reason=reason,
        reason_text=text,
        route="chest-ct",
        priority="routine",
        evidence={
            "rung": "released",
            "partial": False,
            "text": f"{images} instances received, {images} axial slices contiguous, Association released",
        },
        explanation=["chest-ct: matches"] if explanation is None else explanation,
    )
    assert made


def fail_second_look(database: Database, job_id: str, problem: str = "no such bundle") -> None:
    """Of a complete job, whether or not its route has a second model: one looked in vain."""
    decided = {"working_model": "lung_nodule", "shadow_model": "candidate"}
    with database.engine.begin() as connection:
        connection.execute(sa.update(schema.job).where(schema.job.c.job_id == job_id).values(**decided))
    assert database.shadow_wanted(job_id)
    database.start_shadow(job_id, "work")
    database.fail_shadow(job_id, problem)


def say(storage: Storage, job_id: str, role: str, lines: list[Said], *, host: str = "ct-node", at: float = 0) -> None:
    """By the handler of a role's process. at: seconds since the epoch, from which each line's seconds count."""
    handler = LineFiles(storage.root, role, host=host, process=4711, gather_s=0)
    handler.addFilter(logs.name_series)
    for after_s, level, message, values in lines:
        record = logging.LogRecord("dicom_node", getattr(logging, level), "", 0, message, None, None)
        record.created = (at or time.time()) + after_s
        record.__dict__.update({"job": job_id, **values})
        handler.handle(record)
    handler.close()


def _said_of(storage: Storage, job_id: str) -> None:
    """A day of a job, of all roles on two hosts."""
    began = time.time() - 60
    received = {"job": None, "series": job_id.partition("-")[0]}
    say(storage, job_id, "receive", at=began, host="ct-node-1", lines=[
        (0.0, "INFO", "series received", {**received, "calling_ae": "ORTHANC", "instances": 44, "aborted": False}),
    ])  # fmt: skip
    say(storage, job_id, "work", at=began, host="gpu-1", lines=[
        (1.214, "INFO", "job queued", {"action": "queue", "route": "chest-ct"}),
        (1.603, "INFO", "job running", {"action": "start", "executor": "gpu-1/work"}),
        (3.020, "DEBUG", "lungs found", {"seconds": 1.4, "voxels": 812_345}),
        (26.77, "INFO", "nodules found", {"findings": 2, "candidates": 31, "network_s": 22.6, "device": "cuda:0"}),
        (27.41, "INFO", "job complete", {"action": "complete", "objects": 4}),
    ])  # fmt: skip
    say(storage, job_id, "deliver", at=began, host="ct-node-1", lines=[
        (27.93, "INFO", "delivery stored", {"destination": "pacs", "kind": "seg", "attempts": 1, "status": "0x0000"}),
        (28.05, "INFO", "delivery stored", {"destination": "pacs", "kind": "sr", "attempts": 1, "status": "0x0000"}),
        (28.31, "WARNING", "delivery waiting", {"destination": "archive", "attempts": 1,
                                                "why": "no Association: connection refused"}),
        (43.35, "ERROR", "destination does not answer", {"destination": "archive", "attempts": 2, "next_s": 60}),
    ])  # fmt: skip


def _analysed(node: Node, folder: Path) -> str:
    [case] = [case for case in cases(folder / "ct") if case.name == "findings"]
    assert case.reading is not None
    series, job_id = case.reading.series, f"{case.reading.series.series_uid}-0a1b2c3d4e5f"
    manifest = {}
    for image in series.images:
        stored = node.storage.write_instance(
            series.study_uid, series.series_uid, image.sop_instance_uid, Path(image.path).read_bytes()
        )
        manifest[image.sop_instance_uid] = stored.path
        node.database.record_instance(
            ReceivedInstance(
                sop_instance_uid=image.sop_instance_uid,
                sop_class_uid=image.sop_class_uid,
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                study_uid=series.study_uid,
                series_uid=series.series_uid,
                path=stored.path,
                sha256=stored.sha256,
                size_bytes=stored.size_bytes,
            ),
            source_ae="ORTHANC",
            source_ip="127.0.0.1",
        )
    job(node.database, job_id, series.series_uid, images=len(manifest), study=series.study_uid)
    node.storage.write_result(job_id, "manifest.json", json.dumps(manifest).encode())
    objects = []
    for each in made_of(case, BUILT_IN_PROFILES["ohif"]):
        file = node.storage.write_result(job_id, f"{each.made.name}.dcm", to_bytes(each.made.ds))
        objects.append(
            ResultObject(
                sop_instance_uid=str(each.made.ds.SOPInstanceUID),
                sop_class_uid=str(each.made.ds.SOPClassUID),
                kind=each.made.kind,
                path=file.path,
                sha256=file.sha256,
                size_bytes=file.size_bytes,
                destinations=frozenset({"pacs", "archive"}),
            )
        )
    node.database.start_job(job_id, "work")
    node.database.finish_job(
        job_id,
        state="complete",
        objects=objects,
        findings=finding_rows(
            case.reading.detection.findings,
            case.reading.measurements,
            [tracking.uid for tracking in case.reading.tracking],
        ),
        timings_s={"lung": 1.4, "resample": 0.8, "network": 22.6, "link": 0.3},
        model={"name": "lung_nodule_small", "version": "0.2.0"},
    )
    for made in objects:
        node.database.move_delivery(made.sop_instance_uid, "pacs", ("waiting",), "sending", attempt=True)
        node.database.move_delivery(made.sop_instance_uid, "pacs", ("sending",), "stored", status=0)
        node.database.add_event("delivery stored", job_id=job_id, destination="pacs", kind=made.kind)
        node.database.move_delivery(made.sop_instance_uid, "archive", ("waiting",), "sending", attempt=True)
        node.database.move_delivery(
            made.sop_instance_uid, "archive", ("sending",), "waiting", message="no Association: connection refused"
        )
    return job_id
