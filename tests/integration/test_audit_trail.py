"""The audit trail's file and its way to a syslog server, over kills, dead servers and altered lines."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lxml import etree

from dicom_node.audit import Auditor, application_started, login
from dicom_node.audit.auditor import connected
from dicom_node.audit.forwarder import Backlog, Forwarder, backlog
from dicom_node.audit.trail import Trail, TrailBroken
from dicom_node.config.audit import SyslogConfig
from tests.certificates import Authority
from tests.peers import free_port
from tests.unit.test_audit_messages import SCHEMA

DAY_S = 86400.0


def written(folder: Path, count: int = 5, *, start: float = 1_700_000_000.0, step: float = 1.0) -> Trail:
    trail = Trail(folder, "host")
    for number in range(count):
        trail.append(f"<m>{number}</m>", start + number * step)
    return trail


def test_a_new_day_begins_a_new_file_and_the_chain_goes_on(tmp_path: Path) -> None:
    trail = written(tmp_path, 5, step=DAY_S / 2)
    assert len(trail.files()) == 3
    assert trail.verify() == 5
    assert [entry.number for entry in trail.entries()] == [1, 2, 3, 4, 5]


def test_files_are_for_owner_and_group_alone(tmp_path: Path) -> None:
    trail = written(tmp_path)
    assert stat.S_IMODE(trail.files()[0].stat().st_mode) == 0o640


def test_old_files_may_be_moved_away(tmp_path: Path) -> None:
    trail = written(tmp_path, 5, step=DAY_S / 2)
    trail.files()[0].unlink()
    assert trail.verify() == 4
    for path in trail.files():
        path.unlink()
    assert trail.append("<m/>", 1_800_000_000.0).number == 6
    assert trail.verify() == 1


def test_a_clock_set_back_loses_no_order(tmp_path: Path) -> None:
    trail = written(tmp_path, 3)
    trail.append("<m>earlier</m>", 1_600_000_000.0)
    assert trail.verify() == 4
    assert len(trail.files()) == 1


def change(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2].replace(b"<m>2</m>", b"<m>9</m>"), *lines[3:]]


def change_last(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-1], lines[-1].replace(b"<m>4</m>", b"<m>9</m>")]


def swap(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], *lines[3:]]


ALTERATIONS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "one changed": change,
    "the last one changed": change_last,
    "one cut out": lambda lines: lines[:2] + lines[3:],
    "the first cut off": lambda lines: [b"{}\n", *lines[1:]],
    "the last cut off": lambda lines: lines[:-1],
    "one put in": lambda lines: [*lines[:2], lines[1], *lines[2:]],
    "two swapped": swap,
    "all emptied": lambda lines: [],
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_altered_trail_is_seen(tmp_path: Path, name: str) -> None:
    trail = written(tmp_path)
    path = trail.files()[0]
    path.write_bytes(b"".join(ALTERATIONS[name](path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(TrailBroken):
        trail.verify()


def test_a_torn_line_that_nobody_was_promised_breaks_nothing(tmp_path: Path) -> None:
    trail = written(tmp_path)
    with trail.files()[0].open("ab") as file:
        file.write(b'{"number": 6, "at"')
    assert trail.verify() == 5
    assert trail.append("<m>5</m>", 1_700_000_010.0).number == 6
    assert trail.verify() == 6


def test_processes_that_are_killed_while_they_write_leave_a_whole_chain_with_all_that_was_acknowledged(
    tmp_path: Path,
) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom dicom_node.audit.trail import Trail\n"
        f"trail = Trail(Path({str(tmp_path)!r}), 'host')\n"
        "for n in range(100000):\n"
        "    print(trail.append(f'<m>{sys.argv[1]} {n}</m>', 1_700_000_000.0).message, flush=True)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, name], stdout=subprocess.PIPE, text=True) for name in "abc"
    ]
    said: list[str] = []
    for process in processes:
        assert process.stdout is not None
        said += [process.stdout.readline().strip() for _ in range(20)]
    for process in processes:
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0]
        said += [line for line in rest.split("\n") if line.endswith("</m>")]
    trail = Trail(tmp_path, "host")
    there = [entry.message for entry in trail.entries()]
    assert trail.verify() == len(there)
    assert set(said) <= set(there)


def test_a_full_disk_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, counts: Callable[[str], dict[str, float]]
) -> None:
    trail = Trail(tmp_path / "file", "host")
    (tmp_path / "file").write_text("no folder")
    Auditor(trail, source_id="N").write(application_started("receive"))
    assert "audit message lost" in caplog.text
    assert counts("dicom_node_audit_lost_total") == {"": 1}


def test_the_same_alert_again_is_counted_not_written(tmp_path: Path) -> None:
    now = [1_700_000_000.0]
    trail = Trail(tmp_path, "host")
    auditor = Auditor(trail, source_id="N", now=lambda: now[0])
    for _ in range(50):
        auditor.alert(address="192.0.2.9", peer="X", why="is no peer")
    assert len(list(trail.entries())) == 1
    now[0] += 61
    auditor.alert(address="192.0.2.9", peer="X", why="is no peer")
    assert "49 times more before" in list(trail.entries())[-1].message


# -- syslog ------------------------------------------------------------------------------------------


class SyslogServer:
    """RFC 5425's receiving side: TLS, octet counts. Mutual: it wants a certificate."""

    def __init__(self, authority: Authority, port: int) -> None:
        self.messages: list[bytes] = []
        self.changed = threading.Condition()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        pair = authority.issue("localhost")
        context.load_cert_chain(pair.certificate, pair.key)
        context.load_verify_locations(authority.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        self._listener = context.wrap_socket(socket.create_server(("127.0.0.1", port)), server_side=True)
        self._lines: list[ssl.SSLSocket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            self._lines.append(line)
            with line, line.makefile("rb") as file:
                try:
                    self._read(file)
                except (OSError, ValueError):
                    continue

    def _read(self, file: object) -> None:
        while True:
            count = b""
            while not count.endswith(b" "):
                byte = file.read(1)  # type: ignore[attr-defined]
                if not byte:
                    return
                count += byte
            message = file.read(int(count))  # type: ignore[attr-defined]
            with self.changed:
                self.messages.append(message)
                self.changed.notify_all()

    def wait_for(self, count: int) -> list[bytes]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.messages) >= count, 20), self.messages
        return self.messages

    def close(self) -> None:
        socket.socket.shutdown(self._listener, socket.SHUT_RDWR)
        self._listener.close()
        for line in self._lines:
            line.close()
        self._thread.join(5)


