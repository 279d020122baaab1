"""Marks: who lives, as processes on one storage root see each other."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.marks import Mark, living
from dicom_node.storage import Storage

_PROGRAM = """
import sys
from pathlib import Path
from dicom_node.marks import Mark

mark = Mark(Path(sys.argv[1]))
print(mark.name, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A process with a mark, and the mark."""
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
        process.kill()


def test_a_mark_lives_as_long_as_its_process(tmp_path: Path, other: tuple[str, subprocess.Popen[str]]) -> None:
    name, process = other
    own = Mark(tmp_path)
    assert living(tmp_path) == {name, own.name}
    process.kill()
    process.wait()
    assert living(tmp_path) == {own.name}
    assert [path.stem for path in tmp_path.glob("marks/*")] == [own.name]
    own.close()
    assert living(tmp_path) == frozenset()


def test_a_process_that_ends_in_order_leaves_no_mark(tmp_path: Path, other: tuple[str, subprocess.Popen[str]]) -> None:
    _, process = other
    process.communicate("end\n")
    assert process.returncode == 0
    assert list(tmp_path.glob("marks/*")) == []


def test_a_mark_that_is_made_while_somebody_looks_is_not_taken_for_a_dead_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        living(tmp_path)
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    mark = Mark(tmp_path)
    assert living(tmp_path) == {mark.name}
    mark.close()


def test_who_was_taken_for_dead_and_lives_gets_a_new_mark(tmp_path: Path) -> None:
    """As after a cut for longer than the lease of its locks on a network file system."""
    storage = Storage(tmp_path)
    old = storage.mark
    storage.keep_mark()
    assert storage.mark is old
    (tmp_path / "marks" / f"{old.name}.lock").unlink()
    storage.keep_mark()
    assert storage.living_marks() == {storage.mark.name} != {old.name}
