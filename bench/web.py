"""Milliseconds that a page of the dashboard takes over many jobs: the list, filtered and deep, today, one job.

The rows are made by SQL alone, in a database of their own; nothing is analysed. A page is asked for as a browser does,
by a token, of the whole application without its socket; medians of the rounds, after one that warms up. Each must stay
under 100 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from starlette.testclient import TestClient

from dicom_node import engine as job_engine
from dicom_node import logs
from dicom_node.audit import NoAudit
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.engine import EngineClient
from dicom_node.metrics.exposition import Exposition
from dicom_node.storage import Storage
from dicom_node.web.answers.jobs import Cursor, jobs
from dicom_node.web.app import create_app
from dicom_node.web.node import Node, open_access
from dicom_node.web.trail import Trail

LIMIT_MS = 100.0

PEERS, ROUTES = ("CT1", "CT2", "EMERGENCY"), ("chest-ct", "lung-screening", "follow-up")
_DAY_S = 86400.0

# Every number is a function of n, so that each run has the same rows. One in 50 jobs fails, one in 20 is rejected.
_SEED = """
WITH RECURSIVE
digit(d) AS (SELECT 0 UNION ALL SELECT d + 1 FROM digit WHERE d < 9),
number(n) AS (
  SELECT a.d + 10 * b.d + 100 * c.d + 1000 * e.d + 10000 * f.d + 100000 * g.d
  FROM digit a, digit b, digit c, digit e, digit f, digit g)
"""
_SERIES = """
INSERT INTO series (series_uid, study_uid, source_ae, source_ip, first_at, last_at, released, assembled_at)
{seed} SELECT '1.2.826.0.1.3680043.10.' || n, '1.2.826.0.1.3680043.9.' || (n / 2), {peer}, '127.0.0.1',
  {start} + n * {step} - 60.0, {start} + n * {step} - 20.0, true, {start} + n * {step} FROM number WHERE n < {count}
"""
_JOBS = """
INSERT INTO job (job_id, series_uid, study_uid, manifest_sha256, instance_count, source_ae, state, reason, reason_text,
  route, priority, evidence, explanation, progress, timings_s, created_at, started_at, finished_at)
{seed} SELECT '1.2.826.0.1.3680043.10.' || n || '-' || substr('000000' || n, -6) || 'abcdef',
  '1.2.826.0.1.3680043.10.' || n, '1.2.826.0.1.3680043.9.' || (n / 2), 'abc', 250 + n % 150, {peer},
  CASE WHEN n = {count} - 1 THEN 'running' WHEN n > {count} - 5 THEN 'queued' WHEN n % 50 = 7 THEN 'failed'
    WHEN n % 20 = 3 THEN 'rejected' ELSE 'complete' END,
  CASE WHEN n > {count} - 5 THEN NULL WHEN n % 50 = 7 THEN 'FAILED' WHEN n % 20 = 3 THEN 'SLICE_GAP' END,
  CASE WHEN n > {count} - 5 THEN NULL WHEN n % 50 = 7 THEN 'the analysis ended with an error in network'
    WHEN n % 20 = 3 THEN 'gap of 5.0 mm after slice 112' END,
  {route}, 'routine', {evidence}, {explanation},
  CASE WHEN n = {count} - 1 THEN 0.4 WHEN n > {count} - 5 THEN 0.0 ELSE 1.0 END, {timings}, {start} + n * {step},
  CASE WHEN n > {count} - 5 AND n < {count} - 1 THEN NULL ELSE {start} + n * {step} + 5.0 END,
  CASE WHEN n > {count} - 5 THEN NULL ELSE {start} + n * {step} + 30.0 + n % 97 END
FROM number WHERE n < {count}
"""
_RESULTS = """
INSERT INTO result (sop_instance_uid, job_id, kind, sop_class_uid, path, sha256, size_bytes)
SELECT '2.25.' || substr(job_id, 24) || '.1', job_id, 'seg', '1.2.840.10008.5.1.4.1.1.66.4',
  'results/' || job_id || '/seg.dcm', 'abc', 100000 FROM job WHERE state = 'complete'
