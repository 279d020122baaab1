"""A database's URL -> connections set up the way the rows need them, and its failures as our errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from dicom_node.errors import ConfigError, DatabaseUnavailable

# For the one writer of SQLite; the execution option `lock_wait_s` of a connection wins over it.
_LOCK_WAIT_S = 60.0
# A server that is gone, with its machine or the network, must be noticed: a peer waits for its response meanwhile.
POSTGRESQL_CONNECTION = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 20000,
}


def patient_url(url: str) -> str:
    """A PostgreSQL URL that says POSTGRESQL_CONNECTION itself, for who opens connections in a way of its own."""
    parsed = sa.make_url(url)
    missing = {name: str(value) for name, value in POSTGRESQL_CONNECTION.items() if name not in parsed.query}
    return parsed.update_query_dict(missing).render_as_string(hide_password=False)


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """What may pass (a restart, a lock, a full disk) as our error, which says that trying again can help."""
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as err:
        raise DatabaseUnavailable(f"the database does not answer: {type(err).__name__}") from err


def no_answer(err: Exception) -> str:
    """What to do about it. The error's own text is left out: it may hold the URL with its password."""
    return f"the database does not answer ({type(err).__name__}): is it running, and are name and password right?"


def open_engine(url: str) -> sa.Engine:
    """SQLAlchemy's engine for `url`. Raises ConfigError where PostgreSQL's driver is not installed."""
    if not url.startswith("sqlite"):
        said = sa.make_url(url).query
        settings = {name: value for name, value in POSTGRESQL_CONNECTION.items() if name not in said}
        try:
            return sa.create_engine(url, pool_pre_ping=True, connect_args=settings)
        except ModuleNotFoundError as err:
            raise ConfigError("PostgreSQL needs its driver: pip install 'dicom-node[postgresql]'") from err
    engine = sa.create_engine(url, connect_args={"timeout": _LOCK_WAIT_S})

    @sa.event.listens_for(engine, "connect")
    def _settings(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        # Lets readers go on beside the one writer; a property of the file, so only the first one changes it.
        cursor.execute("PRAGMA journal_mode=WAL")
        # FULL: a commit is on the disk when it returns. NORMAL would lose acknowledged rows in a power cut.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()
        # We begin transactions ourselves: the driver would begin them as readers, and a reader that turns
        # writer while another writes fails at once instead of waiting its turn.
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        reads = options.get("read_only", False)
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(1000 * options.get('lock_wait_s', _LOCK_WAIT_S))}")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine
