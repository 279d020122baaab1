"""Several machines on one: a Linux network namespace each, on one bridge, each with a host name of its own.

They share the file system of one kernel, or one over that network (`run_gluster`), as machines with one storage root
do. Needs root; nothing leaves the bridge.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.peers import ENDS_WITH_US

# RFC 2544: 198.18.0.0/15 is set aside for trials of networks, so that it is nobody's here. Each run has a part of it.
_NETWORK = f"198.18.{os.getpid() % 256}"
_REPOSITORY = Path(__file__).resolve().parent.parent
# As `Restart=always` of a unit: what ends is started again.
_FOREVER = f'hostname "$0"; eval "$MOUNT"; while :; do {" ".join(ENDS_WITH_US)} "$@"; sleep 0.5; done'
_ONCE = 'hostname "$0"; exec "$@"'


class NoHosts(Exception):
    """This machine cannot make any: the text says why."""


class Host:
    """One of them. `name` is its host name, `address` where the others and the test reach it.

    mount: a shell command that mounts what it shares with others; each process does so for itself.
    """

    def __init__(self, name: str, address: str, namespace: str, log_folder: Path) -> None:
        self.name, self.address, self._namespace, self._log_folder = name, address, namespace, log_folder
        self._line = f"{namespace}-l"
        self._running: list[subprocess.Popen[bytes]] = []
        self.mount = ":"

    @property
    def namespace(self) -> Path:
        """Its network, for what enters it by itself."""
        return Path("/run/netns") / self._namespace

    def inside(self, *command: str) -> list[str]:
        """The same command, run on this host."""
        return self._inside(_ONCE, command)

    def _inside(self, script: str, command: Sequence[str]) -> list[str]:
        return [
            *ENDS_WITH_US,
            "ip",
            "netns",
            "exec",
            self._namespace,
            "unshare",
            "--uts",
            "--mount",
            "sh",
            "-c",
            script,
            self.name,
            *command,
        ]

    def start(self, label: str, *command: str, environment: Mapping[str, str] | None = None) -> None:
        """Run a command here for as long as the host is on; started again when it ends. Its output: `log(label)`."""
        whole = self._inside(_FOREVER, command)
        with self._log_path(label).open("ab") as output:
            self._running.append(
                subprocess.Popen(
                    whole,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    env={**os.environ, "PYTHONPATH": str(_REPOSITORY), "MOUNT": self.mount, **(environment or {})},
                )
            )

    def power_off(self) -> None:
        """kill -9 of all that runs here, at once; nothing starts again."""
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._running:
            process.wait()
        self._running.clear()

    def unplug(self) -> None:
        """The network cable is out: packets are lost, and nobody is told."""
        _ip("link", "set", self._line, "down")

    def plug(self) -> None:
        _ip("link", "set", self._line, "up")

    def log(self, label: str) -> str:
        path = self._log_path(label)
        return path.read_text(errors="replace") if path.exists() else ""

    def _log_path(self, label: str) -> Path:
        return self._log_folder / f"{self.name}-{label}.log"

    def make(self, bridge: str) -> None:
        far = f"{self._namespace}-r"
        _ip("netns", "add", self._namespace)
        _ip("link", "add", self._line, "type", "veth", "peer", "name", far)
        _ip("link", "set", far, "netns", self._namespace, "name", "eth0")
        _ip("link", "set", self._line, "master", bridge, "up")
        _ip("-n", self._namespace, "link", "set", "lo", "up")
        _ip("-n", self._namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self._namespace, "link", "set", "eth0", "up")

    def unmake(self) -> None:
        self.power_off()
        # The namespace itself lasts until its last process has gone, and the line with it: its name is used again.
        for words in (("link", "del", self._line), ("netns", "del", self._namespace)):
            with contextlib.suppress(NoHosts):
                _ip(*words)


class Network:
    """The hosts by name, and `address`: the test's own on their bridge."""

    def __init__(self, hosts: Mapping[str, Host], address: str) -> None:
        self.hosts, self.address = dict(hosts), address

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]


