"""Durable before visible, and no path from a hostile name."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.errors import InvalidUID, OutOfSpace, StorageError
from dicom_node.storage import Storage, checked_uid

UIDS = ("1.2.3", "1.2.4", "1.2.5")
FINAL = "incoming/1.2.3/1.2.4/1.2.5.dcm"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "root")


def files(storage: Storage) -> list[str]:
    """All of them, but for the marks of who writes."""
    found = (p.relative_to(storage.root) for p in storage.root.rglob("*") if p.is_file())
    return sorted(str(path) for path in found if path.parts[0] != "marks")


@given(st.text(max_size=80))
def test_a_checked_uid_is_only_digits_and_dots(text: str) -> None:
    try:
        uid = checked_uid(text, "SOPInstanceUID")
    except InvalidUID:
        return
    assert re.fullmatch(r"[0-9]+(\.[0-9]+)+", uid)
    assert len(uid) <= 64


def test_the_error_never_repeats_a_hostile_value() -> None:
    with pytest.raises(InvalidUID) as caught:
        checked_uid("Secret^Patient", "SOPInstanceUID")
    assert "Secret" not in str(caught.value)


HOSTILE = ("", ".", "..", "../..", "/etc/passwd", "1..2", ".1.2", "1.2.", "1.2\n", "1.2/3", "1.2\0", "1")


@pytest.mark.parametrize("hostile", [*HOSTILE, "\u0661.\u0662", "1." * 40 + "1", None])
def test_what_is_no_uid_never_becomes_a_path(storage: Storage, hostile: Any) -> None:
    for at in range(3):
        names = [*UIDS]
        names[at] = hostile
        with pytest.raises(InvalidUID):
            storage.write_instance(*names, b"data")
    assert files(storage) == []


def test_leading_zeros_are_taken_as_devices_write_them() -> None:
    assert checked_uid("1.2.003.0", "SOPInstanceUID") == "1.2.003.0"


def test_a_written_instance_is_there_with_its_hash(storage: Storage) -> None:
    stored = storage.write_instance(*UIDS, b"head", b"data set")
    assert stored.path == FINAL
    assert stored.size_bytes == 12
    assert storage.path(stored.path).read_bytes() == b"headdata set"
    assert files(storage) == [FINAL]


def test_file_then_name_then_folder_are_flushed_in_this_order(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real_fsync, real_replace, real_mkdir = os.fsync, Path.replace, Path.mkdir

    def fsync(descriptor: int) -> None:
        done.append(f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().relative_to(storage.root)}")
        real_fsync(descriptor)

    def replace(path: Path, target: Path) -> Path:
        done.append(f"rename to {target.relative_to(storage.root)}")
        return real_replace(path, target)

    def mkdir(path: Path, *args: Any, **kwargs: Any) -> None:
        done.append(f"make {path.relative_to(storage.root)}")
        real_mkdir(path, *args, **kwargs)

    _ = storage.mark  # taken once
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "mkdir", mkdir)
    storage.write_instance(*UIDS, b"data")
    temporary = done.pop(4)
    assert re.fullmatch(r"flush incoming/1\.2\.3/1\.2\.4/\.[0-9a-f]{16}-[0-9a-f]{32}\.part", temporary)
    assert done == [
        "make incoming/1.2.3",
        "flush incoming",
        "make incoming/1.2.3/1.2.4",
        "flush incoming/1.2.3",
        f"rename to {FINAL}",
        "flush incoming/1.2.3/1.2.4",
    ]


def test_equal_bytes_again_write_nothing(storage: Storage) -> None:
    storage.write_instance(*UIDS, b"data")
    before = storage.path(FINAL).stat()
    storage.write_instance(*UIDS, b"da", b"ta")
    after = storage.path(FINAL).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_other_bytes_replace_the_file_as_a_whole(storage: Storage) -> None:
    storage.write_instance(*UIDS, b"old")
    storage.write_instance(*UIDS, b"new!")
    assert storage.path(FINAL).read_bytes() == b"new!"
    assert files(storage) == [FINAL]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_and_says_so(storage: Storage, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".part":
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutOfSpace):
        storage.write_instance(*UIDS, b"data")
    assert files(storage) == []


def test_an_input_output_error_leaves_the_old_file(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_instance(*UIDS, b"old")

    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match="could not be made durable"):
        storage.write_instance(*UIDS, b"new")
    assert storage.path(FINAL).read_bytes() == b"old"
    assert files(storage) == [FINAL]


def test_below_the_watermark_nothing_new_is_written(tmp_path: Path) -> None:
    Storage(tmp_path).write_instance(*UIDS, b"data")
    full = Storage(tmp_path, min_free_gb=1e9)
    with pytest.raises(OutOfSpace, match="min_free_gb"):
        full.write_instance("1.2.3", "1.2.4", "1.2.6", b"data")
    assert files(full) == [FINAL]
    assert full.write_instance(*UIDS, b"data").path == FINAL, "what is there already needs no space"


def test_a_process_killed_within_a_write_leaves_only_a_temporary_file(storage: Storage) -> None:
    program = f"""
