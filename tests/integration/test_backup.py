"""A node <-> its backup: copied as of one moment; what is no whole backup is refused before anything changes."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_node.backup import backup, restore
from dicom_node.config import Config, DatabaseConfig
from dicom_node.db import Database
from dicom_node.engine import migrate
from dicom_node.errors import DicomNodeError
from dicom_node.storage import Storage


@pytest.fixture
def config(node_config: Callable[..., Config]) -> Config:
    """Of a node that has run: databases, one image, a result."""
    made = node_config()
    storage = Storage(made.storage.root)
    database = Database(made.database_url())
    database.migrate()
    database.close()
    migrate(made.database_url())
    storage.write_instance("1.2", "1.3", "1.4", b"an image" * 1000)
    storage.write_result("1.3-0123456789abcdef", "report_sr.dcm", b"a report" * 1000)
    return made


def elsewhere(config: Config, root: Path, url: str | None = None) -> Config:
    storage = config.storage.model_copy(update={"root": root})
    return config.model_copy(update={"storage": storage, "database": DatabaseConfig(url=url)})


def refused(config: Config, source: Path, why: str) -> None:
    """Before anything was written."""
    with pytest.raises(DicomNodeError, match=why):
        restore(config, source)
    assert not config.storage.root.exists()


def test_both_databases_are_of_one_moment_while_a_node_writes_to_them(config: Config, tmp_path: Path) -> None:
    """A writer that goes from ours to the engine's, as an enqueue does: a copy never has what only comes later."""
    root, stop = config.storage.root, threading.Event()
    for name in ("node.sqlite", "engine.sqlite"):
        with closing(sqlite3.connect(root / name)) as connection, connection:
            connection.execute("CREATE TABLE step (number INTEGER)")
            # So that copying takes its time.
            connection.execute("CREATE TABLE filler AS SELECT randomblob(20000000) AS bytes")

    def steps() -> None:
        with (
            closing(sqlite3.connect(root / "node.sqlite", timeout=30)) as ours,
            closing(sqlite3.connect(root / "engine.sqlite", timeout=30)) as engines,
        ):
            number = 0
            while not stop.wait(0.001):
                number += 1
                for connection in (ours, engines):
                    with connection:
                        connection.execute("INSERT INTO step VALUES (?)", (number,))

    writer = threading.Thread(target=steps)
    writer.start()
    try:
        backup(config, tmp_path / "backup")
    finally:
        stop.set()
        writer.join()
    counts = []
    for name in ("node.sqlite", "engine.sqlite"):
        with closing(sqlite3.connect(tmp_path / "backup" / name)) as copy:
            counts.append(copy.execute("SELECT count(*) FROM step").fetchone()[0])
    assert counts[0] - counts[1] in (0, 1)


def test_ours_and_the_engines_database_are_told_apart_under_other_names(config: Config, tmp_path: Path) -> None:
    backup(config, tmp_path / "backup")
    (tmp_path / "db").mkdir()
    other = elsewhere(config, tmp_path / "new", f"sqlite:///{tmp_path / 'db' / 'dicom.sqlite'}")
    restore(other, tmp_path / "backup")
    for name, table in (("dicom.sqlite", "alembic_version"), ("engine.sqlite", "workflow_status")):
        with closing(sqlite3.connect(tmp_path / "db" / name)) as connection:
            assert connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone(), name


