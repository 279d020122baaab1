"""Each C-STORE request gets the status that is due, and what is no Success leaves nothing behind."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa

from dicom_node.db import Database
from dicom_node.dimse.intake import Intake, StoreAnswer
from dicom_node.storage import Storage
from tests.fakes.instances import SERIES, STUDY, fake_instance


class Node:
    def __init__(self, root: Path) -> None:
        self.storage = Storage(root)
        self.database = Database(f"sqlite:///{root / 'node.sqlite'}")
        self.database.migrate()
        self.intake = Intake(self.storage, self.database)

    def files(self) -> list[str]:
        return sorted(
            str(p.relative_to(self.storage.root)) for p in self.storage.root.rglob("incoming/**/*.*") if p.is_file()
        )

    def rows(self) -> int:
        with self.database.engine.connect() as connection:
            return int(connection.execute(sa.text("SELECT count(*) FROM instance")).scalar_one())


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "node")
    yield made
    made.database.close()


def test_success_means_file_and_row(node: Node) -> None:
    fake = fake_instance()
    answer = node.intake.store(fake.request())
    assert answer == StoreAnswer(status=0x0000, series_uid=SERIES, arrival="new")
    row = node.database.instance(fake.sop_instance_uid)
    assert row is not None
    assert (row["series_uid"], row["study_uid"]) == (SERIES, STUDY)
    ds = pydicom.dcmread(node.storage.path(row["path"]))
    assert ds.SOPInstanceUID == fake.sop_instance_uid
    assert ds.PixelData == bytes(range(128))
    series = node.database.series(SERIES)
    assert series is not None
    assert (series["source_ae"], series["source_ip"]) == ("SCANNER", "192.0.2.7")


def test_the_row_is_committed_after_the_file_is_durable(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, record = os.fsync, node.database.record_instance

    def recorded(new: Any, **source: str) -> Any:
        assert node.storage.path(new.path).exists()
        done.append("row")
        return record(new, **source)

    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("flush"), fsync(descriptor))[1])
    monkeypatch.setattr(node.database, "record_instance", recorded)
    node.intake.store(fake_instance().request())
    assert done == ["flush"] * 4 + ["row"]  # two new folders, the file, its folder


def test_a_file_that_a_purge_takes_before_its_row_is_there_is_written_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_instance()
    record = node.database.record_instance

    def purged_before(new: Any, **source: str) -> Any:
        node.storage.discard(str(Path(new.path).parent))
        return record(new, **source)

    monkeypatch.setattr(node.database, "record_instance", purged_before)
    assert node.intake.store(fake.request()).status == 0x0000
    (path,) = node.files()
    assert node.storage.path(path).read_bytes().endswith(fake.data_set)
    assert node.rows() == 1


def test_a_resend_is_success_and_no_work(node: Node) -> None:
    fake = fake_instance()
    node.intake.store(fake.request())
    (path,) = node.files()
    before = node.storage.path(path).stat()
    again = node.intake.store(fake.request(source_ae="OTHER"))
    assert again.arrival == "same"
    assert node.storage.path(path).stat().st_mtime_ns == before.st_mtime_ns


def test_other_bytes_under_one_uid_replace_the_older(node: Node) -> None:
    node.intake.store(fake_instance().request())
    newer = fake_instance(pixels=bytes(128))
    assert node.intake.store(newer.request()).arrival == "replaced"
    (path,) = node.files()
    assert node.storage.path(path).read_bytes().endswith(newer.data_set)
    assert node.rows() == 1


HOSTILE = ["../../../../tmp/x", "1.2.840.113619.2.5/..", "1" * 65, "1.2.abc", "1..2", ""]


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
def test_a_hostile_uid_does_not_match_its_class(node: Node, keyword: str, hostile: str) -> None:
    fake = fake_instance(**{keyword: hostile})
    answer = node.intake.store(fake.request())
    assert answer.status == 0xA900
    assert keyword in answer.comment
    assert node.files() == []
    assert node.rows() == 0


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
def test_a_missing_uid_does_not_match_its_class(node: Node, keyword: str) -> None:
    assert node.intake.store(fake_instance(**{keyword: None}).request()).status == 0xA900
    assert node.files() == []


def test_hostile_uids_in_command_and_data_set_alike_are_refused(node: Node) -> None:
    fake = fake_instance(SOPInstanceUID="../../x")
    assert node.intake.store(fake.request(sop_instance_uid="../../x")).status == 0xA900
    assert node.files() == []


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"sop_instance_uid": "1.2.3"}, 0xA900),
        ({"sop_class_uid": "1.2.3", "abstract_syntax": "1.2.3"}, 0xA900),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.4"}, 0x0122),
        ({"data_set": b""}, 0xC000),
        ({"data_set": b"\x08\x00"}, 0xC000),
        ({"data_set": b"no data set at all, but text that somebody sent"}, 0xC000),
        ({"transfer_syntax_uid": "1.2.840.10008.1.2"}, 0xC000),
        ({"transfer_syntax_uid": "1.2.840.10008.1.2.1.99"}, 0xC000),
    ],
)
def test_a_request_that_contradicts_itself_is_refused(node: Node, change: dict[str, Any], status: int) -> None:
    answer = node.intake.store(replace(fake_instance().request(), **change))
    assert answer.status == status
    assert answer.series_uid is None
    assert node.files() == []
    assert node.rows() == 0


def no_space(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.storage, "free_bytes", lambda: -1)


def full_disk(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", fsync)


def broken_disk(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("fault", [no_space, full_disk, broken_disk])
def test_our_own_lack_of_resources_is_said_as_such(
    node: Node, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Node, pytest.MonkeyPatch], None]
) -> None:
    fault(node, monkeypatch)
    assert node.intake.store(fake_instance().request()).status == 0xA700
    assert node.files() == []
    assert node.rows() == 0


def test_without_a_row_there_is_no_success_and_a_resend_mends_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*args: Any, **kwargs: Any) -> Any:
        raise sa.exc.OperationalError("INSERT", {}, Exception("disk I/O error"))

    with monkeypatch.context() as patched:
        patched.setattr(node.database, "record_instance", away)
        assert node.intake.store(fake_instance().request()).status == 0xA700
    assert node.rows() == 0
    assert node.intake.store(fake_instance().request()).arrival == "new"
    assert node.rows() == 1


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPInstanceUID"])
def test_no_refusal_quotes_the_data_set(node: Node, keyword: str, caplog: pytest.LogCaptureFixture) -> None:
    answer = node.intake.store(fake_instance(**{keyword: "Secret^Patient"}).request())
    assert "Secret" not in answer.comment
    assert "Secret" not in caplog.text
    assert all("Secret" not in str(record.__dict__) for record in caplog.records)


def test_one_instance_from_many_threads_is_one_file_and_one_row(node: Node) -> None:
    fake = fake_instance()
    ready = threading.Barrier(6)
    answers: list[StoreAnswer] = []

    def send() -> None:
        ready.wait()
        answers.append(node.intake.store(fake.request()))

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(str(answer.arrival) for answer in answers) == ["new"] + ["same"] * 5
    assert len(node.files()) == node.rows() == 1


# -- adoption: what a crash between file and row left behind -----------------------------------------


def orphan(node: Node, **changes: Any) -> str:
    """A durable file without a row, as a process killed between the two leaves it."""
    fake = fake_instance(**changes)
    lost = Node(node.storage.root / "lost")
    lost.intake.store(fake.request())
    lost.database.close()
    (path,) = lost.files()
    target = node.storage.path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    lost.storage.path(path).rename(target)
    return fake.sop_instance_uid


def test_a_file_without_a_row_is_adopted(node: Node) -> None:
    node.intake.store(fake_instance(1).request())
    uid = orphan(node, number=2)
    assert node.intake.adopt() == 1
    row = node.database.instance(uid)
    assert row is not None
    assert row["transfer_syntax_uid"] == "1.2.840.10008.1.2.1"
    series = node.database.series(SERIES)
    assert series is not None
    assert series["source_ae"] == "SCANNER", "who sent the rest of the series sent this one"
    assert [s["series_uid"] for s in node.database.series_to_assemble()] == [SERIES]


def test_a_first_file_without_a_row_is_adopted(node: Node) -> None:
    uid = orphan(node)
    assert node.intake.adopt() == 1
    assert node.database.instance(uid) is not None
    assert node.intake.adopt() == 0


def test_a_replaced_file_whose_row_is_older_is_adopted(node: Node) -> None:
    node.intake.store(fake_instance(1).request())
    uid = orphan(node, number=1, pixels=bytes(128))
    os.utime(node.storage.path(node.files()[0]), (2e9, 2e9))
    before = node.database.instance(uid)
    assert node.intake.adopt() == 1
    after = node.database.instance(uid)
    assert before is not None
    assert after is not None
    assert before["sha256"] != after["sha256"]


def test_an_older_copy_in_another_series_does_not_come_back(node: Node) -> None:
    node.intake.store(fake_instance(1).request())
    moved = fake_instance(1, SeriesInstanceUID="1.2.3.4")
    node.intake.store(moved.request())
    assert len(node.files()) == 2
    assert node.intake.adopt() == 0
    row = node.database.instance(moved.sop_instance_uid)
    assert row is not None
    assert row["series_uid"] == "1.2.3.4"


def test_files_that_are_none_of_ours_are_left_alone(node: Node) -> None:
    folder = node.storage.root / "incoming" / STUDY / SERIES
    folder.mkdir(parents=True)
    (folder / "1.2.3.dcm").write_bytes(b"not DICOM")
    fake_instance(7).write(folder / "elsewhere")
    assert node.intake.adopt() == 0
    assert node.rows() == 0
    assert len(node.files()) == 2
