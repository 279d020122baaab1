"""The roles that live on a machine, seen by others while they come and go."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

import pytest

from dicom_node.presence import Presence, run_folder, standings


def test_a_role_is_seen_while_it_lives(tmp_path: Path) -> None:
    presence = Presence(tmp_path, "receive")
    assert [one.role for one in standings(tmp_path)] == ["receive"]
    presence.close()
    assert standings(tmp_path) == []
    assert list(run_folder(tmp_path).iterdir()) == []


def test_a_role_that_begins_while_somebody_looks_is_neither_kept_from_it_nor_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, looking = fcntl.flock, list[IO[str]]()

    def flock(file: IO[str], how: int) -> None:
        if how & fcntl.LOCK_EX:
            for path in run_folder(tmp_path).glob("*.json"):
                looking.append(path.open())
                real(looking[-1], fcntl.LOCK_SH | fcntl.LOCK_NB)
            standings(tmp_path)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    presence = Presence(tmp_path, "receive")
    assert [one.role for one in standings(tmp_path)] == ["receive"]
    presence.close()
    for file in looking:
        file.close()
