"""A machine that a real systemd booted: a container (systemd-nspawn) over a throw-away layer of this machine's `/`.

What it writes is gone with it, so it has this machine's programs and this checkout without a copy of either. It boots
to basic.target: none of the services that the machine itself may have is started. Needs root. One that a killed test
run left is ended by the next `run_network`, for it is in a network of that run.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hosts import Host

_REPOSITORY = Path(__file__).resolve().parent.parent
_START_S = 30.0
# What it needs of this one, wherever that is mounted: this checkout, its virtual environment, and the Python of that.
TREES = (_REPOSITORY, Path(sys.prefix), Path(sys.base_prefix))
# In a mount namespace of its own, so that all of it goes when the container does.
_BOOT = """
set -eu
mount -t tmpfs -o mode=0755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
exec systemd-nspawn --quiet --boot --directory "$1/root" --register=no --keep-unit --link-journal=no \
    --console=pipe --machine "$3" --network-namespace-path "$2" \
    --bind-ro "$4" --bind-ro "$5" --bind-ro "$6" --bind "$7" -- systemd.unit=basic.target
"""


class NoBoot(Exception):
    """This machine cannot boot one: the text says why."""


class Machine:
    """A booted one. `pid`: that of its systemd, as it is seen from here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def path(self, name: str) -> Path:
        """Where its file `name` is from here."""
        return Path(f"/proc/{self.pid}/root") / name.removeprefix("/")

    def write(self, name: str, text: str) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command as its root, in no unit. Output and error output together."""
        return self._inside(self.pid, *command)

    def run_as(self, unit: str, *command: str) -> subprocess.CompletedProcess[str]:
        """As root where the unit's process is: it sees the files that the unit sees, and as they are there."""
        return self._inside(self.main_pid(unit), *command)

    def _inside(self, pid: int, *command: str) -> subprocess.CompletedProcess[str]:
        entered = ["nsenter", "--target", str(pid), "--mount", "--uts", "--ipc", "--net", "--pid", "env", "--chdir=/"]
        # Who counts lines would write beside the checkout, which is read-only there, and say so in the output.
        ours = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
        environment = {**ours, "PYTHONPATH": str(_REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [*entered, *command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
            check=False, timeout=300,
        )  # fmt: skip

    def node(self, *words: str) -> str:
        """The command dicom-node, as its root. Raises AssertionError where it fails."""
        return self.must(sys.executable, "-m", "dicom_node", *words)

    def must(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{self.journal()}"
        return done.stdout

    def systemctl(self, *words: str) -> str:
        return self.must("systemctl", "--no-pager", *words)

    def journal(self, *words: str) -> str:
        return self.run("journalctl", "--no-pager", "-o", "short-precise", "-n", "60", *words).stdout

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit, as systemd has them."""
        said = self.systemctl("show", unit, f"--property={','.join(properties)}")
        return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)

    def main_pid(self, unit: str) -> int:
        """The process of a unit, as it is seen from here."""
        inside = int(self.show(unit, "MainPID")["MainPID"])
        assert inside, f"{unit} does not run\n{self.journal()}"
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError, StopIteration):
                numbers = next(line for line in status.read_text().splitlines() if line.startswith("NSpid:")).split()
                if numbers[2:] == [str(inside)] and _same_pids(self.pid, int(numbers[1])):
                    return int(numbers[1])
        raise AssertionError(f"process {inside} of {unit} is gone\n{self.journal()}")

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 120) -> None:
        """Poll: what happens does so in there, which only systemd and the database tell of."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}\n{self.journal()}"
            time.sleep(0.05)


def _same_pids(one: int, other: int) -> bool:
    return Path(f"/proc/{one}/ns/pid").stat().st_ino == Path(f"/proc/{other}/ns/pid").stat().st_ino


@contextlib.contextmanager
def booted(folder: Path, host: Host, shared: str) -> Iterator[Machine]:
    """A machine with the network of `host`, up. Raises NoBoot where that is not possible here.

    shared: its folder of this name is `folder / "shared"` here; SQLite, for one, opens nothing below /proc.
    """
    layer = folder / "machine"
    layer.mkdir()
    (folder / "shared").mkdir()
    words = [layer, host.namespace, host.name, *TREES, f"{folder / 'shared'}:{shared}"]
    command = ["unshare", "--mount", "sh", "-c", _BOOT, "boot", *map(str, words)]
    with (folder / "machine.log").open("wb") as log:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except FileNotFoundError as err:
            raise NoBoot(f"no {err.filename} here: util-linux has it") from err
    machine = None
    try:
        machine = _up(process, folder / "machine.log")
        yield machine
    finally:
        if machine is not None:
            # The first process of a namespace takes all others of it along.
            with contextlib.suppress(ProcessLookupError):
                os.kill(machine.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait(20)


def _up(process: subprocess.Popen[bytes], log: Path) -> Machine:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        # nspawn's only child is the container's first process, from the moment that it has its namespaces.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "systemd":
            machine = Machine(int(children[0]))
            if machine.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"):
                return machine
        time.sleep(0.05)
    process.kill()
    raise NoBoot(f"systemd-nspawn boots nothing here: {log.read_text(errors='replace').strip()[-500:] or 'no word'}")
