"""Units by systemd's own judgement, a role under a reload, a node from its backup, a database of a later version."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from typer.testing import CliRunner

from dicom_node.audit.trail import Trail
from dicom_node.backup import backup, restore
from dicom_node.cases.pseudonyms import read_salt
from dicom_node.cli import app
from dicom_node.config import Config, parse_config
from dicom_node.db import Database
from dicom_node.engine import migrate
from dicom_node.errors import ConfigError, DicomNodeError
from dicom_node.presence import standings
from dicom_node.service_units import Installation, next_steps, rendered, write
from tests.peers import free_port

UNITS = Path(__file__).parents[2] / "systemd"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


@needs_systemd
@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.service")), ids=lambda path: path.stem)
def test_a_unit_exposes_little(unit: Path) -> None:
    most = "35" if "@" in unit.name else "20"
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={most}", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stdout[-500:]


@needs_systemd
def test_written_units_are_clean(tmp_path: Path) -> None:
    command = tmp_path / "bin" / "dicom-node"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    installation = Installation(
        command=command,
        config=Path("/etc/node.yaml"),
        root=Path("/srv/node"),
        workers=("0", "cpu"),
        low_ports=("receive",),
    )
    files = rendered(installation)
    written = write(files, tmp_path / "image")
    services = [str(path).replace("@.", "@0.") for path in written if path.suffix in (".service", ".target")]
    folder = tmp_path / "image" / "etc" / "systemd" / "system"
    (folder / "dicom-node-work@0.service").symlink_to(folder / "dicom-node-work@.service")
    said = subprocess.run(["systemd-analyze", "verify", *services], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")
    assert "/opt/dicom-node" not in "".join(files.values())
    assert "dicom-node-work@0.service dicom-node-work@cpu.service" in files["/etc/systemd/system/dicom-node.target"]
    assert "/etc/systemd/system/dicom-node-receive.service.d/low-port.conf" in files


def test_the_units_may_write_where_the_settings_have_the_roles_write(tmp_path: Path) -> None:
    text = (
        "storage: {root: /srv/node}\naudit: {folder: /var/log/dicom-node-audit}\n"
        "metrics: {folder: /run/dicom-node/metrics}\nweb: {users_file: /etc/dicom-node/users.json}\n"
    )
    path = tmp_path / "config.yaml"
    files = rendered(Installation.of_this_process(path, parse_config(text, str(path)), "0"))
    units = [text for name, text in files.items() if name.endswith(".service")]
    assert len(units) == 4
    for unit in units:
        assert "\nReadWritePaths=/srv/node /run/dicom-node/metrics /var/log/dicom-node-audit\n" in unit
    made = files["/etc/tmpfiles.d/dicom-node.conf"].splitlines()
    assert "d /srv/node 0750 dicom-node dicom-node -" in made
    for folder in ("/run/dicom-node/metrics", "/var/log/dicom-node-audit"):
        assert f"d {folder} :0750 :dicom-node :dicom-node -" in made, "what is there already keeps its owner"


def test_a_web_role_that_is_off_has_no_unit_to_fail_and_one_on_a_low_port_may_listen(tmp_path: Path) -> None:
    def installed(web: str) -> tuple[dict[str, str], str]:
        config = parse_config(f"storage: {{root: /srv/node}}\nreceive: {{port: 11112}}\nweb: {web}\n", "here")
        installation = Installation.of_this_process(tmp_path / "config.yaml", config, "0")
        return rendered(installation), next_steps(installation)

    files, said = installed("{port: null}")
    assert not any("web" in name for name in files)
    assert "dicom-node-web" not in files["/etc/systemd/system/dicom-node.target"]
    assert "web.port is null: the target starts no dicom-node-web.service" in said
    files, said = installed("{port: 443}")
    assert "dicom-node-web.service\n" in files["/etc/systemd/system/dicom-node.target"]
    assert "null" not in said
    [drop_in] = [name for name in files if name.endswith("low-port.conf")]
    assert drop_in == "/etc/systemd/system/dicom-node-web.service.d/low-port.conf"
    assert drop_in in files[drop_in]


def test_a_database_outside_the_storage_root_may_be_written_to(tmp_path: Path) -> None:
    text = "storage: {root: /srv/node}\ndatabase: {url: sqlite:////srv/database/dicom.sqlite}\n"
    files = rendered(Installation.of_this_process(tmp_path / "config.yaml", parse_config(text, "here"), "0"))
    for name in ("receive", "work@", "deliver", "web"):
        unit = files[f"/etc/systemd/system/dicom-node-{name}.service"]
        assert "\nReadWritePaths=/srv/node /srv/database\n" in unit
    assert "d /srv/database :0750 :dicom-node :dicom-node -" in files["/etc/tmpfiles.d/dicom-node.conf"]


@pytest.mark.parametrize(("drain_s", "stop_s"), [(60, 90), (300.5, 331)])
def test_systemd_waits_longer_than_a_role_drains(tmp_path: Path, drain_s: float, stop_s: int) -> None:
    config = parse_config(f"storage: {{root: /srv/node}}\nwork: {{drain_s: {drain_s}}}\n", "here")
    files = rendered(Installation.of_this_process(tmp_path / "config.yaml", config, "0"))
    units = [text for name, text in files.items() if name.endswith(".service")]
    assert all(f"\nTimeoutStopSec={stop_s}\n" in unit for unit in units)


def test_what_the_units_could_not_see_is_told(tmp_path: Path) -> None:
    config = parse_config("storage: {root: /home/anna/node}\n", "here")
    said = next_steps(Installation.of_this_process(tmp_path / "config.yaml", config, "0"))
    assert "careful: ProtectHome= hides " in said
    assert "/home/anna/node" in said.splitlines()[0]


def test_without_root_the_units_are_shown_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    path = tmp_path / "config.yaml"
    path.write_text(f"storage: {{root: {tmp_path / 'root'}}}\n")
    shown = CliRunner().invoke(app, ["install-service", "--dry-run", "--config", str(path)])
    assert shown.exit_code == 0
    assert f"\nReadWritePaths={tmp_path / 'root'}\n" in shown.output
    refused = CliRunner().invoke(app, ["install-service", "--config", str(path)])
    assert isinstance(refused.exception, DicomNodeError)
    assert "only root may write to /etc/systemd/system; --dry-run shows what: sudo " in str(refused.exception)


class Role:
    """A real receive role with a service manager's socket that listens to it."""

    def __init__(self, folder: Path, **receive: Any) -> None:
        self.path, self.root = folder / "config.yaml", folder / "root"
        self.settings: dict[str, Any] = {
            "storage": {"root": str(self.root), "min_free_gb": 0},
            "receive": {"host": "127.0.0.1", "port": free_port(), "journal_mb": 8, **receive},
        }
        self.write()
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(folder / "notify"))
        self.manager.settimeout(180)
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dicom_node", "receive", "--config", str(self.path)],
                env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify")},
                stderr=log,
            )

    def write(self, **sections: Any) -> None:
        self.settings |= sections
        self.path.write_text(yaml.safe_dump(self.settings))

    def hears(self, word: str) -> None:
        while word not in self.manager.recv(1000).decode().split("\n"):
            pass

    def reload(self) -> tuple[int, Any, str]:
        command = [sys.executable, "-m", "dicom_node", "reload", "--json", "--config", str(self.path), "--wait-s", "30"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, json.loads(done.stdout or "null"), done.stderr


def test_a_running_receiver_takes_over_a_new_peer_and_keeps_its_settings_over_a_wrong_file(tmp_path: Path) -> None:
    from pynetdicom import AE
    from pynetdicom.sop_class import CTImageStorage

    role = Role(tmp_path)
    try:
        role.hears("READY=1")
        role.hears("WATCHDOG=1")
        ae, port = AE(ae_title="SCANNER"), role.settings["receive"]["port"]
        ae.add_requested_context(CTImageStorage)
        assert ae.associate("127.0.0.1", port, ae_title="DICOMNODE").is_rejected
        role.write(peers={"scanner": {"ae_title": "SCANNER", "host": "127.0.0.1", "may_send": True}})
        code, [answer], _ = role.reload()
        assert (code, answer["applied"], answer["restart"]) == (0, ["peers.scanner"], [])
        role.hears("RELOADING=1")
        role.hears("READY=1")
        held = ae.associate("127.0.0.1", port, ae_title="DICOMNODE")
        assert held.is_established

        role.write(receive={**role.settings["receive"], "port": free_port(), "max_associations": 5})
        code, [answer], _ = role.reload()
        assert (code, answer["applied"], answer["restart"]) == (0, ["receive.max_associations"], ["receive.port"])
        role.hears("RELOADING=1")
        role.hears("READY=1")
        assert held.is_established, "an Association that runs is left alone"

        role.path.write_text(role.path.read_text() + "routs: []\n")
        code, _, said = role.reload()
        assert code == 2
        assert "routs: unknown key; did you mean 'routes'?" in said
        role.process.send_signal(signal.SIGHUP)  # as a service manager does, without a look at the file
        role.hears("RELOADING=1")
        role.hears("READY=1")
        [standing] = standings(role.root)
        assert standing.problem is not None
        assert "routs" in standing.problem
        messages = [entry.message for entry in Trail(role.root / "audit").entries()]
        told = [one for one in messages if "receive read its settings again" in one]
        assert [re.search('EventOutcomeIndicator="(.)"', one)[1] for one in told] == ["0", "0", "4"]  # type: ignore[index]
        assert all(f'UserID="{pwd.getpwuid(os.getuid()).pw_name}"' in one for one in told)
        held.release()
        again = ae.associate("127.0.0.1", port, ae_title="DICOMNODE")
        assert again.is_established
        again.release()
        role.process.terminate()
        role.hears("STOPPING=1")
        assert role.process.wait(30) == 0
        assert standings(role.root) == []
    finally:
        role.process.kill()
        role.process.wait()
        role.manager.close()


def test_a_hangup_reaches_each_process_of_a_receiver(tmp_path: Path) -> None:
    role = Role(tmp_path, processes=2)
    try:
        role.hears("READY=1")
        role.write(receive={**role.settings["receive"], "max_associations": 4})
        role.process.send_signal(signal.SIGHUP)
        took = "settings read again applied=receive.max_associations"
        # The one that was told, and the two that receive.
        deadline = time.monotonic() + 60
        while (tmp_path / "log").read_text().count(took) < 3:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        role.process.terminate()
        assert role.process.wait(60) == 0
    finally:
        role.process.kill()
        role.process.wait()
        role.manager.close()


def test_a_restored_node_has_rows_and_files_and_a_root_with_something_in_it_is_refused(
    tmp_path: Path, start_receiver: Callable[..., Any]
) -> None:
    running = start_receiver()
    config: Config = running.config
    migrate(config.database_url())
    path = running.storage.root / "incoming" / "1.2" / "1.3" / "1.4.dcm"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"an image")
    made = backup(config, tmp_path / "backup")
    assert set(made.databases) == {"node.sqlite", "engine.sqlite"}
    with pytest.raises(DicomNodeError, match="is not empty"):
        restore(config, tmp_path / "backup")
    storage = config.storage.model_copy(update={"root": tmp_path / "new"})
    other = config.model_copy(update={"storage": storage})
    assert restore(other, tmp_path / "backup") == made
    assert (tmp_path / "new" / "incoming" / "1.2" / "1.3" / "1.4.dcm").read_bytes() == b"an image"
    restored = Database(other.database_url())
    restored.migrate()
    assert restored.jobs() == []
    restored.close()


