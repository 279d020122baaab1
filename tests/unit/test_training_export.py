"""A bundle is what its run made: same answers, its own figures, a card that says where all of it came from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dicom_node.errors import ConfigError
from dicom_node.model.bundle import CARD, REFINEMENT, load_bundle
from dicom_node.model.spec import RefinementSpec
from tests.fakes.prepared import write_prepared
from tests.fakes.recipes import tiny_recipe
from tests.fakes.results import mark, nodule, result
from training.card import card, run_card
from training.cases import Case, DataProblem, Scan
from training.checkpoint import LAST, Averaged, read_checkpoint, save_checkpoint
from training.evaluation.figures import Point, Study, figures
from training.export import check_origin, export, metrics_of, parity, probabilities, refinement_parity, run_export
from training.prepared import PreparedScan, open_scan
from training.provenance import FACTS, fold_of, read_provenance, record, seen_in_training
from training.recipe import Recipe, RefineSettings
from training.refine import build, folded, save
from training.train import build_model

COMMAND = "python -m training train --recipe tiny.yaml --cache cache --out runs/tiny"
SPEC = RefinementSpec(cube=32, widths=(4, 8))


def scans(folder: Path, composite: bool = True) -> list[PreparedScan]:
    made = [
        write_prepared(folder, "1.2.1", nodules=((20.0, 40.0, 120.0, 6.0),), patient="LIDC-IDRI-0002 train", subset=3),
        write_prepared(folder, "1.2.2", ignored=((20.0, 40.0, 120.0, 6.0),), patient="C3N-00247 train", subset=4),
    ]
    if not composite:
        for scan in made:
            form = json.loads((scan.folder / "case.json").read_text())
            (scan.folder / "case.json").write_text(json.dumps({**form, "composite": False}))
    return [open_scan(scan.folder) for scan in made]


def write_run(run: Path, cache: Path, recipe: Recipe | None = None, composite: bool = True) -> Path:
    """A checkpoint of three steps whose averaged weights differ from its last ones."""
    recipe = recipe or tiny_recipe()
    torch.manual_seed(4)
    model = build_model(recipe)
    averaged = Averaged(model, recipe.optimisation.ema_decay)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.01 * torch.randn_like(value))
    averaged.update(model, 1000)
    learn, validation = scans(cache, composite)
    record(run, recipe, [learn], [validation], command=COMMAND, device="cpu", left_out=1)
    save_checkpoint(run, recipe, model, averaged, torch.optim.SGD(model.parameters(), lr=0.1), 3)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", tmp_path / "cache")


def write_refinement(folder: Path) -> Path:
    """A second stage whose norms have seen something, so that folding them is not nothing."""
    folder.mkdir()
    torch.manual_seed(6)
    model, settings = build(SPEC), RefineSettings()
    averaged = Averaged(model, settings.ema_decay)
    model.train()(torch.rand(4, 1, 32, 32, 32))
    averaged.update(model, 1000)
    save(folder, settings, model, averaged, torch.optim.AdamW(model.parameters()), 40, 0.0)
    save_file(folded(averaged.state, SPEC), folder / "refinement.safetensors")
    summary = {
        "refinement": SPEC.model_dump(mode="json"), "steps": 40, "composites": True, "rehearsals": 0,
        "scans": {"training": ["1.2.1"], "validation": ["1.2.2"]},
    }  # fmt: skip
    (folder / "refinement.json").write_text(json.dumps(summary))
    return folder


def judged(bundle_dir: Path, point: float = 0.6) -> dict[str, Any]:
    """Figures of a bundle on two fabricated composites."""
    bundle = load_bundle(bundle_dir)
    results = tuple(result(uid, (mark((5, 5, 5), 6, 0.9),), (nodule((5, 5, 5), 6),)) for uid in ("1", "2"))
    return figures(
        Study(
            results=results, left_out={}, bundle=bundle.form, bundle_sha256=bundle.sha256,
            point=Point(score=point, rule="for a test"), command="python -m training evaluate", machine="a machine",
            samples=20,
        )
    )  # fmt: skip


def test_a_bundle_answers_as_the_trainers_own_averaged_network(run: Path, tmp_path: Path) -> None:
    """The trainer's: with batch norms that learn and heads that ignore, and the average beside the last weights."""
    bundle = export(run, tmp_path / "bundle")
    recipe, (_, tensors) = tiny_recipe(), read_checkpoint(run)
    images, boxes = torch.rand(2, 3, 96, 96), torch.tensor([[10.0, 12.0, 30.0, 28.0], [50.0, 50.0, 58.0, 61.0]])
    wanted = probabilities(bundle.network(), images, boxes)
    for part, same in (("averaged.", True), ("model.", False)):
        trained = build_model(recipe)
        trained.load_state_dict({n.removeprefix(part): v for n, v in tensors.items() if n.startswith(part)})
        pairs = zip(probabilities(trained.eval(), images, boxes), wanted, strict=True)
        assert (max(float((a - b).abs().max()) for a, b in pairs) < 1e-4) is same
    assert parity(run, bundle) < 1e-4


