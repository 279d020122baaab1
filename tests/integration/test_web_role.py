"""The web role as a process: the command line's users and tokens, TLS, what it loads, and what it costs when idle."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.certificates import Authority
from tests.peers import free_port

DOCS = Path(__file__).parents[2] / "docs" / "web.md"


class Role:
    """A node's settings in a folder, and its commands as processes."""

    def __init__(self, folder: Path, **web: Any) -> None:
        self.folder, self.port = folder, free_port()
        self.config = folder / "config.yaml"
        settings = {"storage": {"root": "root", "min_free_gb": 0}, "web": {"port": self.port, **web}}
        self.settings: dict[str, Any] = settings
        self.write()

    def write(self, **sections: Any) -> None:
        self.settings |= sections
        self.config.write_text(yaml.safe_dump(self.settings))

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dicom_node", *arguments, "--config", str(self.config)]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)

    @contextmanager
    def serving(self) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "dicom_node", "web", "--config", str(self.config)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "serving" in line:
                    break
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


def test_users_and_tokens_of_the_command_line_get_in_and_no_secret_is_an_argument(tmp_path: Path) -> None:
    role = Role(tmp_path)
    added = role.run("user", "add", "anna", "--role", "operator", stdin="correct horse battery\n")
    assert added.returncode == 0, added.stderr
    assert role.run("user", "add", "anna", stdin="correct horse battery\n").returncode == 1
    assert role.run("user", "add", "bob", "--role", "king", stdin="correct horse battery\n").returncode == 2
    assert json.loads(role.run("user", "list", "--json").stdout) == [{"name": "anna", "role": "operator"}]
    assert (tmp_path / "root/web_users.json").stat().st_mode & 0o777 == 0o600
    made = json.loads(role.run("token", "add", "grafana", "--days", "1", "--json").stdout)
    listed = role.run("token", "list", "--json").stdout
    assert json.loads(listed)[0]["name"] == "grafana"
    assert made["token"] not in listed
    with role.serving() as process:
        request = urllib.request.Request(
            f"http://127.0.0.1:{role.port}/api/v1/session", headers={"Authorization": f"Bearer {made['token']}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert json.load(answer)["role"] == "viewer"
        loaded = Path(f"/proc/{process.pid}/maps").read_text()
        assert "torch" not in loaded, "the web role must never load it"
        assert role.run("token", "revoke", "grafana").returncode == 0
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=10)
    trail = "".join(path.read_text() for path in (tmp_path / "root/audit").iterdir())
    assert trail.count("User Security Attributes Changed") == 3


def test_beyond_loopback_it_does_not_start_without_users(tmp_path: Path) -> None:
    issued = Authority(tmp_path / "ca").issue("node")
    role = Role(tmp_path, host="0.0.0.0", tls={"certificate": str(issued.certificate), "key": str(issued.key)})
    refused = role.run("web")
    assert refused.returncode == 2
    assert "there are no users: dicom-node user add NAME --role admin" in refused.stderr


def test_with_tls_old_versions_and_plain_calls_are_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    issued = authority.issue("node")
    tls = {"certificate": str(issued.certificate), "key": str(issued.key), "min_version": "1.3"}
    role = Role(tmp_path, tls=tls)
    with role.serving():
        context = ssl.create_default_context(cafile=str(authority.ca))
        url = f"https://localhost:{role.port}/healthz"
        with urllib.request.urlopen(url, timeout=10, context=context) as answer:
            assert json.load(answer) == {"alive": True}
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(urllib.error.URLError, match=r"EOF|(?i:version)"):
            urllib.request.urlopen(url, timeout=10, context=context)
        with pytest.raises(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{role.port}/healthz", timeout=10)


def test_a_port_that_is_taken_is_said_in_words(tmp_path: Path) -> None:
    role = Role(tmp_path)
    with role.serving():
        taken = role.run("web")
    assert taken.returncode == 1
    assert "Address already in use" in taken.stderr
    assert "set web.host, web.port" in taken.stderr


def test_what_it_audits_reaches_the_syslog_server_without_another_role(tmp_path: Path) -> None:
    role = Role(tmp_path)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as syslog:
        syslog.bind(("127.0.0.1", 0))
        syslog.settimeout(20)
        role.write(audit={"syslog": {"host": "127.0.0.1", "port": syslog.getsockname()[1], "transport": "udp"}})
        with role.serving():
            assert b"Application Start" in syslog.recv(65536)
        assert b"Application Stop" in syslog.recv(65536)


def test_a_reload_tells_it_how_much_of_the_disk_is_to_be_left_alone(tmp_path: Path) -> None:
    role = Role(tmp_path)
    with role.serving():
        url = f"http://127.0.0.1:{role.port}/readyz"
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert json.load(answer) == {"ready": True}
        role.write(storage={"root": "root", "min_free_gb": 1e9})
        assert role.run("reload").returncode == 0
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(url, timeout=10)


def test_idle_it_uses_under_one_per_cent_of_a_core(tmp_path: Path) -> None:
    with Role(tmp_path).serving() as process:

        def cpu_s() -> float:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        before, start = cpu_s(), time.monotonic()
        # What is measured is that nothing happens for a while.
        time.sleep(5)
        share = (cpu_s() - before) / (time.monotonic() - start)
    assert share < 0.01, f"{100 * share:.2f} % of a core"


def test_the_commands_of_the_document_do_what_it_says(tmp_path: Path) -> None:
    """Each `sh` block of docs/web.md that calls the API, against a running role."""
    role = Role(tmp_path)
    token = json.loads(role.run("token", "add", "t", "--role", "operator", "--json").stdout)["token"]
    blocks = re.findall(r"```sh\n(curl .*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) >= 3
    with role.serving():
        for block in blocks:
            command = block.replace("http://127.0.0.1:8114", f"http://127.0.0.1:{role.port}")
            done = subprocess.run(
                ["bash", "-ec", command],
                env={**os.environ, "TOKEN": token, "JOB": f"1.2-{'0' * 16}"},
                capture_output=True, text=True, timeout=30, check=False,
            )  # fmt: skip
            assert done.returncode == 0, (block, done.stderr)
            assert done.stdout, block
