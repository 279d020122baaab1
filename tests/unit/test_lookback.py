"""What comes between a series' decision and its analysis where a route compares: settled once, and never for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

from dicom_node.comparison import NoPrior, PriorFiles
from dicom_node.config import Config
from dicom_node.control import cancel, purge, retry
from dicom_node.engine import EngineClient, migrate
from dicom_node.errors import DatabaseUnavailable
from dicom_node.lookback import Found, lookback_id
from dicom_node.summary import job_summary
from tests.fakes.earlier import PRIOR_SERIES, PRIOR_STUDY, earlier_exam
from tests.unit.test_flow import SERIES, SETTINGS, FakeRun, Node

LATER = 1_800_000_000.0
[ROUTE] = SETTINGS["routes"]
COMPARES: dict[str, Any] = {
    **SETTINGS,
    "peers": {**SETTINGS["peers"], "archive": {**SETTINGS["peers"]["archive"], "may_be_queried": True}},
    "routes": [{**ROUTE, "compare_with": "archive"}],
    "priors": {"longest_wait_s": 100},
}


@pytest.fixture
def node(node_config: Callable[..., Config], tmp_path: Path) -> Iterator[Node]:
    made = Node(node_config(**COMPARES), tmp_path)
    yield made
    made.database.close()


@pytest.fixture
def client(node: Node) -> Iterator[EngineClient]:
    migrate(node.database.url)
    made = EngineClient(node.database.url)
    yield made
    made.close()


def queued(node: Node) -> str:
    node.receive()
    node.assemble()
    return str(node.job()["job_id"])


def look(node: Node, job_id: str, times: int = 1) -> FakeRun:
    run = FakeRun(times)
    node.flow.lookback.look(run, job_id)
    return run


def give_up(node: Node, job_id: str) -> FakeRun:
    run = FakeRun()
    node.flow.lookback.give_up(run, job_id)
    return run


def fetched(node: Node, job_id: str) -> Found:
    """What a look leaves in the job's folder."""
    exam = earlier_exam(node.folder / "earlier")
    folder = node.storage.prior_folder(job_id)
    images = {f"{pydicom.dcmread(path).SOPInstanceUID}.dcm": path for path in exam.images}
    node.storage.link(images, f"{folder}/images")
    results = {path.stem: path for path in exam.results}
    node.storage.link({"report.dcm": results["sr"], "segmentation.dcm": results["seg"]}, folder)
    return Found(folder=folder, study_uid=PRIOR_STUDY, series_uid=PRIOR_SERIES, size_bytes=1000)


def outcome(node: Node, job_id: str) -> str | None:
    prior = node.database.prior(job_id)
    assert prior is not None
    return prior["outcome"]


# -- the way ---------------------------------------------------------------------------------------------


def test_a_route_that_compares_looks_back_before_the_analysis(node: Node) -> None:
    node.receive()
    run = node.assemble(times=2)
    job_id = node.job()["job_id"]
    assert run.enqueued == [
        ("priors", f"{job_id}:priors", (job_id,), {"priority": "high"}),
        ("overdue", f"{job_id}:overdue", (job_id,), {"priority": "high", "delay_s": 110.0}),
    ]
    run = look(node, job_id)
    assert run.enqueued == [("analyse", job_id, (job_id,), {"priority": "high"})]
    [(archive, left_s)] = node.looked
    assert archive == "archive"
    assert 99 < left_s < 101
    assert node.job()["state"] == "queued"


def test_a_look_that_is_over_is_not_made_again(node: Node) -> None:
    job_id = queued(node)
    look(node, job_id, times=3)
    node.earlier = lambda _job_id: pytest.fail("it is settled")
    assert look(node, job_id).enqueued == [("analyse", job_id, (job_id,), {"priority": "high"})]


def test_a_look_that_runs_twice_has_one_outcome_and_leaves_nothing_behind(node: Node) -> None:
    """Killed after the fetching and before the checkpoint, or twice at once."""
    job_id = queued(node)
    fetched(node, job_id)  # of a process that was killed
    node.earlier = lambda job_id: fetched(node, job_id)
    look(node, job_id, times=2)
    prior = node.flow.lookback.of(job_id)
    assert isinstance(prior, PriorFiles)
    assert len(prior.images) == 8
    assert prior.segmentation is not None
    assert [path.parent for path in node.storage.path(f"results/{job_id}").glob("prior_*/report.dcm")] == [
        prior.report.parent
    ]
    assert (len(node.looked), outcome(node, job_id)) == (1, "found")


def test_when_the_deliver_role_is_down_the_job_goes_on_after_its_time(node: Node) -> None:
    job_id = queued(node)
    assert give_up(node, job_id).enqueued == [("analyse", job_id, (job_id,), {"priority": "high"})]
    prior = node.flow.lookback.of(job_id)
    assert prior == NoPrior(outcome="not_available", text="The look for earlier CTs took longer than 100 seconds.")
    node.earlier = lambda job_id: fetched(node, job_id)
    look(node, job_id)
    assert node.flow.lookback.of(job_id) == prior, "what comes too late changes nothing"
    assert list(node.storage.path(f"results/{job_id}").glob("prior_*")) == []


def test_a_look_that_is_in_time_is_not_given_up(node: Node) -> None:
    job_id = queued(node)
    node.earlier = lambda job_id: fetched(node, job_id)
    look(node, job_id)
    give_up(node, job_id)
    assert isinstance(node.flow.lookback.of(job_id), PriorFiles)


def test_an_analysis_that_nobody_looked_for_says_so(node: Node) -> None:
    job_id = queued(node)
    assert node.flow.lookback.of(job_id) == NoPrior(outcome="not_available", text="The archive was not looked in.")