import os, sys
from pathlib import Path
from dicom_node.storage import Storage

def killed_at_the_file(descriptor):
    if Path(f"/proc/self/fd/{{descriptor}}").readlink().suffix == ".part":
        os.kill(os.getpid(), 9)

storage = Storage(Path(sys.argv[1]))
os.fsync = killed_at_the_file
storage.write_instance(*{UIDS!r}, b"data")
"""
    killed = subprocess.run([sys.executable, "-c", program, str(storage.root)], check=False)
    assert killed.returncode == -9
    (left,) = files(storage)
    assert left.endswith(".part")
    assert list(storage.incoming_files()) == []
    beside = storage.path(FINAL).with_name(f".{storage.mark.name}-ab.part")
    beside.write_bytes(b"of one that lives")
    assert storage.sweep() == 1
    beside.unlink()
    assert files(storage) == []


def test_writers_of_one_instance_at_once_leave_one_whole_file(storage: Storage) -> None:
    versions = [bytes([n]) * 200_000 for n in range(4)]
    ready = threading.Barrier(len(versions))

    def write(data: bytes) -> None:
        ready.wait()
        for _ in range(5):
            storage.write_instance(*UIDS, data)

    threads = [threading.Thread(target=write, args=(data,)) for data in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert storage.path(FINAL).read_bytes() in versions
    assert files(storage) == [FINAL]


def test_the_sweep_spares_received_files(storage: Storage) -> None:
    storage.write_instance(*UIDS, b"data")
    (storage.root / "incoming/1.2.3/.abc.part").write_bytes(b"half")
    assert storage.sweep() == 1
    assert files(storage) == [FINAL]


def test_results_lie_under_their_job(storage: Storage) -> None:
    stored = storage.write_result("1.2.4-0a1b", "seg.dcm", b"data")
    assert stored.path == "results/1.2.4-0a1b/seg.dcm"


@pytest.mark.parametrize(
    ("job_id", "name"),
    [("../1-a", "seg.dcm"), ("1.2-", "seg.dcm"), ("1.2-a/b", "seg.dcm"), ("1.2-a", "../seg.dcm"), ("1.2-a", "seg")],
)
def test_results_have_no_hostile_names(storage: Storage, job_id: str, name: str) -> None:
    # A mistake of ours: unlike an error of storage it is no reason to try again.
    with pytest.raises((ValueError, InvalidUID)):
        storage.write_result(job_id, name, b"data")
    assert files(storage) == []


def test_a_root_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        Storage(tmp_path / "file")


def test_a_root_that_went_away_is_an_error_of_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(tmp_path / "root")
    (tmp_path / "root" / "incoming").rmdir()
    (tmp_path / "root" / "results").rmdir()
    (tmp_path / "root").rmdir()
    with pytest.raises(StorageError):
        storage.write_instance(*UIDS, b"data")
