"""Rows of many received Instances in one transaction, from several threads at once, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.arrivals import Received, ReceivedInstance
from dicom_node.db import Database


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peers)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    made = Database(
        request.getfixturevalue("postgres_url")
        if request.param == "postgresql"
        else f"sqlite:///{tmp_path / 'node.sqlite'}"
    )
    made.migrate()
    yield made
    made.close()


def received(number: int, *, series: str = "1.2.4", sha256: str = "a", source_ae: str = "SCANNER") -> Received:
    instance = ReceivedInstance(
        sop_instance_uid=f"1.2.5.{number}",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        study_uid="1.2.3",
        series_uid=series,
        path=f"incoming/1.2.3/{series}/1.2.5.{number}.dcm",
        sha256=sha256 * 64,
        size_bytes=100,
    )
    return Received(instance=instance, source_ae=source_ae, source_ip="192.0.2.7")


def test_each_gets_its_own_answer(database: Database) -> None:
    assert database.record_instances([]) == []
    assert database.record_instances([received(1), received(2)]) == ["new", "new"]
    again = [received(3), received(2), received(1, sha256="b"), received(2, series="1.2.9")]
    assert database.record_instances(again) == ["new", "same", "replaced", "replaced"]
    assert {row["sop_instance_uid"]: row["sha256"][0] for row in database.instances("1.2.4")} == {
        "1.2.5.1": "b",
        "1.2.5.3": "a",
    }
    assert [row["sop_instance_uid"] for row in database.instances("1.2.9")] == ["1.2.5.2"]


def test_of_one_instance_twice_in_a_batch_the_later_counts(database: Database) -> None:
    assert database.record_instances([received(1), received(1, sha256="b"), received(1, sha256="b")]) == [
        "new",
        "replaced",
        "same",
    ]
    assert [row["sha256"][0] for row in database.instances("1.2.4")] == ["b"]


def test_what_is_known_does_not_touch_its_series(database: Database) -> None:
    database.record_instances([received(1)])
    database.association_began("1.2.4", "a")
    database.association_ended(["1.2.4"], "a", released=True)
    before = database.series("1.2.4")
    assert database.record_instances([received(1, source_ae="OTHER")]) == ["same"]
    assert database.series("1.2.4") == before
    database.record_instances([received(2, source_ae="OTHER")])
    after = database.series("1.2.4")
    assert after is not None
    assert (after["released"], after["source_ae"]) == (False, "OTHER")


def test_more_rows_than_one_statement_takes(database: Database) -> None:
    assert set(database.record_instances([received(n) for n in range(1200)])) == {"new"}
    assert len(database.instances("1.2.4")) == 1200


def test_batches_in_opposite_order_at_once_do_not_block_each_other_for_good(database: Database) -> None:
    ready, failed = threading.Barrier(4), list[Exception]()

    def record(turn: int) -> None:
        ready.wait()
        for round_ in range(5):
            version = chr(ord("a") + (turn + 4 * round_) % 26)  # each differs from the one before
            batch = [received(n, series=f"1.2.4.{n % 7}", sha256=version) for n in range(300)]
            try:
                database.record_instances(batch if turn % 2 else batch[::-1])
            except Exception as err:  # noqa: BLE001  the test tells of it below
                failed.append(err)

    threads = [threading.Thread(target=record, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sum(len(database.instances(f"1.2.4.{n}")) for n in range(7)) == 300
