"""Corrected objects that a peer sends: recognised, compared, waiting, refused; and exported as training cases."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset

from dicom_node.cases import Exported, export_cases
from dicom_node.cases.pseudonyms import Pseudonyms, read_salt
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.errors import ConfigError, DatabaseUnavailable, Reason, SeriesRejected
from dicom_node.reviews import shown
from dicom_node.summary import job_summary
from tests.fakes.corrected import corrected_seg, images_of, structure_set
from tests.fakes.ct import HEADER, make_ct_series
from tests.fakes.recipes import tiny_text
from tests.unit.test_flow import SETTINGS, FakeRun, Node

CANARY = "Zebrafinch"
READER = {"ae_title": "CT1", "host": "h", "may_send": True, "may_correct": True}
WHEN = datetime(2026, 6, 1, 10, 11, 12)
NAMES = Pseudonyms(salt=b"0123456789abcdef")


@pytest.fixture
def make(node_config: Callable[..., Config], tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def build(**reader: Any) -> Node:
        peers = {**SETTINGS["peers"], "reader": {**READER, **reader}}
        also = {"also_accept": ["images", "results"], "unknown_peers": "accept"}
        made.append(Node(node_config(**{**SETTINGS, "peers": peers, "receive": also}), tmp_path))
        return made[-1]

    yield build
    for node in made:
        node.database.close()


@pytest.fixture
def node(make: Callable[..., Node]) -> Node:
    return make()


def send(node: Node, ds: Dataset, *, times: int = 1) -> FakeRun:
    """A peer stores it, and its quiet time passes."""
    path = node.folder / "sent.dcm"
    ds.save_as(path, enforce_file_format=True)
    run = FakeRun()
    for _ in range(times):
        node._store(path)
        node.clock += 60
        node.flow.assembly.assemble(run, str(ds.SeriesInstanceUID))
    assert run.enqueued == []
    return run


def ours_of(node: Node, job_id: str) -> tuple[Path, Dataset]:
    [path] = node.storage.path(f"results/{job_id}").glob("seg*.dcm")
    return path, pydicom.dcmread(path)


def mask_of(node: Node, job_id: str) -> np.ndarray[Any, Any]:
    grid, [mine] = node.flow.reviews.examiner.analysed(job_id)
    assert mine.region is not None
    mask = np.zeros(grid.shape, np.bool_)
    mask[tuple(mine.region.index().T)] = True
    return mask


def images(node: Node) -> list[Dataset]:
    return images_of(sorted((node.folder / "scanner").glob("*.dcm")))


def tracking(node: Node, job_id: str) -> str:
    return str(node.database.findings(job_id)[0]["tracking_uid"])


def verdicts(node: Node) -> list[str]:
    [row] = node.database.corrections()
    return [each["verdict"] for each in row["verdicts"]]


def refers_to(result: Dataset, ds: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = result.SOPClassUID, result.SOPInstanceUID
    ds.ReferencedInstanceSequence = [item]
    return ds


def new_nodule(mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    other = np.zeros_like(mask)
    other[3:5, 10:16, 10:16] = True
    return other


def test_a_corrected_segmentation_becomes_a_row_and_no_job(node: Node) -> None:
    job_id = node.complete()
    mask = mask_of(node, job_id)
    smaller = mask & np.roll(mask, 2, axis=2)
    ds = corrected_seg(images(node), [("Nodule 1", tracking(node, job_id), smaller), ("", "", new_nodule(mask))])
    send(node, ds, times=2)
    [row] = node.database.corrections(job_id=job_id)
    assert (row["state"], row["recognised_by"], row["kind"]) == ("compared", "tracking", "seg")
    assert verdicts(node) == ["changed", "added"]
    assert len(node.database.jobs()) == 1
    assert job_summary(node.database, node.storage, job_id)["corrections"] == [shown(row, node.database)]


def test_our_own_objects_that_come_back_are_no_corrections(node: Node) -> None:
    job_id = node.complete()
    for path in node.storage.path(f"results/{job_id}").glob("*.dcm"):
        send(node, pydicom.dcmread(path))
    assert node.database.corrections() == []
    _, ds = ours_of(node, job_id)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "2.25.4711"  # an archive that renames
    ds.SeriesInstanceUID = "2.25.4712"
    send(node, ds)
    assert [row["state"] for row in node.database.corrections()] == ["ours"]
    assert len(node.database.jobs()) == 1


def test_a_correction_before_the_analysis_ends_waits_for_it(node: Node) -> None:
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued
    mask = np.zeros((8, 64, 64), np.bool_)
    mask[3:5, 10:16, 10:16] = True
    send(node, corrected_seg(images(node), [("", "", mask)]))
    assert [row["state"] for row in node.database.corrections()] == ["waiting"]
    node.analyse(job_id)
    assert verdicts(node) == ["unreviewed", "added"]


def added(node: Node) -> Dataset:
    return corrected_seg(images(node), [("", "", new_nodule(np.zeros((8, 64, 64), np.bool_)))])


def test_a_correction_recorded_while_the_analysis_ends_does_not_wait_for_ever(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued
    record = Database.record_correction

    def record_late(database: Database, uid: str, **values: Any) -> None:
        if values["state"] == "waiting":
            node.analyse(job_id)
        record(database, uid, **values)

    monkeypatch.setattr(Database, "record_correction", record_late)
    send(node, added(node))
    assert verdicts(node) == ["unreviewed", "added"]


def test_a_correction_of_a_ct_that_is_rejected_is_refused_until_the_rest_of_it_comes(node: Node) -> None:
    node.receive(count=3)
    send(node, added(node))
    assert [row["state"] for row in node.database.corrections()] == ["waiting"]
    node.assemble()
    [row] = node.database.corrections()
    [rejected] = node.database.jobs(state="rejected")
    assert (row["state"], row["text"]) == ("refused", f"the CT is not analysed: {rejected['reason_text']}")
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued
    node.analyse(job_id)
    assert verdicts(node) == ["unreviewed", "added"]


def test_a_correction_is_refused_where_the_analysis_rejects_the_ct(node: Node) -> None:
    def reject() -> None:
        raise SeriesRejected(Reason.SLICE_GAP, "a gap")

    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued
    send(node, added(node))
    node.detector.also = reject
    node.analyse(job_id)
    [row] = node.database.corrections()
    assert (row["state"], row["text"]) == ("refused", "the CT is not analysed: a gap")


def test_a_correction_of_an_older_revision_is_compared_with_that_one(node: Node) -> None:
    first = node.complete()
    node.detector.radius_mm = 4.0
    late = make_ct_series(node.folder / "late", shape=(9, 64, 64))[-1]
    node._store(late)
    [(_, second, _, _)] = node.assemble().enqueued
    node.analyse(second)
    assert second != first
    mask = mask_of(node, first)
    send(node, corrected_seg(images(node), [("Nodule 1", tracking(node, first), mask)]))
    [row] = node.database.corrections()
    assert (row["job_id"], [v["verdict"] for v in row["verdicts"]]) == (first, ["confirmed"])


def test_a_structure_set_is_known_by_study_and_frame_of_reference(node: Node) -> None:
    job_id = node.complete()
    grid, [mine] = node.flow.reviews.examiner.analysed(job_id)
    x, y, z = mine.center_mm
    square = np.array([[x - 1, y - 1, z], [x + 1, y - 1, z], [x + 1, y + 1, z], [x - 1, y + 1, z]])
    z = float(grid.to_mm(np.array([4.0, 0, 0]))[2])
    square[:, 2] = z
    send(node, structure_set(images(node), {"lesion": [square]}))
    [row] = node.database.corrections()
    assert (row["recognised_by"], row["state"], row["job_id"]) == ("frame_of_reference", "compared", job_id)
    assert verdicts(node) == ["changed"]


def test_who_may_not_correct_is_told_apart(make: Callable[..., Node]) -> None:
    node = make(may_correct=False)
    job_id = node.complete()
    send(node, corrected_seg(images(node), [("Nodule 1", tracking(node, job_id), mask_of(node, job_id))]))
    [row] = node.database.corrections()
    assert (row["state"], row["text"], row["verdicts"]) == ("refused", "CT1 is no peer with may_correct", [])


def test_a_hostile_correction_is_refused_with_a_reason_and_harms_nothing(node: Node) -> None:
    job_id = node.complete()
    ds = corrected_seg(images(node), [("Nodule 1", tracking(node, job_id), mask_of(node, job_id))])
    ds.PixelData = ds.PixelData[:4]
    ds.SegmentSequence[0].SegmentLabel = CANARY
    send(node, ds)
    [row] = node.database.corrections()
    assert (row["state"], row["text"]) == ("refused", "the segmentation has fewer pixels than it states")


def test_a_segmentation_of_something_else_is_rejected_as_before(node: Node) -> None:
    job_id = node.complete()
    ds = corrected_seg(images(node), [("", "", mask_of(node, job_id))])
    ds.StudyInstanceUID = "1.2.3.4"
    del ds.SourceImageSequence
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3.4.5"
    ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence = []
    send(node, ds)
    assert node.database.corrections() == []
    assert {job["reason"] for job in node.database.jobs() if job["state"] == "rejected"} == {"NOT_CT"}


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("StudyInstanceUID", "it is of another study than the result that it refers to"),
        ("PatientID", "its Patient ID is not that of the CT"),
    ],
)
def test_a_reference_from_another_study_or_patient_is_refused(node: Node, keyword: str, text: str) -> None:
    job_id = node.complete()
    ds = refers_to(ours_of(node, job_id)[1], corrected_seg(images(node), [("", "", mask_of(node, job_id))]))
    setattr(ds, keyword, "1.2.3.4")
    send(node, ds)
    [row] = node.database.corrections()
    assert (row["state"], row["text"], row["recognised_by"]) == ("refused", text, "reference")
    assert len(node.database.jobs()) == 1


def is_judged_as_before(node: Node, ds: Dataset) -> bool:
    send(node, ds)
    jobs = node.database.jobs(series_uid=str(ds.SeriesInstanceUID))
    return node.database.corrections() == [] and [job["reason"] for job in jobs] == ["NOT_CT"]


def test_a_malformed_reference_leaves_no_series_undecided(node: Node) -> None:
    job_id = node.complete()
    ds = corrected_seg(images(node), [("Nodule 1", tracking(node, job_id), mask_of(node, job_id))])
    ds.add_new("PredecessorDocumentsSequence", "LO", tracking(node, job_id))
    assert is_judged_as_before(node, ds)


def test_what_nobody_foresaw_in_a_correction_leaves_no_series_undecided(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_row: Any, **_values: Any) -> None:
        raise sa.exc.DataError("insert", {}, Exception())

    job_id = node.complete()
    ds = corrected_seg(images(node), [("Nodule 1", tracking(node, job_id), mask_of(node, job_id))])
    monkeypatch.setattr(Database, "record_correction", fail)
    assert is_judged_as_before(node, ds)
    assert "correction not recognised" in caplog.messages


def test_a_database_that_is_away_is_no_fault_of_the_correction(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_row: Any, **_values: Any) -> None:
        raise DatabaseUnavailable("it restarts")

    job_id = node.complete()
    ds = corrected_seg(images(node), [("Nodule 1", tracking(node, job_id), mask_of(node, job_id))])
    with monkeypatch.context() as away:
        away.setattr(Database, "record_correction", fail)
        with pytest.raises(DatabaseUnavailable):
            send(node, ds)
    send(node, ds)
    assert verdicts(node) == ["confirmed"]


def test_may_correct_needs_what_brings_corrections(node_config: Callable[..., Config]) -> None:
    with pytest.raises(ValueError, match="leaves out results"):
        node_config(peers={"reader": READER})
    with pytest.raises(ValueError, match="needs may_send"):
        node_config(peers={"reader": {**READER, "may_send": False}}, receive={"also_accept": ["results"]})


# -- training cases --------------------------------------------------------------------------------


def corrected_node(node: Node, **header: Any) -> str:
    """A job with a confirmed and an added nodule."""
    node.receive(header=header, shape=(24, 64, 64))
    [(_, job_id, _, _)] = node.assemble().enqueued
    node.analyse(job_id)
    mask = mask_of(node, job_id)
    send(node, corrected_seg(images(node), [("Nodule 1", tracking(node, job_id), mask), ("", "", new_nodule(mask))]))
    return job_id


def export(node: Node, out: Path, *, deidentify: bool = True, **options: Any) -> Exported:
    out.mkdir(exist_ok=True)
    return export_cases(
        node.flow.reviews, out, NAMES, node.folder / "export.patients", deidentify=deidentify, when=WHEN, **options
    )


def test_an_exported_case_is_read_by_training_with_its_very_voxels(node: Node, tmp_path: Path) -> None:
    job_id = corrected_node(node)
    mask = mask_of(node, job_id)
    made = export(node, tmp_path / "out")
    [(name, counts)] = made.cases.items()
    assert counts == {"positives": 2, "hard_negatives": 0, "ignored": 0}
    assert made.left_out == {}
    [ct] = (tmp_path / "out" / name).glob("ct")
    hu = np.stack([pydicom.dcmread(path).pixel_array for path in sorted(ct.iterdir())])
    assert np.array_equal(hu, np.stack([image.pixel_array for image in images(node)]))
    from training.readers import dicom_seg

    volume = node_volume(sorted(ct.iterdir()))
    nodules = dicom_seg.read_segments(tmp_path / "out" / name / "truth.dcm", volume, "x")
    assert [int(n.mask.sum()) for n in nodules] == [int(mask.sum()), int(new_nodule(mask).sum())]


def node_volume(paths: list[Path]) -> Any:
    from dicom_node.config import GateConfig
    from dicom_node.series import read_series, to_volume

    return to_volume(read_series(paths, GateConfig(min_slices=5, min_length_mm=0)))


def test_identities_are_out_and_pixels_untouched(node: Node, tmp_path: Path) -> None:
    header = {
        "PatientName": f"{CANARY}^Ada", "PatientID": f"{CANARY}77", "InstitutionName": f"{CANARY} clinic",
        "SeriesDescription": f"lung {CANARY}", "ConvolutionKernel": f"B50 {CANARY}", "PatientComments": CANARY,
        "StudyDescription": CANARY, "OperatorsName": CANARY, "ImageComments": CANARY, "AccessionNumber": "ACC4711",
        "ReferringPhysicianName": CANARY, "StudyDate": "20251231", "PatientBirthDate": "19440229",
    }  # fmt: skip
    corrected_node(node, **header)
    made = export(node, tmp_path / "out")
    assert len(made.cases) == 1
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    secrets = [CANARY, "ACC4711", "20251231", "19440229", HEADER["StudyInstanceUID"], HEADER["FrameOfReferenceUID"]]
    for path in files:
        data = path.read_bytes() + str(path).encode()
        assert [s for s in secrets if s.lower().encode() in data.lower()] == []
    for path in (path for path in files if path.suffix == ".dcm"):
        ds = pydicom.dcmread(path)
        assert (ds.PatientIdentityRemoved, bool(ds.DeidentificationMethod)) == ("YES", True)
        assert str(ds.PatientName).rstrip("^") == ds.PatientID == NAMES.patient(f"\\{CANARY}77")
        assert [e for e in ds.iterall() if e.tag.is_private] == []


def test_exported_objects_satisfy_dciodvfy(node: Node, tmp_path: Path) -> None:
    corrected_node(node)
    export(node, tmp_path / "out")
    files = sorted((tmp_path / "out").rglob("*.dcm"))
    tool = Path(sys.executable).parent / "dciodvfy"
    for path in (files[0], files[-1]):
        done = subprocess.run([tool, path], capture_output=True, text=True, timeout=60)
        errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
        assert errors == [], path.name


def test_a_finding_that_was_struck_out_is_a_hard_negative_and_one_not_looked_at_is_not(
    node: Node, tmp_path: Path
) -> None:
    node.receive(shape=(24, 64, 64))
    [(_, job_id, _, _)] = node.assemble().enqueued
    node.analyse(job_id)
    other = new_nodule(mask_of(node, job_id))
    send(node, corrected_seg(images(node), [("own", "", other)]))
    [counts] = export(node, tmp_path / "a").cases.values()
    assert counts == {"positives": 1, "hard_negatives": 0, "ignored": 1}
    # The same reader, later, on our own Segmentation: ours is not among the segments any more.
    _, seg = ours_of(node, job_id)
    answer = refers_to(seg, corrected_seg(images(node), [("own", "", other)]))
    answer.ContentDate = "20991231"
    send(node, answer)
    [(name, counts)] = export(node, tmp_path / "b").cases.items()
    assert counts == {"positives": 1, "hard_negatives": 1, "ignored": 0}
    from training.mine import read_candidates

    part, case = name.split("/")
    [[candidate]] = read_candidates(tmp_path / "b" / part / "hard").values()
    note = json.loads((tmp_path / "b" / name / "case.json").read_text())
    assert candidate.kind == "false"
    assert list(candidate.center_mm) == note["hard_negatives"][0]["center_mm"]
    assert case == tmp_path.joinpath("b", name).name


def test_a_patient_stays_in_its_part_and_shares_are_kept(tmp_path: Path) -> None:
    again = Pseudonyms(salt=read_salt(tmp_path / "salt"))
    assert again == Pseudonyms(salt=read_salt(tmp_path / "salt"))
    assert (tmp_path / "salt").stat().st_mode & 0o077 == 0
    parts = [again.part(f"P{n}") for n in range(3000)]
    assert parts == [again.part(f"P{n}") for n in range(3000)]
    assert parts.count("train") / 3000 == pytest.approx(0.7, abs=0.03)
    assert parts.count("test") / 3000 == pytest.approx(0.15, abs=0.03)
    with pytest.raises(ConfigError):
        Pseudonyms(salt=b"short")


def test_pixels_that_may_show_who_it_is_are_not_exported(node: Node, tmp_path: Path) -> None:
    corrected_node(node, BurnedInAnnotation="YES")
    made = export(node, tmp_path / "out")
    assert (made.cases, list(made.left_out.values())) == ({}, ["its pixels are said to show annotations or a face"])
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_training_trains_on_what_was_exported_from_a_real_scan(make: Callable[..., Node], tmp_path: Path) -> None:
    from tests.fakes import shipped

    files = shipped.FILES[40:100]
    node = make()
    series_uid = str(pydicom.dcmread(files[0], stop_before_pixels=True).SeriesInstanceUID)
    for path in files:
        node._store(path)
    node.clock += 60
    run = FakeRun()
    node.flow.assembly.assemble(run, series_uid)
    [(_, job_id, _, _)] = run.enqueued
    node.analyse(job_id)
    mask = mask_of(node, job_id)
    nodule = np.zeros_like(mask)
    nodule[20:23, 120:128, 70:78] = True
    send(node, refers_to(ours_of(node, job_id)[1], corrected_seg(images_of(files), [("mine", "", nodule)])))
    made = export(node, tmp_path / "out")
    assert made.left_out == {}
    [part] = (path.name for path in (tmp_path / "out").iterdir())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny_text(optimisation={"steps": 2}))

    def training(command: str, *options: object) -> None:
        whole = [sys.executable, "-m", "training", command, "--recipe", recipe, "--cache", tmp_path / "cache", *options]
        done = subprocess.run([str(word) for word in whole], capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    training("prepare", "--source", tmp_path / "out", "--layout", "dicom")
    [form] = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("*/case.json")]
    assert (len(form["nodules"]), len(form["ignored"])) == (1, 0)
    training("train", "--out", tmp_path / "run", "--hard", tmp_path / "out" / part / "hard", "--threads", 1)
    losses = [json.loads(line) for line in (tmp_path / "run" / "losses.jsonl").read_text().splitlines()]
    assert len(losses) == 2


def test_the_commands_list_show_and_export_and_the_audit_trail_knows(node: Node, tmp_path: Path) -> None:
    import yaml
    from typer.testing import CliRunner

    from dicom_node.cli import app

    corrected_node(node)
    [row] = node.database.corrections()
    settings = tmp_path / "config.yaml"
    settings.write_text(yaml.safe_dump(node.flow.config.model_dump(mode="json", by_alias=True, exclude_none=True)))
    options = ["--config", str(settings)]

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, [*words, *options], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "1 confirmed, 1 added" in run("corrections", "list")
    told = run("corrections", "show", str(row["sop_instance_uid"])[-12:])
    assert "Nodule 1: confirmed, Dice 1.00, volume +0 %" in told
    assert [each["state"] for each in json.loads(run("corrections", "list", "--json"))] == ["compared"]
    [month] = json.loads(run("corrections", "figures", "--json"))
    assert (month["model"], month["series"], month["confirmed"], month["added"]) == ("nodules 1.2.3", 1, 1, 1)
    assert month["rejected_percent"] == 0.0
    assert "0.0 %" in run("corrections", "figures")
    header, kept, missed = csv.reader(run("corrections", "table").splitlines())
    told = [dict(zip(header, row, strict=True)) for row in (kept, missed)]
    said = [(each["finding"], each["verdict"], each["dice"]) for each in told]
    assert said == [("1", "confirmed", "1.0"), ("", "added", "")]
    assert HEADER["PatientID"] not in run("corrections", "table", "--every", "--json")
    with pytest.raises(ConfigError, match="--deidentify"):
        run("cases", "export", "--out", str(tmp_path / "out"))
    made = json.loads(run("cases", "export", "--out", str(tmp_path / "out"), "--deidentify", "--json"))
    assert len(made["cases"]) == 1
    assert HEADER["PatientID"] not in json.dumps(made)
    trail = "".join(path.read_text() for path in node.storage.path("audit").glob("*.jsonl"))
    assert "Export" in trail
    assert HEADER["StudyInstanceUID"] in trail
    assert json.loads(run("cases", "export", "--out", str(tmp_path / "o2"), "--identified", "--json"))["cases"]


def test_the_partial_of_a_job_s_page_shows_each_verdict(node: Node) -> None:
    import jinja2

    from dicom_node import web
    from dicom_node.reviews import corrections_of

    job_id = corrected_node(node)
    folder = Path(next(iter(web.__path__))) / "templates"
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), autoescape=True)
    page = templates.get_template("_corrections.html").render(corrections=corrections_of(node.database, job_id))
    assert '<td>confirmed</td><td class="number">1.00</td>' in page
    assert "<td>added</td>" in page
    assert templates.get_template("_corrections.html").render(corrections=[]).strip() == ""
