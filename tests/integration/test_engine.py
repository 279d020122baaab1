"""The job engine under kill -9, on SQLite and on PostgreSQL: what it promises and the flow relies on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_node import engine
from dicom_node.engine import EngineClient
from dicom_node.errors import StaleState
from dicom_node.locks import try_lock

WORKER = Path(__file__).with_name("engine_worker.py")


class Workers:
    """Worker processes on one database, and the journal they write."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.journal, self._running = url, folder / "journal", []
        self.journal.touch()

    def start(self, executor: str, **env: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(WORKER), self.url, executor, str(self.journal)]
        process = subprocess.Popen(command, env={**os.environ, **env}, stderr=subprocess.PIPE)
        self._running.append(process)
        return process

    def ready(self, executor: str, **env: str) -> subprocess.Popen[bytes]:
        before = self.count(executor, "ready", "-")
        process = self.start(executor, **env)
        self.wait(lambda: self.count(executor, "ready", "-") > before or process.poll() is not None)
        return process

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.journal.read_text().splitlines()]

    def count(self, executor: str | None, event: str, argument: str) -> int:
        return sum(line[1:] == [event, argument] and executor in (None, line[0]) for line in self.lines())

    def wait(self, condition: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain; journal: {self.lines()}"
            time.sleep(0.05)

    def wait_for(self, event: str, argument: str, executor: str | None = None, times: int = 1) -> None:
        self.wait(lambda: self.count(executor, event, argument) >= times)

    def flag(self, name: str) -> Path:
        path = self.journal.with_name(name)
        path.touch()
        return path

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peers)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'node.sqlite'}"


@pytest.fixture
def workers(url: str, tmp_path: Path) -> Iterator[Workers]:
    started = Workers(url, tmp_path)
    yield started
    started.close()


@pytest.fixture
def client(url: str) -> Iterator[EngineClient]:
    engine.migrate(url)
    made = EngineClient(url)
    yield made
    made.close()


def enqueue(client: EngineClient, job: str, priority: str = "routine") -> None:
    client.enqueue("analyse", job, job, priority=priority)


def status(client: EngineClient, job: str) -> str | None:
    state = client.state(job)
    return None if state is None else state.status


def test_after_kill_in_a_step_only_that_step_runs_again(workers: Workers, client: EngineClient) -> None:
    hold = workers.flag("hold-a")
    worker = workers.ready("w1")
    enqueue(client, "a")
    workers.wait_for("second", "a")
    worker.kill()
    worker.wait()
    hold.unlink()
    workers.ready("w1")
    workers.wait_for("deliver", "a")
    assert (workers.count(None, "first", "a"), workers.count(None, "second", "a")) == (1, 2)
    assert workers.count(None, "deliver", "a") == 1


def test_a_living_worker_takes_over_from_a_killed_one(workers: Workers, client: EngineClient) -> None:
    hold = workers.flag("hold-a")
    worker = workers.ready("w1")
    enqueue(client, "a")
    workers.wait_for("second", "a", "w1")
    workers.ready("w2")
    worker.kill()
    worker.wait()
    workers.wait_for("second", "a", "w2")
    hold.unlink()
    workers.wait_for("deliver", "a")
    assert workers.count("w2", "first", "a") == 0


def test_a_living_worker_keeps_its_job_while_another_watches(workers: Workers, client: EngineClient) -> None:
    hold = workers.flag("hold-a")
    workers.ready("w1")
    enqueue(client, "a")
    workers.wait_for("second", "a", "w1")
    workers.ready("w2")
    enqueue(client, "b")
    workers.wait_for("second-done", "b", "w2")
    time.sleep(2 * engine._LIVENESS_S + 0.5)  # two rounds of the watch: there is no event for "nothing happened"
    hold.unlink()
    workers.wait_for("deliver", "a")
    assert workers.count(None, "second", "a") == 1


