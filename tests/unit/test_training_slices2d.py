"""Key-slice AP: COCO's numbers to 1e-6, boxes and masks, with ties, ignored truths and empty images."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.cases import DataProblem
from training.evaluation.slices2d import SliceAP, SliceImage, slice_ap

SIDE = 24


def coco(images: list[SliceImage]) -> SliceAP:
    """The same figures by faster-coco-eval."""
    numbers = range(1, len(images) + 1)
    truths: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, image in zip(numbers, images, strict=True):
        for box, mask, ignore in zip(image.truth_boxes, image.truth_masks, image.truth_ignore, strict=True):
            entry = {"id": len(truths) + 1, "iscrowd": int(ignore), "area": float(mask.sum()), **_entry(box, mask)}
            truths.append({"image_id": number, "category_id": 1, **entry})
        for box, mask, score in zip(image.boxes, image.masks, image.scores, strict=True):
            found.append({"image_id": number, "category_id": 1, "score": float(score), **_entry(box, mask)})
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO(
            {
                "images": [{"id": n, "height": SIDE, "width": SIDE} for n in numbers],
                "categories": [{"id": 1, "name": "nodule"}],
                "annotations": truths,
            }
        )
        results = dataset.loadRes(found)
        figures = {}
        for kind in ("bbox", "segm"):
            judge = COCOeval_faster(dataset, results, kind, print_function=lambda *_: None)
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
            figures[kind] = judge.stats[1], judge.stats[0]
    return SliceAP(
        images=len(images),
        truths=sum(not truth["iscrowd"] for truth in truths),
        box_ap50=float(figures["bbox"][0]),
        box_ap=float(figures["bbox"][1]),
        segm_ap50=float(figures["segm"][0]),
        segm_ap=float(figures["segm"][1]),
    )


def _entry(box: NDArray[np.float64], mask: NDArray[np.bool_]) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()], "segmentation": rle}


def random_image(rng: np.random.Generator, marks: int, truths: int, ignored: float) -> SliceImage:
    """Round nodules; marks are copies a little off, some strays among them; scores of one decimal tie often."""
    centers, radii = rng.uniform(4, SIDE - 4, (truths, 2)), rng.uniform(1.5, 5, truths)
    pick = rng.integers(truths, size=marks) if truths else np.zeros(marks, dtype=np.int64)
    base = centers[pick] if truths else np.full((marks, 2), SIDE / 2)
    base_radii = radii[pick] if truths else np.full(marks, 3.0)
    stray = rng.random(marks) < 0.2
    spots = np.where(stray[:, None], rng.uniform(4, SIDE - 4, (marks, 2)), base + rng.normal(0, 0.7, (marks, 2)))
    spot_radii = np.clip(base_radii * rng.uniform(0.8, 1.25, marks), 1.5, None)
    boxes, masks = _drawn(spots, spot_radii)
    truth_boxes, truth_masks = _drawn(centers, radii)
    return SliceImage(
        boxes=boxes,
        scores=np.round(rng.random(marks), 1),
        masks=masks,
        truth_boxes=truth_boxes,
        truth_masks=truth_masks,
        truth_ignore=rng.random(truths) < ignored,
    )


def _drawn(centers: NDArray[np.float64], radii: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    y, x = np.mgrid[:SIDE, :SIDE]
    masks = np.zeros((len(radii), SIDE, SIDE), dtype=np.bool_)
    for mask, (cx, cy), radius in zip(masks, centers, radii, strict=True):
        mask[:] = (x - cx) ** 2 + (y - cy) ** 2 <= radius**2
    return np.column_stack([centers - radii[:, None], centers + radii[:, None]]), masks


def assert_same(ours: SliceAP, theirs: SliceAP) -> None:
    for name in ("images", "truths", "box_ap50", "box_ap", "segm_ap50", "segm_ap"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=1e-6), name


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    counts=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), min_size=1, max_size=12),
    ignored=st.sampled_from([0.0, 0.4]),
)
def test_figures_are_cocos(seed: int, counts: list[tuple[int, int]], ignored: float) -> None:
    rng = np.random.default_rng(seed)
    images = [random_image(rng, *count, ignored) for count in [(3, 2), *counts]]
    # At least one mark (loadRes takes no empty list) and one truth that counts.
    images[0] = replace(images[0], truth_ignore=np.zeros(2, dtype=np.bool_))
    assert_same(slice_ap(images), coco(images))


def test_of_more_than_a_hundred_marks_the_best_hundred_count_as_in_coco() -> None:
    """The only hit is the 101st mark: on it alone the figure depends."""
    image = random_image(np.random.default_rng(0), 101, 1, 0.0)
    strays = np.zeros((100, SIDE, SIDE), dtype=np.bool_)
    strays[:, 0, 0] = True
    crowded = replace(
        image,
        boxes=np.concatenate([np.tile([0.0, 0.0, 1.0, 1.0], (100, 1)), image.truth_boxes]),
        masks=np.concatenate([strays, image.truth_masks]),
        scores=np.append(np.full(100, 0.9), 0.1),
    )
    other = random_image(np.random.default_rng(1), 6, 2, 0.0)
    assert slice_ap([crowded]).box_ap50 == slice_ap([crowded]).segm_ap50 == 0.0
    assert_same(slice_ap([crowded, other]), coco([crowded, other]))


def test_an_iou_of_exactly_a_threshold_reaches_it_as_in_coco() -> None:
    images = []
    for common, union in ((11, 20), (3, 5), (13, 20), (7, 10), (3, 4), (17, 20), (9, 10), (19, 20)):
        truth, mark = np.zeros((2, 1, SIDE, SIDE), dtype=np.bool_)
        truth[0, 0, :union], mark[0, 0, :common] = True, True
        box, truth_box = np.array([[0.0, 0.0, common, 1.0]]), np.array([[0.0, 0.0, union, 1.0]])
        images.append(
            SliceImage(
                boxes=box,
                scores=np.array([0.5]),
                masks=mark,
                truth_boxes=truth_box,
                truth_masks=truth,
                truth_ignore=np.zeros(1, dtype=np.bool_),
            )
        )
    assert_same(slice_ap(images), coco(images))


def test_a_mark_on_an_ignored_truth_counts_neither_way() -> None:
    image = random_image(np.random.default_rng(1), 0, 2, 0.0)
    both = replace(
        image,
        boxes=image.truth_boxes,
        scores=np.array([0.2, 0.9]),
        masks=image.truth_masks,
        truth_ignore=np.array([False, True]),
    )
    assert slice_ap([both]).box_ap50 == slice_ap([both]).segm_ap == 1.0
    first = np.zeros(1, dtype=np.bool_)
    alone = replace(both, truth_boxes=both.boxes[:1], truth_masks=both.masks[:1], truth_ignore=first)
    assert slice_ap([alone]).box_ap50 == slice_ap([alone]).segm_ap == 0.5


def test_a_crop_of_the_window_changes_nothing() -> None:
    image = random_image(np.random.default_rng(2), 5, 2, 0.0)
    held = np.any(np.concatenate([image.masks, image.truth_masks]), axis=0)
    rows, columns = np.flatnonzero(held.any(axis=1)), np.flatnonzero(held.any(axis=0))
    window = np.s_[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert slice_ap([replace(image, masks=image.masks[window], truth_masks=image.truth_masks[window])]) == slice_ap(
        [image]
    )


def test_images_may_come_one_by_one() -> None:
    images = [random_image(np.random.default_rng(n), 3, 1, 0.0) for n in range(4)]
    assert slice_ap(image for image in images) == slice_ap(images)


def test_slices_without_a_truth_are_refused() -> None:
    with pytest.raises(DataProblem, match="no slice holds a truth"):
        slice_ap([random_image(np.random.default_rng(0), 3, 1, 1.1)])


@pytest.mark.parametrize(
    "broken",
    [
        {"scores": np.zeros(2)},
        {"scores": np.array([0.5, np.inf, 0.5])},
        {"masks": np.zeros((3, 5, 5), dtype=np.bool_)},
        {"truth_boxes": np.array([[5.0, 5.0, 4.0, 9.0]])},
    ],
)
def test_an_image_that_does_not_fit_is_never_built(broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        replace(random_image(np.random.default_rng(0), 3, 1, 0.0), **broken)