def test_a_route_that_compares_with_nothing_has_no_look(node_config: Callable[..., Config], tmp_path: Path) -> None:
    node = Node(node_config(**SETTINGS), tmp_path)
    node.receive()
    [(workflow, job_id, _, _)] = node.assemble().enqueued
    assert workflow == "analyse"
    assert node.database.prior(job_id) is None
    assert node.flow.lookback.of(job_id) is None
    look(node, job_id)
    give_up(node, job_id)
    assert node.looked == []
    node.database.close()


# -- what goes wrong ----------------------------------------------------------------------------------


def test_an_error_nobody_foresaw_fails_no_job_and_names_no_patient(node: Node) -> None:
    def fail(_job_id: str) -> Found:
        raise RuntimeError("Canary^Secret")

    job_id = queued(node)
    node.earlier = fail
    assert look(node, job_id).enqueued != []
    assert outcome(node, job_id) == "not_available"
    assert "Canary" not in repr([dict(row) for row in node.database.events(job_id)])


def test_a_database_that_is_away_is_waited_for(node: Node) -> None:
    def away(_job_id: str) -> Found:
        raise DatabaseUnavailable("the database does not answer")

    job_id = queued(node)
    node.earlier = away
    with pytest.raises(DatabaseUnavailable):
        look(node, job_id)
    assert outcome(node, job_id) is None, "the engine tries again"


def test_a_cancelled_job_is_not_looked_for_and_a_retry_begins_with_the_look(node: Node, client: EngineClient) -> None:
    job_id = queued(node)
    cancel(node.database, client, job_id)
    assert look(node, job_id).enqueued == give_up(node, job_id).enqueued == []
    assert node.looked == []
    node.clock += 1000
    assert retry(node.database, client, job_id) == "queued; an earlier CT is looked for first"
    assert [state.workflow_id for state in client.states()] == [lookback_id(job_id)]
    look(node, job_id)
    [(_, left_s)] = node.looked
    assert left_s > 99, "with its whole time"
    node.database.cancel_job(job_id)
    assert retry(node.database, client, job_id) == "queued for analysis", "what it is compared with is settled"


def test_a_job_that_is_gone_is_nothing_to_do(node: Node) -> None:
    assert look(node, "1.2.3-0123456789abcdef").enqueued == give_up(node, "1.2.3-0123456789abcdef").enqueued == []


# -- series that come for a comparison alone --------------------------------------------------------------


def test_a_series_that_an_archive_sends_for_a_comparison_is_not_analysed(node: Node) -> None:
    node.database.series_expected(SERIES, "archive", node.clock + 600)
    node.receive(5)
    assert node.assemble().enqueued == []
    assert node.database.jobs() == []
    assert node.database.series_to_assemble() == [], "nor at the next start"


def test_the_same_series_sent_when_that_is_over_is_analysed_as_any(node: Node) -> None:
    node.database.series_expected(SERIES, "archive", node.clock + 600)
    node.receive(5)
    node.database.series_fetched(SERIES, node.clock, lambda: node.storage.discard("incoming"))
    assert node.database.instances(SERIES) == []
    node.clock += 1
    node.storage.path("incoming").mkdir()
    node.receive()
    assert [enqueued[0] for enqueued in node.assemble().enqueued] == ["priors", "overdue"]


def test_what_came_late_of_a_prior_goes_with_a_purge(node: Node, client: EngineClient) -> None:
    node.database.series_expected(SERIES, "archive", node.clock + 600)
    node.receive(5)
    node.assemble()
    assert purge(node.database, client, node.storage, before=LATER).series == 1
    assert node.database.instances(SERIES) == []
    assert not node.database.is_expected(SERIES)


def test_a_series_that_has_a_job_is_never_cleared_away(node: Node) -> None:
    queued(node)
    node.database.series_expected(SERIES, "archive", node.clock + 600)
    node.database.series_fetched(SERIES, node.clock, lambda: pytest.fail("its files are a job's"))
    assert len(node.database.instances(SERIES)) == 8


# -- afterwards ----------------------------------------------------------------------------------------


def test_a_purge_of_the_job_takes_the_priors_files_and_leaves_those_of_other_jobs(
    node: Node, client: EngineClient
) -> None:
    job_id = queued(node)
    node.earlier = lambda job_id: fetched(node, job_id)
    look(node, job_id)
    prior = node.flow.lookback.of(job_id)
    assert isinstance(prior, PriorFiles)
    other = node.storage.prior_folder("1.2.3-0123456789abcdef")
    node.storage.link({path.name: path for path in prior.images}, f"{other}/images")
    node.analyse(job_id)
    for destination in ("pacs", "archive"):
        node.deliver(job_id, destination)
    gone = purge(node.database, client, node.storage, before=LATER)
    assert (gone.series, gone.jobs) == (1, 1)
    assert not node.storage.path(f"results/{job_id}").exists()
    assert node.database.prior(job_id) is None
    assert len(list(node.storage.path(f"{other}/images").iterdir())) == 8


def test_what_was_compared_is_shown_with_the_job(node: Node) -> None:
    job_id = queued(node)
    shown = job_summary(node.database, node.storage, job_id)["comparison"]
    assert (shown["archive"], shown["outcome"]) == ("archive", "looking")
    look(node, job_id)
    node.analyse(job_id)
    shown = job_summary(node.database, node.storage, job_id)
    assert shown["comparison"] == {
        "archive": "archive",
        "outcome": "not_available",
        "text": "The test has none.",
        "study_instance_uid": None,
        "series_instance_uid": None,
    }
    assert [event["action"] for event in shown["events"]][1:3] == ["prior wanted", "prior settled"]
