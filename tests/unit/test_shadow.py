"""A second model in the shadow of the first: it sees the same, is kept apart, and delays and harms nothing."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom_node.agreements import agreement_of
from dicom_node.analysis import Detector
from dicom_node.config import Config
from dicom_node.control import purge
from dicom_node.domain import Detection, Volume
from dicom_node.errors import DatabaseUnavailable, OutOfSpace, Reason, SeriesRejected
from dicom_node.flow import Flow
from dicom_node.promotion import pair_of, promotion_lines
from dicom_node.retention import kept
from dicom_node.shadows import shadow_id, shadowed_job
from dicom_node.summary import job_summary
from tests.unit.test_flow import SETTINGS, FakeDetector, FakeRun, Node

ROUTE = {"name": "chest", "model": "steady", "shadow": "daring", "destinations": ["pacs"], "priority": "high"}
MODELS = {name: {"bundle": "builtin:lung_nodule_small"} for name in ("steady", "daring", "third")}


class SecondDetector(FakeDetector):
    """Another bundle, that sees a larger ball, and keeps what it was shown."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.shown = name, b""
        self.radius_mm = 6.0 if name == "steady" else 7.0

    def detect(self, volume: Volume, *, progress: Callable[[float], None] | None = None) -> Detection:
        self.shown = volume.hu.tobytes()
        seen = super().detect(volume, progress=progress)
        model = dataclasses.replace(seen.model, name=self.name, bundle_sha256=self.name * 8)
        return dataclasses.replace(seen, model=model)