def test_parity_notices_weights_of_another_moment(run: Path, tmp_path: Path) -> None:
    bundle = export(run, tmp_path / "bundle")
    with torch.no_grad():
        for value in bundle.weights.values():
            value.mul_(1.02)
    assert parity(run, bundle) > 1e-4


def test_the_second_stage_answers_as_it_was_trained_norms_and_all(run: Path, tmp_path: Path) -> None:
    refinement = write_refinement(tmp_path / "refined")
    bundle = export(run, tmp_path / "bundle", refinement=refinement)
    told = {metric.name: metric.value for metric in bundle.form.metrics}
    assert told["difference to the trainer's output, second stage"] == refinement_parity(refinement, bundle) < 1e-4
    weights = load_file(refinement / "refinement.safetensors")
    save_file({name: 1.02 * value for name, value in weights.items()}, refinement / "refinement.safetensors")
    with pytest.raises(DataProblem, match=r"differ from the trainer's by .* it is not written"):
        export(run, tmp_path / "bundle", refinement=refinement)
    (refinement / "refinement_last.safetensors").unlink()
    with pytest.raises(DataProblem, match="does not hold the network of this run"):
        export(run, tmp_path / "bundle", refinement=refinement)


def test_an_export_that_is_refused_leaves_the_bundle_that_was_there(run: Path, tmp_path: Path) -> None:
    bundle = export(run, tmp_path / "bundle")
    before = {path.name: path.read_bytes() for path in bundle.folder.iterdir()}
    with pytest.raises(DataProblem, match="other weights or numbers"):
        export(run, tmp_path / "bundle", figures=[judged(tmp_path / "bundle")], half=True)
    assert {path.name: path.read_bytes() for path in bundle.folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "cache", "run"]


def test_half_the_size_costs_a_difference_that_is_told(run: Path, tmp_path: Path) -> None:
    whole, half = export(run, tmp_path / "whole"), export(run, tmp_path / "half", half=True)
    sizes = [(bundle.folder / "weights.safetensors").stat().st_size for bundle in (whole, half)]
    assert sizes[1] < 0.6 * sizes[0]
    told = [next(m for m in bundle.form.metrics if m.name.startswith("difference")).value for bundle in (whole, half)]
    assert told[0] < 1e-6 < told[1] < 1e-2


def test_a_bundles_numbers_are_the_recipes(tmp_path: Path) -> None:
    recipe = tiny_recipe(merging={"gap": 2}, proposal_score=0.03, preprocessing={"slice_step": 2})
    run = write_run(tmp_path / "run", tmp_path / "cache", recipe)
    form = run_export(run, tmp_path / "bundle", version="2.0.0", licence="Apache-2.0").form
    assert (form.name, form.version, form.licence) == ("tiny", "2.0.0", "Apache-2.0")
    assert (form.network, form.preprocessing, form.merging) == (recipe.network, recipe.preprocessing, recipe.merging)
    assert form.thresholds.proposal_score == 0.03


def test_figures_come_with_their_interval_and_their_point(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "bundle")
    made = judged(tmp_path / "bundle")
    form = export(run, tmp_path / "bundle", figures=[made]).form
    assert form.thresholds.operating_point == 0.6
    row = next(m for m in form.metrics if m.name == "box mAP")
    assert (row.value, row.low, row.high) == pytest.approx((1.0, 1.0, 1.0))
    assert row.data == "composites (2 scans, no real cases); lungs of 2 patients; 2 scans, 2 nodules"
    assert row.command == "python -m training evaluate"
    assert not [m for m in form.metrics if m.name.startswith("seconds a scan:")]
    assert len(metrics_of(made)) == len([r for r in made["figures"] if not r["key"].startswith("seconds_")])


