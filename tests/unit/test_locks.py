"""A lock lives as long as its holder."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dicom_node.locks import exclusive, try_lock


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'node.sqlite'}"


def test_a_second_holder_gets_nothing_until_the_first_lets_go(url: str) -> None:
    first = try_lock(url, "worker")
    assert first is not None
    assert first.still_held()
    assert try_lock(url, "worker") is None
    first.release()
    second = try_lock(url, "worker")
    assert second is not None
    second.release()


def test_other_names_and_other_databases_are_other_locks(url: str, tmp_path: Path) -> None:
    locks = [
        try_lock(url, "worker a"),
        try_lock(url, "worker b"),
        try_lock(f"sqlite:///{tmp_path / 'other' / 'x.sqlite'}", "worker a"),
    ]
    assert all(lock is not None for lock in locks)
    for lock in locks:
        assert lock is not None
        lock.release()


@pytest.mark.parametrize("name", ["../../etc/passwd", "a" * 500, "host/ä:1", ""])
def test_any_name_is_a_safe_file(url: str, tmp_path: Path, name: str) -> None:
    lock = try_lock(url, name)
    assert lock is not None
    lock.release()
    assert [path.parent for path in tmp_path.rglob("*.lock")] == [tmp_path / "locks"]


def test_a_killed_process_loses_its_lock(url: str) -> None:
    program = (
        "import sys, time\nfrom dicom_node.locks import try_lock\n"
        "lock = try_lock(sys.argv[1], 'worker')\nprint('held', flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, url], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert try_lock(url, "worker") is None
        holder.kill()
        holder.wait()
    lock = try_lock(url, "worker")
    assert lock is not None
    lock.release()


def test_exclusive_waits_for_its_turn(url: str) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with exclusive(url, "migrate"):
            order.append("second")

    with exclusive(url, "migrate"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        thread.join(0.05)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_exclusive_lets_go_after_an_error(url: str) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(url, "migrate"):
        raise ZeroDivisionError
    with exclusive(url, "migrate"):
        pass


def test_a_database_in_memory_has_no_locks() -> None:
    with pytest.raises(ValueError, match="in memory"):
        try_lock("sqlite://", "worker")