def test_what_is_no_whole_backup_is_refused_with_its_reason(config: Config, tmp_path: Path) -> None:
    made, other = tmp_path / "backup", elsewhere(config, tmp_path / "new")
    (tmp_path / "foreign").mkdir()
    refused(other, tmp_path / "foreign", "holds no complete backup")
    refused(other, tmp_path / "absent", "holds no complete backup")
    (tmp_path / "foreign" / "backup.json").write_text('{"tool": "another", "files": 3}')
    refused(other, tmp_path / "foreign", "holds no complete backup")
    backup(config, made)
    image = made / "storage" / "incoming" / "1.2" / "1.3" / "1.4.dcm"
    whole = image.read_bytes()
    image.write_bytes(whole[:-1])
    refused(other, made, "bytes: it is not what was backed up; nothing was changed")
    image.unlink()
    refused(other, made, "has 1 of 2 files")
    image.write_bytes(whole)
    database = (made / "node.sqlite").read_bytes()
    (made / "node.sqlite").write_bytes(database[:-512])
    refused(other, made, "node.sqlite is not what was backed up; nothing was changed")
    (made / "node.sqlite").write_bytes(database)
    restore(other, made)
    assert (other.storage.root / "incoming" / "1.2" / "1.3" / "1.4.dcm").read_bytes() == whole


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_backup_of_a_later_version_is_refused(
    config: Config, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """With PostgreSQL, what its dump brought back."""
    made, url = tmp_path / "backup", None
    if kind == "postgresql":
        url = request.getfixturevalue("postgres_url")
        config = elsewhere(config, config.storage.root, url)
    database = Database(config.database_url())
    database.migrate()
    with database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999_later'"))
    database.close()
    backup(config, made)
    manifest = json.loads((made / "backup.json").read_text())
    (made / "backup.json").write_text(json.dumps({**manifest, "version": "99.1", "also": "what later versions tell"}))
    refused(
        elsewhere(config, tmp_path / "new", url), made, r"made by dicom-node 99\.1, .* newer than this version knows"
    )


def test_restored_folders_are_as_closed_as_the_roles_make_theirs(config: Config, tmp_path: Path) -> None:
    backup(config, tmp_path / "backup")
    before = os.umask(0o022)
    try:
        restore(elsewhere(config, tmp_path / "new"), tmp_path / "backup")
    finally:
        os.umask(before)
    folders = [path for path in (tmp_path / "new").rglob("*") if path.is_dir()]
    assert len(folders) == 5
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "new", *folders)} == {0o750}


def test_a_backup_that_did_not_end_is_none(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_source: Path, _target: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "copy2", broken)
    with pytest.raises(DicomNodeError, match=r"backup failed: Input/output error; what lies in .* is no backup"):
        backup(config, tmp_path / "backup")
    refused(elsewhere(config, tmp_path / "new"), tmp_path / "backup", "holds no complete backup")


def test_a_file_that_this_user_may_not_read_is_named(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(source: Path, _target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr(shutil, "copy2", closed)
    with pytest.raises(DicomNodeError, match=r"backup failed: Permission denied: /.*\.dcm; what lies in"):
        backup(config, tmp_path / "backup")


def test_a_log_of_another_database_is_not_taken_for_that_of_the_restored_one(config: Config, tmp_path: Path) -> None:
    backup(config, tmp_path / "backup")
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "dicom.sqlite-wal").write_bytes(b"an old one")
    url = f"sqlite:///{tmp_path / 'db' / 'dicom.sqlite'}"
    refused(elsewhere(config, tmp_path / "new", url), tmp_path / "backup", "dicom.sqlite-wal exists: move it away")


def test_a_storage_root_that_is_a_file_system_of_its_own_counts_as_empty(config: Config, tmp_path: Path) -> None:
    backup(config, tmp_path / "backup")
    (tmp_path / "new" / "lost+found").mkdir(parents=True)
    restore(elsewhere(config, tmp_path / "new"), tmp_path / "backup")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Room for the databases and not for the images."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=False)
    if mounted.returncode != 0:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("what", ["databases", "images"])
def test_a_full_disk_is_told_and_leaves_no_backup(config: Config, tmp_path: Path, small_disk: Path, what: str) -> None:
    taken = small_disk / "taken"
    taken.write_bytes(bytes(900_000 if what == "databases" else 1))
    Storage(config.storage.root).write_instance("1.2", "1.3", "1.5", bytes(2_000_000))
    with pytest.raises(DicomNodeError, match=r"backup failed: .*(full|No space left on device).* is no backup"):
        backup(config, small_disk / "backup")
    refused(elsewhere(config, tmp_path / "new"), small_disk / "backup", "holds no complete backup")
    backup(config, tmp_path / "backup")
    assert json.loads((tmp_path / "backup" / "backup.json").read_text())["files"] == 3
    with pytest.raises(DicomNodeError, match=r"restore failed: No space left on device; empty .* and try again"):
        restore(elsewhere(config, small_disk / "root"), tmp_path / "backup")
