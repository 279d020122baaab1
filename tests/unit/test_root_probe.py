"""What the file system of the storage root is tried for: each promise that it breaks is named."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from dicom_node.errors import StorageError
from dicom_node.root_probe import mount_of, mount_problem, probe


def test_this_file_system_does_what_the_node_builds_on_and_nothing_is_left_there(tmp_path: Path) -> None:
    assert probe(tmp_path).endswith("locks exclude, renames are seen, flushes work")
    assert not list(tmp_path.rglob("probe-*"))


def _no_lock(*_: Any) -> None:
    """As on a file system that says yes to each lock."""


def _old_content(temporary: Path, target: Path) -> Path:
    """As where a rename waits for somebody's cache."""
    if not target.exists():
        temporary.rename(target)
    else:
        temporary.unlink()
    return target


def _no_time(*_: Any) -> None:
    """As on a share that gives each file its own time."""


def _no_flush(descriptor: int) -> None:
    if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir():
        raise OSError(22, "Invalid argument")


@pytest.mark.parametrize(
    ("where", "name", "broken", "said"),
    [
        (fcntl, "flock", _no_lock, "keeps another out"),
        (Path, "replace", _old_content, "is seen by the next"),
        (os, "utime", _no_time, "keeps the time"),
        (os, "fsync", _no_flush, "fails: Invalid argument"),
    ],
)
def test_a_promise_that_is_broken_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, broken: Any, said: str
) -> None:
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(StorageError, match=said):
        probe(tmp_path)


@pytest.mark.parametrize(
    ("kind", "options", "fits"),
    [
        ("ext4", "rw,relatime", True),
        ("nfs4", "rw,vers=4.2,hard,local_lock=none", True),
        ("nfs", "rw,vers=3,nolock", False),
        ("nfs", "rw,vers=3,local_lock=flock", False),
        ("nfs4", "rw,local_lock=all", False),
        ("cifs", "rw,nobrl", False),
        ("fuse.sshfs", "rw", False),
        ("fuse.glusterfs", "rw", True),
    ],
)
def test_mount_options_that_keep_locks_on_one_machine_are_refused(kind: str, options: str, fits: bool) -> None:
    assert (mount_problem(kind, tuple(options.split(","))) is None) is fits


def test_the_mount_is_the_deepest_that_holds_the_folder_and_the_last_of_several(tmp_path: Path) -> None:
    there = str(tmp_path / "a b").replace(" ", r"\040")
    mounts = f"a / ext4 rw 0 0\nb {tmp_path} xfs rw 0 0\nc {there} nfs ro 0 0\nd {there} nfs4 rw,hard 0 0\n"
    assert mount_of(tmp_path / "a b" / "root", mounts) == ("nfs4", ("rw", "hard"))
    assert mount_of(tmp_path / "a", mounts) == ("xfs", ("rw",))
    assert mount_of(Path("/"), mounts) == ("ext4", ("rw",))
