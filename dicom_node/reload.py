"""`reload`: check the settings' file, tell each role of this machine to read it again, wait for what each answers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from dicom_node.config import load_config
from dicom_node.errors import DicomNodeError
from dicom_node.presence import Standing, standings

_LOOK_S = 0.05


def reload(
    config_path: Path, *, wait_s: float, pid: int | None = None, sleep: Callable[[float], None] = time.sleep
) -> list[Standing]:
    """What became of it in each role; `problem` where its settings stay. pid: one role alone.

    Raises ConfigError on a wrong file, before any role hears of it, and DicomNodeError where no role runs here.
    """
    root = load_config(config_path).storage.root
    before = [one for one in standings(root) if pid in (None, one.pid)]
    if not before:
        raise DicomNodeError(f"no role runs on this machine with storage.root {root}")
    for one in before:
        try:
            os.kill(one.pid, signal.SIGHUP)
        except ProcessLookupError:
            continue
        except PermissionError as err:
            raise DicomNodeError(f"process {one.pid} belongs to another user: sudo -u dicom-node, or root") from err
    return _answers(root, before, time.monotonic() + wait_s, sleep)


def _answers(root: Path, before: list[Standing], deadline: float, sleep: Callable[[float], None]) -> list[Standing]:
    waiting = {one.pid: one for one in before}
    answered: list[Standing] = []
    while waiting and time.monotonic() < deadline:
        sleep(_LOOK_S)
        now = {one.pid: one for one in standings(root)}
        for pid, one in list(waiting.items()):
            if pid in now and now[pid].reloads > one.reloads:
                answered.append(now[pid])
                del waiting[pid]
    silent = [_silent(one) for one in waiting.values()]
    return sorted([*answered, *silent], key=lambda one: (one.role, one.name))


def _silent(one: Standing) -> Standing:
    return Standing(role=one.role, name=one.name, pid=one.pid, problem="did not answer in time; its log may say why")
