"""What is wrong, from real rows; who is told of it and how often, over restarts; a dead channel holds up none."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dicom_node.alert_rows import Problem
from dicom_node.alerts.message import Item, Message, compose
from dicom_node.alerts.problems import KINDS, Looks
from dicom_node.alerts.schedule import Alerts, AlertSchedule
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.errors import AlertNotSent
from dicom_node.storage import Storage
from tests.certificates import Authority
from tests.integration.test_db import finish, make_job, received, record

HOUR, MIN = 3600.0, 60.0
CANARY = "Canary^Secret"


@dataclass
class Clock:
    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeChannel:
    """Keeps what it is told; `broken`: why it takes nothing."""

    name: str = "email"
    broken: str | None = None
    sent: list[Message] = field(default_factory=list)

    def send(self, message: Message) -> str:
        if self.broken is not None:
            raise AlertNotSent(self.broken)
        self.sent.append(message)
        return "taken"

    def probe(self) -> str:
        return "there"

    @property
    def titles(self) -> list[str]:
        return [message.title for message in self.sent]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peers)])
def database(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Database]:
    if request.param == "postgresql":
        url = str(request.getfixturevalue("postgres_url"))
    else:
        url = f"sqlite:///{tmp_path / 'node.sqlite'}"
    made = Database(url, now=clock)
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def build(node_config: Callable[..., Config], database: Database, clock: Clock) -> Callable[..., Alerts]:
    def make(*channels: FakeChannel, **sections: Any) -> Alerts:
        config = node_config(**{"alerts": {"disk_below_gb": None}, **sections})
        looks = Looks(config=config, database=database, storage=Storage(config.storage.root), now=clock)
        return Alerts(config=config, database=database, looks=looks, channels=channels, now=clock)

    return make


def turn(alerts: Alerts) -> None:
    """A look, and each channel told."""
    alerts.look()
    for channel in alerts.channels:
        alerts.tell(channel)


def failed(database: Database, number: int) -> str:
    job_id = f"1.2.{number}-a"
    make_job(database, job_id, series=f"1.2.{number}")
    database.fail_job(job_id, f"why {CANARY}")
    return job_id


def kinds(alerts: Alerts) -> dict[str, list[str]]:
    """Kind -> subjects, of what is wrong now."""
    found: dict[str, list[str]] = {}
    for problem in alerts.looks.problems():
        found.setdefault(problem.kind, []).append(problem.subject)
    return found


# -- what is wrong -------------------------------------------------------------------------------------


def test_nothing_is_wrong_with_a_node_that_works(build: Callable[..., Alerts], database: Database) -> None:
    make_job(database)
    database.start_job("1.2.3-abc", "w1")
    finish(database)
    assert kinds(build()) == {}


def test_failed_parked_and_hanging_jobs_are_told_with_their_reason_and_no_text(
    build: Callable[..., Alerts], database: Database, clock: Clock
) -> None:
    failed(database, 1)
    make_job(database, "1.2.2-a", series="1.2.2")
    database.park_job("1.2.2-a", CANARY)
    make_job(database, "1.2.4-a", series="1.2.4")
    database.start_job("1.2.4-a", "host/work")
    alerts = build()
    assert kinds(alerts) == {"job_failed": ["1.2.1-a"], "job_parked": ["1.2.2-a"]}
    clock.now += alerts.config.work.longest_analysis_s + 11 * MIN
    assert kinds(alerts)["job_hung"] == ["1.2.4-a"]
    texts = [problem.text for problem in alerts.looks.problems()]
    assert "FAILED, route all" in texts
    assert not any(CANARY in text for text in texts)


def test_a_destination_is_dead_once_nothing_arrived_for_so_long_while_something_waits(
    build: Callable[..., Alerts], database: Database, clock: Clock
) -> None:
    make_job(database)
    database.start_job("1.2.3-abc", "w1")
    finish(database)
    alerts = build(alerts={"dead_destination_min": 30, "disk_below_gb": None})
    clock.now += 29 * MIN
    assert kinds(alerts) == {}
    database.move_delivery("2.25.11", "archive", ("waiting",), "sending", attempt=True)
    database.move_delivery("2.25.11", "archive", ("sending",), "stored", status=0)
    clock.now += 2 * MIN
    assert kinds(alerts) == {"destination_dead": ["pacs"]}, "at the archive something arrived 2 minutes ago"
    clock.now += 30 * MIN
    assert sorted(kinds(alerts)["destination_dead"]) == ["archive", "pacs"]
    assert kinds(build(alerts={"dead_destination_min": None, "disk_below_gb": None})) == {}


def test_parked_objects_are_told_by_job_and_destination(build: Callable[..., Alerts], database: Database) -> None:
    make_job(database)
    database.start_job("1.2.3-abc", "w1")
    finish(database)
    for uid in ("2.25.11", "2.25.01"):
        database.move_delivery(uid, "pacs", ("waiting",), "sending", attempt=True)
        database.move_delivery(uid, "pacs", ("sending",), "parked", message=CANARY)
    [problem] = build().looks.problems()
    assert (problem.kind, problem.subject) == ("object_parked", "1.2.3-abc at pacs")
    assert problem.text == "2 objects parked at pacs"


def test_queues_that_stand_still_are_told_but_not_a_job_that_was_just_taken_up_again(
    build: Callable[..., Alerts], database: Database, clock: Clock
) -> None:
    make_job(database)
    record(database, received(7, series="1.2.9"))
    alerts = build(alerts={"queue_age_min": 60, "disk_below_gb": None})
    clock.now += 60 * MIN
    assert kinds(alerts) == {}
    clock.now += 2 * MIN
    assert kinds(alerts) == {"queue_old": ["analyse", "assemble"]}
    database.cancel_job("1.2.3-abc")
    database.requeue_job("1.2.3-abc")
    assert kinds(alerts) == {"queue_old": ["assemble"]}


def test_a_disk_is_low_before_it_is_full(build: Callable[..., Alerts]) -> None:
    free_gb = build().looks.storage.free_bytes() / 1e9
    low = build(alerts={"disk_below_gb": free_gb + 50})
    assert kinds(low) == {"disk_low": ["storage.root"]}
    full = build(alerts={"disk_below_gb": free_gb + 50}, storage={"min_free_gb": free_gb + 20})
    assert kinds(full) == {"disk_full": ["storage.root"]}


def test_a_role_that_is_silent_is_missed_and_one_that_stopped_in_order_is_not(
    build: Callable[..., Alerts], database: Database, clock: Clock
) -> None:
    alerts = build(alerts={"disk_below_gb": None, "missing_role_min": 5})

    def minutes(count: int, *alive: tuple[str, str, str]) -> None:
        for _ in range(count * 3):
            clock.now += 20
            for one in alive:
                database.role_beats(*one, gap_s=60)

    web, deliver = ("a", "web", "web"), ("a", "deliver", "deliver")
    gpu, gone = ("b", "work", "gpu1"), ("b", "receive", "receive")
    minutes(3, web, deliver, gpu, gone)
    database.role_stopped(*gone)
    minutes(4, web, deliver)
    assert kinds(alerts) == {}
    minutes(2, web, deliver)
    [problem] = alerts.looks.problems()
    assert (problem.kind, problem.subject) == ("role_missing", "work gpu1 on b")
    assert problem.text == "work gpu1 on b was not seen for more than 5 min, and did not stop in order"
    minutes(6, web)
    assert kinds(alerts) == {"role_missing": ["deliver on a", "work gpu1 on b"]}
    minutes(1, web, deliver, gpu)
    assert kinds(alerts) == {}
    assert kinds(build(alerts={"disk_below_gb": None, "missing_role_min": None})) == {}


def test_nobody_is_missed_for_a_time_in_which_the_database_was_away(
    build: Callable[..., Alerts], database: Database, clock: Clock
) -> None:
    alerts = build(alerts={"disk_below_gb": None, "missing_role_min": 5})
    roles = [("a", "web", "web"), ("a", "deliver", "deliver")]
    for one in roles:
        database.role_beats(*one, gap_s=60)
    clock.now += HOUR
    assert kinds(alerts) == {}, "nobody could be seen"
    database.role_beats(*roles[0], gap_s=60)
    assert kinds(alerts) == {}, "the others have yet to come back"
    for _ in range(16):
        clock.now += 20
        database.role_beats(*roles[0], gap_s=60)
    assert kinds(alerts) == {"role_missing": ["deliver on a"]}
    for _ in range(7 * 24 * 3):
        clock.now += 1201
        database.role_beats(*roles[0], gap_s=1300)
    assert kinds(alerts) == {}, "a machine that was given up is forgotten after a week"


def test_a_clock_that_jumps_makes_nobody_missing(
    build: Callable[..., Alerts], database: Database, clock: Clock
) -> None:
    alerts = build(alerts={"disk_below_gb": None, "missing_role_min": 5})
    for jump in (0.0, HOUR, -2 * HOUR, 30 * MIN):
        clock.now += jump
        database.role_beats("a", "web", "web", gap_s=60)
        assert kinds(alerts) == {}
        database.role_beats("a", "deliver", "deliver", gap_s=60)
        assert kinds(alerts) == {}


def test_a_storage_that_is_away_is_told_and_hides_neither_jobs_nor_what_held_before(
    build: Callable[..., Alerts], database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail = FakeChannel()
    alerts = build(mail, alerts={"disk_below_gb": 1e9, "group_every_min": 0.0001})
    turn(alerts)
    assert mail.titles == ["disk low"]
    failed(database, 1)
    monkeypatch.setattr(alerts.looks.storage, "root", tmp_path / "unmounted")
    turn(alerts)
    assert {row["kind"] for row in database.alerts() if row["ended_at"] is None} == {
        "disk_low", "job_failed", "storage_away",
    }  # fmt: skip
    assert set(mail.titles[1:]) == {"job failed", "storage cannot be reached"}


def test_certificates_that_expire_or_cannot_be_read_are_told_by_their_setting(
    build: Callable[..., Alerts], authority: Authority, clock: Clock, tmp_path: Path
) -> None:
    clock.now = time.time() + HOUR  # else the 20th day would begin in the same second
    soon, good = authority.issue("soon", days=20), authority.issue("good", days=400)
    tls = {"certificate": str(soon.certificate), "key": str(soon.key), "ca": str(tmp_path / "none.pem")}
    peer = {"ae_title": "P", "host": "h", "port": 104}
    peer["tls"] = {"ca": str(authority.ca), "certificate": str(good.certificate), "key": str(good.key)}
    problems = build(receive={"tls": tls}, peers={"p": peer}).looks.problems()
    assert {problem.subject: problem.text for problem in problems} == {
        "receive.tls.certificate": "receive.tls.certificate: 19 days left",
        "receive.tls.ca": "receive.tls.ca: expired, or unreadable: dicom-node check says which",
    }


# -- who is told, and how often ------------------------------------------------------------------------


def test_many_failures_make_one_message_with_links(build: Callable[..., Alerts], database: Database) -> None:
    for number in range(30):
        failed(database, number)
    channel = FakeChannel()
    turn(build(channel, alerts={"link": "https://node.example/", "disk_below_gb": None}))
    [message] = channel.sent
    assert message.title == "30 jobs failed"
    assert message.payload["raised_count"] == 30
    assert "https://node.example/jobs/1.2.0-a" in message.text
    assert "- and 10 more" in message.text
    assert CANARY not in message.text + str(message.payload)


def test_the_same_thing_is_told_once_over_restarts_and_again_when_it_lasts(
    build: Callable[..., Alerts], database: Database, clock: Clock
) -> None:
    failed(database, 1)
    channel = FakeChannel()
    for _ in range(3):
        turn(build(channel))
        clock.now += HOUR
    assert channel.titles == ["job failed"]
    clock.now += 22 * HOUR
    turn(build(channel))
    assert channel.titles == ["job failed", "job failed"]
    assert channel.sent[0].message_id != channel.sent[1].message_id
    never = build(FakeChannel(name="webhook"), alerts={"repeat_after_h": None, "disk_below_gb": None})
    turn(never)
    clock.now += 300 * HOUR
    turn(never)
    assert len(never.channels[0].sent) == 1


def test_what_fails_after_a_message_gathers_until_the_next_one(
    build: Callable[..., Alerts], database: Database, clock: Clock
) -> None:
    channel = FakeChannel()
    alerts = build(channel)
    for number in range(6):
        failed(database, number)
        turn(alerts)
        clock.now += 5 * MIN
    # At 0, 15 and 30 minutes: one, three and two.
    turn(alerts)
    assert channel.titles == ["job failed", "3 jobs failed", "2 jobs failed"]


def test_what_is_over_is_told_once_and_what_comes_back_soon_was_never_over(
    build: Callable[..., Alerts], database: Database, clock: Clock
) -> None:
    job_id = failed(database, 1)
    channel = FakeChannel()
    alerts = build(channel)
    turn(alerts)
    database.requeue_job(job_id)
    clock.now += 16 * MIN
    turn(alerts)
    database.fail_job(job_id, "again")
    clock.now += 10 * MIN
    turn(alerts)
    assert channel.titles == ["job failed"], "a flap of ten minutes is none"
    database.requeue_job(job_id)
    turn(alerts)
    clock.now += 16 * MIN
    turn(alerts)
    assert channel.titles == ["job failed", "over: job failed"]
    clock.now += 30 * MIN
    turn(alerts)
    assert len(channel.sent) == 2
    database.fail_job(job_id, "a third time")
    turn(alerts)
    assert channel.titles[-1] == "job failed", "after the word that it is over it is a new thing"


def test_a_message_that_a_wrong_clock_sent_silences_no_channel(
    build: Callable[..., Alerts], database: Database, clock: Clock
) -> None:
    channel = FakeChannel()
    alerts = build(channel, alerts={"disk_below_gb": None, "group_every_min": 15})
    clock.now += 20 * 365 * 24 * HOUR
    failed(database, 1)
    turn(alerts)
    clock.now -= 20 * 365 * 24 * HOUR
    failed(database, 2)
    turn(alerts)
    assert channel.titles == ["job failed", "job failed"]


def test_what_was_over_before_anybody_heard_of_it_is_told_nobody(
    build: Callable[..., Alerts], database: Database, clock: Clock
) -> None:
    job_id = failed(database, 1)
    channel = FakeChannel(broken="down")
    alerts = build(channel)
    turn(alerts)
    database.cancel_job(job_id)
    channel.broken = None
    clock.now += HOUR
    turn(alerts)
    clock.now += HOUR
    turn(alerts)
    assert channel.sent == []
    clock.now += 8 * 24 * HOUR
    turn(alerts)
    assert database.alerts() == []


def test_a_channel_that_is_down_is_tried_with_growing_pauses_and_told_later(
    build: Callable[..., Alerts], database: Database, clock: Clock
) -> None:
    failed(database, 1)
    mail, hook = FakeChannel(broken="mail.example:587: no answer in time"), FakeChannel(name="webhook")
    tries = []
    real = mail.send
    mail.send = lambda message: (tries.append(clock.now), real(message))[1]  # type: ignore[method-assign]
    alerts = build(mail, hook)
    begin = clock.now
    while clock.now < begin + HOUR:
        turn(alerts)
        clock.now += 30
    assert [round(at - begin) for at in tries[:5]] == [0, 30, 90, 210, 450]
    assert max(later - sooner for sooner, later in itertools.pairwise(tries)) <= 900
    assert hook.titles == ["job failed"]
    [row] = [row for row in database.alert_channels() if row["channel"] == "email"]
    assert (row["failures"], row["error"]) == (len(tries), mail.broken)
    mail.broken = None
    clock.now += 900
    turn(alerts)
    assert mail.titles == ["job failed"]
    assert {row["failures"] for row in database.alert_channels()} == {0}


def test_a_message_that_may_have_arrived_is_sent_again_under_the_same_id(
    build: Callable[..., Alerts], database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed(database, 1)
    channel = FakeChannel()
    alerts = build(channel)
    alerts.look()
    with monkeypatch.context() as patch:
        patch.setattr(database, "alerts_told", lambda *_a, **_k: (_ for _ in ()).throw(RuntimeError("killed here")))
        with pytest.raises(RuntimeError):
            alerts.tell(channel)
    clock.now += MIN
    turn(build(channel))
    assert len({message.message_id for message in channel.sent}) == 1
    assert len(channel.sent) == 2


def test_every_kind_that_can_be_wrong_has_words() -> None:
    for kind, (one, many) in KINDS.items():
        items = [Item(subject=str(number), text="t", since=0.0) for number in range(2)]
        assert compose("N", kind, items[:1], []).title == one
        assert compose("N", kind, items, []).title == f"2 {many}"


def test_problems_that_change_their_words_keep_their_beginning(database: Database, clock: Clock) -> None:
    begin = clock.now
    for days in (20, 19):
        database.alerts_seen([Problem(kind="certificate", subject="x", text=f"{days} left")], over_after_s=0.0)
        clock.now += 24 * HOUR
    [row] = database.alerts()
    assert (row["text"], row["since"]) == ("19 left", begin)


# -- beside the queues -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_leaked_threads")
def test_a_channel_that_hangs_holds_up_no_other_and_a_second_machine_is_silent(
    build: Callable[..., Alerts], database: Database
) -> None:
    failed(database, 1)
    go_on, told = threading.Event(), threading.Event()

    @dataclass
    class Hanging(FakeChannel):
        def send(self, message: Message) -> str:
            go_on.wait(30)
            return super().send(message)

    @dataclass
    class Telling(FakeChannel):
        def send(self, message: Message) -> str:
            said = super().send(message)
            told.set()
            return said

    quick = {"alerts": {"every_s": 0.05, "disk_below_gb": None}}
    mail, hook, second = Hanging(), Telling(name="webhook"), FakeChannel(name="webhook")
    first = AlertSchedule(build(mail, hook, **quick))
    other = AlertSchedule(build(second, **quick))
    first.start()
    assert told.wait(30)
    other.start()
    go_on.set()
    first.stop(10)
    other.stop(10)
    assert (hook.titles, second.titles) == (["job failed"], [])
