"""What an operator does to jobs, with real rows, files and workflows: each may be repeated, and races nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dicom_node import engine, schema
from dicom_node.config import Config
from dicom_node.control import purge, retry
from dicom_node.db import Row
from dicom_node.delivery import delivery_id
from dicom_node.engine import EngineClient
from dicom_node.errors import DicomNodeError, Reason, StaleState
from dicom_node.locks import try_lock
from dicom_node.retention import LOCK, Purged, Purger
from tests.unit.test_flow import SERIES, SETTINGS, Node

LATER = 1_800_000_000.0
TOO_THICK = (5.0, 0.7, 0.7)


class _Killed(BaseException):
    pass


@pytest.fixture
def node(node_config: Callable[..., Config], tmp_path: Path) -> Iterator[Node]:
    made = Node(node_config(**SETTINGS), tmp_path)
    yield made
    made.database.close()


@pytest.fixture
def client(node: Node) -> Iterator[EngineClient]:
    engine.migrate(node.database.url)
    made = EngineClient(node.database.url)
    yield made
    made.close()


def status(client: EngineClient, workflow_id: str) -> str | None:
    state = client.state(workflow_id)
    return None if state is None else state.status


def ended(client: EngineClient, workflow: str, workflow_id: str, *args: Any, partition: str | None = None) -> None:
    """A workflow that is over. No process runs any here, so it is a cancelled one."""
    client.enqueue(workflow, workflow_id, *args, priority="routine", partition=partition)
    client.cancel(workflow_id)


def stored(node: Node, job_id: str) -> None:
    for destination in ("archive", "pacs"):
        node.deliver(job_id, destination)
        assert set(node.ledger(job_id, destination)) == {"stored"}


def queued(node: Node) -> str:
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued
    return str(job_id)


# -- retry ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True])
def test_a_running_job_whose_workflow_is_over_is_taken_up(node: Node, client: EngineClient, known: bool) -> None:
    job_id = queued(node)
    if known:
        ended(client, "analyse", job_id, job_id)
    node.database.start_job(job_id, "dead/work")
    assert retry(node.database, client, job_id) == "queued for analysis"
    assert (node.job()["state"], node.job()["executor"], status(client, job_id)) == ("queued", None, "ENQUEUED")


def test_a_running_job_whose_workflow_goes_on_is_left_to_it(node: Node, client: EngineClient) -> None:
    job_id = queued(node)
    client.enqueue("analyse", job_id, job_id, priority="routine")
    node.database.start_job(job_id, "host/work")
    with pytest.raises(DicomNodeError, match="is running; nothing to retry"):
        retry(node.database, client, job_id)
    assert (node.job()["state"], node.job()["executor"]) == ("running", "host/work")


def test_a_retry_after_a_retry_makes_no_second_workflow(node: Node, client: EngineClient) -> None:
    job_id = node.complete()
    node.sender.kinds = ["refused"]
    node.deliver(job_id)
    for _ in range(2):
        assert retry(node.database, client, job_id) == "queued for delivery to archive, pacs"
        assert node.ledger(job_id) == ["waiting", "waiting"]
        assert sorted(s.workflow_id for s in client.states()) == [delivery_id(job_id, d) for d in ("archive", "pacs")]
    node.sender.kinds = ["stored"]
    stored(node, job_id)
    with pytest.raises(DicomNodeError, match="all its objects are stored"):
        retry(node.database, client, job_id)


def test_a_retry_that_was_killed_before_the_engine_heard_of_it_is_made_good_by_another(
    node: Node, client: EngineClient
) -> None:
    job_id = node.complete()
    stored_elsewhere = node.deliver(job_id, "archive")
    assert stored_elsewhere.enqueued == []
    node.database.cancel_deliveries(job_id)
    node.database.retry_deliveries(job_id)  # the first half of a retry
    assert retry(node.database, client, job_id) == "queued for delivery to pacs"
    assert status(client, delivery_id(job_id, "pacs")) == "ENQUEUED"


def test_a_retry_of_a_delivery_frees_the_ids_of_its_later_turns(node: Node, client: EngineClient) -> None:
    job_id = node.complete()
    first = delivery_id(job_id, "pacs")
    ended(client, "deliver", first, job_id, "pacs", partition="pacs")
    ended(client, "deliver", f"{first}:1", job_id, "pacs", 1, partition="pacs")
    client.enqueue("deliver", f"{first}:2", job_id, "pacs", 2, priority="routine", partition="pacs")
    retry(node.database, client, job_id)
    assert status(client, first) == "ENQUEUED"
    # Were they still there, the retried delivery could not take its next turn.
    assert [status(client, f"{first}:{turn}") for turn in (1, 2)] == [None, None]


def test_a_rejected_series_is_decided_on_again_with_the_settings_of_today(node: Node, client: EngineClient) -> None:
    node.receive(spacing_mm=TOO_THICK)
    node.assemble()
    job_id = node.job()["job_id"]
    stored(node, job_id)
    ended(client, "deliver", delivery_id(job_id, "pacs"), job_id, "pacs", partition="pacs")
    assert retry(node.database, client, job_id) == "the series is decided on again"
    assert status(client, delivery_id(job_id, "pacs")) is None
    assert [s.name for s in client.states()] == ["assemble"]
    wider = SETTINGS | {"gate": SETTINGS["gate"] | {"max_slice_spacing_mm": 5, "max_slice_thickness_mm": 5}}
    node.flow = node.flow_with(node.flow.config.model_copy(update={"gate": Config.model_validate(
        {"storage": {"root": "x"}, **wider}).gate}))  # fmt: skip
    [(workflow, again, _, _)] = node.assemble().enqueued
    assert (workflow, again, node.job()["state"]) == ("analyse", job_id, "queued")
    node.analyse(job_id)
    assert node.ledger(job_id) == ["waiting", "waiting"]


def test_a_rejected_series_that_is_decided_on_alike_makes_the_same_report(node: Node, client: EngineClient) -> None:
    node.receive(spacing_mm=TOO_THICK)
    node.assemble()
    job_id = node.job()["job_id"]
    stored(node, job_id)
    for _ in range(2):
        retry(node.database, client, job_id)
        assert [e[2] for e in node.assemble().enqueued] == [(job_id, "archive"), (job_id, "pacs")]
        assert (node.job()["state"], node.job()["reason"]) == ("rejected", Reason.TOO_THICK)
        stored(node, job_id)


def test_a_job_that_was_analysed_is_never_forgotten(node: Node, client: EngineClient) -> None:
    job_id = node.complete()
    with pytest.raises(StaleState, match="not rejected, failed or cancelled"):
        node.database.forget_job(job_id)
    assert node.ledger(job_id) == ["waiting", "waiting"]
    assert len(node.database.results(job_id)) == 2


# -- purge ---------------------------------------------------------------------------------------------


def files(node: Node) -> list[str]:
    root = node.storage.root
    return [str(p.relative_to(root)) for top in ("incoming", "results") for p in (root / top).rglob("*.dcm")]


def test_a_series_that_brings_something_new_while_it_is_purged_stays(
    node: Node, client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.receive(7)
    [(_, job_id, _, _)] = node.assemble().enqueued
    node.analyse(job_id)
    stored(node, job_id)
    ended(client, "analyse", job_id, job_id)
    real = node.database.purgeable

    def then_another(*args: Any, **options: Any) -> list[Row]:
        found = real(*args, **options)
        if len(node.database.instances(SERIES)) == 7:
            assert [row["series_uid"] for row in found] == [SERIES]
            node.receive()
        return found

    monkeypatch.setattr(node.database, "purgeable", then_another)
    removed = purge(node.database, client, node.storage, before=LATER)
    assert removed == Purged(series=0, jobs=0, bytes=0)
    assert len(files(node)) == 8 + 2
    assert (len(node.database.instances(SERIES)), node.job()["state"]) == (8, "complete")
    assert len(node.assemble().enqueued) == 1


def test_a_series_that_comes_again_after_its_purge_is_analysed_again(node: Node, client: EngineClient) -> None:
    job_id = node.complete()
    before = node.results(job_id)
    stored(node, job_id)
    ended(client, "analyse", job_id, job_id)
    ended(client, "deliver", delivery_id(job_id, "pacs"), job_id, "pacs", partition="pacs")
    ended(client, "deliver", delivery_id(job_id, "pacs") + ":1", job_id, "pacs", 1, partition="pacs")
    removed = purge(node.database, client, node.storage, before=LATER)
    assert (removed.series, removed.jobs, files(node), client.states()) == (1, 1, [], [])
    assert node.complete() == job_id
    assert node.detector.calls == 2
    assert node.results(job_id).keys() == before.keys()
    client.enqueue("analyse", job_id, job_id, priority="routine")
    assert status(client, job_id) == "ENQUEUED"
    stored(node, job_id)


def test_a_purge_that_was_killed_is_finished_by_the_next_one(
    node: Node, client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = node.complete()
    stored(node, job_id)
    real = Purger._set_aside

    def die(*args: Any) -> None:
        real(*args)
        raise _Killed

    monkeypatch.setattr(Purger, "_set_aside", die)
    with pytest.raises(_Killed):
        purge(node.database, client, node.storage, before=LATER)
    monkeypatch.undo()
    # The rows are there and the files are gone: what comes again meanwhile is taken as ever.
    assert (node.job()["job_id"], files(node)) == (job_id, [])
    node.receive()
    assert len(files(node)) == 8
    assert node.assemble().enqueued == []
    assert purge(node.database, client, node.storage, before=LATER).series == 1
    assert (files(node), node.database.jobs()) == ([], [])


def test_a_purge_by_hand_leaves_alone_what_another_process_has_half_deleted(node: Node, client: EngineClient) -> None:
    job_id = node.complete()
    stored(node, job_id)
    before = files(node)
    purger = Purger(database=node.database, engine=client, storage=node.storage)
    other = try_lock(node.database.url, LOCK)
    assert other is not None
    purger._set_aside(sorted({path.rpartition("/")[0] for path in before}))
    with pytest.raises(DicomNodeError, match="try again later"):
        purge(node.database, client, node.storage, before=LATER, wait_s=0.0)
    assert len(list((node.storage.root / "discarded").glob("*/*/*/*"))) > 0
    other.release()
    purger.settle()
    assert files(node) == before
    assert purge(node.database, client, node.storage, before=LATER, wait_s=0.0).series == 1


def test_a_dry_run_removes_nothing(node: Node, client: EngineClient) -> None:
    job_id = node.complete()
    stored(node, job_id)
    before = files(node)
    told = purge(node.database, client, node.storage, before=LATER, dry_run=True)
    assert (told.series, told.jobs, files(node)) == (1, 1, before)
    assert purge(node.database, client, node.storage, before=LATER) == told


def _events(node: Node) -> list[tuple[str, str | None]]:
    with node.database.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.select(schema.event.c.action, schema.event.c.job_id))]


def test_old_events_of_what_is_gone_go_with_it(node: Node, client: EngineClient) -> None:
    job_id = node.complete()
    stored(node, job_id)
    node.database.add_event("kept", job_id=job_id)
    purge(node.database, client, node.storage, before=node.clock)
    assert ("kept", job_id) in _events(node), "the series is too young to go, so its events stay"
    node.clock += 3600
    purge(node.database, client, node.storage, before=node.clock)
    assert [action for action, _ in _events(node)] == ["series purged"]
    node.clock += 3600
    purge(node.database, client, node.storage, before=node.clock)
    assert _events(node) == []