def forwarder_to(trail: Trail, syslog: SyslogConfig) -> Forwarder:
    return Forwarder(trail, lambda: connected(syslog), first_pause_s=0.05, longest_pause_s=0.1)


@pytest.fixture
def tls(tmp_path: Path) -> tuple[Authority, SyslogConfig]:
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("node")
    config = SyslogConfig(
        host="localhost",
        port=free_port(),
        ca=authority.ca,
        certificate=pair.certificate,
        key=pair.key,
        timeout_s=5,
    )
    return authority, config


def test_a_dead_server_holds_nobody_up_and_gets_all_once_it_lives(
    tmp_path: Path, tls: tuple[Authority, SyslogConfig]
) -> None:
    authority, config = tls
    trail = Trail(tmp_path / "audit", "host")
    forwarder = forwarder_to(trail, config)
    auditor = Auditor(trail, source_id="N", forwarder=forwarder)
    auditor.start()
    began = time.monotonic()
    for number in range(20):
        auditor.write(login(f"user{number}", True, None))
    assert time.monotonic() - began < 5
    [path] = trail.files()
    waiting = backlog(trail)
    assert waiting.size_bytes == path.stat().st_size
    assert waiting.oldest_at == next(trail.entries()).at
    server = SyslogServer(authority, config.port)
    try:
        messages = server.wait_for(20)
        auditor.stop()
    finally:
        server.close()
    assert backlog(trail) == Backlog(size_bytes=0, oldest_at=None)
    for number, message in enumerate(messages):
        header, _, xml = message.partition(b"\xef\xbb\xbf")
        assert header.startswith(b"<85>1 ")
        assert b" dicom-node " in header
        assert header.endswith(b" DICOM+RFC3881 - ")
        SCHEMA.assertValid(etree.fromstring(xml))
        assert f'UserID="user{number}"'.encode() in xml


