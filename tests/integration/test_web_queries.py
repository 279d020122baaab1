"""What the pages read: pages of jobs by their place, today's counts, what a job's page knows. On both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dicom_node import schema
from dicom_node.db import Database, ResultObject
from dicom_node.web.answers.jobs import Cursor, Filters, JobFilter, JobPage, filters, jobs
from dicom_node.web.answers.live import version
from dicom_node.web.answers.peers import destination
from dicom_node.web.answers.today import Percentiles, counts
from tests.dashboard import job


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peers)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/n.sqlite"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    clock = iter(range(1000, 10**6))
    opened = Database(url, now=lambda: float(next(clock)))
    opened.migrate()
    yield opened
    opened.close()


def _ids(page: JobPage) -> list[str]:
    return [each.job_id for each in page.jobs]


def test_pages_hold_each_job_once_in_both_directions_also_where_times_are_equal(database: Database) -> None:
    for number in range(23):
        job(database, f"1.2.{number}-{number:02}", f"1.2.{number}")
    with database.engine.begin() as connection:
        connection.execute(sa.update(schema.job).values(created_at=sa.func.round(schema.job.c.created_at / 5) * 5))
    there: list[list[str]] = []
    page = jobs(database, limit=5)
    assert page.newer is None
    while True:
        there.append(_ids(page))
        if page.older is None:
            break
        page = jobs(database, older_than=Cursor.parse(page.older), limit=5)
    assert [len(each) for each in there] == [5, 5, 5, 5, 3]
    assert len({each for some in there for each in some}) == 23
    for expected in reversed(there[:-1]):
        assert page.newer is not None
        page = jobs(database, newer_than=Cursor.parse(page.newer), limit=5)
        assert _ids(page) == expected
    assert page.newer is None


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (JobFilter(states=("rejected",)), ["1.2.2-02"]),
        (JobFilter(peer="ORTHANC"), ["1.2.2-02", "1.2.1-01", "1.2.0-00"]),
        (JobFilter(peer="NOBODY"), []),
        (JobFilter(route="chest-ct", states=("queued", "failed")), ["1.2.1-01", "1.2.0-00"]),
        (JobFilter(text="slice_gap"), ["1.2.2-02"]),
        (JobFilter(text="2.1-0"), ["1.2.1-01"]),
        (JobFilter(text="%"), []),
        (JobFilter(text="1.2.3.4"), ["1.2.2-02", "1.2.1-01", "1.2.0-00"]),
    ],
)
def test_a_filter_lets_through_what_it_names(database: Database, which: JobFilter, expected: list[str]) -> None:
    job(database, "1.2.0-00", "1.2.0")
    job(database, "1.2.1-01", "1.2.1", state="failed", reason="FAILED")
    job(database, "1.2.2-02", "1.2.2", state="rejected", reason="SLICE_GAP")
    found = jobs(database, which)
    assert (_ids(found), found.count, found.more_than_counted) == (expected, len(expected), False)
    assert jobs(database, which, limit=1).count == len(expected)


@pytest.mark.parametrize("text", ["", "5", "nan_x", "inf_x", "1.0_", "a_b"])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Cursor.parse(text)


def test_today_counts_what_ended_and_what_waits(database: Database) -> None:
    job(database, "1.2.0-00", "1.2.0")
    job(database, "1.2.1-01", "1.2.1", state="failed", reason="FAILED")
    job(database, "1.2.2-02", "1.2.2", state="rejected", reason="SLICE_GAP")
    job(database, "1.2.3-03", "1.2.3")
    database.start_job("1.2.3-03", "work")
    job(database, "1.2.4-04", "1.2.4")
    database.start_job("1.2.4-04", "work")
    database.finish_job("1.2.4-04", state="complete", objects=[_object("1.9.1")])
    now = counts(database, 0.0)
    assert (now.waiting, now.running, now.failed, now.rejected) == (1, 1, 1, 1)
    assert (now.delivered, now.undelivered, now.attention) == (0, 1, 1)
    assert now.oldest_waiting_at.timestamp() == database.job("1.2.0-00")["created_at"]  # type: ignore[index, union-attr]
    assert destination(database, "pacs", 0.0).condition == "idle"
    database.move_delivery("1.9.1", "pacs", ("waiting",), "sending", attempt=True)
    database.move_delivery("1.9.1", "pacs", ("sending",), "waiting", message="refused")
    assert destination(database, "pacs", 0.0).condition == "down"
    database.move_delivery("1.9.1", "pacs", ("waiting",), "stored")
    assert destination(database, "pacs", 0.0).condition == "up"
    assert counts(database, 0.0).delivered == 1
    assert counts(database, 10.0**9).failed == 0


def _object(uid: str) -> ResultObject:
    return ResultObject(
        sop_instance_uid=uid, sop_class_uid="1.2", kind="seg", path=f"results/{uid}.dcm", sha256="ab" * 32,
        size_bytes=1, destinations=frozenset({"pacs"}),
    )  # fmt: skip


def test_choices_are_what_the_rows_hold(database: Database) -> None:
    assert filters(database) == Filters(states=list(schema.JOB_STATES), peers=[], routes=[])
    job(database, "1.2.0-00", "1.2.0")
    assert filters(database) == Filters(states=list(schema.JOB_STATES), peers=["ORTHANC"], routes=["chest-ct"])


def test_the_version_changes_with_a_jobs_progress_and_not_by_itself(database: Database) -> None:
    job(database, "1.2.0-00", "1.2.0")
    database.start_job("1.2.0-00", "work")
    before = version(database)
    assert version(database) == before
    database.job_progress("1.2.0-00", "work", 0.5)
    assert version(database) != before


def test_sent_again_is_due_again_and_no_longer_what_was_said_of_it(database: Database) -> None:
    job(database, "1.2.4-04", "1.2.4")
    database.start_job("1.2.4-04", "work")
    database.finish_job("1.2.4-04", state="complete", objects=[_object("1.9.1")])
    database.move_delivery("1.9.1", "pacs", ("waiting",), "committed")
    transaction: dict[str, Any] = {
        "transaction_uid": "1.5",
        "destination": "pacs",
        "created_at": 1.0,
        "changed_at": 1.0,
    }
    with database.engine.begin() as connection:
        connection.execute(sa.insert(schema.commitment).values(state="asked", **transaction))
        connection.execute(sa.insert(schema.commitment_object).values(transaction_uid="1.5", sop_instance_uid="1.9.1"))
    assert database.send_again("1.2.4-04") == ["pacs"]
    [row] = database.deliveries("1.2.4-04")
    assert (row["state"], row["attempts"], row["commit_due_at"]) == ("waiting", 0, None)
    with database.engine.connect() as connection:
        assert connection.execute(sa.select(schema.commitment_object)).all() == []


def test_percentiles_are_values_that_occurred() -> None:
    assert Percentiles.of([]) == Percentiles(count=0, median_s=None, p95_s=None)
    assert Percentiles.of([3.0, 1.0, 2.0]) == Percentiles(count=3, median_s=2.0, p95_s=3.0)
    assert Percentiles.of([float(n) for n in range(1, 101)]).p95_s == 95.0
