"""Fixtures for all tests: shared data, a node's settings in a temporary folder, real peers."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dicom_node import logs, metrics
from dicom_node.audit import Auditor
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.dimse.announce import Announcer
from dicom_node.dimse.scp import Receiver
from dicom_node.metrics.catalogue import CATALOGUE
from dicom_node.metrics.files import merged
from dicom_node.peers import PeerConfig, PeerTLS
from dicom_node.storage import Storage
from tests import forks, peers
from tests.certificates import Authority

_REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _quiet_pydicom() -> None:
    """As every role of the node does first."""
    logs.quiet_pydicom()


@pytest.fixture(scope="session", autouse=True)
def _parent_of_roles_ends() -> Iterator[None]:
    yield
    forks.end()


@pytest.fixture(autouse=True)
def _logging_of_its_own() -> Iterator[None]:
    """A command that a test calls in this process sets up logging for the whole of it: not for the next test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real imaging data, which does not travel with the repository."""
    folder = Path(os.environ.get("DICOM_NODE_SHARED") or _REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no shared data here: set DICOM_NODE_SHARED to its folder")
    return folder


@pytest.fixture
def node_config(tmp_path: Path) -> Callable[..., Config]:
    """`node_config(receive={"max_associations": 1})`: a Config in tmp_path, loopback, port 0, any peer accepted."""

    def build(**sections: Any) -> Config:
        base: dict[str, Any] = {
            "storage": {"root": str(tmp_path / "node"), "min_free_gb": 0},
            "receive": {
                "host": "127.0.0.1",
                "port": 0,
                "unknown_peers": "accept",
                "idle_timeout_s": 10,
                "journal_mb": 8,
            },
            "assemble": {"quiet_time_s": 0.5},
        }
        return Config.model_validate(_merged(base, sections))

    return build


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(base[key], over[key])
        for key in base.keys() & over.keys()
        if isinstance(base[key], Mapping) and isinstance(over[key], Mapping)
    }
    return {**base, **over, **both}


@dataclass(slots=True, kw_only=True)
class RunningReceiver:
    """A real Receiver on loopback, and what it announced: (series UID, quiet time in seconds)."""

    config: Config
    storage: Storage
    database: Database
    receiver: Receiver
    bounced: list[tuple[str, float]]
    port: int

    @property
    def peer(self) -> PeerConfig:
        """This receiver as a peer to send to."""
        return PeerConfig(
            ae_title=self.config.receive.ae_title, host="127.0.0.1", port=self.port, response_timeout_s=20.0
        )

    def secure_peer(self, **tls: Any) -> PeerConfig:
        """The same on its TLS port, called with these settings."""
        return self.peer.model_copy(update={"port": self.receiver.tls_port, "tls": PeerTLS(**tls)})

    def settle(self) -> None:
        """File and row follow Success by a moment."""
        assert self.receiver.settle()

    def files(self) -> list[str]:
        """Everything below incoming/ once all that was acknowledged has its file; temporary files too."""
        self.settle()
        incoming = self.storage.root / "incoming"
        return sorted(str(p.relative_to(self.storage.root)) for p in incoming.rglob("*") if p.is_file())


@pytest.fixture
def counts(tmp_path: Path) -> Iterator[Callable[[str], dict[str, float]]]:
    """This process counts. Called with a metric: its values by their labels' values, in the catalogue's order."""
    folder = tmp_path / "counts"
    metrics.start(folder, "test")

    def of(name: str) -> dict[str, float]:
        labels = CATALOGUE[name].labels
        samples = [sample for metric in merged(folder) for sample in metric.samples if sample.name == name]
        return {" ".join(sample.labels[label] for label in labels): sample.value for sample in samples}

    yield of
    metrics.stop()


@pytest.fixture
def start_receiver(node_config: Callable[..., Config]) -> Iterator[Callable[..., RunningReceiver]]:
    """`start_receiver(receive={...})`: a RunningReceiver on a free port; it is stopped after the test."""
    with contextlib.ExitStack() as stack:

        def start(**sections: Any) -> RunningReceiver:
            config = node_config(**sections)
            storage = Storage(config.storage.root, min_free_gb=config.storage.min_free_gb)
            database = Database(config.database_url())
            stack.callback(database.close)
            database.migrate()
            bounced: list[tuple[str, float]] = []
            announcer = Announcer(lambda uid, quiet_time_s: bounced.append((uid, quiet_time_s)), config.quiet_time_s)
            receiver = Receiver(config, storage, database, announcer, Auditor.of(config))
            stack.callback(receiver.stop, 0.0)
            port = receiver.start()
            return RunningReceiver(
                config=config, storage=storage, database=database, receiver=receiver, bounced=bounced, port=port
            )

        yield start


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom the nodes and peers of a test trust."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom they do not trust."""
    return Authority(tmp_path_factory.mktemp("other"), "Other CA")


@pytest.fixture
def no_leaked_threads() -> Iterator[None]:
    """Threads that a test started end with it."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    for thread in set(threading.enumerate()) - before:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert not left, f"threads outlived the test: {left}"


@pytest.fixture(scope="session")
def orthanc_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[peers.Orthanc]:
    if shutil.which("Orthanc") is None and not Path("/usr/sbin/Orthanc").exists():
        pytest.skip("no Orthanc here: tests/peers.sh installs it")
    with peers.run_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture
def orthanc(orthanc_server: peers.Orthanc) -> peers.Orthanc:
    """A real Orthanc, empty. One process serves the whole test session."""
    orthanc_server.clear()
    return orthanc_server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("no PostgreSQL here: tests/peers.sh installs it")
    with peers.run_postgres() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: str, request: pytest.FixtureRequest) -> str:
    """The URL of a fresh, empty database in a real PostgreSQL."""
    import psycopg

    name = f"t{abs(hash(request.node.nodeid)) % 10**12}_{time.monotonic_ns()}"
    with psycopg.connect(postgres_server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return postgres_server.rsplit("/", 1)[0] + f"/{name}"
