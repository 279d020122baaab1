"""The units under a real systemd: installed as docs/operations.md says, started, hung, killed, reloaded, stopped.

The machine is a container over this one (tests/booted.py). The tests share it, and go from its start to its stop.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
import yaml

from dicom_node.db import Database, Row
from dicom_node.dimse.scu import send
from dicom_node.manifest import manifest_sha256
from dicom_node.peers import PeerConfig
from tests.acceptance.test_several_hosts import run_storescp
from tests.booted import TREES, Machine, NoBoot, booted
from tests.hosts import NoHosts, run_network
from tests.node import TINY, fast_bundle
from tests.peers import free_port, tool

pytestmark = [pytest.mark.slow, pytest.mark.peers]

CONFIG, ROOT = "/etc/dicom-node/config.yaml", "/var/lib/dicom-node"
RECEIVE, WORK, DELIVER, WEB = "dicom-node-receive", "dicom-node-work@cpu", "dicom-node-deliver", "dicom-node-web"
UNITS = (RECEIVE, WORK, DELIVER, WEB)
# What a site has in /opt lies below a home here, perhaps: visible to the units, and still nothing else of it.
DROP_IN = f"""[Service]
Environment=PYTHONPATH={TREES[0]} PYTHONDONTWRITEBYTECODE=1
ProtectHome=tmpfs
BindReadOnlyPaths={" ".join(map(str, TREES))}
RestartSec=1
"""
HANGS_SOON = "[Service]\nWatchdogSec=10\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The machine with the node installed and running, the PACS's folder, and where both can be reached."""

    machine: Machine
    address: str
    archive: Path
    database: Database
    hung_web: int

    def job(self, files: list[Path]) -> Row | None:
        headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
        digest = manifest_sha256(str(header.SOPInstanceUID) for header in headers)
        return self.database.job(f"{headers[0].SeriesInstanceUID}-{digest[:16]}")

    def send(self, files: list[Path]) -> None:
        peer = PeerConfig(ae_title="DICOMNODE", host=self.address, port=104, response_timeout_s=20)
        assert all(outcome.kind == "stored" for outcome in send(files, peer, "SCANNER"))

    def analysing(self, files: list[Path]) -> bool:
        job = self.job(files)
        return job is not None and job["state"] == "running" and job["progress"] > 0.03

    def delivered(self, files: list[Path]) -> bool:
        job = self.job(files)
        if job is None or job["state"] != "complete":
            return False
        return {row["state"] for row in self.database.deliveries(job["job_id"])} == {"stored"}

    def active(self, *units: str) -> bool:
        return all(self.machine.show(unit, "ActiveState")["ActiveState"] == "active" for unit in units)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if tool("storescp") is None:
        pytest.skip("no storescp here: tests/peers.sh installs it")
    if shutil.which("systemd-nspawn") is None:
        pytest.skip("no systemd-nspawn here: tests/peers.sh installs it")
    folder = tmp_path_factory.mktemp("site")
    with contextlib.ExitStack() as up:
        try:
            network = up.enter_context(run_network(["node"], folder))
            machine = up.enter_context(booted(folder, network["node"], ROOT))
        except (NoHosts, NoBoot) as err:
            pytest.skip(str(err))
        archive, port = folder / "archive", free_port()
        up.enter_context(run_storescp(archive, port))
        install(machine, {"ae_title": "PACS", "host": network.address, "port": port})
        machine.systemctl("start", "dicom-node.target")
        database = Database(f"sqlite:///{folder / 'shared'}/node.sqlite")
        up.callback(database.close)
        hung_web = machine.main_pid(WEB)
        up.enter_context(hung_threads(hung_web))
        yield Site(
            machine=machine,
            address=network["node"].address,
            archive=archive,
            database=database,
            hung_web=hung_web,
        )


def install(machine: Machine, pacs: dict[str, object]) -> None:
    """As docs/operations.md says, and the drop-ins of this test."""
    for path in fast_bundle(machine.path("/etc/dicom-node/bundle")).iterdir():
        path.chmod(0o644)
    settings = {
        "storage": {"root": ROOT, "min_free_gb": 0},
        "receive": {"port": 104, "unknown_peers": "accept", "journal_mb": 16},
        "assemble": {"quiet_time_s": 2},
        "gate": {"max_slice_spacing_mm": 4.5, "max_slice_thickness_mm": 4.5},
        "peers": {"pacs": pacs},
        "models": {"fast": {"bundle": "bundle"}},
        "routes": [{"name": "all", "model": "fast", "destinations": ["pacs"]}],
        "work": {"device": "cpu"},
        "deliver": {"first_wait_s": 0.3, "longest_wait_s": 1},
    }
    machine.write(CONFIG, yaml.safe_dump(settings))
    said = machine.node("install-service", "--config", CONFIG, "--workers", "cpu")
    assert "wrote /etc/systemd/system/dicom-node-work@.service" in said
    machine.write("/etc/systemd/system/dicom-node-.service.d/here.conf", DROP_IN)
    machine.write("/etc/systemd/system/dicom-node-web.service.d/hangs-soon.conf", HANGS_SOON)
    for line in said.partition("now:\n")[2].splitlines():
        machine.must("sh", "-c", line.replace("enable --now", "enable"))


