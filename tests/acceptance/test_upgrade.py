"""Upgrade with a drain, roll back, back up, restore: with the commands of docs/operations.md, on both databases.

The worker's detector is a stub that can be held, so that one job runs and one waits when the node is told to stop.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.script import ScriptDirectory

import dicom_node
from dicom_node.db import Database
from dicom_node.dimse.archive import Archive
from dicom_node.dimse.scu import send
from dicom_node.manifest import manifest_sha256
from dicom_node.peers import PeerConfig
from tests.fakes.ct import make_ct_series
from tests.node import READY, Node
from tests.peers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.peers]

COST_S = 0.5
MIGRATIONS = Path(dicom_node.__file__).parent / "migrations"
STOPPING = '"action": "stopping"'
ROOT_UID = "1.2.826.0.1.3680043.8.498.81"


@dataclass(slots=True, kw_only=True)
class Operated:
    """A node, its PACS (which is down at first), and what an administrator types."""

    node: Node
    archive: Archive
    folder: Path
    postgres: str | None

    def start(self, *also: str) -> None:
        """The roles that analyse and deliver, and these."""
        self.node.start(*also, "deliver")
        before = self.node.log("work").count(READY)
        with (self.node.folder / "work.log").open("ab") as log:
            command = [sys.executable, "-m", "tests.stub_worker", str(self.node.config_path), str(COST_S)]
            environment = {**os.environ, "STUB_HOLD": str(self.hold)}
            self.node.processes["work"] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self.node.wait(lambda: self.node.log("work").count(READY) > before, "the worker")

    @property
    def hold(self) -> Path:
        """While it is there, an analysis does not end."""
        return self.folder / "hold"

    def stop(self) -> None:
        """The worker is told first; what it is at may end only then."""
        self.node.processes["work"].terminate()
        self.node.wait(lambda: STOPPING in self.node.log("work"), "the worker to hear")
        self.hold.unlink()
        assert self.node.processes.pop("work").wait(60) == 0
        self.node.stop()

    def send(self, number: int) -> str:
        """A new series; its job's id."""
        header = {"PatientID": f"UPGRADE-{number}"} | {
            name: f"{ROOT_UID}.{number}.{part}"
            for part, name in enumerate(("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"))
        }
        files = make_ct_series(self.folder / f"send{number}", shape=(44, 64, 64), header=header)
        to = PeerConfig(ae_title="DICOMNODE", host="127.0.0.1", port=self.node.port, response_timeout_s=20)
        assert all(outcome.kind == "stored" for outcome in send(files, to, "SCANNER"))
        uids = [str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files]
        return f"{header['SeriesInstanceUID']}-{manifest_sha256(uids)[:16]}"

    def state(self, job_id: str) -> str | None:
        job = self.node.database.job(job_id)
        return None if job is None else str(job["state"])

    def back_up(self, out: Path) -> None:
        if self.postgres is not None:
            _run("pg_dump", "--format=custom", f"--file={out}.dump", self.postgres)
        said = self.type("backup", "--out", str(out))
        assert ("none: they are in PostgreSQL" if self.postgres else "node.sqlite, engine.sqlite") in said

    def put_back(self, out: Path) -> None:
        """Roles are stopped. What is there is moved away, and stays."""
        root = self.node.config.storage.root
        root.rename(root.with_name("root.away"))
        if self.postgres is not None:
            self.node.database.close()
            server = self.postgres.rsplit("/", 1)[0] + "/postgres"
            _run("pg_restore", "--clean", "--create", f"--dbname={server}", f"{out}.dump")
        self.type("restore", str(out))
        self.node.database = Database(self.node.config.database_url())

    def type(self, *words: str) -> str:
        return _run(sys.executable, "-m", "dicom_node", *words, "--config", str(self.node.config_path))

    def delivered(self, jobs: list[str]) -> None:
        for job_id in jobs:
            self.node.wait_ended(job_id)
            assert {row["state"] for row in self.node.database.deliveries(job_id)} == {"stored"}

    def arrived(self) -> Counter[str]:
        return Counter(one.sop_instance_uid for one in self.archive.received())


