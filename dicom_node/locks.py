"""Locks that live as long as their holder: flock beside the SQLite file, advisory locks on PostgreSQL.

A process that is killed, or a machine that is gone, loses its locks; that is how others know it is dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

from dicom_node.connection import POSTGRESQL_CONNECTION

_ASK_AGAIN_S = 0.05
# A machine that is gone says no goodbye: the server must ask, else it keeps the lock for the default of two hours.
# While an answer of its own is on the way it does not ask (tcp(7)): there the time without acknowledgement counts.
_SERVER_ASKS = (
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=3 -c tcp_keepalives_count=3 -c tcp_user_timeout=19000"
)


class Lock(Protocol):
    """A lock that is held until `release` or the end of the process."""

    def release(self) -> None: ...

    def still_held(self) -> bool: ...


class _FileLock:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        # The file stays: removing it would let two holders lock two files of one name.
        os.close(self._descriptor)

    def still_held(self) -> bool:
        return True


class _AdvisoryLock:
    def __init__(self, engine: sa.Engine, connection: sa.Connection) -> None:
        self._engine, self._connection, self._guard = engine, connection, threading.Lock()

    def release(self) -> None:
        with self._guard:
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                self._connection.close()
            self._engine.dispose()

    def still_held(self) -> bool:
        """False once the connection that carries the lock is gone: others may have taken our work."""
        with self._guard:
            try:
                self._connection.execute(sa.text("SELECT 1"))
            except sa.exc.SQLAlchemyError:
                return False
        return True


def try_lock(url: str, name: str) -> Lock | None:
    """Take the lock `name` of this database, or None while a living process holds it."""
    return _try_file(url, name) if url.startswith("sqlite") else _try_advisory(url, name)


@contextlib.contextmanager
def exclusive(url: str, name: str) -> Iterator[None]:
    """Wait for the lock `name` and hold it over the block."""
    # By asking again: a statement of PostgreSQL that waits for a lock holds a snapshot, and whoever builds an index
    # concurrently under that lock would wait for the snapshot to end.
    while (lock := try_lock(url, name)) is None:
        time.sleep(_ASK_AGAIN_S)
    try:
        yield
    finally:
        lock.release()


def _try_file(url: str, name: str) -> Lock | None:
    database = sa.make_url(url).database
    if not database:
        raise ValueError("an SQLite database in memory cannot be shared between processes")
    folder = Path(database).parent / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    # Names come from host names and settings; a digest makes any of them a safe file name.
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return _FileLock(descriptor)


def _try_advisory(url: str, name: str) -> Lock | None:
    settings = {**POSTGRESQL_CONNECTION, "options": _SERVER_ASKS}
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool, connect_args=settings, isolation_level="AUTOCOMMIT")
    connection = engine.connect()
    key = int.from_bytes(hashlib.sha256(f"dicom_node:{name}".encode()).digest()[:8], "big", signed=True)
    if not connection.execute(sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar():
        connection.close()
        engine.dispose()
        return None
    return _AdvisoryLock(engine, connection)