@contextlib.contextmanager
def hung_threads(pid: int) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.hang", str(pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "hung\n"
            yield
        finally:
            process.kill()


def test_each_role_is_active_once_it_serves(site: Site) -> None:
    machine = site.machine
    for unit in UNITS:
        shown = machine.show(unit, "Type", "ActiveState", "NRestarts")
        assert shown == {"Type": "notify", "ActiveState": "active", "NRestarts": "0"}
    assert machine.show(RECEIVE, "StatusText")["StatusText"] == "receives on port 104"
    assert machine.show(DELIVER, "StatusText")["StatusText"] == "works off deliver, priors"


@pytest.mark.parametrize("unit", UNITS)
def test_a_role_is_nobody_special_and_writes_only_to_its_storage(site: Site, unit: str) -> None:
    machine = site.machine
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{machine.main_pid(unit)}/status").read_text().splitlines()
    )
    user = machine.must("id", "-u", "dicom-node").strip()
    assert status["Uid"].split() == [user] * 4
    assert user != "0"
    # Bit 10: CAP_NET_BIND_SERVICE, which port 104 takes.
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == (1 << 10 if unit == RECEIVE else 0)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    for folder in ("/etc", "/usr", "/opt", "/var/log", "/srv", str(TREES[0])):
        said = machine.run_as(unit, "touch", f"{folder}/written")
        assert said.returncode != 0, "even root can't, there"
        assert "Read-only file system" in said.stdout
    assert machine.run_as(unit, "test", "-w", ROOT).returncode == 0
    machine.write("/tmp/somebodys", "")
    assert "somebodys" not in machine.run_as(unit, "ls", "/tmp").stdout, "it has a /tmp of its own"


def test_a_killed_role_is_started_again(site: Site) -> None:
    machine = site.machine
    before = machine.main_pid(RECEIVE)
    os.kill(before, signal.SIGKILL)
    machine.wait(lambda: machine.show(RECEIVE, "NRestarts")["NRestarts"] == "1", "the restart")
    machine.wait(lambda: site.active(RECEIVE), "the receiver")
    assert machine.main_pid(RECEIVE) != before


def test_systemctl_reload_takes_new_settings_over_and_fails_on_wrong_ones(site: Site) -> None:
    machine = site.machine
    before, text = machine.main_pid(RECEIVE), machine.path(CONFIG).read_text()
    settings = yaml.safe_load(text)
    settings["receive"] |= {"max_associations": 7}
    settings["log"] = {"level": "debug"}
    machine.write(CONFIG, yaml.safe_dump(settings))
    machine.systemctl("reload", RECEIVE)
    # The service's log, and what the command of ExecReload= said.
    assert "receive: took over receive.max_associations, log.level" in machine.journal("-u", RECEIVE)
    assert "applied=receive.max_associations,log.level" in machine.journal("-u", RECEIVE)
    machine.write(CONFIG, "routs: []\n")
    refused = machine.run("systemctl", "reload", RECEIVE)
    assert refused.returncode != 0
    assert "did you mean 'routes'?" in machine.journal("-u", RECEIVE)
    assert site.active(RECEIVE)
    assert machine.main_pid(RECEIVE) == before
    machine.write(CONFIG, text)
    machine.systemctl("reload", RECEIVE)


def test_a_role_whose_threads_hang_is_ended_by_the_watchdog_and_started_again(site: Site) -> None:
    """The web role's hang since the machine is up: it notices after 30 s, and tells systemd no longer that it lives."""
    machine = site.machine
    machine.wait(lambda: machine.show(WEB, "NRestarts")["NRestarts"] != "0", "the restart")
    machine.wait(lambda: site.active(WEB), "the web role")
    assert machine.main_pid(WEB) != site.hung_web
    told = machine.journal("-u", WEB)
    assert "a part of this role hangs" in told
    assert "Watchdog timeout" in told


def test_a_stop_lets_a_running_analysis_end_and_its_result_is_delivered_once(site: Site) -> None:
    machine, files = site.machine, sorted(TINY.glob("*.dcm"))
    site.send(files)
    machine.wait(lambda: site.analysing(files), "an analysis")
    # The target first: it stops them in their order. The pattern: else systemctl would return while they still end.
    machine.systemctl("stop", "dicom-node.target", "dicom-node-*")
    job = site.job(files)
    assert job is not None
    assert job["state"] == "complete"
    for unit in UNITS:
        assert machine.show(unit, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    told = machine.journal("_PID=1").splitlines()
    order = [max(number for number, line in enumerate(told) if f"Stopped {unit}" in line) for unit in UNITS]
    web, deliver = order[UNITS.index(WEB)], order[UNITS.index(DELIVER)]
    assert web < min(order[UNITS.index(RECEIVE)], order[UNITS.index(WORK)]) < deliver == max(order)
    if not site.delivered(files):
        machine.systemctl("start", DELIVER)
        machine.wait(lambda: site.delivered(files), "the delivery")
    made = sorted(row["sop_instance_uid"] for row in site.database.results(job["job_id"]))
    # storescp keeps a file for each time that an object comes.
    came = [str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in site.archive.iterdir()]
    assert sorted(came) == made
