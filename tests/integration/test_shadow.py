"""Second looks and promotions in the rows of SQLite and PostgreSQL, and promotions of real bundles."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from dicom_node import roles
from dicom_node.agreements import agreement_of
from dicom_node.audit import Auditor, User
from dicom_node.check import check
from dicom_node.cli import app
from dicom_node.config import Config, bundle_folder, load_config
from dicom_node.control import retry_shadow
from dicom_node.db import Database
from dicom_node.engine import EngineClient, migrate
from dicom_node.errors import BundleError, ConfigError, DicomNodeError, StaleState
from dicom_node.promote import Change, models, promote, roll_back
from dicom_node.promotion import pair_of
from dicom_node.shadows import shadow_id
from tests.integration.test_db import JOB, SERIES, finish, make_job, received, record
from tests.node import fast_bundle
from tests.web import web_role

STEADY = {"name": "lung_nodule_small", "version": "1.0.0", "bundle_sha256": "a" * 64}
ANN = User(name="ann")
DARING = {"name": "lung_nodule_small", "version": "1.1.0", "bundle_sha256": "b" * 64}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peers)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'node.sqlite'}"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """With a job that is complete and was decided with a second model."""
    made = Database(url)
    made.migrate()
    record(made, received())
    complete(made, JOB)
    yield made
    made.close()


def finding(x_mm: float, *, volume_mm3: float = 200.0) -> dict[str, Any]:
    values = {"long_axis_mm": 8.0, "short_axis_mm": 7.0, "volume_mm3": volume_mm3, "score": 0.8, "side": "left"}
    return {"number": 1, "tracking_uid": "2.25.1", "center_mm": [x_mm, 0.0, 0.0], **values}


def complete(database: Database, job_id: str) -> None:
    decided = {"working_model": "steady", "shadow_model": "daring", "promoted_over": None}
    make_job(database, job_id, **decided)
    database.start_job(job_id, "w1")
    finish(database, job_id, model=STEADY, findings=[finding(0.0), finding(50.0)], objects=[])


def finish_second(database: Database, job_id: str = JOB, executor: str = "w1") -> None:
    database.finish_shadow(
        job_id, executor, findings=[finding(1.0, volume_mm3=300.0)], model=DARING, timings_s={"read": 1.0}
    )


# -- rows ----------------------------------------------------------------------------------------------


def test_a_second_look_goes_from_wanted_to_figures(database: Database) -> None:
    assert database.shadow_wanted(JOB)
    row = database.start_shadow(JOB, "w1")
    assert (row["state"], row["route"], row["model_name"], row["first_name"]) == ("running", "all", "daring", "steady")
    finish_second(database)
    assert database.shadowed("all", DARING["bundle_sha256"]) == 1
    assert database.shadowed("all", STEADY["bundle_sha256"]) == database.shadowed("x", DARING["bundle_sha256"]) == 0
    [pair] = agreement_of(database)["pairs"]
    assert pair["first"] == {**STEADY, "model": "steady"}
    assert pair["second"] == {**DARING, "model": "daring"}
    whole = pair["overall"]
    assert (whole["series"], whole["both"], whole["first_only"], whole["second_only"]) == (1, 1, 1, 0)
    assert (whole["volume_mm3"]["bias"], whole["volume_percent"]["bias"]) == (100.0, 40.0)
    assert [dict(row) for row in database.shadow_counts()] == [
        {"model_name": "daring", "route": "all", "state": "complete", "number": 1}
    ]


def test_of_many_series_the_newest_are_looked_at(database: Database) -> None:
    jobs = [JOB, *(f"{SERIES}-{number:016x}" for number in range(3))]
    for job_id in jobs[1:]:
        complete(database, job_id)
    for job_id in jobs:
        database.shadow_wanted(job_id)
        database.start_shadow(job_id, "w1")
        finish_second(database, job_id)
    runs = database.shadow_runs(most=2)
    assert [run.row["job_id"] for run in runs] == jobs[-2:]
    assert [len(run.first) for run in runs] == [2, 2]
    assert agreement_of(database, most=3)["pairs"][0]["overall"]["series"] == 3


def test_rows_that_stay_longer_than_the_job_have_no_uid_of_a_finding(database: Database) -> None:
    database.shadow_wanted(JOB)
    database.start_shadow(JOB, "w1")
    finish_second(database)
    [run] = database.shadow_runs()
    assert "tracking_uid" not in str([run.first, run.second])
    assert "tracking_uid" in database.findings(JOB)[0]


def test_a_worker_that_was_taken_for_dead_has_no_say(database: Database) -> None:
    database.shadow_wanted(JOB)
    database.start_shadow(JOB, "w1")
    database.start_shadow(JOB, "w2")
    with pytest.raises(StaleState):
        finish_second(database, executor="w1")
    finish_second(database, executor="w2")
    with pytest.raises(StaleState):
        finish_second(database, executor="w2")
    assert len(database.shadow_findings(JOB)) == 1


def test_what_killed_its_workers_is_given_up_and_the_job_stays_complete(
    database: Database, counts: Callable[[str], dict[str, float]]
) -> None:
    database.shadow_wanted(JOB)
    database.start_shadow(JOB, "w1")
    roles._park(database, f"{shadow_id(JOB)}:2", "shadow")
    row = database.shadow(JOB)
    assert row is not None
    assert (row["state"], row["problem"]) == ("given up", "its workers died while they ran it")
    assert list(counts("dicom_node_shadow_runs_total").values()) == [1.0]
    assert database.job(JOB)["state"] == "complete"  # type: ignore[index]
    with pytest.raises(StaleState):
        database.start_shadow(JOB, "w1")
    roles._park(database, shadow_id("1.2.3-unknown"), "shadow")
    assert agreement_of(database)["pairs"] == []


def test_one_that_failed_is_listed_until_it_is_asked_for_again(database: Database) -> None:
    migrate(database.url)
    database.shadow_wanted(JOB)
    with pytest.raises(StaleState):
        database.requeue_shadow(JOB)
    database.start_shadow(JOB, "w1")
    database.fail_shadow(JOB, "no such model")
    assert [row["job_id"] for row in database.failed_shadows()] == [JOB]
    assert database.failed_shadows("another") == []
    client = EngineClient(database.url)
    assert "daring looks again" in retry_shadow(database, client, JOB)
    assert database.failed_shadows() == []
    assert client.ids(shadow_id(JOB)) == [shadow_id(JOB)]
    with pytest.raises(DicomNodeError, match="is queued"):
        retry_shadow(database, client, JOB)
    client.forget(shadow_id(JOB))
    assert "daring looks again" in retry_shadow(database, client, JOB), "killed between the row and the queue"
    assert database.start_shadow(JOB, "w2")["problem"] is None
    finish_second(database, executor="w2")
    with pytest.raises(DicomNodeError, match="is complete"):
        retry_shadow(database, client, JOB)
    with pytest.raises(DicomNodeError, match="no second look"):
        retry_shadow(database, client, "1.2.3-unknown")
    client.close()


def test_only_a_complete_job_that_was_decided_with_a_second_model_wants_one(database: Database) -> None:
    assert not database.shadow_wanted("1.2.3-nothing")
    make_job(database, "1.2.3-queued")
    assert not database.shadow_wanted("1.2.3-queued")


def test_the_latest_promotion_counts_and_each_rollback_takes_one_back(database: Database) -> None:
    for model in ("daring", "third"):
        database.promote([("all", "steady")], model=model, bundle_sha256="b" * 64, forced=False, by="ann")
    assert database.promotions()["all"]["model"] == "third"
    for left in ("daring", None):
        now = database.promotions()
        assert database.roll_back([now["all"]["promotion_id"]], by="bob") == 1
        assert database.roll_back([now["all"]["promotion_id"]], by="bob") == 0
        after = database.promotions().get("all")
        assert (after and after["model"]) == left
    assert [(row["model"], row["rolled_back_by"]) for row in database.promotion_history()] == [
        ("third", "bob"),
        ("daring", "bob"),
    ]


# -- promotion of real bundles -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another bundle: the shipped network at another operating point."""
    folder = tmp_path_factory.mktemp("variant") / "bundle"
    shutil.copytree(bundle_folder("builtin:lung_nodule_small"), folder)
    edit(folder, thresholds={"proposal_score": 0.05, "operating_point": 0.9}, version="9.0.0")
    return folder