class TwoModels(Node):
    """The node of the workflows' tests with a detector a name."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.detectors = {name: SecondDetector(name) for name in MODELS}
        super().__init__(config, folder)

    def flow_with(self, config: Config, executor_id: str = "host/work") -> Flow:
        return dataclasses.replace(super().flow_with(config, executor_id), detector=self._named)

    def _named(self, name: str) -> Detector:
        return self.detectors[name]

    def complete(self, images: int | None = None) -> str:
        """Of the whole series, or of its first images."""
        self.receive(images)
        [(_, job_id, _, _)] = self.assemble().enqueued
        self.analyse(job_id)
        return str(job_id)

    def look(self, job_id: str, turn: int = 0, times: int = 1) -> FakeRun:
        run = FakeRun(times)
        self.flow.shadow.look(run, job_id, turn)
        return run

    def promote(self, model: str) -> None:
        self.database.promote([("chest", "steady")], model=model, bundle_sha256="x", forced=False, by="ann")

    def delivered_files(self, job_id: str) -> dict[str, bytes]:
        """What lies where results lie."""
        folder = self.storage.path(f"results/{job_id}")
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def state(self, job_id: str) -> str:
        row = self.database.shadow(job_id)
        assert row is not None
        return str(row["state"])


@pytest.fixture
def make_two(node_config: Callable[..., Config], tmp_path: Path) -> Iterator[Callable[..., TwoModels]]:
    made: list[TwoModels] = []

    def make(**route: Any) -> TwoModels:
        sections = {**SETTINGS, "models": MODELS, "routes": [{**ROUTE, **route}]}
        made.append(TwoModels(node_config(**sections), tmp_path))
        return made[-1]

    yield make
    for node in made:
        node.database.close()


@pytest.fixture
def two(make_two: Callable[..., TwoModels]) -> TwoModels:
    return make_two()


# -- when it runs --------------------------------------------------------------------------------------


def test_the_second_model_is_asked_for_when_all_deliveries_are_on_their_way(two: TwoModels) -> None:
    two.receive()
    [(_, job_id, _, _)] = two.assemble().enqueued
    run = two.analyse(job_id)
    assert [(name, one, args) for name, one, args, _ in run.enqueued] == [
        ("deliver", f"{job_id}:pacs", (job_id, "pacs")),
        ("shadow", shadow_id(job_id), (job_id, 0)),
    ]
    assert run.enqueued[1][3] == {"priority": "last"}
    assert run.steps == ["analyse", "corrections", "want shadow"]
    assert (two.detectors["steady"].calls, two.detectors["daring"].calls, two.state(job_id)) == (1, 0, "queued")


def test_a_route_without_a_second_model_has_no_such_step(make_two: Callable[..., TwoModels]) -> None:
    node = make_two(shadow=None)
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued
    run = node.analyse(job_id)
    assert (run.steps, [name for name, *_ in run.enqueued]) == (["analyse", "corrections"], ["deliver"])
    assert node.database.shadow(job_id) is None


def test_a_job_that_came_to_no_result_has_no_shadow(two: TwoModels) -> None:
    def no_lung() -> None:
        raise SeriesRejected(Reason.NO_LUNG, "no lung")

    two.receive()
    [(_, job_id, _, _)] = two.assemble().enqueued
    two.detectors["steady"].also = no_lung
    run = two.analyse(job_id)
    assert two.job()["state"] == "rejected"
    assert all(name != "shadow" for name, *_ in run.enqueued)


def test_the_workflow_of_a_job_is_found_by_its_id_and_is_that_of_no_destination(two: TwoModels) -> None:
    assert shadowed_job(f"{shadow_id('1.2.3-ab')}:4") == "1.2.3-ab"
    # A destination may be named shadow; names have no slash.
    assert "/" in shadow_id("1.2.3-ab")


# -- what it does --------------------------------------------------------------------------------------


def test_both_models_are_shown_the_same_voxels(two: TwoModels) -> None:
    job_id = two.complete()
    two.look(job_id)
    assert two.detectors["daring"].shown == two.detectors["steady"].shown != b""


def test_its_findings_are_rows_pictures_and_masks(two: TwoModels) -> None:
    job_id = two.complete()
    two.look(job_id)
    [found] = two.database.shadow_findings(job_id)
    assert found["volume_mm3"] > two.database.findings(job_id)[0]["volume_mm3"]
    folder = two.storage.path(f"results/{job_id}/shadow")
    assert sorted(path.name for path in folder.iterdir()) == ["finding_1.png", "masks.npz"]
    with np.load(io.BytesIO((folder / "masks.npz").read_bytes()), allow_pickle=False) as masks:
        box = masks["shape_1"]
        mask = np.unpackbits(masks["bits_1"], count=int(box.prod())).reshape(box)
        voxel_mm3 = abs(np.linalg.det(masks["affine"][:3, :3]))
        assert mask.sum() * voxel_mm3 == pytest.approx(found["volume_mm3"], abs=0.01)
        assert (masks["corner_1"] + box <= masks["shape"]).all()
    shown = job_summary(two.database, two.storage, job_id)["shadow"]
    assert (shown["state"], shown["model_name"], len(shown["findings"]), len(shown["files"])) == (
        "complete", "daring", 1, 2,
    )  # fmt: skip


def test_nothing_of_it_is_anything_that_could_be_delivered(two: TwoModels) -> None:
    job_id = two.complete()
    before = two.database.results(job_id), two.database.deliveries(job_id), two.delivered_files(job_id)
    two.look(job_id)
    assert (two.database.results(job_id), two.database.deliveries(job_id), two.delivered_files(job_id)) == before
    assert two.database.findings(job_id)[0]["volume_mm3"] < two.database.shadow_findings(job_id)[0]["volume_mm3"]
    for path in two.storage.path(f"results/{job_id}/shadow").rglob("*"):
        assert path.read_bytes()[128:132] != b"DICM"
        with pytest.raises(pydicom.errors.InvalidDicomError):
            pydicom.dcmread(path)
    two.deliver(job_id)
    [(names, _, _)] = two.sender.sent
    assert sorted(names) == ["seg.dcm", "sr.dcm"]


@pytest.mark.parametrize("name", ["seg.dcm", "../sr.dcm", "sr", "masks.npz.dcm", "a/b.png"])
def test_storage_takes_no_dicom_file_for_the_shadow(two: TwoModels, name: str) -> None:
    with pytest.raises(ValueError, match="not a job id or a name"):
        two.storage.write_shadow("1.2.3-abc", name, b"x")


def test_twice_is_once(two: TwoModels) -> None:
    job_id = two.complete()
    two.look(job_id)
    before = two.database.shadow_findings(job_id), two.database.shadow(job_id)
    assert two.look(job_id).enqueued == []
    two.analyse(job_id)
    assert (two.database.shadow_findings(job_id), two.database.shadow(job_id)) == before
    assert two.detectors["daring"].calls == 1


def test_a_series_that_was_purged_and_comes_again_is_looked_at_again(two: TwoModels) -> None:
    job_id = two.complete()
    two.look(job_id)
    two.deliver(job_id)
    two.clock += 90 * 86400
    gone = purge(two.database, NoEngine(), two.storage, before=two.clock, kept=kept(two.flow.config, two.clock))
    assert gone.series == 1
    assert not two.storage.path(f"results/{job_id}").exists()
    # The numbers stay, so that agreement over time does not end with the files.
    assert agreement_of(two.database)["pairs"][0]["overall"]["both"] == 1
    assert two.complete() == job_id
    assert two.state(job_id) == "queued"
    two.look(job_id)
    assert two.state(job_id) == "complete"


class NoEngine:
    """The engine's part of a purge, where no engine ever ran."""

    def abandon(self, workflow_id: str) -> None: ...

    def forget_ended(self, before: float) -> None: ...