def test_a_stopped_worker_hands_back_what_did_not_end_in_time(workers: Workers, client: EngineClient) -> None:
    hold = workers.flag("hold-a")
    worker = workers.ready("w1", DRAIN_S="0.2")
    enqueue(client, "a")
    workers.wait_for("second", "a", "w1")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    hold.unlink()
    workers.ready("w2")
    workers.wait_for("second-done", "a", "w2")


def test_a_stopped_worker_finishes_what_ends_in_time(workers: Workers, client: EngineClient) -> None:
    hold = workers.flag("hold-a")
    worker = workers.ready("w1", DRAIN_S="30")
    enqueue(client, "a")
    workers.wait_for("second", "a")
    worker.send_signal(signal.SIGTERM)
    hold.unlink()
    assert worker.wait(30) == 0
    assert workers.count("w1", "second-done", "a") == 1
    workers.ready("w2")
    workers.wait_for("deliver", "a")
    assert workers.count(None, "second", "a") == 1


def test_what_a_killed_enqueuer_was_told_is_queued(workers: Workers, client: EngineClient, url: str) -> None:
    script = (
        "import sys; from dicom_node.engine import EngineClient\n"
        "client = EngineClient(sys.argv[1])\n"
        "for n in range(100000):\n"
        "    client.enqueue('analyse', f'j{n}', f'j{n}', priority='low'); print(n, flush=True)\n"
    )
    enqueuer = subprocess.Popen([sys.executable, "-c", script, url], stdout=subprocess.PIPE, text=True)
    assert enqueuer.stdout is not None
    acknowledged = [int(enqueuer.stdout.readline()) for _ in range(20)]
    enqueuer.kill()
    acknowledged += [int(line) for line in enqueuer.stdout.read().split("\n")[:-1]]
    enqueuer.communicate()
    assert all(status(client, f"j{n}") == "ENQUEUED" for n in acknowledged)


def test_three_hundred_bounces_make_one_run(workers: Workers, client: EngineClient) -> None:
    workers.ready("w1")
    for _ in range(300):
        client.bounce("assemble", "series", 2.0, "series", longest_s=600)
    workers.wait_for("assemble", "series")
    enqueue(client, "after")
    workers.wait_for("deliver", "after")
    assert workers.count(None, "assemble", "series") == 1


def test_a_bounce_after_the_run_makes_another_run(workers: Workers, client: EngineClient) -> None:
    workers.ready("w1")
    for times in (1, 2):
        client.bounce("assemble", "series", 0.1, "series", longest_s=600)
        workers.wait_for("assemble", "series", times=times)


def test_bounces_without_an_end_run_at_the_time_limit(workers: Workers, client: EngineClient) -> None:
    workers.ready("w1")
    deadline = time.monotonic() + 20
    while not workers.count(None, "assemble", "series"):
        assert time.monotonic() < deadline
        client.bounce("assemble", "series", 30.0, "series", longest_s=2)
        time.sleep(0.2)


def waiting_runs(client: EngineClient) -> int:
    return len(client.states(status=["DELAYED"], name="assemble"))


def test_a_run_that_bounces_itself_runs_again_until_it_has_seen_enough(workers: Workers, client: EngineClient) -> None:
    grows = workers.flag("grows-series")
    grows.write_text("0.2")
    workers.ready("w1")
    client.bounce("assemble", "series", 0.0, "series", longest_s=600)
    workers.wait_for("assemble", "series", times=3)
    grows.unlink()
    workers.wait(lambda: not client.states(status=["DELAYED", "ENQUEUED", "PENDING"]))


def test_a_bounce_from_outside_and_one_of_the_run_itself_are_one(workers: Workers, client: EngineClient) -> None:
    workers.flag("grows-series").write_text("1000")
    workers.ready("w1")
    client.bounce("assemble", "series", 0.0, "series", longest_s=600)
    workers.wait(lambda: workers.count(None, "assemble", "series") and waiting_runs(client))
    client.bounce("assemble", "series", 0.0, "series", longest_s=600)
    workers.wait_for("assemble", "series", times=2)
    workers.wait(lambda: not client.states(status=["ENQUEUED", "PENDING"]))
    assert (workers.count(None, "assemble", "series"), waiting_runs(client)) == (2, 1)


