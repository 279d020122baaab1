"""A record that was acknowledged comes back after a crash; a torn one, a released one and a stranger's do not."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node import journal
from dicom_node.errors import OutOfSpace, StorageError
from dicom_node.journal import Journal, Record

MEGABYTE = 1024**2
Left = list[tuple[bytes, bytes]]


class Replayed:
    def __init__(self) -> None:
        self.left: Left = []

    def __call__(self, records: Iterator[Record]) -> None:
        self.left += [(record.description, record.payload) for record in records]


def reopened(folder: Path, capacity_bytes: int = MEGABYTE) -> tuple[Journal, Left]:
    replayed = Replayed()
    return journal.take(folder, capacity_bytes, replayed), replayed.left


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Journal]:
    made, left = reopened(tmp_path / "journal")
    assert left == []
    yield made
    made.close()


def crashed(line: Journal) -> Path:
    """The folder of a journal whose process died: nothing of it was released."""
    line.close()
    return line.path.parent


def append(line: Journal, name: bytes, *parts: bytes, wait_s: float = 0.0) -> int:
    return line.append(name, *parts, wait_s=wait_s)


def test_what_was_appended_comes_back_in_order(opened: Journal) -> None:
    sent = [(b"%d" % n, os.urandom(5000 * n)) for n in range(1, 6)]
    for name, payload in sent:
        append(opened, name, payload[:100], payload[100:])
    again, left = reopened(crashed(opened))
    assert left == sent
    folder = crashed(again)
    assert reopened(folder)[1] == [], "what was replayed is released"


def test_what_was_released_does_not_come_back(opened: Journal) -> None:
    numbers = [append(opened, b"%d" % n, b"x" * n) for n in range(5)]
    opened.release([numbers[1], numbers[0]])
    opened.release([numbers[3]])
    left = reopened(crashed(opened))[1]
    assert [name for name, _ in left] == [b"2", b"3", b"4"], "3 waits for 2, which is older"


def test_a_payload_can_be_read_until_it_is_released(opened: Journal) -> None:
    payload = os.urandom(100_000)
    number = append(opened, b"one", payload)
    append(opened, b"two", b"other")
    assert opened.read(number) == payload


@pytest.mark.parametrize("torn_at", [0, 40, 70, 4090, 9000])
def test_a_torn_record_is_dropped_and_those_behind_it_are_kept(opened: Journal, torn_at: int) -> None:
    """Writers finish in any order: a later record can be whole, and acknowledged, where an earlier one is torn."""
    for name in (b"first", b"torn", b"last"):
        append(opened, name, bytes([65]) * 12_000)
    place = 4096 + 12_288 + torn_at
    with opened.path.open("r+b") as file:
        file.seek(place)
        before = file.read(8)
        file.seek(place)
        file.write(bytes(byte ^ 255 for byte in before))
    left = reopened(crashed(opened))[1]
    assert [name for name, _ in left] == [b"first", b"last"]


@pytest.mark.parametrize("cut", [0, 1, 4096, 8192, 12_000])
def test_of_a_write_that_power_cut_short_nothing_comes_back(opened: Journal, cut: int) -> None:
    append(opened, b"whole", b"A" * 100)
    append(opened, b"cut", b"B" * 12_000)
    with opened.path.open("r+b") as file:
        file.seek(4096 + 4096 + cut)
        file.write(bytes(16_384 - cut))
    left = reopened(crashed(opened))[1]
    assert [name for name, _ in left] == [b"whole"]


def test_a_record_within_a_payload_is_no_record(opened: Journal, tmp_path: Path) -> None:
    other, _ = reopened(tmp_path / "other")
    append(other, b"forged", b"never acknowledged here")
    other.close()
    forged = other.path.read_bytes()[4096:8192]
    number = append(opened, b"real", bytes(4096 - 200), forged * 3)
    with opened.path.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(64))  # the real one is torn, so that its payload is looked through
    assert number == 1
    assert reopened(crashed(opened))[1] == []


def test_the_ring_goes_round_and_old_records_never_come_back(opened: Journal) -> None:
    for n in range(40):
        number = append(opened, b"%d" % n, bytes([n]) * 100_000)
        if n >= 3:
            opened.release([number - 3])
    left = reopened(crashed(opened))[1]
    assert [name for name, _ in left] == [b"37", b"38", b"39"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 3)), max_size=25))
def test_whatever_sizes_and_releases_the_records_left_are_those_not_released(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]]
) -> None:
    line, _ = reopened(tmp_path_factory.mktemp("journal"))
    kept: dict[int, bytes] = {}
    for size, releases in steps:
        try:
            kept[append(line, b"", bytes([size % 251]) * size)] = bytes([size % 251]) * size
        except OutOfSpace:
            assert sum(map(len, kept.values())) + size > MEGABYTE // 3, "refused without need"
        gone = list(kept)[:releases]
        line.release(gone)
        for number in gone:
            del kept[number]
        assert all(line.read(number) == payload for number, payload in kept.items())
    left = reopened(crashed(line))[1]
    assert [payload for _, payload in left] == list(kept.values())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400_000), st.sets(st.integers(0, 8), max_size=4)), max_size=40))
def test_whatever_is_released_in_whatever_order_no_record_that_is_needed_is_written_over(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, set[int]]]
) -> None:
    line, _ = reopened(tmp_path_factory.mktemp("journal"))
    kept: dict[int, bytes] = {}
    for count, (size, places) in enumerate(steps):
        with contextlib.suppress(OutOfSpace):
            payload = bytes([count]) * size
            kept[append(line, b"%d" % count, payload)] = payload
        gone = [number for place, number in enumerate(kept) if place in places]
        line.release(gone)
        for number in gone:
            del kept[number]
        assert all(line.read(number) == payload for number, payload in kept.items())
    left = reopened(crashed(line))[1]
    assert [payload for _, payload in left if payload in kept.values()] == list(kept.values())


def test_room_is_free_wherever_it_is(opened: Journal) -> None:
    needed = append(opened, b"needed", bytes(300_000))
    for _ in range(20):
        opened.release([append(opened, b"passing", bytes(300_000))])
    opened.release([needed])
    for _ in range(2):
        append(opened, b"two of the largest", bytes(500_000))


def test_a_full_journal_waits_for_a_release_and_then_says_so(opened: Journal) -> None:
    first = append(opened, b"1", bytes(500_000))
    append(opened, b"2", bytes(500_000))
    with pytest.raises(OutOfSpace):
        append(opened, b"3", bytes(200_000), wait_s=0.01)
    releasing = threading.Timer(0.05, opened.release, [[first]])
    releasing.start()
    append(opened, b"3", bytes(200_000), wait_s=30)
    releasing.join()
    assert [name for name, _ in reopened(crashed(opened))[1]] == [b"2", b"3"]


def test_a_payload_that_leaves_no_room_for_others_is_not_taken(opened: Journal) -> None:
    assert not opened.takes(MEGABYTE // 2)
    with pytest.raises(StorageError):
        append(opened, b"large", bytes(MEGABYTE // 2))


def test_several_writers_share_a_flush_and_each_waits_for_its_own(
    opened: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, go, begun = os.fdatasync, threading.Event(), threading.Event()
    flushes: list[int] = []

    def slow(descriptor: int) -> None:
        flushes.append(descriptor)
        begun.set()
        assert go.wait(10)
        flush(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    threads = [threading.Thread(target=append, args=(opened, b"%d" % n, bytes(1000))) for n in range(8)]
    threads[0].start()
    assert begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    deadline = time.monotonic() + 10
    while opened._written < 8:  # all have written and wait for a flush that has not begun
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert all(thread.is_alive() for thread in threads), "none is acknowledged before its flush"
    go.set()
    for thread in threads:
        thread.join()
    assert len(flushes) == 2, "one for the first, one for the seven that came meanwhile"


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_after_a_failed_write_nothing_more_is_acknowledged(
    opened: Journal, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    append(opened, b"before", b"safe")

    def fails(*arguments: object) -> None:
        raise OSError(5, "input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fails)
        with pytest.raises(StorageError):
            append(opened, b"fails", b"x")
    assert not opened.usable
    with pytest.raises(StorageError):
        append(opened, b"after", b"x")
    assert (b"before", b"safe") in reopened(crashed(opened))[1]


def test_two_processes_have_a_journal_each_and_the_dead_ones_is_recovered(opened: Journal) -> None:
    folder = opened.path.parent
    program = """
