"""Claims about linking slices, scoring, and putting masks back where the scan's own voxels are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.domain import Volume
from dicom_node.grids import grid_affine
from dicom_node.model.findings import Candidate, SliceDetections, box_iou, link, mask_on, score, suppress, trim
from dicom_node.model.spec import MergeSpec

SPEC = MergeSpec()
FULL = np.ones((28, 28), dtype=np.float32)


def on_slice(index: int, *boxes: tuple[float, float, float, float], value: float = 0.9) -> SliceDetections:
    return SliceDetections(
        index=index,
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        scores=np.full(len(boxes), value, dtype=np.float32),
        masks=np.repeat(FULL[None], len(boxes), axis=0),
    )


def candidate(first: int, count: int, box: tuple[float, float, float, float], value: float = 0.9) -> Candidate:
    (made,) = link([on_slice(k, box, value=value) for k in range(first, first + count)], SPEC)
    return made


@st.composite
def stacks(draw: st.DrawFn) -> list[SliceDetections]:
    slices = []
    for index in draw(st.lists(st.integers(0, 12), unique=True, min_size=1, max_size=8)):
        count = draw(st.integers(0, 4))
        corners = draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=count, max_size=count))
        sizes = draw(st.lists(st.tuples(st.integers(3, 12), st.integers(3, 12)), min_size=count, max_size=count))
        boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sizes, strict=True)]
        values = draw(st.lists(st.integers(1, 100), min_size=count, max_size=count))
        found = on_slice(index, *boxes)
        slices.append(
            SliceDetections(
                index=index, boxes=found.boxes, scores=np.array(values, np.float32) / 100, masks=found.masks
            )
        )
    return slices


def same(a: list[Candidate], b: list[Candidate]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x.slices, y.slices) and np.array_equal(x.boxes, y.boxes) for x, y in zip(a, b, strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(stacks())
def test_every_detection_ends_in_exactly_one_candidate(slices):
    def key(index: int, box: np.ndarray, value: float) -> tuple[float, ...]:
        return (index, *box.tolist(), float(value))

    before = sorted(key(s.index, b, v) for s in slices for b, v in zip(s.boxes, s.scores, strict=True))
    after = sorted(
        key(k, b, v) for c in link(slices, SPEC) for k, b, v in zip(c.slices, c.boxes, c.scores, strict=True)
    )
    assert after == before


@settings(max_examples=60, deadline=None)
@given(stacks(), st.randoms())
def test_the_order_in_which_slices_come_does_not_matter(slices, random):
    shuffled = list(slices)
    random.shuffle(shuffled)
    assert same(link(slices, SPEC), link(shuffled, SPEC))


@settings(max_examples=60, deadline=None)
@given(stacks())
def test_candidates_rise_through_slices_and_never_jump_a_longer_gap(slices):
    for found in link(slices, SPEC):
        steps = np.diff(found.slices)
        assert ((steps >= 1) & (steps <= SPEC.gap + 1)).all()
        assert 0.0 <= score(trim(found, SPEC), SPEC, 1.0) <= 1.0


@settings(max_examples=60, deadline=None)
@given(stacks())
def test_what_suppression_keeps_does_not_overlap_and_comes_best_first(slices):
    found = [trim(c, SPEC) for c in link(slices, SPEC)]
    kept = suppress(found, [score(c, SPEC, 1.0) for c in found], SPEC)
    values = [value for _, value in kept]
    assert values == sorted(values, reverse=True)
    for i, (a, _) in enumerate(kept):
        for b, _ in kept[:i]:
            shared = (np.minimum(a.box[1], b.box[1]) - np.maximum(a.box[0], b.box[0])).clip(0).prod()
            union = (a.box[1] - a.box[0]).prod() + (b.box[1] - b.box[0]).prod() - shared
            assert shared <= SPEC.nms_iou * union + 1e-6


def test_one_missing_slice_is_bridged_and_two_are_not():
    box = (10, 10, 16, 16)
    assert len(link([on_slice(0, box), on_slice(2, box)], SPEC)) == 1
    assert len(link([on_slice(0, box), on_slice(3, box)], SPEC)) == 2


def test_each_of_two_neighbours_goes_on_with_its_own_next_slice():
    left, right = (0, 0, 10, 10), (8, 0, 18, 10)
    found = link([on_slice(0, left, right), on_slice(1, right, left)], SPEC)
    assert sorted(c.boxes[:, 0].tolist() for c in found) == [[0.0, 0.0], [8.0, 8.0]]


def test_weak_ends_are_cut_off():
    box = (0, 0, 6, 6)
    slices = [on_slice(k, box, value=v) for k, v in enumerate([0.05, 0.1, 0.9, 0.8, 0.05])]
    (found,) = link(slices, SPEC)
    assert trim(found, SPEC).slices.tolist() == [2, 3]


def test_a_vessel_shaped_candidate_scores_less_than_a_ball():
    box = (0, 0, 6, 6)
    assert score(candidate(0, 6, box), SPEC, 1.0) == pytest.approx(0.9)
    assert score(candidate(0, 40, box), SPEC, 1.0) == 0.0


def test_a_single_slice_cannot_score_like_a_nodule():
    assert score(candidate(0, 1, (0, 0, 6, 6)), SPEC, 1.0) == pytest.approx(0.9 / round(6 * SPEC.length_part))


def test_iou_by_hand():
    a = np.array([[0, 0, 2, 2]], dtype=np.float32)
    b = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [5, 5, 6, 6]], dtype=np.float32)
    assert np.allclose(box_iou(a, b), [[1 / 7, 1.0, 0.0]])


def source(spacing: tuple[float, float, float], flips: tuple[int, int, int]) -> Volume:
    """80 x 80 x 80 mm from the origin, stored in whatever direction."""
    counts = [int(80 / s) for s in spacing]
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, lps in enumerate((2, 1, 0)):
        affine[lps, axis] = spacing[axis] * flips[axis]
        affine[lps, 3] = 0.0 if flips[axis] > 0 else spacing[axis] * (counts[axis] - 1)
    return Volume(hu=np.zeros(counts, dtype=np.int16), affine=affine)


GRID = Volume(hu=np.zeros((80, 80, 80), dtype=np.int16), affine=grid_affine(np.zeros(3), 1.0))


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.floats(0.5, 2.5), st.floats(0.4, 1.0), st.floats(0.4, 1.0)),
    st.tuples(*(st.sampled_from([-1, 1]),) * 3),
    st.tuples(st.integers(10, 40), st.integers(10, 40), st.integers(10, 40)),
    st.integers(8, 20),
)
def test_a_mask_comes_back_at_its_place_in_millimetres(spacing, flips, low, size):
    k, y, x = low
    found = candidate(k, size, (x, y, x + size, y + size))
    volume = source(spacing, flips)
    mask, corner = mask_on(volume, GRID, found, 0.5)
    center = volume.to_mm(np.argwhere(mask).mean(axis=0) + corner)
    # Slices k to k + size - 1, columns whose edges are x and x + size: voxel centres are at whole mm.
    middle = (size - 1) / 2
    assert center == pytest.approx([x + middle, y + middle, k + middle], abs=max(spacing) / 2 + 0.3)
    assert mask.sum() * volume.voxel_mm3 == pytest.approx(size**3, rel=0.6 if size < 12 else 0.4)


@settings(max_examples=25, deadline=None)
@given(st.tuples(*(st.integers(0, 78),) * 3), st.floats(0.3, 30.0))
def test_masks_are_tight_inside_the_volume_and_never_empty(low, thickness):
    k, y, x = low
    volume = source((min(thickness, 40.0), 0.7, 0.7), (1, 1, 1))
    found = candidate(k, 2, (x, y, x + 3, y + 3))
    mask, corner = mask_on(volume, GRID, found, 0.5)
    assert mask.any()
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        faces = mask.any(axis=others)
        assert faces[0]
        assert faces[-1]
        assert corner[axis] + mask.shape[axis] <= volume.hu.shape[axis]


def test_a_mask_is_not_half_a_voxel_off():
    volume = source((0.5, 0.2, 0.2), (1, 1, 1))
    mask, corner = mask_on(volume, GRID, candidate(10, 6, (4, 3, 10, 9)), 0.5)
    center = volume.to_mm(np.argwhere(mask).mean(axis=0) + corner)
    assert center == pytest.approx([6.5, 5.5, 12.5], abs=0.11)


def test_slices_looked_at_every_2_mm_stand_for_2_mm_each():
    box = (20, 20, 30, 30)
    (found,) = link([on_slice(10, box), on_slice(12, box)], SPEC, step=2)
    mask, corner = mask_on(source((0.5, 1.0, 1.0), (1, 1, 1)), GRID, found, 0.5, step=2)
    first, last = corner[0] * 0.5, (corner[0] + len(mask) - 1) * 0.5
    assert (first, last) == pytest.approx((9.25, 12.75), abs=0.26)


def test_a_missing_slice_is_filled_between_its_neighbours():
    box = (20, 20, 30, 30)
    (found,) = link([on_slice(10, box), on_slice(12, box)], SPEC)
    mask, corner = mask_on(GRID, GRID, found, 0.5)
    assert corner[0] == 10
    assert mask[1].sum() == mask[0].sum() == 100


def test_a_missing_slice_takes_from_both_of_its_neighbours():
    wide, narrow = (20, 20, 40, 30), (20, 20, 30, 30)
    for first, second in ((wide, narrow), (narrow, wide)):
        (found,) = link([on_slice(10, first), on_slice(12, second)], SPEC)
        mask, _ = mask_on(GRID, GRID, found, 0.6)
        assert mask[1].sum() == 100