# -- what goes wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [RuntimeError("Canary^Secret"), SeriesRejected(Reason.NO_LUNG, "no lung"), OutOfSpace("full")]
)
def test_a_failure_of_the_second_model_ends_in_its_own_row(
    two: TwoModels, error: Exception, counts: Callable[[str], dict[str, float]]
) -> None:
    def fail() -> None:
        raise error

    job_id = two.complete()
    two.detectors["daring"].also = fail
    assert two.look(job_id).enqueued == []
    row = two.database.shadow(job_id)
    assert row is not None
    assert row["state"] == "failed"
    assert "Canary" not in row["problem"]
    assert counts("dicom_node_shadow_runs_total") == {"daring failed": 1}
    assert two.job()["state"] == "complete"
    assert two.ledger(job_id) == ["waiting", "waiting"]


def test_a_bundle_that_is_not_loaded_fails_the_second_look_alone(two: TwoModels) -> None:
    job_id = two.complete()
    del two.detectors["daring"]
    two.look(job_id)
    assert (two.state(job_id), two.job()["state"]) == ("failed", "complete")


def test_a_database_that_is_away_is_waited_for(two: TwoModels) -> None:
    def away() -> None:
        raise DatabaseUnavailable("away")

    job_id = two.complete()
    two.detectors["daring"].also = away
    with pytest.raises(DatabaseUnavailable):
        two.look(job_id)
    assert two.state(job_id) == "running"
    two.detectors["daring"].also = lambda: None
    two.look(job_id)
    assert two.state(job_id) == "complete"


def test_it_gives_way_to_a_job_that_waits_and_comes_again_behind_it(
    two: TwoModels, counts: Callable[[str], dict[str, float]]
) -> None:
    job_id = two.complete(6)

    def a_job_comes() -> None:
        two.receive()
        two.assemble()
        two.clock += 3.0

    two.detectors["daring"].also = a_job_comes
    run = two.look(job_id)
    assert [(name, one, args, more) for name, one, args, more in run.enqueued] == [
        ("shadow", f"{shadow_id(job_id)}:1", (job_id, 1), {"priority": "last"})
    ]
    assert two.state(job_id) == "queued"
    two.detectors["daring"].also = lambda: None
    two.detectors["daring"].after = lambda: setattr(two, "clock", two.clock + 3.0)
    assert two.look(job_id, 5).enqueued == []  # for the last time it goes through
    assert two.state(job_id) == "complete"
    assert two.look(job_id, 6).enqueued == []  # over: counted once
    assert counts("dicom_node_shadow_runs_total") == {"daring gave_way": 1, "daring complete": 1}


def test_a_job_that_waits_for_an_earlier_ct_needs_no_worker(two: TwoModels) -> None:
    two.receive()
    [(_, job_id, _, _)] = two.assemble().enqueued
    two.clock += 10
    assert two.database.job_waits(two.clock)
    two.database.prior_wanted(job_id, "pacs")
    assert not two.database.job_waits(two.clock)
    two.database.prior_settled(job_id, "no_prior", "none")
    assert two.database.job_waits(two.clock)


# -- agreement -----------------------------------------------------------------------------------------


def test_agreement_is_told_of_the_pair_of_bundles_that_saw_the_series(two: TwoModels) -> None:
    two.look(two.complete())
    shown = agreement_of(two.database)
    [pair] = shown["pairs"]
    assert (pair["first"]["model"], pair["second"]["model"], pair["routes"]) == ("steady", "daring", ["chest"])
    assert (pair["first"]["bundle_sha256"], pair["second"]["bundle_sha256"]) == ("steady" * 8, "daring" * 8)
    assert (pair["overall"]["series"], pair["overall"]["both"], pair["overall"]["agreement"]) == (1, 1, 1.0)
    assert pair["overall"]["volume_mm3"]["bias"] > 0
    assert [each["series"] for each in pair["periods"]] == [1]
    assert "LUNA16" in shown["rule"]
    assert agreement_of(two.database, route="another")["pairs"] == []
    assert agreement_of(two.database, since=two.clock + 1e6)["pairs"] == []


# -- promotion -----------------------------------------------------------------------------------------


def test_the_two_change_places_for_jobs_that_are_decided_after_a_promotion(two: TwoModels) -> None:
    older = two.complete(6)
    two.promote("daring")
    newer = two.complete()
    assert newer != older
    job = two.database.job(newer)
    assert job is not None
    assert (job["working_model"], job["shadow_model"], job["promoted_over"]) == ("daring", "steady", "steady")
    assert job["model"]["name"] == "daring"
    two.look(newer)
    assert two.database.shadow(newer)["model"]["name"] == "steady"  # type: ignore[index]
    assert two.database.job(older)["model"]["name"] == "steady"  # type: ignore[index]


