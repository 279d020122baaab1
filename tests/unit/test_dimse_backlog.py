"""Between Success and row: whatever fails or dies there, each acknowledged Instance gets its file and row once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dicom_node.db import Database
from dicom_node.dimse import backlog
from dicom_node.dimse.backlog import Announced
from dicom_node.dimse.intake import Intake, StoreAnswer
from dicom_node.errors import DatabaseUnavailable, OutOfSpace
from dicom_node.storage import Storage, instance_path
from tests.fakes.instances import SERIES, FakeInstance, fake_instance


class Node:
    """An Intake with a journal. `held()`: nothing leaves the journal meanwhile."""

    def __init__(self, root: Path, url: str | None = None, *, journal_mb: int = 4) -> None:
        self.storage = Storage(root)
        self.database = Database(url or f"sqlite:///{root / 'node.sqlite'}")
        self.database.migrate()
        self.grown: list[tuple[str, str]] = []
        self.journal_mb = journal_mb
        self.intake = self._intake()
        self.intake.start()

    def _intake(self) -> Intake:
        return Intake(
            self.storage,
            self.database,
            lambda series_uid, source_ae: self.grown.append((series_uid, source_ae)),
            journal_mb=self.journal_mb,
        )

    def store(self, fake: FakeInstance, **changes: Any) -> StoreAnswer:
        return self.intake.store(fake.request(**changes))

    def restart(self) -> None:
        self.intake.stop()
        self.intake = self._intake()
        self.intake.start()

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.storage.root / "incoming").rglob("*") if path.is_file())

    def rows(self) -> list[str]:
        return [f"{row['sop_instance_uid']}.dcm" for row in self.database.instances(SERIES)]

    def close(self) -> None:
        self.intake.stop()
        self.database.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peers)])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    made = Node(tmp_path / "node", url)
    yield made
    made.close()


def names(*numbers: int) -> list[str]:
    return sorted(f"{SERIES}.{number}.dcm" for number in numbers)


class Gate:
    """Holds up what passes, until `open`; `reached` tells that something stands there."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self._real, self.reached, self._free = real, threading.Event(), threading.Event()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.reached.set()
        assert self._free.wait(20)
        return self._real(*args, **kwargs)

    def open(self) -> None:
        self._free.set()