def edit(folder: Path, **update: Any) -> None:
    form = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(form | update))


class Two:
    """A node's settings with two real bundles, and its rows."""

    def __init__(self, folder: Path, variant: Path) -> None:
        self.path = folder / "config.yaml"
        (folder / "root").mkdir()
        shutil.copytree(variant, folder / "candidate")
        self.path.write_text(
            "# the administrator's own words\n"
            "storage: {root: root, min_free_gb: 0}\n"
            "models: {steady: {bundle: 'builtin:lung_nodule_small'}, daring: {bundle: candidate}}\n"
            "routes:\n"
            "  - {name: chest, model: steady, shadow: daring}\n"
            "  - {name: other, model: steady}\n"
        )
        self.candidate = folder / "candidate"
        self.database = Database(self.config.database_url())
        self.database.migrate()

    @property
    def config(self) -> Config:
        return load_config(self.path)

    def first_of(self, route: str) -> str:
        return pair_of(self.config, self.config.route(route), self.database.promotions()).model

    def ran_in_the_shadow(self, route: str = "chest") -> None:
        record(self.database, received())
        decided = {"working_model": "steady", "shadow_model": "daring", "route": route}
        self.database.create_job(
            JOB, state="queued", series_uid=SERIES, study_uid="1.2", manifest_sha256="ab", instance_count=1,
            source_ae="CT1", priority="routine", evidence={}, explanation=[], **decided,
        )  # fmt: skip
        self.database.start_job(JOB, "w1")
        finish(self.database, model=STEADY, findings=[], objects=[])
        self.database.shadow_wanted(JOB)
        self.database.start_shadow(JOB, "w1")
        by_name = {row["model"]: row for row in models(self.config, self.database)}
        identity = {key: by_name["daring"][key] for key in ("name", "version", "bundle_sha256")}
        self.database.finish_shadow(JOB, "w1", findings=[], model=identity, timings_s={})

    def roll_back(self) -> Change:
        return roll_back(self.config, self.database, route=None, by=ANN, audit=Auditor.of(self.config))

    def audited(self) -> list[str]:
        """Who did what to which model, by the audit trail."""
        lines = [json.loads(line)["message"] for line in self.trail().read_text().splitlines()]
        told = [
            re.search(r'UserID="(\w+)".*ParticipantObjectID="(.*?)".*<ParticipantObjectName>(.*?)<', line)
            for line in lines
        ]
        return [", ".join(found.groups()) for found in told if found is not None]

    def trail(self) -> Path:
        [file] = (self.config.storage.root / "audit").glob("*.jsonl")
        return file

    def promote(self, name: str = "daring", *, route: str | None = None, force: bool = False) -> tuple[str, ...]:
        return promote(
            self.config, self.database, name, route=route, force=force, by=ANN, audit=Auditor.of(self.config)
        ).routes


