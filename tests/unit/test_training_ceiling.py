"""The human ceiling: known overlaps come out of drawn outlines, and the shipped figures can be made again."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.cases import DataProblem
from training.evaluation import ceiling
from training.evaluation.ceiling import (
    SAMPLE,
    SHIPPED,
    Agreement,
    human_ceiling,
    luna16_scans,
    measure,
    run_ceiling,
    to_plain,
)
from training.readers.lidc import Contour, LidcScan, default_database, read_lidc

Box = tuple[int, int, int, int, int, int]  # slice, row, column of the first voxel; how many along each


def outline(box: Box) -> tuple[Contour, ...]:
    """A reader's drawing of a box: the line runs through the first pixels outside it."""
    k, row, column, depth, height, width = box
    top, left, bottom, right = row - 1, column - 1, row + height, column + width
    coords = f"{left},{top}\n{right},{top}\n{right},{bottom}\n{left},{bottom}\n{left},{top}"
    return tuple(Contour(z_mm=(k + n) * 2.0, inclusion=True, coords=coords) for n in range(depth))


def scan(*boxes: Box) -> LidcScan:
    return LidcScan(
        uid="1.2.3",
        patient="somebody",
        pixel_mm=0.5,
        z_mm=tuple(2.0 * n for n in range(40)),
        outlines=tuple(outline(box) for box in boxes),
    )


BALL: Box = (10, 50, 60, 4, 10, 10)


def test_readers_who_agree_reach_everything() -> None:
    figures = measure([scan(BALL, BALL, BALL, BALL)])
    assert (figures.nodules, figures.outlines) == (1, 4)
    for shares in (figures.box, figures.mask, figures.slice_box, figures.slice_mask):
        assert set(asdict(shares).values()) == {1.0}
    assert (figures.dice.mean, figures.volume_error.mean, figures.diameter_error_mm.mean) == (1.0, 0.0, 0.0)


def test_a_reader_who_drew_half_is_told_from_the_others() -> None:
    """Three readers of 400 voxels and one of 200: against the others' 400 it has IoU 0.5, the others keep 1."""
    half: Box = (10, 50, 60, 2, 10, 10)
    figures = measure([scan(BALL, BALL, BALL, half)])
    assert (figures.box.at_50, figures.mask.at_50) == (1.0, 1.0)
    assert figures.mask.mean_50_95 == pytest.approx((3 + 0.1) / 4)  # IoU .50 alone of ten thresholds
    assert figures.volume_error.mean == pytest.approx(-0.5 / 4)
    assert figures.dice.mean == pytest.approx((3 + 2 / 3) / 4)
    assert figures.slice_mask.mean_50_95 == 1.0


def test_of_two_others_one_is_half() -> None:
    """Three readers: what either of the others drew is their consensus."""
    wide: Box = (10, 50, 60, 4, 10, 12)
    figures = measure([scan(BALL, BALL, wide)])
    # Each BALL against the wide one: 10 of 12; the wide one against two BALLs: 10 of 12.
    assert figures.mask.mean_50_95 == pytest.approx(0.7)
    assert figures.mask.mean_50_95 == figures.box.mean_50_95 == figures.slice_box.mean_50_95


def test_nothing_on_the_key_slice_reaches_nothing_there() -> None:
    others: Box = (10, 50, 60, 3, 10, 10)
    larger: Box = (10, 49, 59, 1, 12, 12)
    beyond: Box = (11, 50, 60, 2, 10, 10)
    stacked = [*outline(others)[1:], *outline(larger)]
    drawn = LidcScan(
        uid="1.2.3",
        patient="somebody",
        pixel_mm=0.5,
        z_mm=tuple(2.0 * n for n in range(40)),
        outlines=(tuple(stacked), tuple(stacked), tuple(stacked), outline(beyond)),
    )
    figures = measure([drawn])
    assert (figures.slice_box.at_10, figures.slice_mask.at_10) == (0.75, 0.75)
    assert figures.mask.at_10 == 1.0


def test_nodules_of_two_readers_are_none_of_luna16s() -> None:
    far: Box = (30, 10, 10, 3, 6, 6)
    assert measure([scan(BALL, BALL, BALL, far, far)]).nodules == 1
    with pytest.raises(DataProblem, match="no nodule"):
        measure([scan(far, far)])


