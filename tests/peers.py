"""Real third-party parts for tests: Orthanc and PostgreSQL on free ports, with folders of their own.

`tests/peers.sh` installs them. Nothing here touches the services that the system itself may run.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import json
import os
import queue
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

_PLUGINS = Path("/usr/share/orthanc/plugins")
_START_S = 60.0
# What is started with this before its command ends with the thread that started it, also where the test run is killed:
# setpriv(1) of util-linux, PR_SET_PDEATHSIG of prctl(2).
ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL")


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tool(name: str) -> str | None:
    """A Debian tool by its full path: pynetdicom installs commands of the same names into a venv."""
    path = Path("/usr/bin") / name
    return str(path) if path.exists() else None


def packaged(name: str) -> Path:
    """A program of dicom3tools or dcmqi itself. The commands of those packages start a Python first, each time."""
    for package in ("dicom3tools", "dcmqi"):
        path = Path(str(importlib.metadata.distribution(package).locate_file(f"{package}/bin/{name}")))
        if path.exists():
            return path
    raise FileNotFoundError(name)


class Orthanc:
    """A running Orthanc. `ae_title`, `dicom_port`, `url`; what it holds by its REST API."""

    ae_title = "ORTHANC"

    def __init__(self, *, dicom_port: int, http_port: int, log: list[str]) -> None:
        self.dicom_port, self.http_port, self.log = dicom_port, http_port, log
        self.host = "127.0.0.1"
        self.url = f"http://127.0.0.1:{http_port}"

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The answer's body. Raises RuntimeError with Orthanc's own text for any status but 2xx."""
        connection = http.client.HTTPConnection(self.host, self.http_port, timeout=120)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            answer = connection.getresponse()
            data = answer.read()
        if not 200 <= answer.status < 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {data[:500]!r}")
        return data

    def get(self, path: str) -> Any:
        return json.loads(self.request("GET", path))

    def post(self, path: str, value: Any) -> Any:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return json.loads(self.request("POST", path, body) or b"null")

    def put(self, path: str, value: Any) -> None:
        self.request("PUT", path, json.dumps(value).encode())

    def upload(self, part10: bytes) -> str:
        """Orthanc's own id of the instance."""
        return str(self.post("/instances", part10)["ID"])

    def instances(self) -> list[str]:
        return list(self.get("/instances"))

    def file(self, instance_id: str) -> bytes:
        """The stored DICOM file, byte for byte."""
        return self.request("GET", f"/instances/{instance_id}/file")

    def find(self, level: str, **query: str) -> list[str]:
        """Ids of Patient, Study, Series or Instance resources that match."""
        return list(self.post("/tools/find", {"Level": level, "Query": query}))

    def set_modality(self, name: str, ae_title: str, port: int) -> None:
        """Make a peer known, so that `store` and storage commitment can reach it."""
        self.put(f"/modalities/{name}", {"AET": ae_title, "Host": "127.0.0.1", "Port": port, "Timeout": 30})

    def store(self, name: str, resources: list[str]) -> Any:
        """C-STORE these resources to a modality; the counts of the job when it ended."""
        return self.post(f"/modalities/{name}/store", {"Resources": resources, "Synchronous": True})

    def clear(self) -> None:
        """Nothing stored, and no modality known: of two with one AE title a C-MOVE would go to the older."""
        for patient in self.get("/patients"):
            self.request("DELETE", f"/patients/{patient}")
        for name in self.get("/modalities"):
            self.request("DELETE", f"/modalities/{name}")


