"""One node on five machines (network namespaces): two receivers behind one address, two workers, a database.

Machines die, are cut off, and the database crashes: what was acknowledged is analysed, and each result arrives once.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
import pytest
import yaml

from dicom_node.config import load_config
from dicom_node.db import Database, Row
from dicom_node.dimse.scu import send
from dicom_node.manifest import manifest_sha256
from dicom_node.peers import PeerConfig
from dicom_node.storage import Storage
from tests.fakes.ct import make_ct_series
from tests.hosts import Network, NoHosts, run_balancer, run_network
from tests.node import READY, environment
from tests.peers import Postgres, free_port, postgres_cluster, stopped, tool, wait_for_port

pytestmark = [pytest.mark.slow, pytest.mark.peers]

HOSTS = ("receiver1", "receiver2", "worker1", "worker2", "database")
DICOM_PORT, DATABASE_PORT = 11112, 5432
COST_S = 2.0
LOST = '"action": "lost"'
SLICES = 44
UID_ROOT = "1.2.826.0.1.3680043.8.498.79"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One series on the sender's disk. uids: of each file."""

    series_uid: str
    uids: dict[Path, str]

    @property
    def job_id(self) -> str:
        return f"{self.series_uid}-{manifest_sha256(self.uids.values())[:16]}"


@dataclass(slots=True, kw_only=True)
class Hospital:
    """The hosts, what runs on them, and what the test sees of it."""

    network: Network
    postgres: Postgres
    config_path: Path
    balancer_port: int
    database: Database
    storage: Storage
    archive: Path
    folder: Path
    acknowledged: set[str] = field(default_factory=set)
    made: int = 0

    def start(self, host: str, *roles: str) -> None:
        """Start these roles there and wait until each says that it is ready."""
        machine = self.network[host]
        before = {role: machine.log(role).count(READY) for role in roles}
        for role in roles:
            command = [sys.executable, "-m", "dicom_node", role, "--config", str(self.config_path)]
            if role == "work":
                command = [sys.executable, "-m", "tests.stub_worker", str(self.config_path), str(COST_S)]
            machine.start(role, *command)
        for role in roles:
            self.wait(lambda role=role: machine.log(role).count(READY) > before[role], f"{host} {role}")

    def series(self) -> Sent:
        """A new one, of a patient of its own."""
        self.made += 1
        number = self.made
        header = {
            "PatientID": f"HOSTS-{number}",
            "StudyInstanceUID": f"{UID_ROOT}.{number}.1",
            "SeriesInstanceUID": f"{UID_ROOT}.{number}.2",
            "FrameOfReferenceUID": f"{UID_ROOT}.{number}.4",
        }
        files = make_ct_series(self.folder / f"send{number}", shape=(SLICES, 64, 64), header=header)
        uids = {path: str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files}
        return Sent(series_uid=header["SeriesInstanceUID"], uids=uids)

    def send(self, series: Sent, *, after: Callable[[int], None] = lambda _stored: None) -> int:
        """Through the balancer, until all of it is acknowledged; how often it was begun. What had its Success is not
        sent again. after: told after each Success how many there were."""
        peer = PeerConfig(
            ae_title="DICOMNODE", host=self.network.address, port=self.balancer_port, response_timeout_s=20.0
        )
        left, sends = dict(series.uids), 0
        deadline = time.monotonic() + 60
        while left:
            assert time.monotonic() < deadline, f"{len(left)} files were never acknowledged"
            sends += 1
            for outcome in send(list(left), peer, "MODALITY"):
                if outcome.kind == "stored":
                    self.acknowledged.add(left.pop(outcome.path))
                    after(len(series.uids) - len(left))
        return sends

    def at_work_on(self, sent: Sent) -> str:
        """The host that analyses this series, once it is well begun."""
        self.wait(lambda: self._progress(sent), f"an analysis of {sent.series_uid}")
        return str(self._job(sent)["executor"]).partition("/")[0]

    def _progress(self, sent: Sent) -> bool:
        job = self.database.job(sent.job_id)
        return job is not None and job["state"] == "running" and job["progress"] > 0

    def _job(self, sent: Sent) -> Row:
        job = self.database.job(sent.job_id)
        assert job is not None
        return job

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Poll: what happens does so on other hosts, which only the database and their logs tell of."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = [f"--- {path.name}\n{path.read_text()[-1500:]}" for path in self.folder.glob("*.log")]
                pytest.fail(f"waited in vain for {what}\n" + "\n".join(logs))
            time.sleep(0.1)

    def analysed_by(self, sent: Sent, seconds: float = 60) -> str:
        """The host whose result of this series was delivered. Waits for it."""
        self.wait(lambda: self._delivered(sent), f"the result of {sent.series_uid}", seconds)
        return str(self._job(sent)["executor"]).partition("/")[0]

    def _delivered(self, sent: Sent) -> bool:
        job = self.database.job(sent.job_id)
        if job is None or job["state"] != "complete":
            return False
        return {row["state"] for row in self.database.deliveries(sent.job_id)} == {"stored"}

    def arrived(self) -> Counter[str]:
        """How often each SOP Instance UID came to the archive: it keeps one file for each time."""
        files = self.archive.glob("*.dcm")
        return Counter(str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files)


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    for needed, where in (("storescp", tool("storescp")), ("haproxy", Path("/usr/sbin/haproxy"))):
        if where is None or not Path(where).exists():
            pytest.skip(f"no {needed} here: tests/peers.sh installs it")
    with contextlib.ExitStack() as up:
        try:
            network = up.enter_context(run_network(HOSTS, tmp_path))
        except NoHosts as err:
            pytest.skip(str(err))
        archive_port, archive = free_port(), tmp_path / "archive"
        up.enter_context(run_storescp(archive, archive_port))
        database = network["database"]
        postgres = up.enter_context(postgres_cluster(database.address, DATABASE_PORT, database.inside))
        config_path = write_settings(tmp_path, postgres.url, network.address, archive_port)
        balancer_port = free_port()
        receivers = {name: (network[name].address, DICOM_PORT) for name in ("receiver1", "receiver2")}
        up.enter_context(run_balancer(tmp_path, network.address, balancer_port, receivers))
        rows = Database(postgres.url)
        up.callback(rows.close)
        yield Hospital(
            network=network,
            postgres=postgres,
            config_path=config_path,
            balancer_port=balancer_port,
            database=rows,
            storage=Storage(tmp_path / "root"),
            archive=archive,
            folder=tmp_path,
        )