def test_a_run_killed_before_its_bounce_bounces_once_after_recovery(workers: Workers, client: EngineClient) -> None:
    workers.flag("grows-series").write_text("1000")
    hold = workers.flag("hold-series")
    worker = workers.ready("w1")
    client.enqueue("assemble", "series:look", "series", priority="stat")
    workers.wait_for("assemble", "series", "w1")
    worker.kill()
    worker.wait()
    hold.unlink()
    workers.ready("w2")
    workers.wait(lambda: status(client, "series:look") == "SUCCESS")
    assert (workers.count(None, "assemble", "series"), waiting_runs(client)) == (2, 1)


def test_stat_goes_before_routine_before_low(workers: Workers, client: EngineClient) -> None:
    for priority in ("low", "routine", "stat", "high"):
        enqueue(client, priority, priority)
    workers.ready("w1")
    workers.wait(lambda: sum(line[1] == "second-done" for line in workers.lines()) == 4)
    order = [line[2] for line in workers.lines() if line[1] == "first"]
    assert order == ["stat", "high", "routine", "low"]


def test_a_cancelled_queued_job_never_starts(workers: Workers, client: EngineClient) -> None:
    enqueue(client, "a")
    client.cancel("a")
    workers.ready("w1")
    enqueue(client, "b")
    workers.wait_for("deliver", "b")
    assert status(client, "a") == "CANCELLED"
    assert workers.count(None, "first", "a") == 0


def test_a_cancelled_job_runs_when_it_is_retried(workers: Workers, client: EngineClient) -> None:
    enqueue(client, "a")
    client.cancel("a")
    workers.ready("w1")
    client.retry("a")
    workers.wait_for("deliver", "a")


def test_a_retry_begins_at_the_failed_step(workers: Workers, client: EngineClient) -> None:
    fail = workers.flag("fail-a")
    workers.ready("w1")
    enqueue(client, "a")
    workers.wait(lambda: status(client, "a") == "ERROR")
    fail.unlink()
    client.retry("a")
    workers.wait_for("deliver", "a")
    assert (workers.count(None, "first", "a"), workers.count(None, "second", "a")) == (1, 2)


def test_a_delivery_can_run_again_after_it_ended(workers: Workers, client: EngineClient) -> None:
    workers.ready("w1")
    client.enqueue("deliver", "d", "a", "pacs", priority="routine", partition="pacs")
    workers.wait(lambda: status(client, "d") == "SUCCESS")
    client.retry("d", partition="pacs")
    workers.wait_for("deliver", "a", times=2)


@pytest.mark.slow
def test_a_job_that_kills_its_workers_is_parked_and_the_queue_moves_on(workers: Workers, client: EngineClient) -> None:
    enqueue(client, "poison", "stat")
    enqueue(client, "good", "low")
    deadline = time.monotonic() + 120
    while not workers.count(None, "deliver", "good"):
        assert time.monotonic() < deadline, workers.lines()
        worker = workers.ready("w1")
        workers.wait(lambda worker=worker: worker.poll() is not None or workers.count(None, "deliver", "good"))
    workers.wait_for("poison", "poison")
    assert status(client, "poison") == "MAX_RECOVERY_ATTEMPTS_EXCEEDED"
    crashes = workers.count(None, "second", "poison")
    assert engine.MAX_CRASHES["analyse"] <= crashes <= engine.MAX_CRASHES["analyse"] + 1


