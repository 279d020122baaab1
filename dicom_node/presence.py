"""Which roles run on this machine: a file each below storage.root/run/HOST, locked while its process lives.

A role writes there what became of its last reload; `dicom-node reload` reads it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A living role. reloads: how often it was told to reload; the rest is what came of the last time.

    problem: why its settings stayed as they were; None: they were taken over.
    """

    role: str
    name: str
    pid: int
    reloads: int = 0
    applied: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    problem: str | None = None


class Presence:
    """The file of this process, from `Presence(...)` to `close` or the end of the process."""

    def __init__(self, root: Path, role: str, name: str | None = None) -> None:
        folder = run_folder(root)
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        self.standing = Standing(role=role, name=name or role, pid=os.getpid())
        self._path = folder / f"{_safe(role)}-{_safe(name or role)}-{os.getpid()}.json"
        # Locked before it has the name that readers look for: one between the two would take it for a dead role's.
        unnamed = self._path.with_suffix(".new")
        self._file = unnamed.open("a+", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._write()
        unnamed.replace(self._path)

    def reloaded(
        self, *, applied: tuple[str, ...] = (), restart: tuple[str, ...] = (), problem: str | None = None
    ) -> None:
        """Tell whoever asked; a failed write must not end the role."""
        count = self.standing.reloads + 1
        self.standing = replace(self.standing, reloads=count, applied=applied, restart=restart, problem=problem)
        with contextlib.suppress(OSError):
            self._write()

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        self._file.close()

    def _write(self) -> None:
        # In place, for the lock is on this very file; a reader that comes in between finds no JSON and reads again.
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(asdict(self.standing)))
        self._file.flush()


def run_folder(root: Path) -> Path:
    return root / "run" / _safe(socket.gethostname())


def standings(root: Path) -> list[Standing]:
    """The roles that live on this machine. Files of dead ones are removed."""
    found = []
    for path in sorted(run_folder(root).glob("*.json")):
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError), path.open("r", encoding="utf-8") as file:
            if _is_free(file):
                path.unlink(missing_ok=True)
                continue
            form = json.loads(file.read())
            found.append(Standing(**{**form, "applied": tuple(form["applied"]), "restart": tuple(form["restart"])}))
    return found


def _is_free(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)