def test_users_salt_and_audit_trail_are_restored_with_their_modes_and_newer_ones_stay(
    tmp_path: Path, start_receiver: Callable[..., Any]
) -> None:
    config: Config = start_receiver().config
    migrate(config.database_url())
    root, outside = config.storage.root, tmp_path / "etc" / "users.json"
    config = config.model_copy(update={"web": config.web.model_copy(update={"users_file": outside})})
    outside.parent.mkdir()
    outside.write_text("anna")
    outside.chmod(0o600)
    salt = read_salt(config.export_salt_file())
    trail = Trail(root / "audit")
    for number in range(3):
        trail.append(f"<message {number}/>", at=1.8e9 + number)
    backup(config, tmp_path / "backup")
    trail.append("<after/>", at=1.9e9)

    def restored(name: str) -> Config:
        storage = config.storage.model_copy(update={"root": tmp_path / name})
        other = config.model_copy(update={"storage": storage})
        restore(other, tmp_path / "backup")
        return other

    outside.unlink()
    first = restored("first")
    assert read_salt(first.export_salt_file()) == salt
    assert outside.read_text() == "anna"
    assert [path.stat().st_mode & 0o777 for path in (first.export_salt_file(), outside)] == [0o600, 0o600]
    back = Trail(first.audit_folder())
    assert back.verify() == 3
    assert {path.stat().st_mode & 0o777 for path in back.files()} == {0o640}
    assert back.append("<goes on/>", at=1.9e9).number == 4
    assert back.verify() == 4

    outside.write_text("anna was removed")
    restored("second")
    assert outside.read_text() == "anna was removed"


