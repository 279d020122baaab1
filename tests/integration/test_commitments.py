"""Storage Commitment in the rows, on SQLite and PostgreSQL: what is asked, answered, sent again, held back, owed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dicom_node.commitments import MOST_ROUNDS, Settled
from dicom_node.db import Database
from dicom_node.errors import StaleState
from dicom_node.purges import DONE, Kept
from tests.integration.test_db import JOB, SERIES, finish, make_job, obj, received, record

HOUR = 3600.0
SEG, SR = obj("seg"), obj("sr")
FOREVER = 9e9


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peers)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'node.sqlite'}"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(url: str, clock: Clock) -> Iterator[Database]:
    """A job whose SEG and SR are stored at "pacs" and at "archive"."""
    made = Database(url, now=clock)
    made.migrate()
    record(made, received())
    made.series_assembled(SERIES, "ab", clock.now)
    make_job(made)
    made.start_job(JOB, "w1")
    finish(made)
    for destination in ("pacs", "archive"):
        for one in (SEG, SR):
            made.move_delivery(one.sop_instance_uid, destination, ["waiting"], "stored", status=0)
    yield made
    made.close()


def ask(database: Database, uid: str = "2.25.1", destination: str = "pacs", *, next_s: float = HOUR) -> None:
    uids = [row["sop_instance_uid"] for row in database.uncommitted(destination, limit=10)]
    database.begin_commitment(uid, destination, uids, next_s=next_s)
    database.commitment_asked(uid)


def word(database: Database, uid: str = "2.25.1", by: tuple[str, ...] = ("pacs",), **reasons: int) -> Settled:
    said = {"seg": SEG, "sr": SR}
    return database.settle_commitment(
        uid, by, {(said[k].sop_class_uid, said[k].sop_instance_uid): reason for k, reason in reasons.items()}
    )


def states(database: Database, destination: str = "pacs") -> dict[str, str]:
    return {row["kind"]: row["state"] for row in database.deliveries(JOB, destination)}


def due(database: Database, destination: str = "pacs") -> set[str]:
    return {row["kind"] for row in database.uncommitted(destination, limit=10)}


def transaction(database: Database, uid: str = "2.25.1") -> dict[str, Any]:
    return {row["transaction_uid"]: dict(row) for row in database.commitments(JOB)}[uid]


def actions(database: Database) -> list[str]:
    return [row["action"] for row in database.events(JOB)]


def test_what_is_kept_becomes_committed_at_that_destination_alone(database: Database) -> None:
    ask(database)
    assert word(database, seg=0, sr=0) == Settled(word="taken", committed=2)
    assert states(database) == {"seg": "committed", "sr": "committed"}
    assert states(database, "archive") == {"seg": "stored", "sr": "stored"}
    assert transaction(database)["state"] == "answered"
    assert actions(database).count("delivery committed") == 2


def test_what_was_asked_is_due_again_only_after_its_time(database: Database, clock: Clock) -> None:
    assert due(database) == {"seg", "sr"}
    ask(database)
    assert due(database) == set()
    clock.now += HOUR
    assert due(database) == {"seg", "sr"}


def test_a_word_on_what_was_asked_again_meanwhile_still_counts(database: Database, clock: Clock) -> None:
    ask(database)
    clock.now += HOUR
    ask(database, "2.25.2")
    assert transaction(database)["state"] == "lapsed"
    assert word(database, "2.25.1", seg=0, sr=0).committed == 2
    assert word(database, "2.25.2", seg=0, sr=0) == Settled(word="taken"), "known, and nothing is left to change"
    assert states(database) == {"seg": "committed", "sr": "committed"}


def test_the_same_report_again_changes_nothing(database: Database) -> None:
    ask(database)
    word(database, seg=0, sr=0x0112)
    before = database.deliveries(JOB), actions(database)
    assert word(database, seg=0, sr=0x0112) == Settled(word="repeated")
    assert (database.deliveries(JOB), actions(database)) == before


def test_a_replayed_report_with_another_verdict_changes_nothing(database: Database) -> None:
    ask(database)
    word(database, seg=0, sr=0x0112)
    assert word(database, seg=0x0112, sr=0).word == "repeated"
    assert states(database) == {"seg": "committed", "sr": "waiting"}


def test_another_peer_cannot_report_on_what_this_one_was_asked(database: Database) -> None:
    ask(database)
    for by in (("archive",), (), ("other", "archive")):
        assert word(database, by=by, seg=0, sr=0) == Settled(word="foreign")
    assert states(database) == {"seg": "stored", "sr": "stored"}
    assert transaction(database)["state"] == "asked"


def test_unknown_transactions_and_objects_change_nothing(database: Database) -> None:
    ask(database)
    assert word(database, "2.25.9", seg=0) == Settled(word="unknown")
    stranger = {("1.2.840.10008.5.1.4.1.1.88.34", "2.25.77"): 0}
    assert database.settle_commitment("2.25.1", ["pacs"], stranger) == Settled(word="strange", strangers=1)
    other_class = {("1.2.840.10008.5.1.4.1.1.2", SR.sop_instance_uid): 0}
    assert database.settle_commitment("2.25.1", ["pacs"], other_class) == Settled(word="strange", strangers=1)
    assert states(database) == {"seg": "stored", "sr": "stored"}
    assert word(database, seg=0, sr=0).committed == 2, "and the right report counts after all"


def test_what_is_not_kept_is_sent_again_and_parked_after_some_rounds(database: Database, clock: Clock) -> None:
    for number in range(1, MOST_ROUNDS):
        clock.now += HOUR
        ask(database, f"2.25.{number}")
        assert word(database, f"2.25.{number}", sr=0x0112, **({"seg": 0} if number == 1 else {})).again == 1
        [again] = database.to_send_again()
        assert database.deliveries(JOB, "pacs")[1]["created_at"] == clock.now, "it is not given up for its age"
        assert (again["job_id"], again["destination"], again["round"]) == (JOB, "pacs", number)
        database.move_delivery(SR.sop_instance_uid, "pacs", ["waiting"], "stored", status=0)
        assert database.to_send_again() == []
    ask(database, "2.25.9")
    assert word(database, "2.25.9", sr=0x0112).parked == 1
    assert states(database) == {"seg": "committed", "sr": "parked"}
    [row] = [row for row in database.deliveries(JOB, "pacs") if row["kind"] == "sr"]
    assert "no such object instance (0x0112)" in row["message"]
    assert database.to_send_again() == []
    assert database.retry_deliveries(JOB) == ["pacs"]
    assert states(database)["sr"] == "waiting"
    [row] = [row for row in database.deliveries(JOB, "pacs") if row["kind"] == "sr"]
    assert row["commit_rounds"] == 0, "an operator's retry starts its rounds anew"


def test_a_late_word_on_what_was_sent_again_since_sends_it_no_third_time(database: Database, clock: Clock) -> None:
    ask(database)
    ask(database, "2.25.5", destination="archive")
    clock.now += HOUR
    ask(database, "2.25.2")
    assert word(database, "2.25.1", seg=0, sr=0x0112).again == 1
    database.move_delivery(SR.sop_instance_uid, "pacs", ["waiting"], "stored", status=0)
    assert word(database, "2.25.2", sr=0x0112) == Settled(word="repeated")
    assert states(database)["sr"] == "stored"
    assert word(database, "2.25.5", by=("archive",), sr=0).committed == 1, "another destination's word stands"


def test_a_duplicate_transaction_says_nothing_of_the_object(database: Database, clock: Clock) -> None:
    ask(database)
    word(database, seg=0, sr=0x0131)
    assert states(database) == {"seg": "committed", "sr": "stored"}
    clock.now += HOUR
    assert due(database) == {"sr"}


def test_a_refused_request_is_noted_and_due_again_after_its_pause(database: Database, clock: Clock) -> None:
    database.begin_commitment("2.25.1", "pacs", [SR.sop_instance_uid], next_s=HOUR)
    database.commitment_refused("2.25.1", "it\0 refused", taken=False, next_s=5.0)
    assert (transaction(database)["state"], transaction(database)["message"]) == ("refused", "it refused")
    assert due(database) == {"seg"}
    clock.now += 5
    ask(database, "2.25.2")
    assert [row["transaction_uid"] for row in database.commitments(JOB)] == ["2.25.2"], "refusals do not pile up"


def test_a_report_that_is_quicker_than_the_response_stands(database: Database) -> None:
    database.begin_commitment("2.25.1", "pacs", [SEG.sop_instance_uid, SR.sop_instance_uid], next_s=HOUR)
    assert word(database, seg=0, sr=0).committed == 2
    database.commitment_asked("2.25.1")
    database.commitment_refused("2.25.1", "no answer came", taken=True, next_s=1.0)
    assert transaction(database)["state"] == "answered"
    assert states(database) == {"seg": "committed", "sr": "committed"}


def test_what_a_killed_process_was_about_to_ask_is_due_at_once(database: Database) -> None:
    ask(database, destination="archive", uid="2.25.8")
    database.begin_commitment("2.25.1", "pacs", [SEG.sop_instance_uid, SR.sop_instance_uid], next_s=HOUR)
    assert due(database) == set()
    database.commitments_due_again()
    assert due(database) == {"seg", "sr"}
    assert due(database, "archive") == set()
    assert word(database, seg=0, sr=0).committed == 2, "it may have left all the same"


# -- purge ---------------------------------------------------------------------------------------------


def kept(clock: Clock, *, days: float = 30.0) -> Kept:
    return Kept(committing=("pacs",), uncommitted_before=clock.now - days * 86400)


def purgeable(database: Database, spared: Kept | None = None) -> list[str]:
    return [row["series_uid"] for row in database.purgeable(dict.fromkeys(DONE, FOREVER), spared or Kept())]


def test_stored_is_enough_where_nobody_is_asked_and_not_where_somebody_is(database: Database, clock: Clock) -> None:
    assert purgeable(database) == [SERIES]
    assert purgeable(database, kept(clock)) == []
    assert database.held_series(FOREVER, kept(clock)) == [(SERIES, {"stored, not committed at pacs": 2})]
    assert not database.purge_series(SERIES, FOREVER, pytest.fail, kept(clock))


def test_committed_objects_may_go_with_all_that_was_asked_about_them(database: Database, clock: Clock) -> None:
    ask(database)
    word(database, seg=0)
    assert database.held_series(FOREVER, kept(clock)) == [(SERIES, {"stored, not committed at pacs": 1})]
    word(database, sr=0)
    assert database.held_series(FOREVER, kept(clock)) == []
    assert database.purge_series(SERIES, FOREVER, lambda: None, kept(clock))
    database.purge_events(FOREVER)
    assert word(database, seg=0) == Settled(word="unknown")


def test_an_uncommitted_object_may_go_once_it_is_old_enough(database: Database, clock: Clock) -> None:
    clock.now += 30 * 86400
    assert purgeable(database, kept(clock)) == []
    clock.now += 1
    assert purgeable(database, kept(clock)) == [SERIES]


def test_what_was_not_kept_and_is_not_there_again_never_goes(database: Database, clock: Clock) -> None:
    ask(database)
    word(database, seg=0, sr=0x0112)
    clock.now += 365 * 86400
    assert purgeable(database, kept(clock)) == []
    assert database.held_series(FOREVER, kept(clock)) == [(SERIES, {"waiting at pacs": 1})]


# -- what peers ask of us ------------------------------------------------------------------------------


def test_a_report_is_owed_until_it_is_delivered(database: Database, clock: Clock) -> None:
    database.record_commit_request("ct", "1.2.7", [("1.2", "1.2.9.1")], due_s=30.0)
    assert database.commit_requests_due() == []
    clock.now += 30
    [row] = database.commit_requests_due()
    assert (row["peer"], row["transaction_uid"], row["objects"]) == ("ct", "1.2.7", [["1.2", "1.2.9.1"]])
    database.commit_report_failed("ct", "1.2.7", "nobody there", again_s=10.0)
    assert database.commit_requests_due() == []
    clock.now += 10
    assert database.commit_requests_due()[0]["attempts"] == 1
    database.commit_reported("ct", "1.2.7")
    assert database.commit_requests_due() == []
    with pytest.raises(StaleState):
        database.commit_reported("ct", "1.2.7")


def test_the_same_request_again_is_reported_again(database: Database, clock: Clock) -> None:
    database.record_commit_request("ct", "1.2.7", [("1.2", "1.2.9.1")], due_s=0.0)
    database.commit_reported("ct", "1.2.7")
    database.record_commit_request("ct", "1.2.7", [("1.2", "1.2.9.2")], due_s=0.0)
    [row] = database.commit_requests_due()
    assert row["objects"] == [["1.2", "1.2.9.2"]]
    database.commit_report_failed("ct", "1.2.7", "late", again_s=None)
    assert database.commit_requests_due() == []
    database.purge_events(FOREVER)
    assert database.commit_request("ct", "1.2.7") is None


def test_an_association_that_ends_without_its_report_makes_it_due_at_once(database: Database) -> None:
    database.record_commit_request("ct", "1.2.7", [("1.2", "1.2.9.1")], due_s=30.0)
    database.commit_report_due("ct", "1.2.7")
    assert len(database.commit_requests_due()) == 1


def test_many_instances_are_found_by_their_uids(database: Database) -> None:
    uids = [f"1.2.9.{number}" for number in range(1, 1200)]
    assert set(database.instances_by_uid(uids)) == {"1.2.9.1"}
