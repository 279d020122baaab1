"""3D AP and AR against the definition in plain loops, and flat boxes against COCO's own evaluation."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from training.cases import DataProblem
from training.evaluation.intervals import draws
from training.evaluation.overlap import (
    IOUS_10_50,
    IOUS_50_95,
    ScanOverlap,
    average_precision,
    box_iou_3d,
    mask_iou,
    precision_recall,
)

quick = settings(deadline=None, max_examples=50)

# -- the definition, slowly ----------------------------------------------------------------------------


def plainly(scans: list[ScanOverlap], threshold: float, most: int = 100) -> tuple[float, float]:
    """AP and AR at one threshold, mark by mark and recall by recall."""
    judged: list[tuple[float, str]] = []
    truths = sum(len(scan.diameter_mm) for scan in scans)
    for scan in scans:
        taken: set[int] = set()
        for mark in sorted(range(len(scan.score)), key=lambda m: -scan.score[m])[:most]:
            free = [(scan.iou[mark, t], t) for t in range(len(scan.diameter_mm)) if t not in taken]
            if free and max(free)[0] >= threshold:
                taken.add(max(free)[1])
                judged.append((scan.score[mark], "found"))
            elif not scan.ignored[mark]:
                judged.append((scan.score[mark], "false"))
    judged.sort(key=lambda j: -j[0])
    points = []
    for n in range(1, len(judged) + 1):
        found = sum(fate == "found" for _, fate in judged[:n])
        points.append((found / truths, found / n))
    at_recalls = [max((p for r, p in points if r >= level), default=0.0) for level in np.linspace(0, 1, 101)]
    return float(np.mean(at_recalls)), points[-1][0] if points else 0.0


@st.composite
def scan_overlaps(draw: st.DrawFn) -> ScanOverlap:
    m, t = draw(st.integers(0, 6)), draw(st.integers(0, 3))
    score = st.integers(0, 6).map(lambda s: s / 6)
    tenths = st.integers(0, 20).map(lambda n: max(n - 8, 0) / 12)
    return ScanOverlap(
        iou=draw(arrays(np.float64, (m, t), elements=tenths)),
        score=draw(arrays(np.float64, m, elements=score)),
        ignored=draw(arrays(np.bool_, m)),
        diameter_mm=draw(arrays(np.float64, t, elements=st.sampled_from([2.9, 3.0, 5.9, 6.0, 9.0, 20.0]))),
    )


ONE = ScanOverlap(
    iou=np.array([[0.62], [0.3]]), score=np.array([0.4, 0.8]), ignored=np.array([False, False]), diameter_mm=np.ones(1)
)
_scans = st.lists(scan_overlaps(), max_size=8).map(lambda scans: [ONE, *scans])


@quick
@given(scans=_scans, most=st.sampled_from([2, 100]))
def test_ap_and_ar_are_those_of_the_definition(scans: list[ScanOverlap], most: int) -> None:
    result = average_precision(scans, max_per_scan=most)
    for threshold in IOUS_10_50:
        ap, ar = plainly(scans, threshold, most)
        assert result.ap[threshold] == pytest.approx(ap, abs=1e-9)
        assert result.ar[threshold] == pytest.approx(ar, abs=1e-9)
    assert result.map == pytest.approx(np.mean(list(result.ap.values())))
    assert result.mar == pytest.approx(np.mean(list(result.ar.values())))


@quick
@given(seed=st.integers(0, 10**6), scans=st.integers(1, 10))
def test_flat_boxes_score_as_cocos_own_evaluation_scores_them(seed: int, scans: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40, (scans, 3, 2))
    truths = np.concatenate([corners, corners + rng.uniform(3, 12, corners.shape)], axis=-1)
    shift = rng.normal(0, 1.5, (scans, 2, 3, 4))
    marks = (truths[:, None] + shift).reshape(scans, 6, 4)
    marks[..., 2:] = np.maximum(marks[..., 2:], marks[..., :2] + 0.5)
    scores = np.round(rng.random((scans, 6)), 1)
    result = average_precision(
        [_flat(*each) for each in zip(marks, scores, truths, strict=True)],
    )
    expected = coco(marks, scores, truths)
    np.testing.assert_allclose(list(result.ap.values()), expected[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(list(result.ar.values()), expected[1], rtol=0, atol=1e-6)


def _flat(marks: NDArray[np.float64], scores: NDArray[np.float64], truths: NDArray[np.float64]) -> ScanOverlap:
    boxes = []
    for flat in (marks, truths):
        z = np.broadcast_to([[[0.0], [2.5]]], (len(flat), 2, 1))
        boxes.append(np.concatenate([z, flat.reshape(-1, 2, 2)], axis=-1))
    return ScanOverlap(
        iou=box_iou_3d(*boxes),
        score=scores,
        ignored=np.zeros(len(scores), dtype=np.bool_),
        diameter_mm=np.ones(len(truths)),
    )


def coco(marks: NDArray[Any], scores: NDArray[Any], truths: NDArray[Any]) -> tuple[list[float], list[float]]:
    """AP and AR at each of IOUS_10_50 by faster-coco-eval. (scans, n, 4) of x1, y1, x2, y2."""
    annotations = [
        {"id": n * 100 + t + 1, "image_id": n + 1, "category_id": 1, "iscrowd": 0, **_xywh(box)}
        for n, boxes in enumerate(truths)
        for t, box in enumerate(boxes)
    ]
    found = [
        {"image_id": n + 1, "category_id": 1, "score": float(score), **_xywh(box)}
        for n, boxes in enumerate(marks)
        for box, score in zip(boxes, scores[n], strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        images = [{"id": n + 1, "height": 99, "width": 99} for n in range(len(truths))]
        dataset = COCO({"images": images, "categories": [{"id": 1, "name": "nodule"}], "annotations": annotations})
        judge = COCOeval_faster(dataset, dataset.loadRes(found), "bbox", print_function=lambda *_: None)
        judge.params.iouThrs = np.array(IOUS_10_50)
        judge.evaluate()
        judge.accumulate()
    precision, recall = judge.eval["precision"], judge.eval["recall"]
    return precision[:, :, 0, 0, -1].mean(axis=1).tolist(), recall[:, 0, 0, -1].tolist()


def _xywh(box: NDArray[np.float64]) -> dict[str, Any]:
    size = (box[2:] - box[:2]).tolist()
    return {"bbox": [*box[:2].tolist(), *size], "area": size[0] * size[1]}


# -- rules and bins ------------------------------------------------------------------------------------


def one_scan(iou: list[list[float]], score: list[float], ignored: list[bool] | None = None) -> ScanOverlap:
    table = np.array(iou, dtype=np.float64).reshape(len(score), -1)
    return ScanOverlap(
        iou=table,
        score=np.array(score),
        ignored=np.array(ignored or [False] * len(score)),
        diameter_mm=np.full(table.shape[1], 7.0),
    )


def test_a_perfect_scan_scores_one_everywhere() -> None:
    result = average_precision([one_scan([[1.0, 0.0], [0.0, 1.0]], [0.9, 0.8])], IOUS_50_95)
    assert (result.map, result.mar, result.ar_at_1fp) == (1.0, 1.0, 1.0)
    assert list(result.ap) == list(IOUS_50_95)


def test_a_second_mark_on_a_found_nodule_is_false() -> None:
    result = average_precision([one_scan([[0.9], [0.9]], [0.9, 0.8])])
    assert result.hits.truth[0].tolist() == [0, -1]


def test_a_mark_in_an_ignored_finding_counts_neither_way_unless_it_hits() -> None:
    counted = average_precision([one_scan([[0.0], [0.9]], [0.9, 0.8])])
    ignored = average_precision([one_scan([[0.0], [0.9]], [0.9, 0.8], [True, True])])
    assert (counted.map, ignored.map) == (0.5, 1.0)
    assert ignored.hits.truth[0].tolist() == [-2, 0]


def test_recall_at_one_false_mark_a_scan_stops_there() -> None:
    # Two scans: two false marks are allowed; the second nodule comes after a third.
    scans = [one_scan([[0.9], [0.0], [0.0], [0.0]], [0.9, 0.8, 0.7, 0.6]), one_scan([[0.9]], [0.5])]
    result = average_precision(scans)
    assert (result.mar, result.ar_at_1fp) == (1.0, 0.5)


def test_marks_of_one_score_come_together_at_one_false_mark_a_scan() -> None:
    a = one_scan([[0.0], [0.0], [0.9]], [0.5, 0.5, 0.5])
    b = one_scan([[0.9], [0.0], [0.0]], [0.5, 0.5, 0.5])
    assert average_precision([a]).ar_at_1fp == average_precision([b]).ar_at_1fp == 0.5


@quick
@given(scans=_scans)
def test_recalls_of_all_sizes_make_up_the_whole(scans: list[ScanOverlap]) -> None:
    result = average_precision(scans)
    assert sum(size.truths for size in result.sizes.values()) == result.truths
    together = sum(size.mar * size.truths for size in result.sizes.values()) / result.truths
    assert together == pytest.approx(result.mar)


def test_nodules_fall_into_the_bin_that_starts_at_their_size() -> None:
    diameters = np.array([2.0, 3.0, 5.99, 6.0, 8.0, 14.0, 15.0, 40.0])
    scan = ScanOverlap(
        iou=np.zeros((0, 8)), score=np.zeros(0), ignored=np.zeros(0, dtype=np.bool_), diameter_mm=diameters
    )
    sizes = average_precision([scan]).sizes
    assert {name: size.truths for name, size in sizes.items()} == {
        "3-6 mm": 3,
        "6-8 mm": 1,
        "8-15 mm": 2,
        "15 mm and more": 2,
    }


def test_a_found_nodule_counts_in_its_own_bin() -> None:
    small, large = one_scan([[0.0]], [0.9]), one_scan([[0.9]], [0.8])
    scans = [replace(small, diameter_mm=np.array([4.0])), replace(large, diameter_mm=np.array([20.0]))]
    result = average_precision(scans)
    assert {name: size.mar for name, size in result.sizes.items()} == {"3-6 mm": 0.0, "15 mm and more": 1.0}
    assert (result.hits.truth[0].tolist(), result.hits.truth_scan.tolist()) == ([-1, 1], [0, 1])


def test_in_a_bin_marks_on_other_sizes_count_neither_way_and_strays_count_as_false() -> None:
    scan = replace(one_scan([[0.9, 0.0], [0.0, 0.9], [0.0, 0.0]], [0.9, 0.8, 0.95]), diameter_mm=np.array([5.0, 20.0]))
    sizes = average_precision([scan]).sizes
    assert sizes["15 mm and more"].map == sizes["3-6 mm"].map == 0.5
    assert sizes["15 mm and more"].mar == 1.0


def test_the_curve_of_one_threshold_is_told_point_by_point() -> None:
    result = average_precision([one_scan([[0.9, 0.0], [0.0, 0.0], [0.0, 0.3]], [0.9, 0.8, 0.7])])
    recall, precision = precision_recall(result.hits, 0.25)
    assert (recall.tolist(), precision.tolist()) == ([0.5, 0.5, 1.0], [1.0, 0.5, 2 / 3])
    assert precision_recall(result.hits, 0.5)[0].tolist() == [0.5, 0.5, 0.5]


def test_scans_without_any_truth_have_no_figures() -> None:
    with pytest.raises(DataProblem, match="no truth"):
        average_precision([one_scan([[], []], [0.9, 0.8])])


def test_without_any_mark_all_is_nought() -> None:
    silent = replace(ONE, iou=np.zeros((0, 1)), score=np.zeros(0), ignored=np.zeros(0, dtype=np.bool_))
    result = average_precision([silent])
    assert (result.map, result.mar, result.ar_at_1fp) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "broken",
    [
        {"score": np.zeros(3)},
        {"score": np.array([0.5, np.nan])},
        {"iou": np.array([[1.2], [0.0]])},
        {"diameter_mm": np.array([-1.0])},
    ],
)
def test_overlaps_that_do_not_fit_are_never_built(broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        replace(ONE, **broken)


# -- intervals -----------------------------------------------------------------------------------------


@quick
@given(scans=_scans, seed=st.integers(0, 9))
def test_a_draw_scores_as_its_scans_evaluated_anew(scans: list[ScanOverlap], seed: int) -> None:
    # Scores apart from each other: where they tie between scans, COCO's answer hangs on the order of the scans.
    total = sum(len(scan.score) for scan in scans)
    apart = iter(np.random.default_rng(seed).permutation(total) / total)
    scans = [replace(scan, score=np.array([next(apart) for _ in scan.score])) for scan in scans]
    times = next(draws(np.array([len(scan.diameter_mm) for scan in scans]), 1, seed))
    anew = average_precision([scan for scan, count in zip(scans, times, strict=True) for _ in range(count)])
    interval = average_precision(scans).interval(1, seed)
    assert interval.map == pytest.approx((anew.map, anew.map))
    assert interval.mar == pytest.approx((anew.mar, anew.mar))
    assert interval.ar_at_1fp == pytest.approx((anew.ar_at_1fp, anew.ar_at_1fp))
    assert [low for low, _ in interval.ap.values()] == pytest.approx(list(anew.ap.values()))
    assert [high for _, high in interval.ar.values()] == pytest.approx(list(anew.ar.values()))


def test_the_same_seed_gives_the_same_interval_and_it_holds_the_figure() -> None:
    rng = np.random.default_rng(0)
    scans = [one_scan(rng.random((4, 2)).tolist(), rng.random(4).tolist()) for _ in range(30)]
    result = average_precision(scans)
    assert result.interval(100, seed=1) == result.interval(100, seed=1)
    interval = result.interval(100)
    assert interval.map[0] < result.map < interval.map[1]
    assert interval.mar[0] < result.mar < interval.mar[1]


# -- IoU -----------------------------------------------------------------------------------------------

_box = st.tuples(*[st.integers(0, 6)] * 3, *[st.integers(1, 5)] * 3)


def _filled(box: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.bool_], tuple[int, int, int]]:
    low, size = box[:3], box[3:]
    return (
        np.array([low, np.add(low, size)], dtype=np.float64),
        np.ones(size, dtype=np.bool_),
        (low[0], low[1], low[2]),
    )


@quick
@given(a=_box, b=_box)
def test_full_boxes_overlap_alike_as_boxes_and_as_masks(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    (box_a, mask_a, corner_a), (box_b, mask_b, corner_b) = _filled(a), _filled(b)
    expected = mask_iou(mask_a, corner_a, mask_b, corner_b)
    assert box_iou_3d(box_a[None], box_b[None]).item() == pytest.approx(expected)


@quick
@given(
    a=arrays(np.bool_, (3, 4, 5)),
    b=arrays(np.bool_, (4, 3, 2)),
    shift=st.tuples(*[st.integers(-6, 6)] * 3),
)
def test_masks_overlap_as_on_one_common_grid(
    a: NDArray[np.bool_], b: NDArray[np.bool_], shift: tuple[int, int, int]
) -> None:
    grids = np.zeros((2, 20, 20, 20), dtype=np.bool_)
    for grid, mask, corner in ((grids[0], a, (7, 7, 7)), (grids[1], b, tuple(7 + s for s in shift))):
        grid[tuple(slice(c, c + n) for c, n in zip(corner, mask.shape, strict=True))] = mask
    union = (grids[0] | grids[1]).sum()
    expected = (grids[0] & grids[1]).sum() / union if union else 0.0
    assert mask_iou(a, (0, 0, 0), b, shift) == expected
    assert mask_iou(b, shift, a, (0, 0, 0)) == expected


def test_no_boxes_have_no_overlaps() -> None:
    box = np.array([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]])
    assert box_iou_3d(np.zeros((0, 2, 3)), box).shape == (0, 1)
    assert box_iou_3d(box, box).item() == 1.0


def test_a_box_inside_out_is_refused() -> None:
    box = np.array([[[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]])
    with pytest.raises(ValueError, match="high corner"):
        box_iou_3d(box, box)