def test_a_nodule_drawn_in_parts_is_left_out_and_counted() -> None:
    far: Box = (30, 10, 10, 3, 6, 6)
    figures = measure([scan(*[BALL] * 5, far, far, far)])
    assert (figures.nodules, figures.left_out, figures.outlines) == (1, 1, 3)


# Near enough to be of one nodule: slices are 2 mm apart, pixels 0.5 mm.
_boxes = st.tuples(*[st.integers(10, 11)] * 3, st.integers(5, 6), *[st.integers(5, 8)] * 2)


@settings(deadline=None, max_examples=30)
@given(boxes=st.lists(_boxes, min_size=3, max_size=4))
def test_figures_keep_their_bounds_whatever_was_drawn(boxes: list[Box]) -> None:
    figures = measure([scan(*boxes)])
    assert figures.outlines == len(boxes)
    for shares in (figures.box, figures.mask, figures.slice_box, figures.slice_mask):
        falling = [1.0, shares.at_10, shares.mean_10_50, shares.at_50, shares.mean_50_95, 0.0]
        assert all(a >= b - 1e-9 for a, b in pairwise(falling))
    assert figures.dice.p5 <= figures.dice.median <= figures.dice.p95 <= 1
    assert sum(size.outlines for size in figures.sizes.values()) == figures.outlines


def test_an_agreement_of_nothing_is_never_built() -> None:
    fields: dict[str, Any] = dict.fromkeys(Agreement.__dataclass_fields__, 0.5)
    with pytest.raises(ValueError, match="no voxel"):
        Agreement(**{**fields, "reader_mm3": 0.0})


# -- the shipped figures -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_scans() -> list[LidcScan]:
    return luna16_scans(read_lidc(default_database()))


def test_the_shipped_figures_are_read() -> None:
    figures = human_ceiling()
    assert (figures.scans, figures.nodules + figures.left_out) == (888, 1186)
    assert to_plain(figures) == json.loads(SHIPPED.read_text())["all"]
    assert (round(figures.box.mean_10_50, 2), round(figures.mask.mean_10_50, 2)) == (0.95, 0.97)
    assert (round(figures.box.mean_50_95, 2), round(figures.mask.mean_50_95, 2)) == (0.42, 0.38)


def test_the_first_scans_give_the_shipped_sample_again(real_scans: list[LidcScan]) -> None:
    _assert_like(to_plain(measure(real_scans[:SAMPLE])), json.loads(SHIPPED.read_text())["sample"])


@pytest.mark.slow
def test_all_scans_give_the_shipped_file_again(tmp_path: Path) -> None:
    told = run_ceiling(tmp_path / "again.json")
    again, shipped = json.loads((tmp_path / "again.json").read_text()), json.loads(SHIPPED.read_text())
    _assert_like(again["all"], shipped["all"])
    assert again["command"] == shipped["command"]
    assert "1174 nodules in 888 scans; 12 nodules left out" in told


def _assert_like(ours: dict[str, Any], shipped: dict[str, Any]) -> None:
    for name, value in shipped.items():
        if isinstance(value, dict):
            _assert_like(ours[name], value)
        else:
            assert ours[name] == pytest.approx(value, abs=2e-6), name


def test_a_database_without_all_of_luna16s_scans_is_refused(real_scans: list[LidcScan]) -> None:
    with pytest.raises(DataProblem, match=r"887 of LUNA16's 888 scans"):
        luna16_scans({one.uid: one for one in real_scans[1:]})


@pytest.mark.parametrize("content", [None, "{", '{"all": {"box": 1}}'])
def test_a_missing_or_altered_file_of_figures_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.setattr(ceiling, "SHIPPED", tmp_path / "human_ceiling.json")
    if content is not None:
        (tmp_path / "human_ceiling.json").write_text(content)
    with pytest.raises(DataProblem, match=r"human_ceiling\.json"):
        human_ceiling()


def test_figures_that_can_not_be_written_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_scans: list[LidcScan]
) -> None:
    monkeypatch.setattr(ceiling, "luna16_scans", lambda scans: real_scans[:4])
    with pytest.raises(DataProblem, match="name another file"):
        run_ceiling(tmp_path / "nowhere" / "out.json")
