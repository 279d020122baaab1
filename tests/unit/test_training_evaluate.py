"""Judging: each scan once, by the node's own detector; each figure with what it is and what it is of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.errors import ConfigError
from dicom_node.model.bundle import Bundle, load_bundle
from tests.fakes.results import mark, nodule, result
from tests.node import fast_bundle
from training.cases import Case, DataProblem, Ignored, Nodule, Scan
from training.evaluation.ceiling import human_ceiling
from training.evaluation.claims import Fold
from training.evaluation.evaluate import (
    JUDGED,
    SCANS,
    choose_point,
    judge,
    run_evaluate,
    run_pooled,
    stored_results,
)
from training.evaluation.figures import Point, Study, figures
from training.evaluation.froc import Marks, Truths, froc
from training.evaluation.key_slices import slice_images
from training.evaluation.marks import ScanResult, behaviour, patient_digest, read_result, write_result
from training.evaluation.report import headlines
from training.phantom import chest
from training.readers import Listing
from training.readers.luna16 import sphere

BALL = (42.0, 0.0, 0.0, 9.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(fast_bundle(tmp_path_factory.mktemp("bundle") / "fast"))


def read_phantom(calls: Path | None = None, composite: bool = True) -> Case:
    """A chest with one ball; `calls` counts how often it was read, in whatever process."""
    if calls is not None:
        with calls.open("a") as file:
            file.write("read\n")
    volume = chest(spacing_mm=(3.0, 3.0, 3.0), nodules=(BALL,))
    mask, corner = sphere(volume, BALL[:3], BALL[3])
    truth = Nodule(
        name="ball", center_mm=BALL[:3], diameter_mm=2 * BALL[3], mask=mask, corner=corner, mask_from="voxels"
    )  # fmt: skip
    return Case(volume=volume, nodules=(truth,), ignored=(Ignored(center_mm=(-42.0, 0.0, 0.0), diameter_mm=-1.0),))


def broken() -> Case:
    raise DataProblem("scan.raw is cut short: unpack the subset again")


def no_chest() -> Case:
    case = read_phantom()
    return replace(case, volume=replace(case.volume, hu=np.full_like(case.volume.hu, 40)))


def scan(uid: str, read: Callable[[], Case], truth: str = "t") -> Scan:
    return Scan(uid=uid, patient=f"p{uid}", subset=None, composite=True, files=(), truth=truth, read=read)


def quiet(line: str) -> None:
    pass


# -- judging -------------------------------------------------------------------------------------------


def test_a_scan_is_judged_once_for_each_bundle_and_truth(bundle: Bundle, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    scans = [scan("1", partial(read_phantom, calls))]
    first = judge(bundle, scans, tmp_path / "out", say=quiet).results
    again = judge(bundle, scans, tmp_path / "out", say=quiet).results
    assert calls.read_text().count("read") == 1
    assert len(first[0].marks) == len(again[0].marks) > 0
    judge(bundle, [scan("1", partial(read_phantom, calls), truth="other")], tmp_path / "out", say=quiet)
    assert calls.read_text().count("read") == 2
    finer = bundle.form.model_copy(update={"merging": bundle.form.merging.model_copy(update={"gap": 2})})
    judge(replace(bundle, form=finer), scans, tmp_path / "out", say=quiet)
    assert calls.read_text().count("read") == 3


def test_a_bundle_with_other_figures_and_operating_point_is_not_judged_again(bundle: Bundle, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    scans = [scan("1", partial(read_phantom, calls))]
    judge(bundle, scans, tmp_path / "out", say=quiet)
    thresholds = bundle.form.thresholds.model_copy(update={"operating_point": 0.9})
    renamed = bundle.form.model_copy(update={"thresholds": thresholds, "metrics": (), "version": "9.9.9"})
    judge(replace(bundle, form=renamed, sha256="other"), scans, tmp_path / "out", say=quiet)
    assert calls.read_text().count("read") == 1


def test_a_result_that_was_cut_short_is_made_again(bundle: Bundle, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    scans = [scan("1", partial(read_phantom, calls))]
    judge(bundle, scans, tmp_path / "out", say=quiet)
    file = tmp_path / "out" / SCANS / "1.json"
    file.write_text(file.read_text()[:-200])
    assert len(judge(bundle, scans, tmp_path / "out", say=quiet).results) == 1
    assert calls.read_text().count("read") == 2


def test_marks_below_the_operating_point_are_kept_down_to_the_floor(bundle: Bundle, tmp_path: Path) -> None:
    high = bundle.form.model_copy(
        update={"thresholds": bundle.form.thresholds.model_copy(update={"operating_point": 1.0})}
    )
    marks = judge(replace(bundle, form=high), [scan("1", read_phantom)], tmp_path, floor=0.03, say=quiet).results[0]
    assert marks.scores.min() >= 0.03
    assert marks.scores.min() < 1.0
    assert marks.scores.max() <= 1.0


def test_a_scan_that_fails_is_refused_or_left_out_by_name(bundle: Bundle, tmp_path: Path) -> None:
    scans = [scan("1", read_phantom), scan("2", broken), scan("3", no_chest)]
    with pytest.raises(DataProblem, match=r"2: scan.raw is cut short"):
        judge(bundle, scans, tmp_path / "a", say=quiet)
    judged = judge(bundle, scans, tmp_path / "a", on_problem="skip", say=quiet)
    assert [each.uid for each in judged.results] == ["1"]
    assert judged.left_out["2"] == "scan.raw is cut short: unpack the subset again"
    assert "NO_LUNG" in judged.left_out["3"]


def test_what_was_judged_before_a_refusal_stays(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DataProblem):
        judge(bundle, [scan("1", read_phantom), scan("2", broken)], tmp_path, say=quiet)
    assert [path.name for path in (tmp_path / SCANS).iterdir()] == ["1.json"]


@pytest.mark.slow
@pytest.mark.timeout(900)  # each process loads torch anew, which takes its time on a busy machine
def test_two_processes_give_what_one_gives(bundle: Bundle, tmp_path: Path) -> None:
    scans = [scan("1", read_phantom), scan("2", read_phantom), scan("3", broken)]
    alone = judge(bundle, scans, tmp_path / "one", on_problem="skip", say=quiet)
    both = judge(bundle, scans, tmp_path / "two", on_problem="skip", workers=2, say=quiet)
    assert alone.left_out == both.left_out
    for a, b in zip(alone.results, both.results, strict=True):
        assert (a.uid, a.origin) == (b.uid, b.origin)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)


def test_a_scans_name_never_leads_out_of_the_folder(bundle: Bundle, tmp_path: Path) -> None:
    judge(bundle, [scan("../../evil name", read_phantom)], tmp_path / "out", say=quiet)
    out = tmp_path / "out"
    assert sorted(path.parent for path in tmp_path.rglob("*.json")) == [out, out / SCANS]
    (one,) = stored_results(out, behaviour(bundle.form))
    assert one.uid == "../../evil name"


def test_a_result_says_where_marks_lie_and_how_well_they_fit(bundle: Bundle, tmp_path: Path) -> None:
    made = judge(bundle, [scan("1", read_phantom)], tmp_path, say=quiet).results[0]
    raw = json.loads((tmp_path / SCANS / "1.json").read_text())
    assert raw["patient"] == patient_digest("p1") != "p1"
    truth = raw["nodules"][0]
    assert truth["size"]["diameter_mm"] == pytest.approx(2 * BALL[3], rel=0.1)
    np.testing.assert_allclose(truth["box_mm"], [[33, -9, -9], [51, 9, 9]], atol=3.0)
    assert {"read", "lung", "resample", "network", "link"} == raw["seconds"].keys()
    for pair in raw["overlaps"]:
        assert pair["box_iou"] == pytest.approx(made.box_iou[pair["mark"], pair["nodule"]])
        assert pair["dice"] == pytest.approx(2 * pair["mask_iou"] / (1 + pair["mask_iou"]))
    middle = next(picture for picture in made.pictures if picture.shows == "nodule").pixels
    assert middle[middle.shape[0] // 2, middle.shape[1] // 2] > 150  # tissue at 40 HU is 176, lung at -850 is 50
    assert middle[2, middle.shape[1] // 2] < 100


# -- results -------------------------------------------------------------------------------------------

CORNER = st.tuples(*(st.integers(0, 8),) * 3)  # near enough to hit, to miss and to be ignored
MARKS = st.lists(
    st.builds(mark, CORNER, st.integers(1, 8), st.integers(3, 99).map(lambda n: n / 100)), max_size=6
).map(tuple)  # fmt: skip
NODULES = st.lists(st.builds(nodule, CORNER, st.integers(3, 12)), max_size=4).map(tuple)
IGNORED = st.lists(st.tuples(*(st.floats(0, 12),) * 3, st.sampled_from([-1.0, 5.0])), max_size=3).map(tuple)


@settings(deadline=None)  # each file is flushed to the disk, which takes as long as it takes
@given(marks=MARKS, nodules=NODULES, ignored=IGNORED)
def test_a_result_survives_its_file(
    marks: Any, nodules: Any, ignored: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = result("1.2", marks, nodules, ignored)
    path = tmp_path_factory.mktemp("result") / "r.json"
    write_result(path, made)
    back = read_result(path)
    for name in ("hits", "unsure", "false", "scores", "box_iou", "mask_iou", "affine"):
        np.testing.assert_array_equal(getattr(back, name), getattr(made, name))
    assert back.mark_sizes == made.mark_sizes
    assert [p.corner for p in back.pictures] == [p.corner for p in made.pictures]


@given(marks=MARKS, nodules=NODULES.filter(bool), ignored=IGNORED)
def test_hits_and_false_marks_are_those_of_the_froc(marks: Any, nodules: Any, ignored: Any) -> None:
    made = result("a", marks, nodules, ignored)

    def truths(balls: Any) -> Truths:
        return Truths(
            series=np.array(["a"] * len(balls), dtype=np.str_),
            xyz_mm=np.array([ball.center_mm for ball in balls]).reshape(-1, 3),
            diameter_mm=np.array([ball.diameter_mm for ball in balls], dtype=np.float64),
        )

    submitted = Marks(
        series=np.array(["a"] * len(made.marks), dtype=np.str_),
        xyz_mm=np.array([each.center_mm for each in made.marks]).reshape(-1, 3),
        score=made.scores.reshape(-1),
    )
    counts = froc(["a"], submitted, truths(made.nodules), truths(made.ignored)).counts
    assert counts["true_positives"] == made.hits.any(axis=0).sum()
    assert counts["false_positives"] == made.false.sum()
    assert counts["ignored_on_excluded"] == made.unsure.sum()


def test_a_mark_exactly_on_the_radius_is_no_hit() -> None:
    made = result(marks=(mark((13, 10, 10), 6, 0.9), mark((12, 10, 10), 6, 0.8)), nodules=(nodule((10, 10, 10), 6),))
    assert made.hits.tolist() == [[False], [True]]
    assert made.false.tolist() == [True, False]


def test_marks_come_best_first() -> None:
    marks = (mark((1, 1, 1), 2, 0.2), mark((9, 9, 9), 2, 0.8))
    with pytest.raises(ValueError, match="best first"):
        replace(result(marks=marks), marks=marks)


def test_a_result_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(DataProblem, match=r"r.json is no result .* evaluate again"):
        read_result(tmp_path / "r.json")


# -- the operating point -------------------------------------------------------------------------------

FALSE = (30, 50, 50)
TRUE = (10, 10, 10)


def test_the_operating_point_leaves_the_allowed_false_marks_a_scan() -> None:
    one = result("1", (mark(FALSE, 4, 0.9), mark(TRUE, 6, 0.8), mark((1, 50, 1), 4, 0.4)), (nodule(TRUE, 6),))
    two = result("2", (mark(FALSE, 4, 0.7),))
    assert choose_point([one, two], 1.0) == pytest.approx(0.41)
    assert choose_point([one, two], 0.5) == pytest.approx(0.71)
    assert choose_point([one, two], 0.0) == pytest.approx(0.91)
    assert choose_point([one, two], 9.0) == pytest.approx(0.02)
    with pytest.raises(DataProblem):
        choose_point([], 1.0)


def test_marks_that_are_ignored_do_not_move_the_operating_point() -> None:
    ball = (51.5, 51.5, 31.5, 8.0)
    assert choose_point([result("1", (mark(FALSE, 4, 0.9),), ignored=(ball,))], 0.0) == pytest.approx(0.02)


# -- figures -------------------------------------------------------------------------------------------

COMMAND = "python -m training evaluate --bundle bundle"


def study(bundle: Bundle, results: tuple[ScanResult, ...], point: float = 0.5, **more: Any) -> Study:
    fields: dict[str, Any] = {
        "results": results, "left_out": {}, "bundle": bundle.form, "bundle_sha256": bundle.sha256,
        "point": Point(score=point, rule="for a test"), "command": COMMAND, "machine": "a machine", "samples": 50,
    }  # fmt: skip
    return Study(**fields | more)


def perfect(uid: str, n: int = 2) -> ScanResult:
    corners = [(2 + 12 * i, 5, 5) for i in range(n)]
    return result(uid, tuple(mark(c, 6, 0.9) for c in corners), tuple(nodule(c, 6) for c in corners))


def by_key(made: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in made["figures"]}


def test_marks_that_are_the_truth_get_full_marks(bundle: Bundle) -> None:
    rows = by_key(figures(study(bundle, (perfect("1"), perfect("2"), result("3")))))
    for key in ("box_map", "box_mar", "mask_map", "mask_mar", "cpm", "recall", "precision", "f1", "dice",
                "slice_box_ap50", "slice_segm_ap50"):  # fmt: skip
        assert rows[key]["value"] == pytest.approx(1.0), key
    for key in ("volume_error", "diameter_error", "false_positives_per_scan"):
        assert rows[key]["value"] == pytest.approx(0.0), key


def test_figures_at_the_operating_point_by_hand(bundle: Bundle) -> None:
    found = (mark(TRUE, 5, 0.9), mark(FALSE, 4, 0.8), mark((1, 50, 1), 4, 0.3))
    one = result("1", found, (nodule(TRUE, 6), nodule((25, 5, 50), 6)))
    rows = by_key(figures(study(bundle, (one, perfect("2", 1)))))
    assert rows["recall"]["value"] == pytest.approx(2 / 3)
    assert rows["precision"]["value"] == pytest.approx(2 / 3)
    assert rows["false_positives_per_scan"]["value"] == pytest.approx(0.5)
    dice = 2 * 125 / (125 + 216)
    assert rows["dice"]["value"] == pytest.approx((dice + 1) / 2)
    assert rows["volume_error"]["value"] == pytest.approx(100 * (125 / 216 - 1) / 2)
    assert rows["recall"]["low"] <= rows["recall"]["value"] <= rows["recall"]["high"]


def test_every_figure_says_what_it_is_and_of_what(bundle: Bundle) -> None:
    made = figures(study(bundle, (perfect("1"), perfect("2")), ceiling=human_ceiling()))
    assert made["notice"] == "Research use, not for diagnosis"
    for row in made["figures"]:
        assert row["definition"]
        assert row["data"].startswith("composites (2 scans, no real cases)")
        assert (row["scans"], row["nodules"], row["command"]) == (2, 4, COMMAND)
    assert [(row["name"], row["claimed"]) for row in made["claims"]] == [
        ("box mAP", 0.85), ("box mAR", 0.92), ("mask mAP", 0.81), ("mask mAR", 0.88),
    ]  # fmt: skip
    for row in (*made["claims"], by_key(made)["dice"]):
        assert 0.7 < row["human"] < 1.0
    json.dumps(made, allow_nan=False)


def test_only_luna16s_scans_may_carry_its_name(bundle: Bundle) -> None:
    real = tuple(replace(perfect(uid), composite=False) for uid in ("1", "2"))
    fold = Fold(tested={"1": "a", "2": "b"}, trained_patients=frozenset("c"))
    made = figures(study(bundle, real, folds=[fold]))
    assert not [row for row in made["figures"] if row["data"].startswith("LUNA16")]
    assert made["figures"][0]["data"] == "2 scans, none of LUNA16's; 2 patients"
    assert not [row for row in made["figures"] if "LUNA16" in row["definition"]]


def test_composites_and_real_scans_share_no_figure(bundle: Bundle) -> None:
    with pytest.raises(DataProblem, match="don't share figures"):
        study(bundle, (perfect("1"), replace(perfect("2"), composite=False)))


def test_scans_without_a_nodule_still_show_their_false_marks(bundle: Bundle) -> None:
    empty = (result("1", (mark(FALSE, 4, 0.9), mark((1, 1, 50), 4, 0.2))), result("2"))
    rows = by_key(figures(study(bundle, empty)))
    assert rows["false_positives_per_scan"]["value"] == 0.5
    assert rows["seconds"]["value"] == 2.5
    assert not {"cpm", "box_map", "recall", "dice"} & rows.keys()


def test_one_scan_gives_no_interval(bundle: Bundle) -> None:
    rows = by_key(figures(study(bundle, (perfect("1"),))))
    assert rows["box_map"]["value"] == 1.0
    assert {row["low"] for row in rows.values()} == {None}


def test_a_nodule_without_a_true_mask_is_in_no_figure_of_masks(bundle: Bundle) -> None:
    """Its mark is bad as a mask; it must neither help nor harm."""
    listed = result("1", (mark((10, 10, 10), 5, 0.9),), (nodule((10, 10, 10), 8, "sphere"),))
    both = figures(study(bundle, (listed, perfect("2"))))
    rows = by_key(both)
    assert both["without_true_mask"] == 1
    for key in ("mask_map", "mask_mar", "dice", "slice_segm_ap50", "slice_box_ap50"):
        assert rows[key]["value"] == pytest.approx(1.0), key
    assert rows["box_map"]["value"] < 1.0
    assert "mask_map" not in by_key(figures(study(bundle, (listed,))))


def test_an_operating_point_below_the_floor_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"kept from 0.02 on"):
        study(bundle, (perfect("1"),), point=0.01)


def test_sizes_add_up_to_all_nodules(bundle: Bundle) -> None:
    mixed = result("1", (mark((2, 2, 2), 4, 0.9),), (nodule((2, 2, 2), 4), nodule((10, 10, 10), 7), nodule(FALSE, 9)))
    sizes = figures(study(bundle, (mixed,)))["sizes"]
    assert {row["size"]: (row["nodules"], row["sensitivity"]) for row in sizes} == {
        "3-6 mm": (1, 1.0), "6-8 mm": (1, 0.0), "8-15 mm": (1, 0.0),
    }  # fmt: skip


def test_a_key_slice_shows_what_lies_on_it() -> None:
    """The second nodule's key slice is another one; on the first's it is ignored, and so is the excluded ball."""
    wedge = np.ones((4, 4, 4), dtype=np.bool_)
    wedge[0, 0, 0] = False
    other = replace(nodule((9, 30, 30), 4), mask=wedge)
    excluded = (50.0, 50.0, 8.5, 6.0)
    made = result(
        "1", (mark((8, 10, 10), 4, 0.9), mark((30, 1, 1), 4, 0.8)), (nodule((9, 10, 10), 4), other), (excluded,)
    )  # fmt: skip
    first, second = slice_images(made)
    assert first.boxes.shape == (1, 4)
    np.testing.assert_array_equal(first.boxes[0], first.truth_boxes[0])
    assert first.truth_ignore.tolist() == [False, True, True]
    assert first.truth_masks[2].sum() == pytest.approx(np.pi * 9, rel=0.15)
    assert second.truth_ignore.tolist() == [True, False, True]


# -- the command's function ----------------------------------------------------------------------------


def listing(*scans: Scan) -> Listing:
    return Listing(scans=list(scans), left_out={"0": "its header is missing"}, summary=[])


def test_an_evaluation_chooses_its_point_on_other_scans_and_says_so(bundle: Bundle, tmp_path: Path) -> None:
    judge(bundle, [scan("9", read_phantom)], tmp_path / "validation", say=quiet)
    made = run_evaluate(
        bundle.folder, listing(scan("1", read_phantom)), tmp_path / "test", command=COMMAND,
        point_from=tmp_path / "validation", false_positives_per_scan=2.0, say=quiet,
    )  # fmt: skip
    assert "on 1 other composite, no patient of which is among these" in made["operating_point"]["rule"]
    assert made["left_out"] == {"0": "its header is missing"}
    same = run_evaluate(
        bundle.folder, listing(scan("1", read_phantom)), tmp_path / "test", command=COMMAND,
        false_positives_per_scan=2.0, say=quiet,
    )  # fmt: skip
    assert "the very scans reported here" in same["operating_point"]["rule"]
    assert json.loads((tmp_path / "test" / "figures.json").read_text()) == same
    with pytest.raises(ConfigError, match="say how many"):
        run_evaluate(
            bundle.folder, listing(), tmp_path / "test", command=COMMAND, point_from=tmp_path / "validation", say=quiet
        )


def store(folder: Path, *results: ScanResult) -> None:
    """What an evaluation of these leaves."""
    (folder / SCANS).mkdir(parents=True)
    for one in results:
        write_result(folder / SCANS / f"{one.uid}.json", one)
    (folder / JUDGED).write_text(json.dumps([f"{one.uid}.json" for one in results]))


def test_a_point_is_chosen_on_the_last_evaluations_scans_alone(bundle: Bundle, tmp_path: Path) -> None:
    """What an earlier one of another subset left there plays no part, and what was stopped half-way is none."""
    of = behaviour(bundle.form)
    judge(bundle, [scan("8", read_phantom)], tmp_path, say=quiet)
    judge(bundle, [scan("9", read_phantom)], tmp_path, say=quiet)
    assert {path.name for path in (tmp_path / SCANS).iterdir()} == {"8.json", "9.json"}
    assert [one.uid for one in stored_results(tmp_path, of)] == ["9"]
    with pytest.raises(DataProblem, match="cut short"):
        judge(bundle, [scan("9", read_phantom), scan("10", broken)], tmp_path, say=quiet)
    with pytest.raises(DataProblem, match="holds no evaluation that ran to its end"):
        stored_results(tmp_path, of)


def test_an_evaluation_of_patients_seen_in_training_says_so(bundle: Bundle) -> None:
    for seen, told in ((2, ", 2 of them in training"), (0, ""), (None, "")):
        made = figures(replace(study(bundle, (perfect("1"), perfect("2"))), seen=seen))
        assert {row["data"].split("; ")[-1] for row in made["figures"]} == {f"lungs of 2 patients{told}"}


def test_a_terminal_shows_the_figures_that_are_asked_for_first(bundle: Bundle) -> None:
    lines = headlines(figures(study(bundle, (perfect("1"), perfect("2")))))
    assert lines[0] == "on composites (2 scans, no real cases); lungs of 2 patients"
    assert lines[1].startswith("operating point: ")
    assert next(line for line in lines if line.startswith("CPM")).split() == ["CPM", "1.000", "(1.000", "to", "1.000)"]
    assert lines[-1] == "Research use, not for diagnosis"
    without = headlines(figures(study(bundle, (result("1", (mark(FALSE, 4, 0.9),)),))))
    assert not [line for line in without if line.startswith(("CPM", "sensitivity", "Dice"))]


def test_a_point_is_not_chosen_on_another_bundles_marks(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DataProblem, match="holds no evaluation"):
        stored_results(tmp_path, behaviour(bundle.form))
    store(tmp_path, result("1"))
    with pytest.raises(DataProblem, match="another bundle"):
        stored_results(tmp_path, behaviour(bundle.form))


def test_folds_are_pooled_each_at_its_own_point(bundle: Bundle, tmp_path: Path) -> None:
    of = behaviour(bundle.form)
    for uid, point in (("1", 0.5), ("2", 0.85)):
        one = replace(perfect(uid), origin={"floor": 0.02, "behaviour": of})
        false = replace(one, marks=(*one.marks, mark(FALSE, 4, 0.8)), mark_sizes=one.mark_sizes + one.mark_sizes[:1])
        folder = tmp_path / uid
        store(folder, false)
        made = figures(study(bundle, (false,), point=point))
        (folder / "figures.json").write_text(json.dumps(made))
    pooled = run_pooled(bundle.folder, [tmp_path / "1", tmp_path / "2"], tmp_path / "all", command=COMMAND, say=quiet)
    rows = by_key(pooled)
    assert pooled["scans"] == 2
    assert rows["operating_point"]["value"] == pytest.approx(0.675)
    assert rows["false_positives_per_scan"]["value"] == 0.5
    with pytest.raises(DataProblem):
        run_pooled(bundle.folder, [tmp_path / "1"] * 2, tmp_path / "twice", command=COMMAND, say=quiet)
