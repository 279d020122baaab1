"""Rows of pulls, on both kinds of database: what was asked for, what came, and what is remembered after a purge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.db import Database

SERIES, STUDY = "1.2.3", "1.2"
YEAR_S = 366 * 86400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peers)])
def database(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'node.sqlite'}"
    made = Database(url if request.param == "sqlite" else request.getfixturevalue("postgres_url"), now=clock)
    made.migrate()
    yield made
    made.close()


def asked(database: Database, route: str | None = None, there: int = 7) -> None:
    database.pull_asked(SERIES, study_uid=STUDY, peer="pacs", route=route, there=there)


def row(database: Database) -> tuple[int, int, bool]:
    """there, attempts, done."""
    found = database.pulled([SERIES, "1.2.9"])[SERIES]
    return found["there"], found["attempts"], found["done_at"] is not None


def test_attempts_count_where_the_peer_was_reached_and_begin_anew_when_all_came(database: Database) -> None:
    asked(database)
    assert row(database) == (7, 0, False)
    database.pull_failed(SERIES, here=3, problem="x", reached=False)
    assert row(database) == (7, 0, False)
    for attempts in (1, 2):
        asked(database)
        database.pull_failed(SERIES, here=3, problem="x", reached=True)
        assert row(database) == (7, attempts, False)
    asked(database, there=8)
    database.pull_done(SERIES, here=8)
    assert row(database) == (8, 0, True)


def test_the_route_is_that_of_the_latest_pull(database: Database) -> None:
    assert database.pulled_route(SERIES) is None
    asked(database, "chest")
    found = database.pulled_route(SERIES)
    assert found is not None
    assert (found["route"], found["peer"]) == ("chest", "pacs")
    asked(database)
    assert database.pulled_route(SERIES) is None


def test_a_purge_forgets_the_route_and_a_year_later_the_pull(database: Database, clock: Clock) -> None:
    from tests.integration.test_db import received

    asked(database, "chest")
    database.record_instance(received(), source_ae="PACS", source_ip="127.0.0.1")
    database.series_assembled(SERIES, "ab", clock.now)
    assert database.purge_series(SERIES, clock.now + 1, lambda: None)
    assert database.pulled_route(SERIES) is None
    database.purge_events(clock.now + YEAR_S)
    assert SERIES in database.pulled([SERIES])
    database.purge_events(clock.now + YEAR_S + 1)
    assert database.pulled([SERIES]) == {}


def test_a_round_begins_and_ends(database: Database, clock: Clock) -> None:
    assert database.pull_round("new") is None
    database.pull_round_began("new")
    begun = database.pull_round("new")
    assert begun is not None
    assert (begun["started_at"], begun["ended_at"]) == (1000.0, None)
    clock.now += 5
    database.pull_round_ended("new", fetched=2, left_over=1, problem="x")
    ended = database.pull_round("new")
    assert ended is not None
    assert (ended["ended_at"], ended["fetched"], ended["left_over"], ended["problem"]) == (1005.0, 2, 1, "x")
    database.pull_round_began("new")
    again = database.pull_round("new")
    assert again is not None
    assert (again["ended_at"], again["problem"]) == (None, None)