@pytest.fixture
def two(tmp_path: Path, variant: Path) -> Iterator[Two]:
    made = Two(tmp_path, variant)
    yield made
    made.database.close()


def test_a_model_that_ran_in_the_shadow_is_promoted_where_it_did_and_back(two: Two) -> None:
    settings = two.path.read_bytes()
    two.ran_in_the_shadow()
    assert two.promote() == ("chest",)
    assert (two.first_of("chest"), two.first_of("other")) == ("daring", "steady")
    assert two.promote() == (), "a second time changes nothing"
    assert len(two.database.promotion_history()) == 1
    assert two.path.read_bytes() == settings
    change = two.roll_back()
    assert (change.routes, two.first_of("chest")) == (("chest",), "steady")
    with pytest.raises(DicomNodeError, match="nothing to roll back"):
        two.roll_back()
    assert two.audited() == ["ann, daring on chest, model promote", "ann, daring on chest, model rollback"]


def test_one_that_never_ran_there_needs_force(two: Two) -> None:
    with pytest.raises(DicomNodeError, match="never ran in the shadow on chest"):
        two.promote()
    assert two.first_of("chest") == "steady"
    assert two.promote(force=True) == ("chest",)
    [row] = two.database.promotion_history()
    assert (row["forced"], row["promoted_by"], row["in_file"]) == (True, "ann", "steady")
    with pytest.raises(DicomNodeError, match="never ran in the shadow on other"):
        two.promote(route="other")


def test_another_bundle_under_the_name_that_ran_is_not_the_one_that_ran(two: Two) -> None:
    two.ran_in_the_shadow()
    edit(two.candidate, version="9.0.1")
    with pytest.raises(DicomNodeError, match=r"daring 9\.0\.1 never ran in the shadow"):
        two.promote()


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"x"), "was altered or cut short"),
        (lambda folder: edit(folder, licence="not stated"), "states no licence"),
        (lambda folder: edit(folder, licence=" "), "states no licence"),
        (lambda folder: edit(folder, preprocessing={"slice_offsets": [1, 2]}), "must rise and hold 0"),
        (lambda folder: edit(folder, preprocessing={"slice_offsets": [-2, -1, 0, 1, 2]}), "(?s)model bundle .*"),
        (lambda folder: shutil.rmtree(folder), "no such folder"),
    ],
)
def test_a_bundle_that_fails_its_own_check_is_not_promoted_even_by_force(
    two: Two, harm: Callable[[Path], Any], why: str
) -> None:
    two.ran_in_the_shadow()
    harm(two.candidate)
    with pytest.raises(BundleError, match=why):
        two.promote(force=True)
    assert two.first_of("chest") == "steady"


def test_names_that_are_not_there_are_said_to_be_not(two: Two) -> None:
    with pytest.raises(ConfigError, match="did you mean 'daring'"):
        two.promote("darin")
    with pytest.raises(ConfigError, match="did you mean 'chest'"):
        two.promote(route="ches")