"""
_DELIVERIES = """
INSERT INTO delivery (sop_instance_uid, destination, job_id, state, attempts, created_at, changed_at, commit_rounds)
SELECT sop_instance_uid, 'pacs', result.job_id, 'stored', 1, job.finished_at, job.finished_at + 2.0, 0
FROM result JOIN job ON job.job_id = result.job_id
"""
_EVENTS = """
INSERT INTO event (at, action, job_id, details) SELECT created_at, 'job queued', job_id, {empty} FROM job
"""
_FINDINGS = """
INSERT INTO finding (job_id, number, "values") SELECT job_id, 1, {finding} FROM job WHERE state = 'complete'
"""


def seed(database: Database, count: int, now: float, *, days: float = 365.0) -> None:
    """`count` jobs, at most a million, evenly over the last days."""
    json = "'%s'" if database.engine.dialect.name == "sqlite" else "CAST('%s' AS json)"
    values = {
        "seed": _SEED,
        "count": count,
        "start": repr(now - days * _DAY_S),
        "step": repr(days * _DAY_S / count),
        "peer": _pick("n", PEERS),
        "route": _pick("n / 3", ROUTES),
        "evidence": json % '{"rung": "released", "partial": false, "text": "300 instances received", "instances": 300}',
        "explanation": json % '["chest-ct: matches"]',
        "timings": json % '{"lung": 1.5, "network": 8.25}',
        "finding": json % '{"score": 0.91}',
        "empty": json % "{}",
    }
    with database.engine.begin() as connection:
        for statement in (_SERIES, _JOBS, _RESULTS, _DELIVERIES, _EVENTS, _FINDINGS):
            made = statement.format(**values)
            # psycopg takes a single % for the place of a parameter.
            connection.exec_driver_sql(made if database.engine.dialect.name == "sqlite" else made.replace("%", "%%"))
    with database.engine.begin() as connection:
        connection.execute(sa.text("ANALYZE"))


def _pick(number: str, names: tuple[str, ...]) -> str:
    cases = " ".join(f"WHEN {place} THEN '{name}'" for place, name in enumerate(names))
    return f"CASE ({number}) % {len(names)} {cases} END"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="bench/web", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=100_000, help="default 100000")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    logs.quiet_pydicom()
    with tempfile.TemporaryDirectory() as folder:
        report = measured(Path(folder), arguments.jobs, arguments.rounds)
    print(json.dumps(report, indent=2) if arguments.json else _table(report))
    raise SystemExit(0 if all(ms < LIMIT_MS for ms in report["pages_ms"].values()) else 1)


def measured(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    config = Config.model_validate(
        {
            "storage": {"root": str(folder), "min_free_gb": 0},
            "peers": {"pacs": {"ae_title": "PACS", "host": "127.0.0.1", "port": 104}},
            "models": {"lung_nodule": {"bundle": "builtin:lung_nodule_small"}},
            "routes": [{"name": name, "model": "lung_nodule", "destinations": ["pacs"]} for name in ROUTES],
        }
    )
    database, now = Database(config.database_url()), time.time()
    database.migrate()
    job_engine.migrate(config.database_url())
    seed(database, count, now)
    engine, access = EngineClient(config.database_url()), open_access(config)
    storage = Storage(config.storage.root)
    node = Node(
        config=config,
        database=database,
        storage=storage,
        engine=engine,
        access=access,
        trail=Trail(audit=NoAudit(), database=database, storage=storage),
        exposition=Exposition(config, database),
    )
    access.users.add("bench", "viewer", "a password of the bench")
    try:
        with TestClient(create_app(node), base_url="http://127.0.0.1", client=("127.0.0.1", 50000)) as client:
            client.post(
                "/login",
                data={"user": "bench", "password": "a password of the bench"},
                headers={"origin": "http://127.0.0.1"},
            )
            pages = {name: _median_ms(client, path, rounds) for name, path in _paths(database, now).items()}
    finally:
        access.rows.close()
        engine.close()
        database.close()
    machine = f"{platform.machine()}, Python {platform.python_version()}, SQLite"
    return {
        "machine": machine, "load": round(os.getloadavg()[0], 1), "jobs": count, "rounds": rounds,
        "limit_ms": LIMIT_MS, "pages_ms": pages,
    }  # fmt: skip


def _paths(database: Database, now: float) -> dict[str, str]:
    deep = Cursor(created_at=now - 300 * _DAY_S, job_id="-")
    newest = jobs(database, limit=1).jobs[0].job_id
    return {
        "today": "/",
        "jobs": "/jobs",
        "jobs, 300 days back": f"/jobs?older={deep}",
        "the page before that": f"/jobs?newer={deep}",
        "failed": "/jobs?state=failed",
        "one peer": "/jobs?peer=CT1",
        "one peer and route, rejected": "/jobs?peer=CT2&route=follow-up&state=rejected",
        "one peer and route, 300 days back": f"/jobs?peer=CT2&route=follow-up&older={deep}",
        "a reason": "/jobs?text=SLICE_GAP",
        "a part of a UID": "/jobs?text=43.10.777",
        "text that nothing holds": "/jobs?text=nothing",
        "one job": f"/jobs/{newest}",
        "peers": "/peers",
        "models": "/models",
    }


def _median_ms(client: TestClient, path: str, rounds: int) -> float:
    laps = []
    for _ in range(1 + rounds):
        start = time.perf_counter()
        answer = client.get(path, follow_redirects=False)
        laps.append(1000 * (time.perf_counter() - start))
        answer.raise_for_status()
        assert answer.status_code == 200, path
    return round(statistics.median(laps[1:]), 1)


def _table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['jobs']} jobs, {report['rounds']} rounds, {report['machine']}, load {report['load']}; "
        f"limit {report['limit_ms']:g} ms",
        "",
        "| page | ms |",
        "|---|---|",
    ]
    return "\n".join(lines + [f"| {name} | {ms:.0f} |" for name, ms in report["pages_ms"].items()])


if __name__ == "__main__":
    main()