def test_what_a_killed_process_had_not_sent_the_next_one_sends_from_the_cursor_on(
    tmp_path: Path, tls: tuple[Authority, SyslogConfig]
) -> None:
    authority, config = tls
    trail = written(tmp_path / "audit", 4, step=DAY_S / 2)
    server = SyslogServer(authority, config.port)
    try:
        first = forwarder_to(trail, config)
        assert first.send_due() == 4
        first.stop()
        trail.append("<m>late</m>", 1_700_200_000.0)  # by one that died before it could send
        second = forwarder_to(trail, config)
        assert second.send_due() == 1
        assert [m.partition(b"\xef\xbb\xbf")[2] for m in server.wait_for(5)] == [
            *(f"<m>{n}</m>".encode() for n in range(4)),
            b"<m>late</m>",
        ]
        assert second.send_due() == 0
        second.stop()
    finally:
        server.close()


def test_a_server_that_is_not_the_one_we_trust_gets_nothing(
    tmp_path: Path, tls: tuple[Authority, SyslogConfig]
) -> None:
    _, config = tls
    stranger = SyslogServer(Authority(tmp_path / "other"), config.port)
    try:
        with pytest.raises(ssl.SSLError):
            forwarder_to(written(tmp_path / "audit"), config).send_due()
    finally:
        stranger.close()
    assert stranger.messages == []


def test_udp_carries_a_message_a_datagram(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.bind(("127.0.0.1", 0))
        line.settimeout(10)
        config = SyslogConfig(host="127.0.0.1", port=line.getsockname()[1], transport="udp")
        forwarder = forwarder_to(written(tmp_path, 2), config)
        assert forwarder.send_due() == 2
        forwarder.stop()
        assert line.recv(65536).endswith(b"\xef\xbb\xbf<m>0</m>")
        assert line.recv(65536).endswith(b"\xef\xbb\xbf<m>1</m>")


def test_a_folder_that_is_not_there_yet_does_not_end_the_forwarding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "audit"
    folder.write_text("in the way, as a disk that is not mounted yet")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.bind(("127.0.0.1", 0))
        line.settimeout(10)
        forwarder = forwarder_to(
            Trail(folder, "host"), SyslogConfig(host="127.0.0.1", port=line.getsockname()[1], transport="udp")
        )
        forwarder.start()
        try:
            deadline = time.monotonic() + 10
            while "audit messages wait" not in caplog.text:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            folder.unlink()
            written(folder, 1)
            forwarder.wake()
            assert line.recv(65536).endswith(b"<m>0</m>")
        finally:
            forwarder.stop()


@pytest.mark.peers
def test_rsyslog_takes_the_messages_over_tls(tmp_path: Path, tls: tuple[Authority, SyslogConfig]) -> None:
    authority, config = tls
    pair = authority.issue("localhost")
    got = tmp_path / "got.log"
    settings = tmp_path / "rsyslog.conf"
    settings.write_text(
        f"""
global(defaultNetstreamDriver="gtls" defaultNetstreamDriverCAFile="{authority.ca}"
       defaultNetstreamDriverCertFile="{pair.certificate}" defaultNetstreamDriverKeyFile="{pair.key}"
       workDirectory="{tmp_path}" maxMessageSize="64k")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="anon")
input(type="imtcp" port="{config.port}" address="127.0.0.1")
template(name="seen" type="string" string="%pri%|%hostname%|%app-name%|%msgid%|%msg%\\n")
action(type="omfile" file="{got}" template="seen")
"""
    )
    daemon = shutil.which("rsyslogd") or "/usr/sbin/rsyslogd"
    process = subprocess.Popen([daemon, "-n", "-f", str(settings), "-i", str(tmp_path / "pid")])
    trail = Trail(tmp_path / "audit", "host")
    auditor = Auditor(trail, source_id="N", forwarder=forwarder_to(trail, config))
    try:
        auditor.start()
        for number in range(3):
            auditor.write(login(f"user{number}", True, None))
        deadline = time.monotonic() + 30
        while not (got.exists() and got.read_text().count("\n") >= 3):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        auditor.stop()
        os.kill(process.pid, signal.SIGTERM)
        process.wait(20)
    for number, line in enumerate(got.read_text(encoding="utf-8-sig").splitlines()):
        priority, host, application, kind, message = line.split("|", 4)
        assert (priority, host, application, kind) == ("85", "host", "dicom-node", "DICOM+RFC3881")
        SCHEMA.assertValid(etree.fromstring(message.lstrip("\ufeff ").encode()))
        assert f"user{number}" in message