def test_figures_of_other_weights_or_another_point_are_refused(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "bundle")
    made = judged(tmp_path / "bundle")
    with pytest.raises(ConfigError, match=r"made at operating point 0.6, the bundle is to have 0.7"):
        export(run, tmp_path / "bundle", figures=[made], operating_point=0.7)
    with pytest.raises(ConfigError, match=r"0.6, 0.8, the bundle can have one only"):
        export(run, tmp_path / "bundle", figures=[made, judged(tmp_path / "bundle", 0.8)])
    with pytest.raises(DataProblem, match="other weights or numbers"):
        export(run, tmp_path / "bundle", figures=[made], half=True)


def test_a_refinement_becomes_part_of_the_bundle(run: Path, tmp_path: Path) -> None:
    refinement = write_refinement(tmp_path / "refined")
    bundle = export(run, tmp_path / "bundle", refinement=refinement)
    assert bundle.form.refinement == SPEC
    assert bundle.refiner() is not None
    assert any(name.startswith(REFINEMENT) for name in bundle.weights)
    text = card(bundle)
    assert "a cube of 32 mm round each candidate" in text
    assert "candidates of 1 composite; its weight in the score was chosen on 1 more" in text
    assert export(run, tmp_path / "plain").refiner() is None


def test_a_run_without_its_facts_or_its_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    (run / FACTS).unlink()
    with pytest.raises(DataProblem, match=r"training.json is missing"):
        export(run, tmp_path / "bundle")
    with pytest.raises(DataProblem, match="no checkpoint"):
        export(tmp_path, tmp_path / "bundle")
    (run / FACTS).write_text("{}")
    with pytest.raises(DataProblem, match="start the training command again"):
        read_provenance(run)


# -- the card ------------------------------------------------------------------------------------------


def test_a_card_is_written_from_the_bundle_alone(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "bundle")
    bundle = export(run, tmp_path / "bundle", figures=[judged(tmp_path / "bundle")])
    text = (bundle.folder / CARD).read_text()
    assert text == card(load_bundle(bundle.folder)) == run_card(bundle.folder)
    (bundle.folder / CARD).write_text("altered")
    run_card(bundle.folder, write=True)
    assert (bundle.folder / CARD).read_text() == text


def test_a_card_says_what_the_run_was_made_of(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "bundle")
    text = card(export(run, tmp_path / "bundle", figures=[judged(tmp_path / "bundle")], licence="Apache-2.0"))
    for told in (
        "**Research use, not for diagnosis.**",
        "- Learned from: 1 scan of 1 patient, 1 nodule (masks: 1 from voxels), 0 findings ignored.",
        "- Watched on, not learned from: 1 scan of 1 patient, 0 nodules (masks: none), 1 finding ignored.",
        "**Composites** among them: 1;",
        "Judged on composites alone",
        "- LUNA16 subsets in no part: 0, 1, 2, 5, 6, 7, 8, 9.",
        "- 1 scan or file could not be used",
        COMMAND,
        "3 of 8 steps of 2 crops of 32 x 32 mm a process, from random weights.",
        "Figures on composites are figures on composites",
        "| box mAP | 1 | 1 to 1 |",
        "Licence of the weights: Apache-2.0.",
        "doi:10.7937/K9/TCIA.2015.LO9QL9SX",
        "doi:10.7937/K9/TCIA.2018.6EMUB5L2",
        "No 3D network looks at the candidates",
    ):
        assert told in text, told


def test_a_card_says_that_an_earlier_bundles_data_are_not_counted(run: Path, tmp_path: Path) -> None:
    bundle = export(run, tmp_path / "bundle")
    told = "what those had learned from is not counted above"
    assert told not in card(bundle)
    raw = json.loads((bundle.folder / FACTS).read_text())
    raw["recipe"]["initial_weights"] = {"source": "bundle", "path": "somewhere"}
    (bundle.folder / FACTS).write_text(json.dumps(raw))
    assert told in card(bundle)