@contextlib.contextmanager
def run_orthanc(folder: Path, settings: Mapping[str, Any] | None = None) -> Iterator[Orthanc]:
    """Orthanc with storage, index and settings under `folder`, ready when this yields."""
    executable = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    dicom_port, http_port = free_port(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    config = _orthanc_settings(folder, dicom_port, http_port) | dict(settings or {})
    path = folder / "orthanc.json"
    path.write_text(json.dumps(config, indent=1))
    process = subprocess.Popen(
        [executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # DCMTK leaves Nagle's algorithm on: each image would wait 40 ms for its acknowledgement.
        env={**os.environ, "TCP_NODELAY": "1"},
    )
    with stopped(process):
        log = _wait_for_line(process, "Orthanc has started")
        yield Orthanc(dicom_port=dicom_port, http_port=http_port, log=log)


@contextlib.contextmanager
def run_dcmqrscp(folder: Path, hosts: Mapping[str, tuple[str, int]] | None = None) -> Iterator[int]:
    """DCMTK's archive, AE title DCMQR, empty; its port. hosts: AE title -> (host, port) that it may send to."""
    port = free_port()
    (folder / "store").mkdir(parents=True)
    known = [f"h{n} = ({ae}, {host}, {port_})" for n, (ae, (host, port_)) in enumerate((hosts or {}).items())]
    lines = [
        f"NetworkTCPPort = {port}",
        "MaxPDUSize = 131072",
        "MaxAssociations = 16",
        *("HostTable BEGIN", *known, "HostTable END"),
        *("VendorTable BEGIN", "VendorTable END"),
        *("AETable BEGIN", f"DCMQR {folder / 'store'} RW (500, 1024mb) ANY", "AETable END"),
    ]
    config = folder / "dcmqrscp.cfg"
    config.write_text("\n".join(lines) + "\n")
    process = subprocess.Popen(
        ["/usr/bin/dcmqrscp", "-c", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TCP_NODELAY": "1"},
    )
    with stopped(process):
        wait_for_port(process, port)
        yield port


def wait_for_port(process: subprocess.Popen[str], port: int) -> None:
    """dcmqrscp says nothing when it is ready."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not start")


def _orthanc_settings(folder: Path, dicom_port: int, http_port: int) -> dict[str, Any]:
    plugins = [str(p) for name in ("libOrthancDicomWeb.so", "libOrthancGdcm.so") if (p := _PLUGINS / name).exists()]
    return {
        "Name": "test PACS",
        "DicomAet": Orthanc.ae_title,
        "DicomPort": dicom_port,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "Plugins": plugins,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": True, "SeriesMetadata": "Full"},
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowMove": True,
        "DicomAlwaysAllowGet": True,
        "DicomCheckCalledAet": False,
        "UnknownSopClassAccepted": True,
        "StableAge": 3,
        "MaximumPduLength": 131072,
        "OverwriteInstances": True,
        "DicomModalities": {},
    }


class Postgres:
    """A running PostgreSQL cluster of its own; `url` of its database `node`."""

    def __init__(self, url: str, control: Callable[..., None]) -> None:
        self.url, self._control = url, control

    def crash(self) -> None:
        """Every connection is gone at once, and nothing is said to anybody."""
        self._control("-m", "immediate", "stop")

    def start(self) -> None:
        """After a crash: the log is replayed first."""
        self._control("start")

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Over the block nobody answers at its port."""
        self.crash()
        try:
            yield
        finally:
            self.start()


@contextlib.contextmanager
def run_postgres() -> Iterator[str]:
    """A private PostgreSQL cluster on loopback; yields its URL with the database `node`."""
    with postgres_cluster() as running:
        yield running.url


@contextlib.contextmanager
def postgres_cluster(
    host: str = "127.0.0.1", port: int | None = None, inside: Callable[..., list[str]] = lambda *command: [*command]
) -> Iterator[Postgres]:
    """A private PostgreSQL cluster. inside: makes of a command one that runs where the server shall, by its address."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"))
    # Not below pytest's folder, which only root may enter: PostgreSQL refuses to run as root.
    with tempfile.TemporaryDirectory(prefix="node-postgres-") as name:
        folder, port, as_postgres = Path(name), port or free_port(), _as_postgres()
        if as_postgres:
            shutil.chown(folder, "postgres")
        pg_ctl = inside(*as_postgres, str(binaries / "pg_ctl"), "-D", str(folder / "data"), "-w")
        _run([*as_postgres, str(binaries / "initdb"), "-D", f"{name}/data", "-U", "node", "-A", "trust", "-N"], name)
        if host != "127.0.0.1":
            with (folder / "data" / "pg_hba.conf").open("a") as rules:
                rules.write("host all all samenet trust\n")
        options = f"-h {host} -p {port} -k {name} -c fsync=off -c max_connections=200"

        def control(*words: str) -> None:
            _run([*pg_ctl, "-l", f"{name}/log", "-o", options, *words], name)

        control("start")
        try:
            createdb = [*as_postgres, str(binaries / "createdb"), "-h", name, "-p", str(port), "-U", "node"]
            _run([*createdb, "node"], name)
            yield Postgres(f"postgresql+psycopg://node@{host}:{port}/node", control)
        finally:
            control("-m", "immediate", "stop")


def _run(command: list[str], folder: str) -> None:
    # No pipe for its output: the PostgreSQL server would inherit it and keep it open.
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)


def _as_postgres() -> list[str]:
    return ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []


@contextlib.contextmanager
def stopped(process: subprocess.Popen[str]) -> Iterator[None]:
    """The process ends with the block: asked first, killed when it does not listen."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_line(process: subprocess.Popen[str], text: str) -> list[str]:
    """Read the process's output until a line holds `text`; a thread goes on reading so that its pipe never fills."""
    lines: list[str] = []
    ready: queue.Queue[bool] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                lines.append(line)
                if text in line:
                    ready.put(True)
        ready.put(False)

    threading.Thread(target=read, name="peer log", daemon=True).start()
    try:
        started = ready.get(timeout=_START_S)
    except queue.Empty:
        started = False
    if not started:
        raise RuntimeError(f"{process.args!r} did not start:\n" + "".join(lines[-30:]))
    return lines