@pytest.mark.slow
def test_a_second_look_waits_behind_all_jobs_and_one_that_kills_its_workers_is_given_up(
    workers: Workers, client: EngineClient
) -> None:
    client.enqueue("shadow", "job/shadow", "poison", priority="last")
    enqueue(client, "good", "low")
    ended = lambda: workers.count(None, "poison", "job/shadow")  # noqa: E731
    deadline = time.monotonic() + 120
    while not ended():
        assert time.monotonic() < deadline, workers.lines()
        worker = workers.ready("w1")
        workers.wait(lambda worker=worker: worker.poll() is not None or ended())
    looked = [argument for _, event, argument in workers.lines() if event == "second"]
    assert looked[0] == "good", "it came later, and went first"
    assert engine.MAX_CRASHES["shadow"] <= looked.count("poison") <= engine.MAX_CRASHES["shadow"] + 1
    enqueue(client, "later", "low")
    workers.wait_for("deliver", "later")


def test_a_second_worker_of_the_same_name_refuses_to_start(workers: Workers, client: EngineClient) -> None:
    workers.ready("w1")
    second = workers.start("w1", NAME_WAIT_S="0.5")
    _, errors = second.communicate(timeout=60)
    assert second.returncode != 0
    assert b"another process runs as w1" in errors
    enqueue(client, "a")
    workers.wait_for("deliver", "a", "w1")


def test_a_dead_destination_holds_up_no_other(workers: Workers, client: EngineClient) -> None:
    down = workers.flag("down-dead")
    workers.ready("w1")
    for n in range(3):
        client.enqueue("deliver", f"dead{n}", f"dead{n}", "dead", priority="stat", partition="dead")
    probes = lambda: sum(line[1] == "deliver" and line[2].startswith("dead") for line in workers.lines())  # noqa: E731
    workers.wait(probes)
    client.enqueue("deliver", "alive", "alive", "alive", priority="low", partition="alive")
    workers.wait_for("deliver", "alive")
    assert probes() == 1, "one job probes for all"
    down.unlink()
    for n in range(3):
        workers.wait_for("deliver", f"dead{n}")


def test_a_long_sleep_does_not_hold_up_a_stop(workers: Workers, client: EngineClient) -> None:
    workers.flag("down-dead")
    worker = workers.ready("w1", DRAIN_S="60")
    client.enqueue("deliver", "d", "d", "dead", priority="routine", partition="dead")
    workers.wait_for("deliver", "d")
    started = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(50) == 0
    assert time.monotonic() - started < 40


def test_enqueueing_one_id_twice_makes_one_job(workers: Workers, client: EngineClient) -> None:
    enqueue(client, "a")
    enqueue(client, "a")
    workers.ready("w1")
    enqueue(client, "b", "low")
    workers.wait_for("deliver", "b")
    assert workers.count(None, "first", "a") == 1


def test_retrying_what_the_engine_never_heard_of_is_an_error(client: EngineClient) -> None:
    with pytest.raises(StaleState, match="no workflow nothing"):
        client.retry("nothing")


# -- what may pass -------------------------------------------------------------------------------------


def test_a_step_that_finds_no_database_is_tried_again_until_it_does(workers: Workers, client: EngineClient) -> None:
    away = workers.flag("away-a")
    workers.ready("w1")
    enqueue(client, "a")
    workers.wait_for("second", "a", times=2)
    assert status(client, "a") == "PENDING"
    away.unlink()
    workers.wait_for("deliver", "a")
    assert (workers.count(None, "first", "a"), workers.count(None, "second-done", "a")) == (1, 1)


def test_a_stop_while_a_step_waits_for_its_next_try_hands_the_job_back_at_once(
    workers: Workers, client: EngineClient
) -> None:
    away = workers.flag("away-a")
    worker = workers.ready("w1", DRAIN_S="60")
    enqueue(client, "a")
    workers.wait_for("second", "a", times=3)  # the next try is four seconds away
    started = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(50) == 0
    assert time.monotonic() - started < 30
    assert status(client, "a") == "ENQUEUED"
    away.unlink()
    workers.ready("w2")
    workers.wait_for("deliver", "a", "w2")
    assert workers.count(None, "first", "a") == 1