def test_a_bundle_carries_no_patient_and_no_scan(run: Path, tmp_path: Path) -> None:
    bundle = export(run, tmp_path / "bundle")
    assert read_provenance(run).patients
    assert read_provenance(bundle.folder).patients == read_provenance(bundle.folder).scans == ()
    for name in (FACTS, CARD, "bundle.json"):
        text = (bundle.folder / name).read_text()
        assert "LIDC-IDRI-0002" not in text
        assert "1.2.1" not in text


def test_a_bundle_from_before_there_were_facts_still_has_a_card(run: Path, tmp_path: Path) -> None:
    bundle = export(run, tmp_path / "bundle")
    (bundle.folder / FACTS).unlink()
    text = card(bundle)
    assert bundle.form.training_data in text
    assert "Not recorded in this bundle." in text


# -- who was seen --------------------------------------------------------------------------------------


def test_a_run_that_goes_on_keeps_its_first_command(run: Path, tmp_path: Path) -> None:
    learn, validation = scans(tmp_path / "again")
    for command in (COMMAND, COMMAND + " --stop-after 5"):
        record(run, tiny_recipe(), [learn], [validation], command=command, device="cpu")
    assert read_provenance(run).commands == (COMMAND, COMMAND + " --stop-after 5")


def no_case() -> Case:
    raise DataProblem("not read in this test")


def to_judge(patient: str) -> Scan:
    return Scan(uid="9", patient=patient, subset=0, composite=False, files=(), truth="", read=no_case)


def test_a_bundle_is_told_from_that_of_another_run(run: Path, tmp_path: Path) -> None:
    refinement = write_refinement(tmp_path / "refined")
    for name, half in (("whole", False), ("half", True)):
        bundle = export(run, tmp_path / name, refinement=refinement, half=half)
        check_origin(bundle, run, refinement)
        with pytest.raises(DataProblem, match="say with --refinement which run made it"):
            check_origin(bundle, run, None)
    other = write_run(tmp_path / "other", tmp_path / "other_cache")
    tensors = load_file(other / LAST)
    moved = {n: v + 1 if v.is_floating_point() else v for n, v in tensors.items()}
    with safe_open(other / LAST, "pt") as stored:
        save_file(moved, other / LAST, metadata=stored.metadata())
    with pytest.raises(DataProblem, match="does not hold the weights of"):
        check_origin(bundle, other, refinement)


def test_whom_a_model_saw_is_known_by_patient(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tmp_path / "cache", composite=False)
    seen, fresh = fold_of(run, [to_judge("C3N-00247 train")]), fold_of(run, [to_judge("LIDC-IDRI-0500")])
    assert seen is not None
    assert fresh is not None
    assert not seen.clean
    assert fresh.clean
    refinement = write_refinement(tmp_path / "refined")
    assert fold_of(run, [to_judge("LIDC-IDRI-0500")], refinement) == fresh
    summary = json.loads((refinement / "refinement.json").read_text())
    summary["scans"]["training"] = ["from elsewhere"]
    (refinement / "refinement.json").write_text(json.dumps(summary))
    assert fold_of(run, [to_judge("LIDC-IDRI-0500")], refinement) is None


def test_patients_seen_in_training_are_counted_and_lungs_of_composites_too(run: Path) -> None:
    lungs = [replace(to_judge(f"LIDC-IDRI-000{n} test"), uid=str(n), composite=True) for n in (1, 2)]
    assert seen_in_training(run, lungs) == 1
    assert seen_in_training(run, [to_judge("C3N-00247"), to_judge("LIDC-IDRI-0500")]) == 1
    assert seen_in_training(run, [to_judge("LIDC-IDRI-0500")]) == 0


def test_nobody_vouches_for_composites_or_for_another_bundles_training(run: Path, tmp_path: Path) -> None:
    assert fold_of(run, [to_judge("LIDC-IDRI-0500")]) is None
    raw = json.loads((run / FACTS).read_text())
    raw["train"]["composites"] = raw["validation"]["composites"] = 0
    raw["recipe"]["initial_weights"] = {"source": "bundle", "path": "somewhere"}
    (run / FACTS).write_text(json.dumps(raw))
    assert fold_of(run, [to_judge("LIDC-IDRI-0500")]) is None
    raw["recipe"]["initial_weights"] = {"source": "random"}
    (run / FACTS).write_text(json.dumps(raw))
    assert fold_of(run, [to_judge("LIDC-IDRI-0500")]) is not None
