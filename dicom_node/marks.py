"""A process that receives -> its mark below storage.root/marks, locked while it lives. What it leaves behind names it.

So whoever finds a half-written file, on whichever machine, asks the storage root itself whether its writer lives: the
id of a process means nothing elsewhere, and a lock of the database ends with its connection, while the writer goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
import weakref
from pathlib import Path

LENGTH = 16
_FOLDER, _SUFFIX = "marks", ".lock"


class Mark:
    """From its making to `close` or the end of the process. name: `LENGTH` hexadecimal digits, used once."""

    def __init__(self, root: Path) -> None:
        """Raises OSError."""
        folder = root / _FOLDER
        folder.mkdir(exist_ok=True, mode=0o750)
        self.name = uuid.uuid4().hex[:LENGTH]
        self._path = path = folder / f"{self.name}{_SUFFIX}"
        # Locked before it has the name that others look for: one between the two would take it for a dead one's.
        unnamed = path.with_suffix(".new")
        descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        self.close = weakref.finalize(self, _leave, descriptor, path)
        # Over NFS a lock is one of the server's, and needs a file that is open for writing: nfs(5), flock(2).
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unnamed.rename(path)

    def on(self, name: str) -> str:
        """`name` with this mark before it, no longer than it was. name: random hexadecimal digits."""
        return f"{self.name}{name[:-LENGTH]}"

    def stands(self) -> bool:
        """False once somebody took us for dead: a lock over the network ends when its machine is not heard of."""
        return self._path.exists()


def living(root: Path) -> frozenset[str]:
    """The names of all whose processes live. To be asked after what they left was listed: later ones are not in it.

    Those of dead ones are removed, for a mark that is not there is dead, too. Raises OSError.
    """
    return frozenset(path.stem for path in (root / _FOLDER).glob(f"*{_SUFFIX}") if not _is_dead(path))


def _is_dead(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except PermissionError:  # another user's, as of a command that root runs: not ours to judge
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _leave(descriptor: int, path: Path) -> None:
    # A storage root that is away by now must not keep a process from its end.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    os.close(descriptor)