import os, sys
from pathlib import Path
from dicom_node import journal

line = journal.take(Path(sys.argv[1]), 1024**2, lambda records: None)
line.append(b"of the dead", b"payload", wait_s=0.0)
os.kill(os.getpid(), 9)
"""
    append(opened, b"of the living", b"payload")
    killed = subprocess.run([sys.executable, "-c", program, str(folder)], check=False)
    assert killed.returncode == -9
    replayed = Replayed()
    journal.Orphans(folder, replayed).recover()
    assert replayed.left == [(b"of the dead", b"payload")]


class Failing(Replayed):
    """Fails at the second record while `broken`."""

    broken = True

    def __call__(self, records: Iterator[Record]) -> None:
        for record in records:
            assert record.number == 1 or not self.broken
            self.left.append((record.description, record.payload))


def test_a_journal_whose_replay_fails_is_left_alone_and_another_is_taken(opened: Journal) -> None:
    append(opened, b"1", b"x")
    append(opened, b"2", b"y")
    folder = crashed(opened)
    other = journal.take(folder, MEGABYTE, Failing())
    assert other.path != opened.path
    append(other, b"3", b"z")
    assert [name for name, _ in reopened(folder)[1]] == [b"1", b"2"]


def test_orphans_are_looked_at_when_they_changed_and_failed_ones_again_later(opened: Journal) -> None:
    now, replay = [0.0], Failing()
    orphans = journal.Orphans(opened.path.parent, replay, clock=lambda: now[0])
    append(opened, b"1", b"x")
    append(opened, b"2", b"y")
    orphans.recover()
    folder = crashed(opened)
    orphans.recover()
    replay.broken = False
    orphans.recover()
    assert [name for name, _ in replay.left] == [b"1"], "held by a living process, failed, and not yet due again"
    now[0] = 600.0
    orphans.recover()
    orphans.recover()
    assert [name for name, _ in replay.left] == [b"1", b"1", b"2"]
    again, _ = reopened(folder)
    append(again, b"3", b"z")
    crashed(again)
    orphans.recover()
    assert [name for name, _ in replay.left] == [b"1", b"1", b"2", b"3"]


def test_a_journal_that_finds_no_room_gives_back_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def full_at_half(descriptor: int, data: bytes, at: int) -> int:
        if at >= MEGABYTE:
            raise OSError(28, "no space left on device")
        return real(descriptor, data, at)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full_at_half)
        with pytest.raises(OutOfSpace):
            reopened(tmp_path, 2 * MEGABYTE)
    assert (tmp_path / "000.journal").stat().st_size == 0
    assert reopened(tmp_path)[0].path.name == "000.journal", "nor is it held"


def test_another_capacity_takes_over_what_the_old_one_left(opened: Journal) -> None:
    append(opened, b"1", b"x")
    larger, left = reopened(crashed(opened), 2 * MEGABYTE)
    assert left == [(b"1", b"x")]
    assert larger.capacity_bytes == larger.path.stat().st_size - 4096 == 2 * MEGABYTE
    larger.close()


def blank(path: Path) -> None:
    path.write_bytes(b"")


def half_made(path: Path) -> None:
    path.write_bytes(bytes(100_000))


@pytest.mark.parametrize("left", [blank, half_made])
def test_a_file_that_a_crash_left_half_made_is_made_anew(tmp_path: Path, left: Callable[[Path], None]) -> None:
    (tmp_path / "journal").mkdir()
    left(tmp_path / "journal" / "000.journal")
    line, _ = reopened(tmp_path / "journal")
    append(line, b"1", b"x")
    assert reopened(crashed(line))[1] == [(b"1", b"x")]


def test_a_damaged_front_is_said_and_neither_an_empty_journal_nor_in_the_way(
    opened: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    append(opened, b"1", b"x")
    with opened.path.open("r+b") as file:
        file.write(b"damage")
    before = opened.path.read_bytes()
    other, left = reopened(crashed(opened))
    assert (other.path.name, left) == ("001.journal", [])
    assert opened.path.read_bytes() == before
    assert [vars(record)["path"] for record in caplog.records] == [str(opened.path)]
    assert "damaged" in vars(caplog.records[0])["why"]


def test_without_o_direct_it_works_through_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuses(path: str, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "invalid argument")
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuses)
    line, _ = reopened(tmp_path / "journal")
    number = append(line, b"1", b"payload")
    assert line.read(number) == b"payload"
    assert reopened(crashed(line))[1] == [(b"1", b"payload")]
