"""What is deleted, in which order, and what never is: with real rows and files, a real small disk, and kill -9."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from dicom_node import engine, log_files, schema
from dicom_node.audit import Event, Patient, Study, User, studies_deleted
from dicom_node.config import SERIES_STATES, Config, RetentionConfig, SeriesState
from dicom_node.db import Database
from dicom_node.engine import EngineClient
from dicom_node.errors import StorageError
from dicom_node.purges import Kept
from dicom_node.retention import DAY_S, LOCK, Gone, Purged, Purger, audited, due_by_age, due_under_pressure, kept
from dicom_node.retention_schedule import RetentionSchedule
from dicom_node.storage import Storage
from tests.conftest import RunningReceiver
from tests.fakes.ct import make_ct_series
from tests.fakes.shelf import Clock, FakeEngine, Shelf, shelf

UNTOUCHABLE = ("queued", "running", "growing", "sending")


class Killed(BaseException):
    pass


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peers)])
def stock(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Shelf]:
    if request.param == "postgresql":
        database = Database(str(request.getfixturevalue("postgres_url")), now=clock)
        database.migrate()
        made = Shelf(database=database, storage=Storage(tmp_path / "node"))
    else:
        made = shelf(tmp_path, clock)
    yield made
    made.database.close()


def purger(stock: Shelf, told: list[Gone] | None = None) -> Purger:
    heard = [] if told is None else told
    fake: Any = FakeEngine()
    return Purger(database=stock.database, engine=fake, storage=stock.storage, deleted=heard.append)


@pytest.fixture
def schedule(node_config: Callable[..., Config], clock: Clock, stock: Shelf) -> Callable[..., RetentionSchedule]:
    def build(told: list[Gone] | None = None, **sections: Any) -> RetentionSchedule:
        steady = sections.pop("steady", clock)
        working = purger(stock, told)
        config = node_config(**sections)
        return RetentionSchedule(config, stock.database, stock.storage, working, now=clock, steady=steady)

    return build


def state_of(stock: Shelf, series_uid: str) -> str:
    everything = dict.fromkeys(SERIES_STATES, 9e9)
    found = {row["series_uid"]: row["state"] for row in stock.database.purgeable(everything, Kept())}
    return str(found[series_uid])


def series_of(told: list[Gone]) -> list[str]:
    return [gone.series_uid for gone in told]


def test_log_lines_that_cannot_be_moved_hold_up_no_purge(
    stock: Shelf, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(_self: Storage, _relative: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Storage, "discard", closed)
    series, told = [stock.add(number, "stored") for number in range(3)], list[Gone]()
    assert purger(stock, told).purge({"stored": clock.now + 1}, Kept(), why="age").series == 3
    assert (sorted(series_of(told)), stock.files()) == (series, set())


# -- states --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", SERIES_STATES)
def test_a_series_goes_by_the_setting_of_its_state_and_by_no_other(
    stock: Shelf, clock: Clock, state: SeriesState
) -> None:
    series_uid = stock.add(1, state)
    assert state_of(stock, series_uid) == state
    others = {key: clock.now + 1e6 for key in SERIES_STATES if key != state}
    assert purger(stock).purge(others, Kept(), why="age") == Purged()
    removed = purger(stock).purge({state: clock.now + 1}, Kept(), why="age")
    assert (removed.series, dict(removed.states), stock.here(), stock.files()) == (1, {state: 1}, set(), set())


@pytest.mark.parametrize("state", UNTOUCHABLE)
def test_what_is_under_way_goes_by_no_setting(stock: Shelf, clock: Clock, state: str) -> None:
    series_uid = stock.add(1, state)
    everything = dict.fromkeys(SERIES_STATES, clock.now + 1e6)
    assert purger(stock).purge(everything, Kept(), why="age") == Purged()
    assert stock.here() == {series_uid}
    stock.assert_whole()


def test_the_settings_are_null_and_nothing_is_deleted_unless_they_say_so(
    stock: Shelf, clock: Clock, schedule: Callable[..., RetentionSchedule]
) -> None:
    series = {stock.add(number, state) for number, state in enumerate(SERIES_STATES)}
    clock.now += 3000 * DAY_S
    schedule().look()
    assert stock.here() == series
    stock.assert_whole()


def test_a_revision_that_is_delivered_does_not_cover_one_that_is_not(stock: Shelf, clock: Clock) -> None:
    series_uid = stock.add(1, "committed")
    second = stock.job(series_uid, "queued", revision=1)
    stock.database.start_job(second, "w")
    stock.finish(second, ("pacs",))
    assert state_of(stock, series_uid) == "undelivered"
    stock.move(second, "stored")
    assert state_of(stock, series_uid) == "stored"
    third = stock.job(series_uid, "rejected", revision=2)
    assert state_of(stock, series_uid) == "stored"
    stock.finish(third, ("pacs",), state="rejected")
    assert state_of(stock, series_uid) == "undelivered", "the report that says why is not there yet"


def test_age_counts_from_what_happened_last(
    stock: Shelf, clock: Clock, schedule: Callable[..., RetentionSchedule]
) -> None:
    series_uid = stock.add(1, "undelivered")
    clock.now += 20 * DAY_S
    stock.move(f"{series_uid}-{0:016d}", "committed")
    monthly = {"retention": {"committed_after_days": 30, "every_min": 1}}
    clock.now += 29 * DAY_S
    schedule(**monthly).look()
    assert stock.here() == {series_uid}
    clock.now += 1.1 * DAY_S
    schedule(**monthly).look()
    assert stock.here() == set()


def test_what_is_stored_and_not_committed_is_kept_for_its_own_time(
    stock: Shelf, clock: Clock, schedule: Callable[..., RetentionSchedule]
) -> None:
    stock.add(1, "stored")
    sections = {
        "peers": {"pacs": {"ae_title": "P", "host": "h", "port": 104, "may_commit": True}},
        "retention": {"stored_after_days": 1, "uncommitted_after_days": 10, "every_min": 1},
    }
    clock.now += 9 * DAY_S
    schedule(**sections).look()
    assert stock.here() == {"1.2.1"}
    clock.now += 2 * DAY_S
    schedule(**sections).look()
    assert stock.here() == set()


# -- the schedule --------------------------------------------------------------------------------------


def test_a_round_is_made_when_it_is_due_and_one_that_died_again_at_once(
    stock: Shelf, clock: Clock, schedule: Callable[..., RetentionSchedule]
) -> None:
    settings = {"retention": {"committed_after_days": 1, "every_min": 60}}
    schedule(**settings).look()
    stock.add(1, "committed")
    clock.now += 2 * DAY_S
    stock.database.upkeep_began("by age")
    stock.database.upkeep_ended("by age", series=0, size_bytes=0)
    clock.now += 3500
    schedule(**settings).look()
    assert stock.here() == {"1.2.1"}, "59 minutes after the last round"
    stock.database.upkeep_began("by age")
    schedule(**settings).look()
    assert stock.here() == set(), "that one never ended"
    row = stock.database.upkeep("by age")
    assert row is not None
    assert (row["series"], row["ended_at"]) == (1, clock.now)


def test_of_two_machines_one_deletes(stock: Shelf, clock: Clock, schedule: Callable[..., RetentionSchedule]) -> None:
    from dicom_node.locks import try_lock

    stock.add(1, "committed")
    clock.now += 2 * DAY_S
    other = try_lock(stock.database.url, LOCK)
    assert other is not None
    beside = schedule(retention={"committed_after_days": 1})
    beside.look()
    assert stock.here() == {"1.2.1"}
    other.release()
    beside.look()
    assert stock.here() == set()


def test_what_was_deleted_is_told_counted_and_among_the_events(
    stock: Shelf,
    clock: Clock,
    schedule: Callable[..., RetentionSchedule],
    counts: Callable[[str], dict[str, float]],
) -> None:
    stock.add(1, "committed")
    clock.now += 2 * DAY_S
    told: list[Gone] = []
    schedule(told, retention={"committed_after_days": 1}).look()
    [gone] = told
    assert (gone.series_uid, gone.study_uid, gone.state, gone.why) == ("1.2.1", "1.3.1", "committed", "age")
    assert (gone.instances, gone.jobs) == (2, 1)
    assert counts("dicom_node_series_deleted_total") == {"age": 1}
    assert counts("dicom_node_deleted_bytes_total") == {"age": gone.bytes}
    with stock.database.engine.connect() as connection:
        query = sa.select(schema.event.c.details).where(schema.event.c.action == "series purged")
        [details] = connection.execute(query).scalars().all()
    assert details == {"state": "committed", "why": "age", "instances": 2, "jobs": 1, "bytes": gone.bytes}


def test_leftovers_are_swept_once_they_are_old(
    stock: Shelf, clock: Clock, schedule: Callable[..., RetentionSchedule]
) -> None:
    stock.add(1, "failed")
    root = stock.storage.root
    stock.storage.write_result("1.2.9-0123456789abcdef", "sr.dcm", b"of a job without a row")
    stock.storage.write_result("1.2.8-0123456789abcdef", "manifest.json", b"its row is about to be made")
    (root / "discarded" / "half").mkdir(parents=True)
    (root / "incoming" / "1.3.7").mkdir()
    for series_uid in ("1.2.1", "1.2.9", "1.2.8"):
        (root / "logs" / series_uid).mkdir(parents=True)
    for path, days in (("logs/1.2.1", 8), ("logs/1.2.9", 8), ("logs/1.2.8", 6),
                       ("results/1.2.9-0123456789abcdef", 8), ("results/1.2.1-0000000000000000", 8),
                       ("results/1.2.8-0123456789abcdef", 6), ("incoming/1.3.7", 2),
                       ("incoming/1.3.1", 2)):  # fmt: skip
        os.utime(root / path, (clock.now - days * DAY_S,) * 2)
    schedule().look()
    assert sorted(path.name for path in (root / "results").iterdir()) == [
        "1.2.1-0000000000000000",
        "1.2.8-0123456789abcdef",
    ]
    assert [path.name for path in (root / "incoming").iterdir()] == ["1.3.1"]
    assert sorted(path.name for path in (root / "logs").iterdir()) == ["1.2.1", "1.2.8"]
    assert list((root / "discarded").iterdir()) == []


def test_log_lines_go_with_their_series(stock: Shelf, clock: Clock) -> None:
    goes, stays = stock.add(1, "committed"), stock.add(2, "failed")
    for series_uid in (goes, stays):
        line = log_files.folder_of(stock.storage.root, series_uid) / "host.work.1.jsonl"
        line.parent.mkdir(parents=True)
        line.write_text("{}\n")
    purger(stock).purge({"committed": clock.now + 1}, Kept(), why="age")
    assert [path.name for path in (stock.storage.root / "logs").iterdir()] == [stays]
    assert list((stock.storage.root / "discarded").iterdir()) == []


# -- pressure ------------------------------------------------------------------------------------------


class Disk:
    """A disk of so many bytes, of which the files of the storage root take theirs."""

    def __init__(self, stock: Shelf, size_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._stock, self.size_bytes = stock, size_bytes
        monkeypatch.setattr(Storage, "free_bytes", lambda _storage: self.free)

    @property
    def free(self) -> int:
        root = self._stock.storage.root
        return self.size_bytes - sum((root / path).stat().st_size for path in self._stock.files())


def test_pressure_deletes_committed_before_stored_oldest_first_and_only_as_much_as_is_lacking(
    stock: Shelf,
    clock: Clock,
    schedule: Callable[..., RetentionSchedule],
    monkeypatch: pytest.MonkeyPatch,
    counts: Callable[[str], dict[str, float]],
) -> None:
    stock.size_bytes = 1_000_000
    order = ["stored", "committed", "undelivered", "committed", "stored", "failed", "committed", "parked", "local"]
    for number, state in enumerate(order):
        stock.add(number, state)
        clock.now += 3600
    clock.now += 3600
    used = 18_200_000
    disk = Disk(stock, used + 10_000_000, monkeypatch)
    settings = {"storage": {"min_free_gb": 0.001, "clean_below_gb": 0.015}}
    told: list[Gone] = []
    beside = schedule(told, **settings)
    beside.look()
    # 5 MB are lacking, a series has 2 MB.
    assert series_of(told) == ["1.2.1", "1.2.3", "1.2.6"]
    assert disk.free >= 15_000_000
    beside.look()
    assert len(told) == 3, "enough is free"
    disk.size_bytes -= 10_000_000
    beside.look()
    assert series_of(told)[3:] == ["1.2.0", "1.2.4"]
    assert counts("dicom_node_series_deleted_total") == {"disk_low": 5}
    beside.look()
    assert stock.here() == {f"1.2.{number}" for number in (2, 5, 7, 8)}, "what is nowhere else stays, whatever the disk"
    stock.assert_whole()


def test_pressure_takes_what_is_not_delivered_only_where_the_settings_name_it(
    stock: Shelf, clock: Clock, schedule: Callable[..., RetentionSchedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, state in enumerate(SERIES_STATES):
        stock.add(number, state)
    clock.now += 7200
    Disk(stock, 0, monkeypatch)
    told: list[Gone] = []
    low = {"min_free_gb": 0.001, "clean_below_gb": 0.015}
    schedule(told, storage=low, retention={"under_pressure": ["rejected", "failed"]}).look()
    assert [gone.state for gone in told] == ["rejected", "failed"]
    assert {gone.why for gone in told} == {"disk low"}


def test_pressure_spares_what_just_happened(
    stock: Shelf, clock: Clock, schedule: Callable[..., RetentionSchedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    stock.add(1, "committed")
    Disk(stock, 0, monkeypatch)
    low = {"min_free_gb": 0.001, "clean_below_gb": 0.015}
    clock.now += 59 * 60
    schedule(storage=low, retention={"spared_h": 1}).look()
    assert stock.here() == {"1.2.1"}
    clock.now += 120
    schedule(storage=low, retention={"spared_h": 1}).look()
    assert stock.here() == set()


@contextlib.contextmanager
def small_disk(folder: Path, size_mb: int) -> Iterator[Path]:
    """A real file system of that size; skips where none can be mounted."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("no file system can be mounted here: needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_refuses_is_cleaned_and_accepts_again(
    start_receiver: Callable[..., RunningReceiver], tmp_path: Path, clock: Clock
) -> None:
    from tests.fakes.instances import fake_instance
    from tests.integration.test_receive import association, store

    with small_disk(tmp_path / "disk", 48) as disk:
        running = start_receiver(
            storage={"root": str(disk), "min_free_gb": 0.012, "clean_below_gb": 0.020},
            receive={"journal_mb": 0},
        )
        stock = Shelf(database=Database(running.database.url, now=clock), storage=Storage(disk), size_bytes=1_000_000)
        number = 0
        while stock.storage.free_bytes() > 13_000_000:
            stock.add(number, "undelivered" if number % 2 else "stored", images=1)
            clock.now += 60
            number += 1
        filler = disk / "of somebody else"
        filler.write_bytes(b"x" * 2_000_000)
        undelivered = {f"1.2.{n}" for n in range(number) if n % 2}
        engine.migrate(running.database.url)
        client = EngineClient(running.database.url)
        working = Purger(database=stock.database, engine=client, storage=stock.storage)
        beside = RetentionSchedule(running.config, stock.database, stock.storage, working, now=clock, steady=clock)
        with association(running) as requested:
            assert store(requested, fake_instance(1)) == 0xA700
            beside.look()
            assert len(stock.here()) == number, "all of it is of this hour"
            clock.now += 2 * 3600
            beside.look()
            assert stock.storage.free_bytes() >= 20_000_000
            assert store(requested, fake_instance(1)) == 0x0000
        assert undelivered <= stock.here()
        assert "1.2.0" not in stock.here()
        assert f"1.2.{(number - 1) // 2 * 2}" in stock.here(), "of the youngest more than needed would have gone"
        client.close()
        stock.database.close()
        running.receiver.stop(0.0)
        running.database.close()