def _run(*words: str) -> str:
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}"
    return done.stdout


@pytest.fixture(params=["sqlite", "postgresql"])
def operated(request: pytest.FixtureRequest, make_node: Callable[..., Node], tmp_path: Path) -> Iterator[Operated]:
    sections: dict[str, Any] = {
        "models": {"stub": {"bundle": "builtin:lung_nodule_small"}},
        "routes": [{"name": "all", "model": "stub", "destinations": ["pacs"]}],
        "work": {"drain_s": 50},
    }
    url = None
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
        sections["database"] = {"url": url}
    port = free_port()
    node = make_node(peers={"pacs": {"ae_title": "PACS", "host": "127.0.0.1", "port": port}}, **sections)
    archive = Archive(tmp_path / "archive", "PACS", port)
    yield Operated(
        node=node, archive=archive, folder=tmp_path, postgres=None if url is None else url.replace("+psycopg", "")
    )
    archive.stop()


def alembic(connection: sa.Connection) -> AlembicConfig:
    settings = AlembicConfig()
    settings.set_main_option("script_location", str(MIGRATIONS))
    settings.attributes["connection"] = connection
    return settings


def as_the_version_before(url: str) -> str:
    """Take out of a database what the last migration brought; its revision. So an older version had left it."""
    with sa.create_engine("sqlite://").begin() as blank:
        settings = alembic(blank)
        scripts = ScriptDirectory.from_config(settings)
        head = scripts.get_revision(scripts.get_current_head() or "head")
        assert isinstance(head.down_revision, str)
        command.upgrade(settings, head.down_revision)
        old = sa.MetaData()
        old.reflect(blank)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        new = sa.MetaData()
        new.reflect(connection)
        for table in reversed(new.sorted_tables):
            if table.name not in old.tables:
                table.drop(connection)
                continue
            known = old.tables[table.name]
            for index in table.indexes:
                if index.name not in {one.name for one in known.indexes}:
                    index.drop(connection)
            for column in table.columns:
                if column.name not in known.columns:
                    connection.execute(sa.text(f'ALTER TABLE "{table.name}" DROP COLUMN "{column.name}"'))
        connection.execute(sa.text(f"UPDATE alembic_version SET version_num = '{head.down_revision}'"))
    engine.dispose()
    return head.revision


def revision(url: str) -> str:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = str(connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar())
    engine.dispose()
    return found


def test_an_upgrade_loses_no_job_and_the_backup_of_before_brings_all_of_it_back(operated: Operated) -> None:
    node, url = operated.node, operated.node.config.database_url()
    operated.start("receive")
    done = operated.send(1)
    node.wait(lambda: operated.state(done) == "complete", "the first job")
    operated.hold.touch()
    running = operated.send(2)
    node.wait(lambda: operated.state(running) == "running", "the second job")
    queued = operated.send(3)
    node.wait(lambda: operated.state(queued) == "queued", "the third job")
    jobs = [done, running, queued]
    # While it runs, and with a delivery still to do: the PACS is down.
    operated.back_up(operated.folder / "backup")
    operated.stop()
    assert [operated.state(one) for one in jobs] == ["complete", "complete", "queued"], "what ran had its time to end"

    # Upgrade: the version before left its schema, and this one brings it up to date at its first start.
    head = as_the_version_before(url)
    assert revision(url) != head
    operated.archive.start()
    operated.start()
    assert revision(url) == head
    operated.delivered(jobs)
    made = {row["sop_instance_uid"] for one in jobs for row in node.database.results(one)}
    assert len(made) == 2 * len(jobs)
    assert operated.arrived() == dict.fromkeys(made, 1), "each object, and each once"
    node.stop()

    # Roll back: the backup was made with a delivery to do, a job that ran and one that waited.
    operated.put_back(operated.folder / "backup")
    assert [operated.state(one) for one in jobs] == ["complete", "running", "queued"]
    operated.start()
    operated.delivered(jobs)
    assert operated.arrived() == dict.fromkeys(made, 2), "the same objects under the same UIDs, each once more"
    assert {row["sop_instance_uid"] for one in jobs for row in node.database.results(one)} == made
    node.stop()