def test_after_a_rollback_the_first_works_again(two: TwoModels) -> None:
    two.promote("daring")
    two.complete(6)
    two.database.roll_back([two.database.promotions()["chest"]["promotion_id"]], by="ann")
    job = two.database.job(two.complete())
    assert job is not None
    assert (job["working_model"], job["shadow_model"], job["promoted_over"]) == ("steady", "daring", None)


def test_the_report_says_over_which_model_the_one_was_promoted(two: TwoModels) -> None:
    two.promote("daring")
    job_id = two.complete()
    sr = pydicom.dcmread(two.storage.path(f"results/{job_id}/sr.dcm"))
    assert 'route.promoted_over="steady"' in sr.to_json().replace('\\"', '"')


def test_a_report_of_the_model_in_the_settings_says_nothing_of_promotion(two: TwoModels) -> None:
    sr = pydicom.dcmread(two.storage.path(f"results/{two.complete()}/sr.dcm"))
    assert "promoted" not in sr.to_json()


def test_a_retry_of_an_older_job_works_with_the_model_it_was_decided_with(two: TwoModels) -> None:
    two.receive()
    [(_, job_id, _, _)] = two.assemble().enqueued
    two.database.start_job(job_id, "host/work")
    two.database.fail_job(job_id, "the power went")
    two.promote("daring")
    two.database.requeue_job(job_id)
    two.analyse(job_id)
    job = two.job()
    assert (job["state"], job["model"]["name"], job["shadow_model"]) == ("complete", "steady", "daring")


def test_a_series_that_is_decided_on_again_gets_the_promoted_model(two: TwoModels) -> None:
    two.receive(header={"Modality": "MR"})
    two.assemble()
    job_id = two.job()["job_id"]
    two.promote("daring")
    two.database.forget_job(job_id)
    two.receive(header={"Modality": "CT"})
    [(_, again, _, _)] = two.assemble().enqueued
    assert two.database.job(again)["working_model"] == "daring"  # type: ignore[index]


def test_a_job_of_an_older_version_works_with_the_model_of_the_settings(two: TwoModels) -> None:
    import sqlalchemy as sa

    from dicom_node import schema

    two.receive()
    [(_, job_id, _, _)] = two.assemble().enqueued
    with two.database.engine.begin() as connection:
        connection.execute(sa.update(schema.job).values(working_model=None, shadow_model=None))
    two.promote("daring")
    two.analyse(job_id)
    assert two.job()["model"]["name"] == "steady"


def test_the_settings_win_over_a_promotion_that_they_no_longer_fit(make_two: Callable[..., TwoModels]) -> None:
    node = make_two()
    node.promote("daring")
    rows = node.database.promotions()
    config = node.flow.config
    [route] = config.routes

    def changed(**update: Any) -> Config:
        return config.model_copy(update={"routes": (route.model_copy(update=update),)})

    assert pair_of(config, route, rows).model == "daring"
    third = changed(model="third")
    assert pair_of(third, third.routes[0], rows).model == "third"
    without = config.model_copy(update={"models": {k: v for k, v in config.models.items() if k != "daring"}})
    assert pair_of(without, route, rows).model == "steady"
    renamed = changed(name="other")
    assert pair_of(renamed, renamed.routes[0], rows).model == "steady"
    assert [ok for _, ok, _ in promotion_lines(config, rows)] == [True]
    for settings, why in ((third, "names model third now"), (without, "has no daring"), (renamed, "has no chest")):
        [(name, ok, text)] = promotion_lines(settings, rows)
        assert (name, ok) == ("chest", False)
        assert why in text
        assert "rollback --route chest" in text


@pytest.mark.parametrize(
    ("shadow", "promoted", "expected"),
    [
        ("daring", "daring", ("daring", "steady", "steady")),
        ("daring", "steady", ("steady", "daring", None)),
        ("daring", "third", ("third", "daring", "steady")),
        (None, "third", ("third", None, "steady")),
    ],
)
def test_who_works_and_who_shadows_after_a_promotion(
    make_two: Callable[..., TwoModels], shadow: str | None, promoted: str, expected: tuple[str, str | None, str | None]
) -> None:
    node = make_two(shadow=shadow)
    node.promote(promoted)
    pair = pair_of(node.flow.config, node.flow.config.routes[0], node.database.promotions())
    assert (pair.model, pair.shadow, pair.promoted_over) == expected


def test_a_route_may_not_name_one_model_twice_or_one_that_is_not_there(node_config: Callable[..., Config]) -> None:
    for shadow, why in (("steady", "names one model twice"), ("darin", "did you mean 'daring'")):
        with pytest.raises(ValueError, match=why):
            node_config(**{**SETTINGS, "models": MODELS, "routes": [{**ROUTE, "shadow": shadow}]})