def write_settings(folder: Path, url: str, pacs_host: str, pacs_port: int) -> Path:
    """The same file for all hosts, as a site would have it."""
    settings = {
        "storage": {"root": str(folder / "root"), "min_free_gb": 0},
        "database": {"url": url},
        "receive": {"port": DICOM_PORT, "unknown_peers": "accept", "journal_mb": 16},
        # Longer than what a machine leaves that dies needs to be taken over.
        "assemble": {"quiet_time_s": 15},
        "peers": {"pacs": {"ae_title": "PACS", "host": pacs_host, "port": pacs_port}},
        "models": {"stub": {"bundle": "builtin:lung_nodule_small"}},
        "routes": [{"name": "all", "model": "stub", "destinations": ["pacs"]}],
        "work": {"drain_s": 5},
        "log": {"format": "json"},
        "deliver": {"first_wait_s": 0.3, "longest_wait_s": 1},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    load_config(path)
    return path


@contextlib.contextmanager
def run_storescp(folder: Path, port: int) -> Iterator[None]:
    """DCMTK's: a file for each time that an object comes."""
    folder.mkdir()
    command = [str(tool("storescp")), "--fork", "-pm", "-uf", "-fe", ".dcm", "-aet", "PACS", "-od", str(folder)]
    process = subprocess.Popen([*command, str(port)], text=True, env=environment())
    with stopped(process):
        wait_for_port(process, port)
        yield


def test_what_was_acknowledged_is_analysed_and_arrives_once_whatever_fails(hospital: Hospital) -> None:
    hospital.start("receiver1", "receive", "deliver")
    hospital.start("receiver2", "receive", "deliver")
    hospital.start("worker1", "work")
    hospital.start("worker2", "work")
    all_sent = [
        *receiver_dies_while_peers_send(hospital),
        *worker_dies(hospital),
        *database_crashes(hospital),
        *worker_is_cut_off(hospital),
    ]
    for sent in all_sent:
        hospital.analysed_by(sent)
    jobs = hospital.database.jobs(limit=1000)
    assert {job["job_id"] for job in jobs} == {sent.job_id for sent in all_sent}, "each series once, as a whole"
    recorded = {row["sop_instance_uid"] for sent in all_sent for row in hospital.database.instances(sent.series_uid)}
    assert hospital.acknowledged == recorded
    made = [row["sop_instance_uid"] for job in jobs for row in hospital.database.results(job["job_id"])]
    assert len(made) == 2 * len(all_sent)
    assert hospital.arrived() == Counter(made), "each result, and each once"


def receiver_dies_while_peers_send(hospital: Hospital) -> list[Sent]:
    """Half of the Associations break; their peers send the rest again, and the balancer takes them to the other."""
    several = [hospital.series() for _ in range(4)]
    half = threading.Event()
    sends: list[int] = []

    def after(stored: int) -> None:
        if stored == SLICES // 2:
            half.set()

    threads = [
        threading.Thread(target=lambda one=one: sends.append(hospital.send(one, after=after))) for one in several
    ]
    for thread in threads:
        thread.start()
    assert half.wait(60)
    hospital.network["receiver1"].power_off()
    for thread in threads:
        thread.join()
    assert len(sends) == len(several)
    return several


def worker_dies(hospital: Hospital) -> list[Sent]:
    """In the middle of an analysis. The other one takes the job over, at once."""
    one = hospital.series()
    hospital.send(one)
    dead = hospital.at_work_on(one)
    hospital.network[dead].power_off()
    assert hospital.analysed_by(one, 30) == the_other(dead)
    hospital.start(dead, "work")
    return [one]


def database_crashes(hospital: Hospital) -> list[Sent]:
    """While a worker is at it, and a peer sends just afterwards: the receiver goes on without."""
    first, second = hospital.series(), hospital.series()
    hospital.send(first)
    hospital.at_work_on(first)
    hospital.postgres.crash_and_restart()
    hospital.send(second)
    for one in (first, second):
        hospital.analysed_by(one)
    return [first, second]


def worker_is_cut_off(hospital: Hospital) -> list[Sent]:
    """In the middle of an analysis, which goes on: it can write files, and tell nobody. The other worker ends the job;
    the cut one stops once it can't prove any more that it is alive, and works again when it is back."""
    one = hospital.series()
    hospital.send(one)
    cut = hospital.at_work_on(one)
    machine = hospital.network[cut]
    lost, ready = machine.log("work").count(LOST), machine.log("work").count(READY)
    machine.unplug()
    assert hospital.analysed_by(one) == the_other(cut)
    hospital.wait(lambda: machine.log("work").count(LOST) > lost, f"{cut} to stop")
    machine.plug()
    hospital.wait(lambda: machine.log("work").count(READY) > ready, f"{cut} to work again")
    return [one]


def the_other(worker: str) -> str:
    return "worker2" if worker == "worker1" else "worker1"
