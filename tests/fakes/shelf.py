"""Series with rows and files, in any state that retention knows, made by the same calls as the roles make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.config import SeriesState
from dicom_node.db import Database, ReceivedInstance, ResultObject
from dicom_node.storage import Storage

CT = "1.2.840.10008.5.1.4.1.1.2"
DAY_S = 86400.0


@dataclass
class Clock:
    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeEngine:
    """What a purge asks of the job engine."""

    abandoned: list[str] = field(default_factory=list)

    def abandon(self, prefix: str) -> None:
        self.abandoned.append(prefix)

    def forget_ended(self, before: float) -> None:
        """Nothing is known here."""


@dataclass
class Shelf:
    """A node's storage and rows; `add` puts a series into it."""

    database: Database
    storage: Storage
    size_bytes: int = 1000

    def add(self, number: int, state: SeriesState | str, *, images: int = 2) -> str:
        """A series in this state, or "queued", "running", "sending", "growing". Its series UID."""
        series_uid = self.receive(number, images)
        if state not in ("growing",):
            self.decide(series_uid)
        if state == "correction":
            self.corrects(series_uid)
        if state in ("growing", "unused", "correction"):
            return series_uid
        job_id = self.job(series_uid, "rejected" if state == "rejected" else "queued")
        if state in ("queued", "rejected"):
            return series_uid
        if state == "cancelled":
            self.database.cancel_job(job_id)
            return series_uid
        self.database.start_job(job_id, "w")
        if state == "running":
            return series_uid
        if state == "failed":
            self.database.fail_job(job_id, "why")
        elif state == "parked":
            self.database.park_job(job_id, "why")
        else:
            self.finish(job_id, () if state == "local" else ("pacs",))
            self.move(job_id, {"undelivered": "waiting", "local": "waiting"}.get(state, state))
        return series_uid

    def receive(self, number: int, images: int = 2, first: int = 0) -> str:
        series_uid, study_uid = f"1.2.{number}", f"1.3.{number}"
        for image in range(first, first + images):
            data = (f"{number} {image} ".encode() * self.size_bytes)[: self.size_bytes]
            stored = self.storage.write_instance(study_uid, series_uid, f"1.4.{number}.{image}", data)
            new = ReceivedInstance(
                sop_instance_uid=f"1.4.{number}.{image}",
                sop_class_uid=CT,
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                study_uid=study_uid,
                series_uid=series_uid,
                path=stored.path,
                sha256=stored.sha256,
                size_bytes=stored.size_bytes,
            )
            self.database.record_instance(new, source_ae="CT", source_ip="192.0.2.1")
        return series_uid

    def decide(self, series_uid: str) -> None:
        row = self.database.series(series_uid)
        assert row is not None
        self.database.series_assembled(series_uid, "ab", row["last_at"])

    def corrects(self, series_uid: str) -> None:
        self.database.record_correction(
            series_uid.replace("1.2.", "1.4.", 1) + ".0",
            series_uid=series_uid,
            study_uid=series_uid.replace("1.2.", "1.3.", 1),
            kind="seg",
            source_ae="PACS",
            state="waiting",
            recognised_by="result",
            of_series_uid="1.2.999999",
            made="",
        )

    def job(self, series_uid: str, state: str, revision: int = 0) -> str:
        job_id = f"{series_uid}-{revision:016d}"
        self.storage.write_result(job_id, "manifest.json", b"{}")
        self.database.create_job(
            job_id,
            state=state,  # type: ignore[arg-type]  of the three that create_job takes
            series_uid=series_uid,
            study_uid=series_uid.replace("1.2.", "1.3.", 1),
            manifest_sha256="ab" * 32,
            instance_count=2,
            source_ae="CT",
            priority="routine",
            evidence={},
            explanation=[],
            route="all",
            reason="NOT_AXIAL" if state == "rejected" else None,
        )
        return job_id

    def finish(self, job_id: str, destinations: Sequence[str], state: str = "complete") -> None:
        """One object to each destination."""
        stored = self.storage.write_result(job_id, "sr.dcm", f"report of {job_id}".encode())
        made = ResultObject(
            sop_instance_uid=f"2.25.{job_id.replace('-', '.')}",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
            kind="sr",
            path=stored.path,
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
            destinations=frozenset(destinations),
        )
        self.database.finish_job(job_id, state=state, objects=[made])  # type: ignore[arg-type]

    def move(self, job_id: str, state: str, destination: str = "pacs") -> None:
        """The objects of a job into any state of the ledger, as of now."""
        d = schema.delivery.c
        values = {"state": state, "changed_at": self.database._now()}
        with self.database.engine.begin() as connection:
            connection.execute(
                sa.update(schema.delivery).where(d.job_id == job_id, d.destination == destination).values(**values)
            )

    def here(self) -> set[str]:
        """The series that have a row."""
        with self.database.engine.connect() as connection:
            return set(connection.execute(sa.select(schema.series.c.series_uid)).scalars())

    def files(self) -> set[str]:
        root = self.storage.root
        return {
            str(path.relative_to(root))
            for top in ("incoming", "results")
            for path in (root / top).rglob("*")
            if path.is_file()
        }

    def assert_whole(self) -> None:
        """Each row has its file, and each file its row."""
        with self.database.engine.connect() as connection:
            paths = set(connection.execute(sa.select(schema.instance.c.path)).scalars())
            paths |= set(connection.execute(sa.select(schema.result.c.path)).scalars())
            paths |= {
                f"results/{job}/manifest.json" for job in connection.execute(sa.select(schema.job.c.job_id)).scalars()
            }
        assert self.files() == paths
        assert not any((self.storage.root / "discarded").glob("*/*")), "nothing lies about"


def shelf(folder: Path, now: Callable[[], float], **storage: float) -> Shelf:
    """On SQLite in `folder`, where a node would have both."""
    made = Database(f"sqlite:///{folder / 'node.sqlite'}", now=now)
    made.migrate()
    return Shelf(database=made, storage=Storage(folder, **storage))
