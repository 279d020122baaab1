"""Threads of a process that hang: all but its main one stand still, each stopped by itself, for as long as this runs.

Usage: hang.py PID. It says "hung", and ends with the process. Nothing in the process has to help (ptrace(2)).
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

# ctypes and os have no names for them.
_PTRACE_SEIZE, _PTRACE_INTERRUPT, _WALL = 0x4206, 0x4207, 0x40000000


def main() -> None:
    pid = int(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    for thread in [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]:
        for request in (_PTRACE_SEIZE, _PTRACE_INTERRUPT):
            if thread != pid and libc.ptrace(request, thread, None, None) != 0:
                raise OSError(ctypes.get_errno(), f"ptrace of thread {thread}")
    print("hung", flush=True)
    while True:
        try:
            # A traced thread that was killed stays until its tracer asked, and its process with it.
            os.waitpid(-1, _WALL)
        except ChildProcessError:
            return


if __name__ == "__main__":
    main()
