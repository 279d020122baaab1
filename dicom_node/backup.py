"""A node <-> a folder with its database and files, consistent with each other. SQLite here; PostgreSQL has pg_dump.

The database is copied before the files: each row of the copy has its file then, for a file is durable before its row.
Files that came later have no row in the copy: the receiver takes them in at its first start. What else can't be made
again goes with them: who may log in, the salt of exported cases, the audit trail.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path

import sqlalchemy as sa

from dicom_node import __version__
from dicom_node.config import Config
from dicom_node.db import Database, knows_schema
from dicom_node.engine import engine_url
from dicom_node.errors import ConfigError, DicomNodeError

_MANIFEST = "backup.json"
# The journal comes after the databases: what was acknowledged without a row in the copy is in it, or is a file then.
_FOLDERS = ("journal", "incoming", "results")
# In a backup: the folder of what the settings may place outside the storage root.
_KEPT = "kept"
# A file system of its own has it, and nobody made it.
_NOBODYS = "lost+found"
# For the roles' own writes to pass.
_LOCK_WAIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """databases: their SHA-256 by name; none where PostgreSQL holds them. files, bytes: all others."""

    version: str
    made_at: float
    databases: dict[str, str]
    files: int
    bytes: int


def backup(config: Config, out: Path) -> Backup:
    """Copy a node, which may run, into the new folder `out`. Raises DicomNodeError where that is not possible."""
    root = config.storage.root
    if not root.is_dir():
        raise ConfigError(f"no node has run yet: storage.root {root} is not there")
    if out.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"{out} lies in storage.root: a backup belongs on another disk")
    try:
        if out.exists() and any(out.iterdir()):
            raise DicomNodeError(f"{out} is not empty: give a new folder for each backup")
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
        out.chmod(0o700)  # it holds images of patients
        made = _copied(config, out)
        # Last: a folder without it is no backup.
        _write_durably(out / _MANIFEST, json.dumps(asdict(made), indent=2).encode())
    except (OSError, sqlite3.Error) as err:
        raise DicomNodeError(f"backup failed: {_why(err)}; what lies in {out} is no backup") from err
    return made


def _copied(config: Config, out: Path) -> Backup:
    root, url = config.storage.root, config.database_url()
    databases = _copy_databases(_database_files(url), out)
    count = size = 0
    # One after the other: what is listed last is what the copies before it can't lack.
    images = ((root / relative, out / "storage" / relative) for relative in _files(root))
    kept = ((path, out / _KEPT / name) for name, path in _kept(config))
    for source, target in chain(images, kept):
        try:
            size += _copy(source, target)
        except FileNotFoundError:
            continue  # purged meanwhile, or a temporary file
        count += 1
    _check_whole(url, out)
    return Backup(version=__version__, made_at=time.time(), databases=databases, files=count, bytes=size)


def _check_whole(url: str, out: Path) -> None:
    """Each row of the copy has its file, unless a purge took it away between the two."""
    files = _database_files(url)
    if not files:
        return
    with closing(sqlite3.connect(out / files[0].name)) as copy:
        paths = copy.execute("SELECT path FROM instance UNION ALL SELECT path FROM result")
        missing = sum(1 for [path] in paths if not (out / "storage" / path).is_file())
    if missing:
        raise DicomNodeError(
            f"{missing} files were gone before they were copied, by a purge perhaps: remove {out}, make another backup"
        )


def restore(config: Config, source: Path) -> Backup:
    """Put a backup back into an empty storage root. Raises DicomNodeError where it is not empty or the backup is not
    whole."""
    form = _manifest(source)
    root, url = config.storage.root, config.database_url()
    targets = _database_files(url)
    _refuse_what_is_there(root, targets)
    _refuse_what_is_not_whole(form, source)
    if len(targets) != len(form.databases):
        raise DicomNodeError("the backup and the settings have different kinds of databases; nothing was changed")
    _refuse_what_is_newer(form, source, url)
    try:
        _put_all_back(config, source, dict(zip(form.databases, targets, strict=True)))
    except OSError as err:
        raise DicomNodeError(f"restore failed: {_why(err)}; empty {root} and try again: a part of it is there") from err
    return form


def _refuse_what_is_there(root: Path, databases: list[Path]) -> None:
    if root.exists() and any(path.name != _NOBODYS for path in root.iterdir()):
        raise DicomNodeError(f"storage.root {root} is not empty: move it away first; nothing was changed")
    # SQLite would take the log of another database for that of the restored one.
    for path in (Path(f"{database}{suffix}") for database in databases for suffix in ("", "-wal", "-shm")):
        if path.exists():
            raise DicomNodeError(f"{path} exists: move it away first; nothing was changed")


def _refuse_what_is_not_whole(form: Backup, source: Path) -> None:
    for name, digest in form.databases.items():
        if not (source / name).is_file() or _sha256(source / name) != digest:
            raise DicomNodeError(f"{source / name} is not what was backed up; nothing was changed")
    sizes = [
        path.stat().st_size for part in ("storage", _KEPT) for path in (source / part).rglob("*") if path.is_file()
    ]
    if (len(sizes), sum(sizes)) != (form.files, form.bytes):
        raise DicomNodeError(
            f"{source} has {len(sizes)} of {form.files} files and {sum(sizes)} of {form.bytes} bytes: "
            "it is not what was backed up; nothing was changed"
        )


def _refuse_what_is_newer(form: Backup, source: Path, url: str) -> None:
    """Else the roles would, at their next start. With PostgreSQL it is what its own dump brought back."""
    if form.databases:
        # Not by Database, which makes the file one with a log.
        with closing(_connection(source / next(iter(form.databases)), "ro")) as copy:
            found = copy.execute("SELECT version_num FROM alembic_version").fetchone()
        version = None if found is None else str(found[0])
    else:
        with closing(Database(url)) as database:
            version = database.schema_version()
    if not knows_schema(version):
        raise DicomNodeError(
            f"{source} was made by dicom-node {form.version}, and its database is newer than this version knows: "
            "install that version again; nothing was changed"
        )


def _put_all_back(config: Config, source: Path, databases: dict[str, Path]) -> None:
    root = config.storage.root
    _make_folder(root)
    for relative in _files(source / "storage"):
        _copy(source / "storage" / relative, root / relative)
    for name, place in _places(config).items():
        _put_back(source / _KEPT / name, place)
    # Last: a node without a database would begin anew, one without its files would be wrong.
    for name, target in databases.items():
        _copy(source / name, target)


def _manifest(source: Path) -> Backup:
    try:
        # A later version may tell more.
        form = json.loads((source / _MANIFEST).read_text())
        return Backup(**{field.name: form[field.name] for field in fields(Backup)})
    except (OSError, ValueError, TypeError, KeyError) as err:
        raise DicomNodeError(f"{source} holds no complete backup: its {_MANIFEST} is missing or unreadable") from err


def _database_files(url: str) -> list[Path]:
    """The files of SQLite, ours before the engine's: a job that the engine has is then known to us or made again."""
    if not url.startswith("sqlite"):
        return []
    return [Path(str(sa.make_url(each).database)) for each in (url, engine_url(url))]