def test_check_shows_a_promotion_and_fails_when_its_bundle_was_changed(two: Two) -> None:
    def item() -> tuple[bool, str]:
        [found] = [item for item in check(two.config) if item.name == "promotion on chest"]
        return found.ok, found.text

    two.promote(force=True)
    ok, text = item()
    assert ok
    assert "daring was promoted over steady by ann" in text
    edit(two.candidate, version="9.0.1")
    ok, text = item()
    assert not ok
    assert "the bundle is another now" in text


def test_two_who_promote_at_once_promote_once(two: Two) -> None:
    two.ran_in_the_shadow()
    with ThreadPoolExecutor(2) as pool:
        changed = list(pool.map(lambda _: two.promote(), range(2)))
    assert sorted(changed) == [(), ("chest",)]
    assert len(two.database.promotion_history()) == 1


# -- the command line ----------------------------------------------------------------------------------


def run(two: Two, *args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["model", *args, "--config", str(two.path)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 1, str(result.exception)
    return result.exit_code, result.output


def test_the_command_lists_promotes_compares_and_rolls_back(two: Two) -> None:
    two.ran_in_the_shadow()
    code, shown = run(two, "agreement")
    assert (code, "1 series, 1 alike" in shown, "Research use" in shown) == (0, True, True)
    code, shown = run(two, "agreement", "--json", "--route", "chest", "--days", "1")
    assert json.loads(shown)["pairs"][0]["overall"]["series"] == 1
    code, shown = run(two, "promote", "daring")
    assert (code, shown) == (0, "daring works on chest (was steady), for jobs that are decided from now on\n")
    code, shown = run(two, "list")
    assert "chest (promoted)" in shown
    code, shown = run(two, "list", "--json")
    listed = {row["model"]: row for row in json.loads(shown)["models"]}
    assert (listed["daring"]["works_on"], listed["steady"]["shadow_on"]) == (["chest"], ["chest"])
    assert run(two, "rollback") == (0, "chest: steady works (was daring)\n")
    assert run(two, "rollback")[0] == 1


@pytest.fixture
def api(two: Two) -> Iterator[TestClient]:
    """The web role's application, called by a program that may look."""
    with web_role(two.config, two.database) as web:
        yield web.token("operator")


def test_the_api_tells_of_agreement_and_of_models_as_promotions_stand(two: Two, api: TestClient) -> None:
    two.ran_in_the_shadow()
    shown = api.get("/api/v1/models/agreement", params={"route": "chest", "days": 1})
    assert shown.status_code == 200
    assert shown.json() == json.loads(json.dumps(agreement_of(two.database, route="chest")))
    assert shown.json()["pairs"][0]["overall"]["series"] == 1
    assert api.get("/api/v1/models/agreement", params={"route": "no route"}).status_code == 422
    two.promote()
    known = {model["name"]: model for model in api.get("/api/v1/models").json()}
    assert (known["daring"]["routes"], known["daring"]["promoted_routes"]) == (["chest"], ["chest"])
    assert (known["steady"]["routes"], known["steady"]["shadow_routes"]) == (["other"], ["chest"])
    [promotion] = api.get("/api/v1/config").json()["promotions"]
    assert (promotion["route"], promotion["in_force"]) == ("chest", True)


def test_the_pages_show_agreement_promotions_and_second_looks(two: Two, api: TestClient) -> None:
    two.ran_in_the_shadow()
    two.promote()
    shown = {page: " ".join(api.get(page).text.split()) for page in ("/models", "/configuration", f"/jobs/{JOB}")}
    assert "Agreement with models in the shadow" in shown["/models"]
    assert "In the shadow on</dt><dd>chest" in shown["/models"]
    assert 'chest</a> <span class="tag">promoted</span>' in shown["/models"]
    assert "daring was promoted over steady by ann" in shown["/configuration"]
    assert "daring, complete, <a" in shown[f"/jobs/{JOB}"]


def test_the_role_starts_without_a_bundle_that_only_shadows_and_not_without_one_that_works(
    two: Two, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "candidate")
    fast = fast_bundle(tmp_path / "fast")
    config = two.config
    config = config.model_copy(
        update={"models": config.models | {"steady": config.models["steady"].model_copy(update={"bundle": str(fast)})}}
    )
    detector = roles._detectors(config, two.database, "cpu")
    assert detector("steady").identity.name == "lung_nodule_small"
    with pytest.raises(ConfigError, match=r"model daring is not loaded: .*no such folder"):
        detector("daring")
    two.database.promote([("chest", "steady")], model="daring", bundle_sha256="x", forced=True, by="ann")
    with pytest.raises(BundleError, match="no such folder"):
        roles._detectors(config, two.database, "cpu")
