"""The storage root -> whether its file system does what the node builds on: tried by two processes, and by its mount.

What is built on it: docs/scaling.md. Two processes of one machine can't show what another machine sees; how the file
system is mounted tells a part of that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from dicom_node.errors import StorageError

# The other process: a line names what to do with which file, and a line comes back.
_OTHER = """
import fcntl, os, sys
for line in sys.stdin:
    word, path = line.rstrip("\\n").split(" ", 1)
    try:
        if word == "read":
            print(open(path, "rb").read().hex(), flush=True)
        else:
            descriptor = os.open(path, os.O_RDWR)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(descriptor)
            print("free", flush=True)
    except OSError as err:
        print("held" if isinstance(err, BlockingIOError) else err.strerror, flush=True)
"""
_OLD, _NEW = b"old", b"new!"
# 2001-09-09, so no clock's present.
_RECEIVED_AT = 1_000_000_000.0
# Of each kind of file system: what its mount options must not say, and what follows from that.
_ONE_MACHINE = "its locks count on one machine alone, so receivers on two would take away each other's files"
_FORBIDDEN = {
    "nfs": {"nolock": _ONE_MACHINE, "local_lock=all": _ONE_MACHINE, "local_lock=flock": _ONE_MACHINE},
    "cifs": {"nobrl": _ONE_MACHINE},
}
_FORBIDDEN["nfs4"] = _FORBIDDEN["nfs"]
_UNFIT = {"fuse.sshfs": _ONE_MACHINE}

Ask = Callable[[str, Path], str]


def probe(root: Path) -> str:
    """What kind of file system it is. Raises StorageError that says what it does not do."""
    kind, options = mount_of(root, Path("/proc/self/mounts").read_text())
    wrong = mount_problem(kind, options)
    if wrong is not None:
        raise StorageError(f"storage.root {root} is on {kind}: {wrong}")
    # In no folder of the roles: one that whoever checks made here would be closed to them.
    folder = root / f"probe-{uuid.uuid4().hex}"
    try:
        folder.mkdir(mode=0o750)
    except PermissionError:
        return f"{kind}; not tried, since this user may not write there"
    except OSError as err:
        raise StorageError(f"storage.root {root} cannot be written to: {err.strerror}") from err
    try:
        with _other_process() as ask:
            for promise, kept in _PROMISES.items():
                if not kept(folder, ask):
                    raise StorageError(f"the file system of storage.root ({kind}) does not keep this: {promise}")
    except OSError as err:
        raise StorageError(f"the file system of storage.root ({kind}) fails: {err.strerror}") from err
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return f"{kind}: locks exclude, renames are seen, flushes work"


def mount_of(folder: Path, mounts: str) -> tuple[str, tuple[str, ...]]:
    """Kind and options of the mount that a folder lies on. mounts: as proc_pid_mounts(5) has them, the last on top."""
    where, best = folder.resolve(), ("unknown", tuple[str, ...]())
    length = -1
    for line in mounts.splitlines():
        _, at, kind, options, *_ = line.split(" ")
        # fstab(5): blanks and the like are octal there.
        point = Path(at.encode().decode("unicode_escape"))
        if where.is_relative_to(point) and len(point.parts) >= length:
            length, best = len(point.parts), (kind, tuple(options.split(",")))
    return best


def mount_problem(kind: str, options: tuple[str, ...]) -> str | None:
    """Why a file system that is mounted in this way can't be shared by machines; None where nothing is known."""
    for option in options:
        if why := _FORBIDDEN.get(kind, {}).get(option):
            return f"mounted with {option}, {why}"
    return _UNFIT.get(kind)


@contextlib.contextmanager
def _other_process() -> Iterator[Ask]:
    command = [sys.executable, "-I", "-c", _OTHER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        sent, said = process.stdin, process.stdout
        assert sent is not None  # noqa: S101  both are pipes
        assert said is not None  # noqa: S101

        def ask(word: str, path: Path) -> str:
            sent.write(f"{word} {path}\n")
            sent.flush()
            return said.readline().rstrip("\n")

        yield ask


def _locks_exclude(folder: Path, ask: Ask) -> bool:
    path = folder / "lock"
    with path.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A lock belongs to one opening of the file, not to the process: the end of another must not end it.
        path.open("rb").close()
        if ask("lock", path) != "held":
            return False
    return ask("lock", path) == "free"


def _renames_are_seen(folder: Path, ask: Ask) -> bool:
    final = folder / "final"
    for content in (_OLD, _NEW):
        temporary = folder / "temporary"
        with temporary.open("wb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())
        temporary.replace(final)
        if ask("read", final) != content.hex():
            return False
    return not temporary.exists()


def _folders_are_flushed(folder: Path, _ask: Ask) -> bool:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def _times_are_kept(folder: Path, _ask: Ask) -> bool:
    path = folder / "time"
    path.write_bytes(_NEW)
    os.utime(path, (_RECEIVED_AT, _RECEIVED_AT))
    return abs(path.stat().st_mtime - _RECEIVED_AT) < 1.0


_PROMISES: dict[str, Callable[[Path, Ask], bool]] = {
    "a lock (flock) of one process keeps another out, for as long as it holds it": _locks_exclude,
    "a file that is renamed over another is seen by the next who opens that name": _renames_are_seen,
    "a folder can be flushed": _folders_are_flushed,
    "a file keeps the time that it is given": _times_are_kept,
}
