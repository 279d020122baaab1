"""Rows on SQLite and PostgreSQL: each change names the state it expects, and may be asked for twice."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from dicom_node import connection, db, schema
from dicom_node.db import FINISHED, Database, ReceivedInstance, ResultObject
from dicom_node.errors import ConfigError, DatabaseUnavailable, DicomNodeError, StaleState
from dicom_node.ledger import ARRIVED
from dicom_node.purges import DONE, Kept

SERIES, STUDY, JOB = "1.2.3", "1.2", "1.2.3-abc"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peers)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'node.sqlite'}"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """Its clock ticks a second a look, from 1000 on."""
    made = Database(url, now=itertools.count(1000.0).__next__)
    made.migrate()
    yield made
    made.close()


def received(number: int = 1, *, series: str = SERIES, sha256: str = "aa", study: str = STUDY) -> ReceivedInstance:
    return ReceivedInstance(
        sop_instance_uid=f"1.2.9.{number}",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        study_uid=study,
        series_uid=series,
        path=f"incoming/{study}/{series}/1.2.9.{number}.dcm",
        sha256=sha256,
        size_bytes=7,
    )


def record(database: Database, instance: ReceivedInstance, source_ae: str = "CT1") -> str:
    return database.record_instance(instance, source_ae=source_ae, source_ip="192.0.2.1")


def make_job(
    database: Database, job_id: str = JOB, *, state: Any = "queued", series: str = SERIES, **more: Any
) -> bool:
    return database.create_job(
        job_id,
        state=state,
        series_uid=series,
        study_uid=STUDY,
        manifest_sha256="ab" * 32,
        instance_count=3,
        source_ae="CT1",
        priority="routine",
        evidence={"instances": 3},
        explanation=["all: matches"],
        route="all",
        **more,
    )


def obj(kind: str = "sr", number: int = 1, to: Iterable[str] = ("pacs", "archive")) -> ResultObject:
    return ResultObject(
        sop_instance_uid=f"2.25.{kind == 'sr':d}{number}",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
        kind=kind,
        path=f"results/{JOB}/{kind}.dcm",
        sha256="cc" * 32,
        size_bytes=9,
        destinations=frozenset(to),
    )


def finish(database: Database, job_id: str = JOB, **more: Any) -> None:
    values = {
        "state": "complete",
        "objects": [obj("sr"), obj("seg")],
        "findings": [{"number": 1, "score": 0.9}, {"number": 2, "score": 0.5}],
        "timings_s": {"read": 1.0},
        "model": {"name": "m"},
    }
    database.finish_job(job_id, **{**values, **more})


def state(database: Database, job_id: str = JOB) -> str:
    row = database.job(job_id)
    assert row is not None
    return str(row["state"])


def ledger(database: Database, job_id: str = JOB) -> dict[tuple[str, str], str]:
    return {(row["destination"], row["kind"]): row["state"] for row in database.deliveries(job_id)}


# -- schema --------------------------------------------------------------------------------------------


def test_the_migrations_make_the_very_tables_of_the_schema(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_the_states_that_the_database_allows_are_those_of_the_schema(database: Database) -> None:
    make_job(database)
    for table, states in (
        ("job", schema.JOB_STATES),
        ("delivery", schema.DELIVERY_STATES),
        ("commitment", schema.COMMITMENT_STATES),
        ("commit_request", schema.COMMIT_REQUEST_STATES),
        ("prior", schema.PRIOR_OUTCOMES),
    ):
        [check] = sa.inspect(database.engine).get_check_constraints(table)
        assert all(f"'{name}'" in check["sqltext"] for name in states)
    with pytest.raises(sa.exc.IntegrityError), database.engine.begin() as connection:
        connection.execute(sa.update(schema.job).values(state="lost"))


def test_migrating_again_changes_nothing(database: Database) -> None:
    record(database, received())
    database.migrate()
    assert len(database.instances(SERIES)) == 1
    assert database.check().endswith("schema 0011_roles")


def test_a_ledger_of_the_first_schema_keeps_its_rows_and_can_hold_what_is_committed(url: str) -> None:
    database = Database(url)
    settings = AlembicConfig()
    settings.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    with database.engine.begin() as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, "0001")
        job = dict.fromkeys(("job_id", "series_uid", "study_uid", "manifest_sha256", "source_ae"), "x")
        filled = {"state": "complete", "priority": "routine", "evidence": "{}", "explanation": "[]", "timings_s": "{}"}
        for table, row in (
            ("job", job | filled | {"instance_count": 1, "progress": 1.0, "created_at": 1.0}),
            ("result", {"sop_instance_uid": "1.2", "job_id": "x", "kind": "sr", "sop_class_uid": "1.3", "path": "p",
                        "sha256": "s", "size_bytes": 1}),
            ("delivery", {"sop_instance_uid": "1.2", "destination": "pacs", "job_id": "x", "state": "stored",
                          "attempts": 1, "created_at": 1.0, "changed_at": 2.0}),
        ):  # fmt: skip
            names = ", ".join(row)
            values = ", ".join(f":{name}" for name in row)
            connection.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)
    database.migrate()
    with database.engine.begin() as connection:
        kept = connection.execute(sa.select(schema.delivery)).mappings().one()
        assert (kept["state"], kept["commit_rounds"], kept["commit_due_at"], kept["changed_at"]) == (
            "stored",
            0,
            None,
            2.0,
        )
        connection.execute(sa.update(schema.delivery).values(state="committed"))
    database.close()


def test_several_processes_may_migrate_at_once(url: str) -> None:
    script = "import sys; from dicom_node.db import Database; Database(sys.argv[1]).migrate()"
    started = [
        subprocess.Popen([sys.executable, "-c", script, url], stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    errors = [process.communicate(timeout=60)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 4, errors


def test_check_says_what_answers_before_and_after_the_first_start(url: str) -> None:
    database = Database(url)
    assert "made at the first start" in database.check()
    database.migrate()
    assert database.check() == f"{database.engine.dialect.name}, schema 0011_roles"
    database.close()


def test_a_database_that_does_not_answer_is_an_error_without_its_password(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    down = "postgresql+psycopg://node:hunter2@127.0.0.1:9/node?connect_timeout=5"
    for url, kind in ((f"sqlite:///{file}/x.sqlite", ConfigError), (down, ConfigError)):
        database = Database(url)
        with pytest.raises(kind, match="does not answer") as caught:
            database.check()
        assert "hunter2" not in str(caught.value)
        database.close()
    # Not a ConfigError: the node's supervisor would give up instead of trying again.
    database = Database(down)
    with pytest.raises(DicomNodeError, match="does not answer") as again:
        database.migrate()
    assert not isinstance(again.value, ConfigError)
    database.close()


def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when its machine or the network is gone: nobody refuses the connection."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+psycopg://node@127.0.0.1:{silent.getsockname()[1]}/node"
        monkeypatch.setitem(connection.POSTGRESQL_CONNECTION, "connect_timeout", 2)
        database = Database(url)
        with pytest.raises(DatabaseUnavailable):
            database.association_began("1.2.3", "a")
        database.close()


def test_a_peer_does_not_wait_for_a_locked_file_as_long_as_others_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(f"sqlite:///{tmp_path / 'node.sqlite'}")
    database.migrate()
    monkeypatch.setattr(db, "_LOCK_WAIT_S", 0.1)
    with contextlib.closing(sqlite3.connect(tmp_path / "node.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        began_at = time.monotonic()
        with pytest.raises(DatabaseUnavailable):
            database.association_began("1.2.3", "a")
        assert time.monotonic() - began_at < 30, "60 s for all else"
    assert record(database, received()) == "new"
    database.close()


def test_how_long_to_wait_for_a_connection_can_be_said_in_the_url() -> None:
    database = Database("postgresql+psycopg://node@127.0.0.1/node?connect_timeout=3")
    seen: dict[str, Any] = {}

    @sa.event.listens_for(database.engine, "do_connect")
    def _look(_dialect: Any, _record: Any, _args: Any, settings: dict[str, Any]) -> None:
        seen.update(settings)
        raise ConnectionError

    with contextlib.suppress(ConnectionError):
        database.engine.connect()
    assert (seen["connect_timeout"], seen["tcp_user_timeout"]) == ("3", 20000)


def test_a_missing_driver_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"dicom-node\[postgresql\]"):
        Database("postgresql+psycopg://node@127.0.0.1/node")


def test_a_commit_on_sqlite_is_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'node.sqlite'}")
    with database.engine.connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    database.close()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


# -- instances -----------------------------------------------------------------------------------------


def test_an_instance_is_new_then_the_same_then_replaced(database: Database) -> None:
    assert record(database, received()) == "new"
    assert record(database, received()) == "same"
    assert record(database, received(sha256="bb")) == "replaced"
    row = database.instance("1.2.9.1")
    assert row is not None
    assert row["sha256"] == "bb"
    assert database.instance("1.2.9.2") is None


def test_the_same_instance_again_does_not_touch_its_series(database: Database) -> None:
    record(database, received())
    before = database.series(SERIES)
    record(database, received(), "CT2")
    assert database.series(SERIES) == before


def test_an_instance_that_moves_to_another_series_is_replaced(database: Database) -> None:
    record(database, received())
    assert record(database, received(series="1.2.4")) == "replaced"
    assert database.instances(SERIES) == []
    assert len(database.instances("1.2.4")) == 1


def test_instances_come_in_the_order_of_their_uids(database: Database) -> None:
    for number in (3, 1, 2):
        record(database, received(number))
    assert [row["sop_instance_uid"][-1] for row in database.instances(SERIES)] == ["1", "2", "3"]


def released(database: Database) -> bool:
    row = database.series(SERIES)
    assert row is not None
    return bool(row["released"])


def test_a_series_is_released_when_the_last_of_its_associations_is(database: Database) -> None:
    database.association_began(SERIES, "a")  # before its first row
    record(database, received(1))
    database.association_began(SERIES, "b")
    database.association_began("1.2.99", "c")
    database.association_ended([SERIES], "b", released=True)
    assert not released(database), "the other still brings images"
    database.association_ended([SERIES], "a", released=True)
    assert released(database)
    database.association_began(SERIES, "d")
    assert not released(database)


def test_associations_that_end_at_once_leave_the_series_released(database: Database) -> None:
    record(database, received(1))
    names = [f"a{number}" for number in range(8)]
    for name in names:
        database.association_began(SERIES, name)
    ends = [
        threading.Thread(target=database.association_ended, args=([SERIES], name), kwargs={"released": True})
        for name in names
    ]
    for end in ends:
        end.start()
    for end in ends:
        end.join()
    assert released(database)


def test_an_abort_is_remembered_until_the_series_was_decided_on(database: Database) -> None:
    record(database, received(1))
    for ended_well in (False, True):
        database.association_began(SERIES, "a")
        database.association_ended([SERIES], "a", released=ended_well)
        assert not released(database)
    seen = database.series(SERIES)
    assert seen is not None
    record(database, received(2))
    database.series_assembled(SERIES, "ab", seen["last_at"])  # which did not see the second image
    database.association_began(SERIES, "a")
    database.association_ended([SERIES], "a", released=True)
    assert not released(database)
    seen = database.series(SERIES)
    assert seen is not None
    database.series_assembled(SERIES, "cd", seen["last_at"])
    database.association_began(SERIES, "a")
    database.association_ended([SERIES], "a", released=True)
    assert released(database)


def test_associations_of_a_dead_receiver_count_as_aborted_and_those_of_a_living_one_go_on(database: Database) -> None:
    dead, living = "d" * 16, "a" * 16
    record(database, received(1))
    record(database, received(2, series="1.2.99"))
    for series_uid, mark in ((SERIES, dead), (SERIES, living), ("1.2.99", living)):
        database.association_began(series_uid, f"{mark}{series_uid[-2:]}")
    assert database.association_marks() == {dead, living}
    assert database.associations_lost([dead]) == [SERIES]
    assert database.associations_lost([]) == []
    assert database.association_marks() == {living}
    for series_uid in (SERIES, "1.2.99"):
        database.association_ended([series_uid], f"{living}{series_uid[-2:]}", released=True)
    assert not released(database)
    other = database.series("1.2.99")
    assert other is not None
    assert other["released"]


def test_a_series_knows_who_sent_it_last_and_whether_the_association_ended(database: Database) -> None:
    record(database, received(1), "CT1")
    database.association_began(SERIES, "a")
    database.association_ended([SERIES, "1.2.99"], "a", released=True)
    row = database.series(SERIES)
    assert row is not None
    assert (row["source_ae"], row["released"]) == ("CT1", True)
    record(database, received(2), "CT2")
    row = database.series(SERIES)
    assert row is not None
    assert (row["source_ae"], row["released"]) == ("CT2", False)
    assert row["first_at"] < row["last_at"]
    assert database.series("1.2.99") is None


def _at_once(count: int, function: Callable[[int], Any]) -> list[Any]:
    barrier, results, errors = threading.Barrier(count), [None] * count, []

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = function(number)
        except Exception as err:  # noqa: BLE001  shown by the assertion below
            errors.append(err)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    return results


def test_one_instance_from_several_threads_at_once_makes_one_row(database: Database) -> None:
    arrivals = _at_once(6, lambda _number: record(database, received()))
    assert set(arrivals) <= {"new", "same"}
    assert arrivals.count("new") >= 1
    assert len(database.instances(SERIES)) == 1


def test_many_instances_from_several_threads_at_once_are_all_there(database: Database) -> None:
    _at_once(6, lambda thread: [record(database, received(10 * thread + n)) for n in range(5)])
    assert len(database.instances(SERIES)) == 30


# -- what assemble has to look at ----------------------------------------------------------------------


def test_a_series_waits_for_assemble_until_it_was_seen_and_again_when_it_grew(database: Database) -> None:
    record(database, received(1))
    record(database, received(2, series="1.2.4"))
    assert [row["series_uid"] for row in database.series_to_assemble()] == [SERIES, "1.2.4"]
    seen = database.series(SERIES)
    assert seen is not None
    record(database, received(3))  # between assemble's look at the series and its last word
    database.series_assembled(SERIES, "ab", seen["last_at"])
    assert SERIES in [row["series_uid"] for row in database.series_to_assemble()]
    grown = database.series(SERIES)
    assert grown is not None
    database.series_assembled(SERIES, "ab", grown["last_at"])
    assert [row["series_uid"] for row in database.series_to_assemble()] == ["1.2.4"]


# -- jobs ----------------------------------------------------------------------------------------------


def test_a_job_is_made_once(database: Database) -> None:
    assert make_job(database)
    assert not make_job(database, state="rejected")
    assert state(database) == "queued"
    assert [row["action"] for row in database.events(JOB)] == ["job queued"]
    assert database.job("none") is None


def test_a_job_that_begins_as_rejected_has_ended(database: Database) -> None:
    make_job(database, state="rejected")
    row = database.job(JOB)
    assert row is not None
    assert row["finished_at"] == row["created_at"]


MOVES: dict[str, tuple[Callable[[Database], Any], set[str], str]] = {
    "start": (lambda db: db.start_job(JOB, "w1"), {"queued", "running"}, "running"),
    "fail": (lambda db: db.fail_job(JOB, "why"), {"queued", "running"}, "failed"),
    "cancel": (lambda db: db.cancel_job(JOB), {"queued", "running", "failed", "parked"}, "cancelled"),
    "requeue": (lambda db: db.requeue_job(JOB), {"failed", "parked", "cancelled", "running"}, "queued"),
    "withhold": (lambda db: db.withhold_job(JOB, "why"), {"running", "rejected"}, "parked"),
    "complete": (finish, {"running", "complete"}, "complete"),
    "reject": (
        lambda db: finish(db, state="rejected", objects=[], findings=[], reason="NO_LUNG", reason_text="why"),
        {"running", "rejected"},
        "rejected",
    ),
}


def _put(database: Database, job_state: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(sa.update(schema.job).values(state=job_state))


@pytest.mark.parametrize("name", MOVES)
def test_each_change_of_a_job_names_the_states_it_may_leave(database: Database, name: str) -> None:
    move, allowed, to = MOVES[name]
    make_job(database)
    for before in schema.JOB_STATES:
        _put(database, before)
        if before in allowed:
            move(database)
            assert state(database) == to
        else:
            with pytest.raises(StaleState, match=JOB):
                move(database)
            assert state(database) == before


@pytest.mark.parametrize("name", MOVES)
def test_a_job_that_is_not_there_cannot_change(database: Database, name: str) -> None:
    with pytest.raises(StaleState):
        MOVES[name][0](database)
    assert database.results(JOB) == []


def test_a_poison_job_is_parked_unless_it_ended(database: Database) -> None:
    make_job(database)
    assert database.park_job(JOB, "its workers died")
    assert not database.park_job(JOB, "again")
    row = database.job(JOB)
    assert row is not None
    assert (row["state"], row["reason"], row["reason_text"]) == ("parked", "PARKED", "its workers died")


def test_progress_is_only_told_by_who_runs_the_job(database: Database) -> None:
    make_job(database)
    assert not database.job_progress(JOB, "w1", 0.1)
    database.start_job(JOB, "w1")
    assert database.job_progress(JOB, "w1", 0.5)
    database.start_job(JOB, "w2")  # w1 died, or was thought to
    assert not database.job_progress(JOB, "w1", 0.9)
    row = database.job(JOB)
    assert row is not None
    assert (row["executor"], row["progress"]) == ("w2", 0.0)
    database.cancel_job(JOB)
    assert not database.job_progress(JOB, "w2", 0.9)


def test_a_requeued_job_forgets_why_it_failed(database: Database) -> None:
    make_job(database)
    database.fail_job(JOB, "why")
    database.requeue_job(JOB)
    row = database.job(JOB)
    assert row is not None
    assert [row[k] for k in ("reason", "reason_text", "executor", "finished_at")] == [None] * 4


def test_finishing_twice_is_finishing_once(database: Database) -> None:
    make_job(database)
    database.start_job(JOB, "w1")
    finish(database)
    database.move_delivery(obj("seg").sop_instance_uid, "pacs", ["waiting"], "sending", attempt=True)
    first = ledger(database)
    finish(database)
    assert ledger(database) == first
    assert first == {
        ("archive", "seg"): "waiting",
        ("archive", "sr"): "waiting",
        ("pacs", "seg"): "sending",
        ("pacs", "sr"): "waiting",
    }
    assert [found["score"] for found in database.findings(JOB)] == [0.9, 0.5]
    assert [row["kind"] for row in database.results(JOB)] == ["seg", "sr"]


def test_an_end_that_fails_half_way_leaves_nothing(database: Database) -> None:
    make_job(database)
    database.start_job(JOB, "w1")
    with pytest.raises(sa.exc.SQLAlchemyError):
        finish(database, objects=[obj("seg"), dataclasses.replace(obj("sr"), kind=None)])  # type: ignore[arg-type]
    assert state(database) == "running"
    assert database.results(JOB) == []
    assert database.findings(JOB) == []


def test_a_rejected_job_gains_its_report(database: Database) -> None:
    make_job(database, state="rejected")
    finish(
        database,
        state="rejected",
        objects=[obj("sr", to=["pacs"])],
        findings=[],
        timings_s=None,
        model=None,
        reason="TOO_THICK",
    )
    assert ledger(database) == {("pacs", "sr"): "waiting"}
    row = database.job(JOB)
    assert row is not None
    assert (row["reason"], row["timings_s"], row["model"]) == ("TOO_THICK", {}, None)


def test_jobs_come_newest_first_by_state_and_series(database: Database) -> None:
    for number in range(3):
        make_job(database, f"{SERIES}-{number}")
    make_job(database, "1.2.4-0", series="1.2.4")
    database.fail_job(f"{SERIES}-1", "why")
    assert [row["job_id"] for row in database.jobs()] == ["1.2.4-0", f"{SERIES}-2", f"{SERIES}-1", f"{SERIES}-0"]
    assert [row["job_id"] for row in database.jobs(state="failed")] == [f"{SERIES}-1"]
    assert len(database.jobs(series_uid=SERIES)) == 3
    assert len(database.jobs(limit=2)) == 2


def test_what_happened_to_a_job_can_be_read_in_order(database: Database) -> None:
    make_job(database)
    database.start_job(JOB, "w1")
    finish(database)
    database.add_event("delivery stored", job_id=JOB, destination="pacs")
    assert [(row["action"], row["details"]) for row in database.events(JOB)] == [
        ("job queued", {"route": "all", "priority": "routine"}),
        ("job running", {"executor": "w1"}),
        ("job complete", {}),
        ("delivery stored", {"destination": "pacs"}),
    ]


# -- the ledger ----------------------------------------------------------------------------------------


@pytest.fixture
def finished(database: Database) -> Database:
    make_job(database)
    database.start_job(JOB, "w1")
    finish(database)
    return database


def test_the_seg_goes_before_the_sr_that_cites_it(finished: Database) -> None:
    rows = finished.deliveries(JOB, "pacs")
    assert [row["kind"] for row in rows] == ["seg", "sr"]
    assert rows[0]["path"] == f"results/{JOB}/seg.dcm"
    assert finished.deliveries(JOB, "nowhere") == []


@pytest.mark.parametrize("before", schema.DELIVERY_STATES)
def test_an_object_only_leaves_the_state_that_was_expected(finished: Database, before: str) -> None:
    uid = obj("sr").sop_instance_uid
    with finished.engine.begin() as connection:
        connection.execute(sa.update(schema.delivery).values(state=before))
    others = [name for name in schema.DELIVERY_STATES if name != before]
    with pytest.raises(StaleState, match="pacs"):
        finished.move_delivery(uid, "pacs", others, "stored")
    assert ledger(finished)["pacs", "sr"] == before
    finished.move_delivery(uid, "pacs", [before], "stored", status=0, message="kept")
    assert ledger(finished)["pacs", "sr"] == "stored"
    assert ledger(finished)["pacs", "seg"] == before


def test_an_attempt_counts_and_keeps_the_last_answer(finished: Database) -> None:
    uid = obj("sr").sop_instance_uid
    finished.move_delivery(uid, "pacs", ["waiting"], "sending", attempt=True)
    finished.move_delivery(uid, "pacs", ["sending"], "waiting", status=0xA700, message="out of resources")
    finished.move_delivery(uid, "pacs", ["waiting"], "sending", attempt=True)
    row = finished.deliveries(JOB, "pacs")[1]
    assert (row["attempts"], row["status"], row["message"]) == (2, 0xA700, "out of resources")


def _all_deliveries(database: Database, **states: str) -> None:
    for destination, to in states.items():
        with database.engine.begin() as connection:
            connection.execute(
                sa.update(schema.delivery).where(schema.delivery.c.destination == destination).values(state=to)
            )


def test_a_retry_takes_up_what_is_parked_or_cancelled_and_its_clock_starts_anew(finished: Database) -> None:
    before = finished.deliveries(JOB, "pacs")[0]["created_at"]
    finished.move_delivery(obj("seg").sop_instance_uid, "pacs", ["waiting"], "sending", attempt=True)
    _all_deliveries(finished, pacs="parked", archive="stored")
    assert finished.retry_deliveries(JOB) == ["pacs"]
    assert ledger(finished)["archive", "sr"] == "stored"
    assert finished.deliveries(JOB, "pacs")[0]["created_at"] > before
    assert finished.deliveries(JOB, "pacs")[0]["attempts"] == 0
    _all_deliveries(finished, pacs="cancelled", archive="parked")
    assert finished.retry_deliveries(JOB) == ["archive", "pacs"]


@pytest.mark.parametrize("left", [s for s in schema.DELIVERY_STATES if s not in ARRIVED])
def test_a_retry_names_each_destination_that_has_not_stored_all(finished: Database, left: str) -> None:
    _all_deliveries(finished, pacs="stored", archive="stored")
    assert finished.retry_deliveries(JOB) == []
    finished.move_delivery(obj("sr").sop_instance_uid, "pacs", ["stored"], left)
    assert finished.retry_deliveries(JOB) == ["pacs"]
    # What is on its way keeps its state; asking again changes nothing.
    assert ledger(finished)["pacs", "sr"] == ("waiting" if left in ("parked", "cancelled") else left)
    assert finished.retry_deliveries(JOB) == ["pacs"]


@pytest.mark.parametrize(
    ("before", "after"),
    [(s, "cancelled" if s in ("waiting", "unknown", "parked", "cancelled") else s) for s in schema.DELIVERY_STATES],
)
def test_a_cancel_leaves_what_is_stored_or_on_the_wire(finished: Database, before: str, after: str) -> None:
    _all_deliveries(finished, pacs=before, archive="stored")
    count = finished.cancel_deliveries(JOB)
    assert ledger(finished)["pacs", "sr"] == after
    assert count == (2 if before != after else 0)


# -- purge ---------------------------------------------------------------------------------------------

FOREVER = 1e9


def _delivered(database: Database) -> None:
    record(database, received())
    seen = database.series(SERIES)
    assert seen is not None
    database.series_assembled(SERIES, "ab", seen["last_at"])
    make_job(database)
    database.start_job(JOB, "w1")
    finish(database)
    _all_deliveries(database, pacs="stored", archive="stored")


def purgeable(database: Database, before: float) -> list[str]:
    return [row["series_uid"] for row in database.purgeable(dict.fromkeys(DONE, before), Kept())]


def test_a_series_that_is_done_and_delivered_may_go(database: Database) -> None:
    _delivered(database)
    assert purgeable(database, FOREVER) == [SERIES]
    assert database.purge_series(SERIES, FOREVER, lambda: None)
    for table in (schema.series, schema.instance, schema.job, schema.finding, schema.result, schema.delivery):
        with database.engine.connect() as connection:
            assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar() == 0
    with database.engine.connect() as connection:
        actions = connection.execute(sa.select(schema.event.c.action)).scalars().all()
    assert actions[-1] == "series purged"


def test_a_purge_leaves_other_series_alone(database: Database) -> None:
    _delivered(database)
    record(database, received(2, series="1.2.4"))
    make_job(database, "1.2.4-0", series="1.2.4")
    assert database.purge_series(SERIES, FOREVER, lambda: None)
    assert len(database.instances("1.2.4")) == 1
    assert state(database, "1.2.4-0") == "queued"


def test_a_series_that_is_no_longer_purgeable_keeps_rows_and_files(database: Database) -> None:
    _delivered(database)
    record(database, received(2))
    removed: list[str] = []
    assert not database.purge_series(SERIES, FOREVER, lambda: removed.append("files"))
    assert removed == []
    assert (len(database.instances(SERIES)), state(database)) == (2, "complete")


def test_files_that_cannot_be_removed_keep_their_rows(database: Database) -> None:
    _delivered(database)

    def fail() -> None:
        raise PermissionError

    with pytest.raises(PermissionError):
        database.purge_series(SERIES, FOREVER, fail)
    assert (len(database.instances(SERIES)), state(database)) == (1, "complete")


def test_what_arrives_while_a_purge_removes_files_waits_and_begins_anew(database: Database) -> None:
    _delivered(database)
    arrived = threading.Event()

    def arrive() -> None:
        record(database, received(2))
        arrived.set()

    thread = threading.Thread(target=arrive)

    def remove() -> None:
        thread.start()
        assert not arrived.wait(0.3), "the row must not be there before the files are gone"

    assert database.purge_series(SERIES, FOREVER, remove)
    thread.join(30)
    row = database.series(SERIES)
    assert row is not None
    assert (len(database.instances(SERIES)), row["assembled_at"], database.jobs()) == (1, None, [])


@pytest.mark.parametrize("left", [s for s in schema.DELIVERY_STATES if s not in (*ARRIVED, "cancelled")])
def test_what_is_not_delivered_never_goes(database: Database, left: str) -> None:
    _delivered(database)
    _all_deliveries(database, archive=left)
    assert purgeable(database, FOREVER) == []


@pytest.mark.parametrize("job_state", ["queued", "running", "failed", "parked"])
def test_a_series_with_a_job_that_is_not_done_never_goes(database: Database, job_state: str) -> None:
    _delivered(database)
    make_job(database, "1.2.3-second")
    if job_state == "running":
        database.start_job("1.2.3-second", "w1")
    if job_state == "failed":
        database.fail_job("1.2.3-second", "why")
    if job_state == "parked":
        database.park_job("1.2.3-second", "why")
    assert purgeable(database, FOREVER) == []


def test_a_series_that_grew_since_or_was_never_seen_never_goes(database: Database) -> None:
    _delivered(database)
    record(database, received(2))
    record(database, received(3, series="1.2.4"))
    assert purgeable(database, FOREVER) == []


def test_only_what_ended_before_goes(database: Database) -> None:
    _delivered(database)
    row = database.job(JOB)
    assert row is not None
    assert purgeable(database, row["finished_at"]) == []
    assert purgeable(database, row["finished_at"] + 0.5) == [SERIES]


@pytest.mark.parametrize("job_state", ["rejected", "cancelled"])
def test_rejected_and_cancelled_series_may_go(database: Database, job_state: str) -> None:
    record(database, received())
    seen = database.series(SERIES)
    assert seen is not None
    database.series_assembled(SERIES, "ab", seen["last_at"])
    make_job(database, state="rejected" if job_state == "rejected" else "queued")
    if job_state == "cancelled":
        database.cancel_job(JOB)
    assert purgeable(database, FOREVER) == [SERIES]


# -- what may pass -------------------------------------------------------------------------------------


def test_reads_go_on_while_another_process_writes(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'node.sqlite'}")
    database.migrate()
    make_job(database)
    with contextlib.closing(sqlite3.connect(tmp_path / "node.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        assert state(database) == "queued"
        assert "schema" in database.check()
        assert time.monotonic() - started < 10, "a reader that took the write lock would wait for a minute"
    database.close()


@pytest.mark.parametrize("call", [lambda db: db.job(JOB), lambda db: db.park_job(JOB, "why")])
def test_a_database_that_does_not_answer_is_worth_another_try(call: Callable[[Database], Any]) -> None:
    database = Database("postgresql+psycopg://u:hunter2@127.0.0.1:1/d")
    with pytest.raises(DatabaseUnavailable) as caught:
        call(database)
    assert caught.value.retry_helps
    assert "hunter2" not in str(caught.value)


# -- any order of events -------------------------------------------------------------------------------


class JobLife(RuleBasedStateMachine):
    """Any operator and any worker, in any order: the row follows the table of moves, and a report is never lost."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.database = Database(self.url)
        self.database.migrate()
        with self.database.engine.begin() as connection:
            for table in reversed(schema.metadata.sorted_tables):
                connection.execute(sa.delete(table))
        make_job(self.database)
        self.state = "queued"
        self.objects = 0

    def teardown(self) -> None:
        self.database.close()

    @rule(name=st.sampled_from(sorted(MOVES)))
    def move(self, name: str) -> None:
        function, allowed, to = MOVES[name]
        if self.state not in allowed:
            with pytest.raises(StaleState):
                function(self.database)
            return
        function(self.database)
        self.state = to
        self.objects = 4 if name == "complete" else self.objects

    @invariant()
    def the_row_is_what_the_moves_made_of_it(self) -> None:
        row = self.database.job(JOB)
        assert row is not None
        assert row["state"] == self.state
        assert (row["finished_at"] is not None) == (self.state in FINISHED)
        assert len(self.database.deliveries(JOB)) == self.objects


def test_a_job_never_leaves_the_table_of_moves(tmp_path: Path) -> None:
    machine = type("JobLifeHere", (JobLife,), {"url": f"sqlite:///{tmp_path / 'node.sqlite'}"})
    run_state_machine_as_test(machine, settings=settings(max_examples=15, stateful_step_count=12, deadline=None))