@pytest.fixture
def rows_held(node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(node.database.record_instances)
    monkeypatch.setattr(node.database, "record_instances", gate)
    yield gate
    gate.open()


def test_file_and_row_follow_success_and_only_then_the_series_grew(node: Node, rows_held: Gate) -> None:
    answers = [node.store(fake_instance(n)) for n in (1, 2, 3)]
    assert answers == [StoreAnswer(status=0x0000, series_uid=SERIES, arrival="new")] * 3
    assert rows_held.reached.wait(10)
    assert (node.rows(), node.grown) == ([], [])
    rows_held.open()
    assert node.intake.settle_series([SERIES])
    assert node.files() == node.rows() == names(1, 2, 3)
    node.restart()
    assert set(node.grown) == {(SERIES, "SCANNER")}
    for row in node.database.instances(SERIES):
        data = node.storage.path(row["path"]).read_bytes()
        assert len(data) == row["size_bytes"]


def test_a_resend_before_the_row_is_success_and_no_second_instance(node: Node, rows_held: Gate) -> None:
    node.store(fake_instance())
    assert rows_held.reached.wait(10)
    again: list[StoreAnswer] = []
    resend = threading.Thread(target=lambda: again.append(node.store(fake_instance(), source_ae="OTHER")))
    resend.start()
    rows_held.open()
    resend.join()
    assert [answer.arrival for answer in again] == ["same"]
    assert node.files() == node.rows() == names(1)


def test_other_bytes_before_the_row_replace_those_in_the_journal(node: Node, rows_held: Gate) -> None:
    node.store(fake_instance())
    assert rows_held.reached.wait(10)
    newer, answers = fake_instance(pixels=bytes(128)), list[StoreAnswer]()
    sending = threading.Thread(target=lambda: answers.append(node.store(newer)))
    sending.start()
    rows_held.open()
    sending.join()
    assert [answer.arrival for answer in answers] == ["replaced"]
    node.restart()
    [row] = node.database.instances(SERIES)
    assert node.storage.path(row["path"]).read_bytes().endswith(newer.data_set)


def test_one_instance_from_many_threads_is_one_file_and_one_row(node: Node) -> None:
    ready = threading.Barrier(6)
    answers: list[StoreAnswer] = []

    def send() -> None:
        ready.wait()
        answers.append(node.store(fake_instance()))

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(str(answer.arrival) for answer in answers) == ["new"] + ["same"] * 5
    assert node.files() == node.rows() == names(1)


@pytest.mark.parametrize("fault", [DatabaseUnavailable("away"), OutOfSpace("full"), ZeroDivisionError("a mistake")])
def test_what_cannot_be_recorded_yet_is_tried_again(
    node: Node, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    failed = threading.Event()

    def fails(*args: Any) -> Any:
        failed.set()
        raise fault

    with monkeypatch.context() as patched:
        patched.setattr(node.database, "record_instances", fails)
        assert [node.store(fake_instance(n)).status for n in (1, 2)] == [0x0000] * 2
        assert failed.wait(10)
    assert node.intake.settle_series([SERIES])
    assert node.files() == node.rows() == names(1, 2)


def test_one_that_cannot_be_written_holds_up_no_other(node: Node) -> None:
    broken = fake_instance(1, StudyInstanceUID="1.2.3.99")
    (node.storage.root / "incoming" / "1.2.3.99").write_text("a file where the study's folder belongs")
    assert node.store(broken).status == 0x0000
    assert [node.store(fake_instance(n)).status for n in (2, 3)] == [0x0000] * 2
    deadline = time.monotonic() + 20
    while len(node.rows()) < 2:
        assert time.monotonic() < deadline, "the others wait behind it"
        node.intake.settle_series([])
    assert node.rows() == names(2, 3)
    assert node.intake.settle_instances([fake_instance(2).sop_instance_uid, "1.2.3"]), "nobody else need wait for it"
    (node.storage.root / "incoming" / "1.2.3.99").unlink()
    assert node.intake.settle_series([SERIES])
    assert node.rows() == names(1, 2, 3)


def test_one_that_cannot_be_written_does_not_fill_the_journal(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    (node.storage.root / "incoming" / "1.2.3.99").write_text("a file where the study's folder belongs")
    node.store(fake_instance(1, StudyInstanceUID="1.2.3.99"))
    monkeypatch.setattr(backlog, "_WAIT_FOR_ROOM_S", 20.0)
    monkeypatch.delattr(Storage, "write_instance")
    for n in range(2, 14):
        assert node.store(fake_instance(n, pixels=bytes(1_000_000))).status == 0x0000
    (node.storage.root / "incoming" / "1.2.3.99").unlink()
    assert node.intake.settle_series([SERIES])
    assert node.rows() == names(*range(1, 14))


def test_a_start_goes_on_without_what_cannot_be_written(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    obstacle = node.storage.root / "incoming" / "1.2.3.99"
    obstacle.write_text("a file where the study's folder belongs")
    for fake in (fake_instance(1, StudyInstanceUID="1.2.3.99"), fake_instance(2)):
        assert node.store(fake).status == 0x0000
    node.restart()
    assert node.rows() == names(2)
    assert node.store(fake_instance(3)).status == 0x0000
    [said] = {vars(record)["path"] for record in caplog.records if record.message == "not taken from the journal"}
    assert said == instance_path("1.2.3.99", SERIES, f"{SERIES}.1"), "an operator must know what is in the way"
    node.restart()
    obstacle.unlink()
    node.restart()
    assert node.rows() == names(1, 2, 3)


def test_a_record_of_another_version_of_the_program_is_understood() -> None:
    known = _announced()
    said = {**asdict(known), "added_later": "x"}
    assert Announced.read(json.dumps(said).encode()) == known


def _announced() -> Announced:
    uids = {"sop_instance_uid": "1.2.3", "sop_class_uid": "1.2.4", "study_uid": "1.2.5", "series_uid": "1.2.6"}
    more = {"transfer_syntax_uid": "1.2.7", "path": "incoming/1.2.5/1.2.6/1.2.3.dcm", "size_bytes": 1}
    return Announced(**uids, **more, source_ae="SCANNER", source_ip="192.0.2.7", received_at=1.5)  # type: ignore[arg-type]


def test_what_a_dead_process_left_is_taken_over_by_one_that_lives(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*args: Any) -> Any:
        raise DatabaseUnavailable("away")

    dead = Intake(node.storage, Database(node.database.url), journal_mb=4)
    dead.start()
    with monkeypatch.context() as patched:
        patched.setattr(dead._database, "record_instances", away)
        for n in (1, 2):
            dead.store(fake_instance(n).request())
        dead.stop()
    dead._database.close()
    node.intake.tend()
    assert node.rows() == [], "not looked at each second"
    monkeypatch.setattr(backlog, "_TEND_S", 0.0)
    node.intake.tend()
    assert node.files() == node.rows() == names(1, 2)
    assert node.grown == [(SERIES, "SCANNER")] * 2, "nobody else announces it"


def test_what_the_end_of_the_process_leaves_is_there_after_the_next_start(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: Any) -> Any:
        raise DatabaseUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(node.database, "record_instances", away)
        for n in (1, 2, 3):
            node.store(fake_instance(n))
        node.intake.stop()
    assert node.rows() == []
    node.restart()
    assert node.files() == node.rows() == names(1, 2, 3)
    row = node.database.series(SERIES)
    assert row is not None
    assert (row["source_ae"], row["source_ip"]) == ("SCANNER", "192.0.2.7"), "the record says who sent it"


def test_a_purge_between_file_and_row_does_not_take_the_instance(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    record = node.database.record_instances

    def purged_before(received: Any) -> Any:
        node.storage.discard(str(Path(received[0].instance.path).parent))
        return record(received)

    monkeypatch.setattr(node.database, "record_instances", purged_before)
    node.store(fake_instance())
    assert node.intake.settle_series([SERIES])
    assert node.files() == node.rows() == names(1)


def test_what_is_too_large_for_the_journal_has_file_and_row_at_once(node: Node) -> None:
    assert node.store(fake_instance(pixels=bytes(3 * 1024**2))).status == 0x0000
    assert node.files() == node.rows() == names(1)


def test_where_the_journal_is_full_instances_go_on_at_once(node: Node, rows_held: Gate) -> None:
    for n in (1, 2):
        node.store(fake_instance(n, pixels=bytes(1_900_000)))
    assert rows_held.reached.wait(10)
    direct: list[StoreAnswer] = []
    third = threading.Thread(target=lambda: direct.append(node.store(fake_instance(3, pixels=bytes(1_900_000)))))
    third.start()
    deadline = time.monotonic() + 20
    while names(3)[0] not in node.files():
        assert time.monotonic() < deadline
    rows_held.open()
    third.join()
    assert [answer.status for answer in direct] == [0x0000]
    assert node.intake.settle_series([SERIES])
    assert node.rows() == names(1, 2, 3)


def test_the_watermark_counts_what_waits_for_its_file(
    node: Node, rows_held: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(fake_instance(1, pixels=bytes(500_000)).data_set)
    monkeypatch.setattr(node.storage, "free_bytes", lambda: int(2.5 * size))
    statuses = [node.store(fake_instance(n, pixels=bytes(500_000))).status for n in (1, 2, 3)]
    assert statuses == [0x0000, 0x0000, 0xA700]


# -- killed at each point of the way ---------------------------------------------------------------------

_PROGRAM = """
import os, sys
from pathlib import Path
from dicom_node.db import Database
from dicom_node.dimse import backlog
from dicom_node.dimse.intake import Intake
from dicom_node.journal import Journal
from dicom_node.storage import Storage
from tests.fakes.instances import fake_instance

root, point = Path(sys.argv[1]), sys.argv[2]
storage, database = Storage(root), Database(f"sqlite:///{root / 'node.sqlite'}")
database.migrate()
owner, name = {
    "before the flush": (os, "fdatasync"),
    "before the files": (storage, "write_instances"),
    "before the file's flush": (os, "fsync"),
    "before the rename": (Path, "replace"),
    "before the rows": (database, "record_instances"),
    "before the release": (Journal, "release"),
}[point]
intake = Intake(storage, database, journal_mb=4)
intake.start()
answered = os.open(root / "answered", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
backlog._GATHER_S = 30.0
real = getattr(owner, name)
calls = 0

def dies(*args, **kwargs):
    global calls
    calls += 1
    if point != "before the flush" or calls == 3:
        os.kill(os.getpid(), 9)
    return real(*args, **kwargs)

setattr(owner, name, dies)
for number in range(1, 6):
    request = fake_instance(number).request()
    if intake.store(request).status == 0x0000:
        os.write(answered, f"{number}\\n".encode())
intake.settle_all()
"""


@pytest.mark.parametrize(
    "point",
    [
        "before the flush",
        "before the files",
        "before the file's flush",
        "before the rename",
        "before the rows",
        "before the release",
    ],
)
def test_killed_anywhere_on_the_way_nothing_acknowledged_is_lost(tmp_path: Path, point: str) -> None:
    root = tmp_path / "node"
    root.mkdir()
    killed = subprocess.run([sys.executable, "-c", _PROGRAM, str(root), point], check=False)
    assert killed.returncode == -9
    answered = [int(line) for line in (root / "answered").read_text().split()]
    assert len(answered) == (2 if point == "before the flush" else 5)
    for _ in range(2):  # the second start finds nothing left to do
        node = Node(root)
        node.storage.sweep()
        assert set(names(*answered)) <= set(node.rows())
        assert node.files() == node.rows()
        for row in node.database.instances(SERIES):
            assert node.storage.path(row["path"]).stat().st_size == row["size_bytes"]
        assert node.grown == [], "nothing is announced before its time: the start announces every series that grew"
        assert [series["series_uid"] for series in node.database.series_to_assemble()] == [SERIES]
        node.close()


def test_a_replay_leaves_a_newer_version_alone(tmp_path: Path) -> None:
    """Killed before the release; meanwhile another process took a newer version of the same Instance."""
    root = tmp_path / "node"
    root.mkdir()
    subprocess.run([sys.executable, "-c", _PROGRAM, str(root), "before the release"], check=False)
    other = Database(f"sqlite:///{root / 'node.sqlite'}")
    newer = fake_instance(1, pixels=bytes(128))
    assert Intake(Storage(root), other).store(newer.request()).arrival == "replaced"
    other.close()
    node = Node(root)
    row = node.database.instance(newer.sop_instance_uid)
    assert row is not None
    assert node.storage.path(row["path"]).read_bytes().endswith(newer.data_set)
    assert len(node.rows()) == 5
    node.close()