# -- clocks and disks that misbehave ---------------------------------------------------------------------


def test_a_clock_that_jumps_deletes_nothing_by_age_for_a_day(
    stock: Shelf, clock: Clock, schedule: Callable[..., RetentionSchedule], caplog: pytest.LogCaptureFixture
) -> None:
    steady = Clock(0.0)
    stock.add(1, "committed")
    beside = schedule(retention={"committed_after_days": 30}, steady=steady)
    beside.look()
    clock.now += 20 * 365 * DAY_S
    for _ in range(3):
        beside.look()
        clock.now += 3600
        steady.now += 3600
    assert stock.here() == {"1.2.1"}
    assert "the clock jumped" in caplog.text
    steady.now += DAY_S
    clock.now += DAY_S
    beside.look()
    assert stock.here() == set(), "whoever leaves the clock as it is means it"


def test_a_clock_that_was_set_right_again_does_not_stop_retention_until_the_wrong_day(
    stock: Shelf, clock: Clock, schedule: Callable[..., RetentionSchedule]
) -> None:
    clock.now += 70 * 365 * DAY_S
    schedule(retention={"committed_after_days": 1}).look()
    clock.now -= 70 * 365 * DAY_S
    stock.add(1, "committed")
    clock.now += 2 * DAY_S
    schedule(retention={"committed_after_days": 1}).look()
    assert stock.here() == set()