def test_the_engine_keeps_the_place_of_an_error_and_none_of_its_text(
    workers: Workers, client: EngineClient, url: str
) -> None:
    workers.flag("fail-a")
    workers.ready("w1")
    enqueue(client, "a")
    workers.wait(lambda: status(client, "a") == "ERROR")
    database = sa.create_engine(engine.engine_url(url))
    tables = sa.MetaData()
    tables.reflect(database, schema=None if url.startswith("sqlite") else "dbos")
    with database.connect() as connection:
        kept = "".join(repr(connection.execute(sa.select(table)).all()) for table in tables.sorted_tables)
    database.dispose()
    assert "ValueError at " in kept
    assert "Canary" not in kept
    if url.startswith("sqlite"):
        folder = workers.journal.parent
        assert not any(b"Canary" in path.read_bytes() for path in folder.glob("engine.sqlite*"))


def test_a_worker_whose_name_is_held_for_a_moment_starts_when_it_is_free(
    workers: Workers, client: EngineClient
) -> None:
    held = try_lock(workers.url, engine._lock_name("w1"))
    assert held is not None
    worker = workers.start("w1")
    workers.wait_for("starts", "-", "w1")
    time.sleep(1)
    assert (worker.poll(), workers.count("w1", "ready", "-")) == (None, 0)
    held.release()
    workers.wait(lambda: workers.count("w1", "ready", "-") or worker.poll() is not None)
    assert worker.poll() is None


def test_what_is_put_off_lets_others_of_its_destination_by(workers: Workers, client: EngineClient) -> None:
    workers.flag("full-pacs-a")
    workers.ready("w1")
    client.enqueue("deliver", "a", "a", "pacs", priority="stat", partition="pacs")
    workers.wait_for("deliver", "a")
    put_off_at = time.monotonic()
    for n in range(2):
        client.enqueue("deliver", f"b{n}", f"b{n}", "pacs", priority="low", partition="pacs")
    workers.wait_for("deliver", "a:again")
    assert time.monotonic() - put_off_at > 2
    order = [line[2] for line in workers.lines() if line[1] == "deliver"]
    assert order == ["a", "b0", "b1", "a:again"]


def test_what_ended_before_a_time_is_forgotten_and_nothing_else(workers: Workers, client: EngineClient) -> None:
    hold = workers.flag("hold-b")
    workers.flag("fail-failed")
    started = time.time()
    workers.ready("w1")
    for job in ("a", "failed", "b"):
        enqueue(client, job)
    workers.wait(lambda: status(client, "deliver-a") == "SUCCESS")
    workers.wait_for("second", "b")
    enqueue(client, "queued")
    client.forget_ended(started)
    assert status(client, "a") == "SUCCESS"
    client.forget_ended(time.time() + 1)
    # What failed stays: a retry goes on from its failed step.
    assert {s.workflow_id: s.status for s in client.states()} == {
        "failed": "ERROR",
        "b": "PENDING",
        "queued": "ENQUEUED",
    }
    hold.unlink()
    workers.wait_for("deliver", "queued")


def test_forgetting_by_prefix_frees_ids_and_leaves_what_runs(workers: Workers, client: EngineClient) -> None:
    hold = workers.flag("hold-a_1")
    workers.ready("w1")
    enqueue(client, "a_1")
    workers.wait_for("second", "a_1")
    for job in ("a_1:pacs", "a_1:pacs:1", "a22"):
        enqueue(client, job)
    client.cancel("a_1:pacs")
    client.forget("a_1")
    assert {s.workflow_id: s.status for s in client.states()} == {"a_1": "PENDING", "a22": "ENQUEUED"}
    hold.unlink()
    enqueue(client, "a_1:pacs")
    workers.wait_for("deliver", "a_1:pacs")