def _copy_databases(files: list[Path], out: Path) -> dict[str, str]:
    """Their copies' SHA-256 by name, ours first: the order by which `restore` knows which is which."""
    for path in files:
        if not path.is_file():
            raise DicomNodeError(f"{path} is not there: has the node run?")
    digests = {}
    with _snapshots(files) as snapshots:
        for path, live in zip(files, snapshots, strict=True):
            with closing(sqlite3.connect(out / path.name)) as copy:
                live.backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")
            shutil.copymode(path, out / path.name)
            _flush(out / path.name)
            digests[path.name] = _sha256(out / path.name)
    return digests


@contextlib.contextmanager
def _snapshots(files: list[Path]) -> Iterator[list[sqlite3.Connection]]:
    """Connections that read all of them as they are at one moment, whoever writes meanwhile.

    That is what a crash at this moment would leave, from which the roles know how to go on. Of two moments, a delivery
    that waits in our rows could be a done one to the engine, and nobody would ever send it.
    """
    with contextlib.ExitStack() as opened:
        lives = [opened.enter_context(closing(_connection(path, "ro"))) for path in files]
        with contextlib.ExitStack() as no_writer:
            for path in files:
                held = no_writer.enter_context(closing(_connection(path, "rw")))
                held.execute("BEGIN IMMEDIATE")
            for live in lives:
                live.execute("BEGIN")
                live.execute("SELECT count(*) FROM sqlite_master").fetchone()  # only now it begins
        yield lives


def _connection(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=_LOCK_WAIT_S, isolation_level=None
    )


def _why(err: Exception) -> str:
    if isinstance(err, PermissionError):  # of a file that another user made: which one is what has to be known
        return f"{err.strerror}: {err.filename}"
    return (err.strerror if isinstance(err, OSError) else None) or str(err)


def _files(root: Path) -> Iterator[Path]:
    """The files of the storage root that belong to the node, the journal's first."""
    for folder in _FOLDERS:
        for here, _folders, names in os.walk(root / folder):
            yield from (Path(here).relative_to(root) / name for name in sorted(names))


def _places(config: Config) -> dict[str, Path]:
    """What is kept beside database and images: name in a backup -> the node's file or folder."""
    return {
        "web_users.json": config.web_users_file(),
        "export.salt": config.export_salt_file(),
        "export.patients": config.export_salt_file().with_suffix(".patients"),
        "audit": config.audit_folder(),
    }


def _kept(config: Config) -> Iterator[tuple[str, Path]]:
    """Each of these files, with its name in a backup; to be copied as they come."""
    for name, place in _places(config).items():
        if place.is_file():
            yield name, place
        # How far the trail goes before its lines, which the node writes on: a later `head` would tell of lines that the
        # copy lacks.
        for suffix in (".head", ".cursor", ".jsonl"):
            yield from ((f"{name}/{path.name}", path) for path in sorted(place.glob(f"*{suffix}")))


def _put_back(saved: Path, place: Path) -> None:
    """One that is there lies outside the storage root, and is newer: an older one would let removed users in again."""
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        return
    if saved.is_file():
        _copy(saved, place)
    for path in sorted(saved.glob("*")):
        _copy(path, place / path.name)


def _copy(source: Path, target: Path) -> int:
    _make_folder(target.parent)
    shutil.copy2(source, target)
    _flush(target)
    return target.stat().st_size


def _make_folder(folder: Path) -> None:
    """Each that is missing as the roles make theirs; `parents=True` would open those between to everybody."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o750)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_durably(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _flush(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