@contextlib.contextmanager
def immovable(folder: Path) -> Iterator[None]:
    """Nobody can rename or remove what is in it, not even root: a mount point of its own."""
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode:
        pytest.skip("may not mount here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("where", ["incoming/1.3.1/1.2.1", "results/1.2.1-0000000000000000"])
def test_a_series_that_cannot_be_moved_stays_whole_and_holds_up_no_other(
    stock: Shelf, clock: Clock, schedule: Callable[..., RetentionSchedule], where: str
) -> None:
    for number in (1, 2, 3):
        stock.add(number, "committed")
        clock.now += 60
    clock.now += 2 * DAY_S
    before = stock.files()
    told: list[Gone] = []
    beside = schedule(told, retention={"committed_after_days": 1})
    with immovable(stock.storage.root / where):
        beside.look()
        assert stock.here() == {"1.2.1"}
        assert stock.files() == {path for path in before if "1.2.1" in path or "1.3.1" in path}
        stock.assert_whole()
    assert series_of(told) == ["1.2.2", "1.2.3"]
    clock.now += DAY_S
    beside.look()
    assert stock.here() == set()


def test_on_a_read_only_file_system_nothing_is_lost_and_it_goes_on_when_it_can_be_written(
    stock: Shelf, clock: Clock, tmp_path: Path, node_config: Callable[..., Config]
) -> None:
    with small_disk(tmp_path / "disk", 16) as disk:
        there = Shelf(database=stock.database, storage=Storage(disk))
        for number in range(30):
            there.add(number, "committed")
        clock.now += 2 * DAY_S
        before = there.files()
        config = node_config(retention={"committed_after_days": 1})
        beside = RetentionSchedule(config, there.database, there.storage, purger(there), now=clock, steady=clock)
        there.storage.mark.close()  # a file that is open for writing would keep the disk from it
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(StorageError, match=r"10 series cannot be deleted.*[Rr]ead-only"):
            beside.look()
        assert (len(there.here()), there.files()) == (30, before)
        there.assert_whole()
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        beside.look()
        assert (there.here(), there.files()) == (set(), set())


def test_what_cannot_be_erased_is_told_of_once(stock: Shelf, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    stock.add(1, "committed")
    told: list[Gone] = []
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_args, **_options: None)
        purger(stock, told).purge({"committed": clock.now + 1}, Kept(), why="age")
        for _ in range(3):
            purger(stock, told).settle()
    assert series_of(told) == ["1.2.1"]
    assert purger(stock).sweep(clock.now) >= 1
    assert list((stock.storage.root / "discarded").iterdir()) == []


def test_two_that_purge_at_once_delete_each_series_once_and_lose_nothing(stock: Shelf, clock: Clock) -> None:
    """Also where one lost its lock and did not notice: the row of each series stands between them."""
    for number in range(24):
        stock.add(number, ("committed", "undelivered", "stored")[number % 3])
    due: dict[SeriesState, float] = dict.fromkeys(("committed", "stored"), clock.now + 1)
    heard: list[list[Gone]] = [[], []]
    problems: list[BaseException] = []

    def run(which: int) -> None:
        try:
            working = purger(stock, heard[which])
            working.settle()
            working.purge(due, Kept(), why="age")
            working.settle()
        except BaseException as err:  # noqa: BLE001  told by the test's own thread
            problems.append(err)

    threads = [threading.Thread(target=run, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert stock.here() == {f"1.2.{number}" for number in range(24) if number % 3 == 1}
    stock.assert_whole()
    gone = {uid for one in heard for uid in series_of(one)}
    assert gone == {f"1.2.{number}" for number in range(24) if number % 3 != 1}


# -- killed in the middle ------------------------------------------------------------------------------


@pytest.mark.parametrize("grew", [False, True])
def test_files_whose_rows_stayed_come_back(
    stock: Shelf, clock: Clock, monkeypatch: pytest.MonkeyPatch, grew: bool
) -> None:
    series_uid = stock.add(1, "committed")
    before = stock.files()
    everything = dict.fromkeys(SERIES_STATES, clock.now + 1e6)
    real = Purger._set_aside

    def die(self: Purger, folders: Any) -> str:
        real(self, folders)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Purger, "_set_aside", die)
        with pytest.raises(Killed):
            purger(stock).purge(everything, Kept(), why="age")
    assert (stock.files(), stock.here()) == (set(), {series_uid})
    if grew:
        stock.receive(1, images=1, first=1)  # one that was here, again
        stock.receive(1, images=1, first=2)
    told: list[Gone] = []
    purger(stock, told).settle()
    assert stock.files() == before | ({f"incoming/1.3.1/{series_uid}/1.4.1.2.dcm"} if grew else set())
    assert told == []
    stock.assert_whole()


def test_files_whose_rows_went_go_and_are_told_of(stock: Shelf, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    stock.add(1, "committed")

    def die(self: Purger, *_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Purger, "_let_go", die)
        with pytest.raises(Killed):
            purger(stock).purge({"committed": clock.now + 1}, Kept(), why="age")
    assert stock.here() == set()
    told: list[Gone] = []
    again = purger(stock, told)
    again.settle()
    assert [(gone.series_uid, gone.study_uid) for gone in told] == [("1.2.1", "1.3.1")]
    assert again.engine.abandoned == ["1.2.1-0000000000000000"]  # type: ignore[attr-defined]
    stock.assert_whole()
    again.settle()
    assert len(told) == 1


_PURGE = """
    import sys, time
    from pathlib import Path
    from dicom_node.config import SERIES_STATES
    from dicom_node.purges import Kept
    from dicom_node.retention import Purger
    from tests.fakes.shelf import Clock, FakeEngine, shelf
    stock = shelf(Path(sys.argv[1]), Clock())
    def told(gone):
        print(gone.series_uid, flush=True)
    purger = Purger(database=stock.database, engine=FakeEngine(), storage=stock.storage, deleted=told)
    purger.settle()
    print("settled", flush=True)
    purger.purge({"committed": 1.8e9, "stored": 1.8e9}, Kept(), why="age")
    print("done", flush=True)
"""


def test_killed_at_any_moment_it_loses_nothing_and_the_next_one_finishes(tmp_path: Path, clock: Clock) -> None:
    stock = shelf(tmp_path, clock)
    states = ["committed", "undelivered", "stored", "failed"]
    for number in range(80):
        stock.add(number, states[number % 4])
    told: list[str] = []
    for after in (3, 7, 0):
        process = _purging(tmp_path)
        assert process.stdout is not None
        for line in process.stdout:
            told.append(line.strip())
            if told[-1] == "done" or len(told) - _last(told, "settled") > after:
                break
        # Somewhere within the next series: the line came just before its files go.
        time.sleep(0.001 * (after % 4))
        process.send_signal(signal.SIGKILL)
        told += [line.strip() for line in process.communicate()[0].splitlines()]
    assert "done" not in told, "it was killed each time before its end"
    assert _purging(tmp_path).communicate()[0].splitlines()[-1] == "done"
    assert stock.here() == {f"1.2.{number}" for number in range(80) if number % 4 in (1, 3)}
    stock.assert_whole()
    stock.database.close()


def _last(told: list[str], word: str) -> int:
    return max((at for at, line in enumerate(told) if line == word), default=0)


def _purging(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(_PURGE), str(folder)]
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": root}
    )


# -- any states, any ages, any settings ----------------------------------------------------------------


class Keeping(RuleBasedStateMachine):
    """Series come and change at will; whatever the settings, each purge takes exactly what an oracle allows."""

    template: Path
    folder: Path

    @initialize()
    def one_of_each(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.template, self.folder)
        self.clock = Clock()
        database = Database(f"sqlite:///{self.folder / 'node.sqlite'}", now=self.clock)
        self.stock = Shelf(database=database, storage=Storage(self.folder), size_bytes=8)
        self.count = 0
        self.come([*SERIES_STATES, *UNTOUCHABLE, "unknown"])

    def teardown(self) -> None:
        self.stock.database.close()

    @rule(states=st.lists(st.sampled_from([*SERIES_STATES, *UNTOUCHABLE, "unknown"]), min_size=3, max_size=8))
    def come(self, states: list[str]) -> None:
        for state in states:
            self.stock.add(self.count, state, images=1)
            self.count += 1

    @rule(which=st.integers(0, 15))
    def grows(self, which: int) -> None:
        if self.count:
            self.stock.receive(which % self.count, images=1, first=7)

    @rule(which=st.integers(0, 15), state=st.sampled_from(["complete", "rejected", "failed", "parked", "cancelled"]),
          to=st.sampled_from([(), ("pacs",), ("pacs", "archive")]))  # fmt: skip
    def revised(self, which: int, state: str, to: tuple[str, ...]) -> None:
        """A series that is here is decided on once more."""
        for series_uid in sorted(self.stock.here())[which : which + 1]:
            self.stock.decide(series_uid)
            revision = len(self.stock.database.jobs(series_uid=series_uid))
            job_id = self.stock.job(series_uid, "rejected" if state == "rejected" else "queued", revision)
            if state in ("complete", "rejected"):
                if state == "complete":
                    self.stock.database.start_job(job_id, "w")
                self.stock.finish(job_id, to, state)
            else:
                getattr(self.stock.database, {"failed": "fail_job", "parked": "park_job"}.get(state, "cancel_job"))(
                    job_id, *(("why",) if state != "cancelled" else ())
                )

    @rule(which=st.integers(0, 15), state=st.sampled_from(schema.DELIVERY_STATES),
          destination=st.sampled_from(["pacs", "archive"]))  # fmt: skip
    def moves(self, which: int, state: str, destination: str) -> None:
        jobs = sorted(row["job_id"] for row in self.stock.database.jobs())
        for job_id in jobs[which : which + 1]:
            self.stock.move(job_id, state, destination)

    @rule(days=st.sampled_from([0.1, 3.0, 10.0]))
    def time_passes(self, days: float) -> None:
        self.clock.now += days * DAY_S

    @rule(
        days=st.tuples(*[st.sampled_from([0.0, 2.0, None, 15.0])] * len(SERIES_STATES)),
        pressed=st.lists(st.sampled_from(SERIES_STATES), unique=True, max_size=4),
        by_age=st.booleans(),
        days_later=st.sampled_from([0.0, 3.0, 20.0]),
        arrive_now=st.booleans(),
        may_commit=st.booleans(),
        killed=st.sampled_from([None, "_set_aside", "_let_go"]),
    )
    def purged(
        self,
        days: tuple[float | None, ...],
        pressed: list[SeriesState],
        by_age: bool,
        days_later: float,
        arrive_now: bool,
        may_commit: bool,
        killed: str | None,
    ) -> None:
        self.clock.now += days_later * DAY_S
        if arrive_now:
            self.moves(which=0, state="committed", destination="pacs")
        named = {f"{state}_after_days": after for state, after in zip(SERIES_STATES, days, strict=True)}
        config = Config.model_validate(
            {
                "storage": {"root": str(self.folder)},
                "peers": {"pacs": {"ae_title": "P", "host": "h", "port": 104, "may_commit": may_commit}},
                "retention": {**named, "under_pressure": pressed, "uncommitted_after_days": 5},
            }
        )
        due = (due_by_age if by_age else due_under_pressure)(config.retention, self.clock.now)
        allowed = {uid for uid in self.stock.here() if self._oracle(uid, due, may_commit)}
        left = self.stock.here() - allowed
        spared = kept(config, self.clock.now)
        if killed:
            with contextlib.suppress(Killed), pytest.MonkeyPatch.context() as patch:
                self._die_after(patch, killed)
                purger(self.stock).purge(due, spared, why="killed")
            assert left <= self.stock.here()
            purger(self.stock).settle()
            self.stock.assert_whole()
        purger(self.stock).purge(due, spared, why="age")
        assert self.stock.here() == left

    def _die_after(self, patch: pytest.MonkeyPatch, name: str) -> None:
        real = getattr(Purger, name)

        def die(*args: Any) -> None:
            real(*args)
            raise Killed

        patch.setattr(Purger, name, die)

    def _oracle(self, series_uid: str, due: dict[SeriesState, float], may_commit: bool) -> bool:
        """May this series go? Said in plain words of its rows, not in SQL."""
        database = self.stock.database
        series, jobs = database.series(series_uid), database.jobs(series_uid=series_uid)
        assert series is not None
        objects = [row for job in jobs for row in database.deliveries(job["job_id"])]
        at = {row["state"] for row in objects}
        if series["assembled_at"] is None or series["last_at"] > series["assembled_at"]:
            return False
        if any(job["state"] in ("queued", "running") for job in jobs) or "sending" in at:
            return False
        corrects = any(row["series_uid"] == series_uid for row in database.corrections())
        state = "correction" if corrects else self._state({job["state"] for job in jobs}, at, jobs, objects)
        arrived = [row["changed_at"] for row in objects if row["state"] in ("stored", "committed")]
        last = max([series["last_at"], *(job["finished_at"] for job in jobs), *arrived])
        waits = may_commit and any(
            row["destination"] == "pacs"
            and row["state"] == "stored"
            and row["changed_at"] >= self.clock.now - 5 * DAY_S
            for row in objects
        )
        return state in due and last < due[state] and not waits

    def _state(self, job_states: set[str], at: set[str], jobs: Any, objects: Any) -> SeriesState:
        if at & {"waiting", "unknown", "parked"}:
            return "undelivered"
        for broken in ("parked", "failed"):
            if broken in job_states:
                return "parked" if broken == "parked" else "failed"
        if "cancelled" in at or ("cancelled" in job_states and "complete" not in job_states):
            return "cancelled"
        complete = {job["job_id"] for job in jobs if job["state"] == "complete"}
        if complete - {row["job_id"] for row in objects}:
            return "local"
        if complete:
            return "stored" if "stored" in at else "committed"
        return "rejected" if jobs else "unused"

    @invariant()
    def rows_and_files_belong_together(self) -> None:
        if hasattr(self, "stock"):
            self.stock.assert_whole()


def test_whatever_the_states_ages_and_settings_nothing_undelivered_is_ever_deleted(tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.mkdir()
    shelf(template, Clock()).database.close()
    machine = type("KeepingHere", (Keeping,), {"template": template, "folder": tmp_path / "node"})
    run_state_machine_as_test(machine, settings=settings(max_examples=12, stateful_step_count=8, deadline=None))


def test_the_shipped_defaults_name_nothing_that_is_only_here() -> None:
    plain = RetentionConfig()
    assert plain.after_days() == {}
    assert set(plain.under_pressure) == {"committed", "stored"}
    assert dataclasses.asdict(Purged()) == {"series": 0, "jobs": 0, "bytes": 0, "states": {}}


class Heard:
    """An audit trail that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, event: Event) -> None:
        self.events.append(event)

    def alert(self, *, address: str | None, peer: str, why: str) -> None: ...


def test_the_audit_trail_hears_whose_series_was_deleted_and_why(tmp_path: Path) -> None:
    image = make_ct_series(tmp_path, header={"PatientID": "P-17", "PatientName": "Doe^Jane"})[0]
    heard = Heard()
    deleted = audited(heard, User(name="anna"))
    deleted(Gone(series_uid="1.2.1", study_uid="1.3.1", state="committed", why="age", header_file=image))
    [event] = heard.events
    assert event == studies_deleted(
        [Study(uid="1.3.1", patient=Patient(id="P-17", name="Doe^Jane"), series_uids=("1.2.1",))],
        user=User(name="anna"),
        text="committed: age",
    )