def test_a_trail_that_is_written_on_while_it_is_copied_is_whole(
    tmp_path: Path, start_receiver: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config: Config = start_receiver().config
    migrate(config.database_url())
    trail = Trail(config.audit_folder())
    trail.append("<before/>", at=1.8e9)
    real = shutil.copy2

    def meanwhile(source: Path, target: Path) -> Path:
        copied = real(source, target)
        if source.parent == trail.folder:
            trail.append("<a day later/>", at=1.8e9 + 86400)
        return copied

    monkeypatch.setattr(shutil, "copy2", meanwhile)
    backup(config, tmp_path / "backup")
    monkeypatch.undo()
    storage = config.storage.model_copy(update={"root": tmp_path / "new"})
    other = config.model_copy(update={"storage": storage})
    restore(other, tmp_path / "backup")
    assert Trail(other.audit_folder()).verify() >= 1


def test_a_backup_that_was_changed_is_not_restored(tmp_path: Path, start_receiver: Callable[..., Any]) -> None:
    config: Config = start_receiver().config
    migrate(config.database_url())
    backup(config, tmp_path / "backup")
    (tmp_path / "backup" / "node.sqlite").write_bytes(b"")
    other = config.model_copy(update={"storage": config.storage.model_copy(update={"root": tmp_path / "new"})})
    with pytest.raises(DicomNodeError, match="not what was backed up"):
        restore(other, tmp_path / "backup")
    assert not (tmp_path / "new").exists()


def test_a_database_of_a_later_version_is_told(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'node.sqlite'}")
    database.migrate()
    with database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999_later'"))
    with pytest.raises(ConfigError, match="newer than this version"):
        database.migrate()
    database.close()