@contextlib.contextmanager
def run_network(names: Sequence[str], log_folder: Path) -> Iterator[Network]:
    """These hosts, up and connected. Raises NoHosts where the machine cannot make them."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise NoHosts("network namespaces need root on Linux")
    _sweep()
    # Names of network devices have 15 characters at most, and a process id 7.
    mark = f"dn{os.getpid()}"
    address = f"{_NETWORK}.1"
    with contextlib.ExitStack() as undo:
        _ip("link", "add", mark, "type", "bridge")
        undo.callback(_ip, "link", "del", mark)
        _ip("addr", "add", f"{address}/24", "dev", mark)
        _ip("link", "set", mark, "up")
        hosts = {}
        for number, name in enumerate(names):
            hosts[name] = Host(name, f"{_NETWORK}.{11 + number}", f"{mark}{chr(ord('a') + number)}", log_folder)
            undo.callback(hosts[name].unmake)
            hosts[name].make(mark)
        yield Network(hosts, address)


def _sweep() -> None:
    """What runs left that were killed: their hosts, with whatever still runs there, and their bridges."""
    for namespace in _left_over(Path("/run/netns"), r"dn(\d+)[a-z]"):
        listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
        for pid in listed.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "del", namespace)
    for bridge in _left_over(Path("/sys/class/net"), r"dn(\d+)"):
        _ip("link", "del", bridge)


def _left_over(folder: Path, pattern: str) -> list[str]:
    """The names there that hold the id of a test run which is no more."""
    found = (re.fullmatch(pattern, path.name) for path in folder.glob("dn*"))
    return [one[0] for one in found if one and not Path(f"/proc/{one[1]}").exists()]


def _ip(*words: str) -> None:
    try:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
    except FileNotFoundError as err:
        raise NoHosts("no ip command here: iproute2 has it") from err
    except subprocess.CalledProcessError as err:
        raise NoHosts(f"ip {' '.join(words)}: {err.stderr.strip()}") from err


_BRICK = """
volume posix
  type storage/posix
  option directory {folder}
end-volume
volume locks
  type features/locks
  subvolumes posix
end-volume
volume server
  type protocol/server
  option transport-type tcp
  option transport.socket.bind-address {address}
  option transport.socket.listen-port {port}
  option auth.addr.locks.allow *
  subvolumes locks
end-volume
"""
# A machine that is not heard of for so long has lost its locks, and its own calls fail.
_CLIENT = """
volume remote
  type protocol/client
  option transport-type tcp
  option remote-host {address}
  option remote-port {port}
  option remote-subvolume locks
  option ping-timeout 10
end-volume
"""


@contextlib.contextmanager
def run_gluster(network: Network, folder: Path, mountpoint: Path, port: int) -> Iterator[None]:
    """A GlusterFS server for `folder`, which what is started on the hosts from now on has at `mountpoint`.

    Raises NoHosts where there is none, or where nothing can be mounted.
    """
    if not Path("/usr/sbin/glusterfsd").exists() or not os.access("/dev/fuse", os.W_OK):
        raise NoHosts("no GlusterFS here (tests/peers.sh installs it), or no /dev/fuse")
    folder.mkdir()
    mountpoint.mkdir()
    files = {name: folder.with_name(f"{name}.vol") for name in ("brick", "client")}
    files["brick"].write_text(_BRICK.format(folder=folder, address=network.address, port=port))
    files["client"].write_text(_CLIENT.format(address=network.address, port=port))
    command = [
        *ENDS_WITH_US,
        "/usr/sbin/glusterfsd",
        "-N",
        "-f",
        str(files["brick"]),
        "-l",
        str(folder.with_name("brick.log")),
    ]
    process = subprocess.Popen(command)
    client = ("/usr/sbin/glusterfs", "-N", "-f", files["client"], "-l", folder.with_name("client.log"), mountpoint)
    mount = " ".join(map(str, (*ENDS_WITH_US, *client, "&")))
    for host in network.hosts.values():
        host.mount = f"{mount} until grep -q ' {mountpoint} fuse' /proc/mounts; do sleep 0.1; done"
    try:
        yield
    finally:
        for host in network.hosts.values():
            host.power_off()
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def run_balancer(folder: Path, address: str, port: int, backends: Mapping[str, tuple[str, int]]) -> Iterator[None]:
    """HAProxy: one address and port before several, what does not answer being left out."""
    lines = [
        "defaults",
        "  mode tcp",
        "  timeout connect 2s",
        "  timeout client 5m",
        "  timeout server 5m",
        "  retries 3",
        "  option redispatch 1",
        "listen dicom",
        f"  bind {address}:{port}",
        "  balance roundrobin",
        "  default-server check inter 500 fall 1 rise 1 on-marked-down shutdown-sessions",
        *(f"  server {name} {host}:{at}" for name, (host, at) in backends.items()),
    ]
    config = folder / "haproxy.cfg"
    config.write_text("\n".join(lines) + "\n")
    with (folder / "haproxy.log").open("ab") as output:
        command = [*ENDS_WITH_US, "/usr/sbin/haproxy", "-db", "-f", str(config)]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)
