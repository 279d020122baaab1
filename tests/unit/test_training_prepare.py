"""Claims about the prepared cache: the node's own voxels, all or nothing on disk, and redone when something changed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dicom_node.domain import Volume
from dicom_node.grids import grid_affine, resample, simple_itk
from dicom_node.lungs import find_lungs
from dicom_node.model.preprocess import network_input, slice_stacks
from dicom_node.model.spec import PreprocessSpec
from tests.fakes.luna16 import FakeScan, write_luna16
from training.cases import Case, DataProblem, Ignored, Nodule, Scan
from training.phantom import chest
from training.prepare import CROP_MARGIN_MM, Progress, on_grid, prepare, prepare_case
from training.prepared import PreparedScan, open_prepared, read_index
from training.readers.dicom_seg import list_dicom_seg
from training.readers.luna16 import list_luna16
from training.readers.masks import tight
from training.readers.nifti import list_nifti

PREP = PreprocessSpec()
LEFT, RIGHT = (42.0, 10.0, -5.0, 8.0), (-40.0, -8.0, 14.0, 3.0)
ONE = FakeScan(uid="1.2.1", nodules=(LEFT, RIGHT), outlined=(4, 3), excluded=((40.0, -20.0, 20.0, -0.5),))
TWO = FakeScan(uid="1.2.2", subset=1, patient="P2", nodules=(LEFT,), outlined=(0,))


@pytest.fixture
def luna(tmp_path: Path) -> list[Scan]:
    database = write_luna16(tmp_path / "luna", ONE, TWO)
    return list_luna16(tmp_path / "luna", database=database).scans


def scan_of(case: Case, **how: Any) -> Scan:
    base: dict[str, Any] = {"uid": "1.2.3", "patient": "P1", "subset": 0, "composite": False, "files": (), "truth": "t"}
    return Scan(**{**base, "read": lambda: case, **how})


def nodule(name: str, corner: tuple[int, int, int], mask: NDArray[np.bool_]) -> Nodule:
    return Nodule(name=name, center_mm=(0.0, 0.0, 0.0), diameter_mm=5.0, mask=mask, corner=corner, mask_from="voxels")


def contents(cache: Path) -> dict[str, bytes]:
    return {str(f.relative_to(cache)): f.read_bytes() for f in sorted(cache.rglob("*")) if f.is_file()}


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.name.startswith(".")]


# -- what an entry holds ---------------------------------------------------------------------------


def test_an_entry_is_the_scan_on_the_networks_grid_round_the_lungs(tmp_path: Path, luna: list[Scan]):
    prepare(luna, tmp_path / "cache", PREP)
    first, second = open_prepared(tmp_path / "cache", PREP)
    assert (first.form.uid, first.form.subset, first.form.patient) == ("1.2.1", 0, "P1")
    assert [(n.number, n.mask_from, n.readers) for n in first.form.nodules] == [(1, "contours", 4), (2, "contours", 3)]
    assert [n.mask_from for n in second.form.nodules] == ["sphere"]
    assert first.form.ignored == ((40.0, -20.0, 20.0, 5.0),)
    lungs = find_lungs(ONE.volume)
    box = lungs.box_mm(CROP_MARGIN_MM)
    assert first.form.origin_mm == pytest.approx(np.maximum(box[0], ONE.volume.to_mm((0, 0, 0))))
    grid = Volume(hu=np.array(first.hu()), affine=grid_affine(np.array(first.form.origin_mm), 1.0))
    last = grid.to_mm(np.array(grid.hu.shape) - 1.0)
    again = resample(ONE.volume, 1.0, PREP.air_hu, np.stack([first.form.origin_mm, last]))
    assert np.array_equal(grid.hu, again.hu)


def test_labels_lie_on_their_nodules_and_count_what_they_say(tmp_path: Path, luna: list[Scan]):
    prepare(luna[:1], tmp_path / "cache", PREP)
    (scan,) = open_prepared(tmp_path / "cache", PREP)
    for truth, form in zip((LEFT, RIGHT), scan.form.nodules, strict=True):
        marked = np.argwhere(scan.labels() == form.number)
        assert len(marked) == form.voxels
        assert np.linalg.norm(scan.to_mm(marked.mean(axis=0)) - truth[:3]) < 0.8
        # Lung is at -850; thick slices take some of it into the smaller one.
        assert np.median(scan.hu()[scan.labels() == form.number]) > -400


def test_the_distance_is_the_lungs_own(tmp_path: Path, luna: list[Scan]):
    prepare(luna[:1], tmp_path / "cache", PREP)
    (scan,) = open_prepared(tmp_path / "cache", PREP)
    rng = np.random.default_rng(0)
    index = rng.integers(0, scan.form.shape, (500, 3))
    there = find_lungs(ONE.volume).distance_at(scan.to_mm(index.astype(np.float64)))
    kept = scan.distance()[tuple(index.T)].astype(np.float64)
    assert np.abs(kept - there.clip(-100, 100)).max() <= 0.51


def test_a_crop_is_taken_as_it_is(tmp_path: Path):
    case = Case(volume=ONE.volume, nodules=(nodule("n", (20, 40, 40), np.ones((4, 6, 6), bool)),), ignored=())
    form, arrays = prepare_case(scan_of(case, whole_chest=False), case, "key", PREP)
    assert not form.whole_chest
    assert (arrays["distance"] == -100).all()
    assert np.abs(np.array(form.shape)[::-1] - (np.array(ONE.volume.hu.shape) * (2.5, 1.5, 1.5))[::-1]).max() < 3


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.4, 9.0),
    st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    st.tuples(*[st.sampled_from([0.45, 0.7, 1.0, 2.5])] * 2),
    st.tuples(*[st.sampled_from([1, -1])] * 3),
    st.integers(1, 6),
)
def test_every_nodule_keeps_its_place_and_size(
    radius: float, off: tuple[float, ...], spacing: tuple[float, float], flips: tuple[int, int, int], odd: int
):
    """Whatever the scan's own grid and however small the nodule: at least one voxel, where it is."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = np.array([spacing[0], spacing[1], spacing[1]]) * flips
    affine[3, 3] = 1.0
    n = np.ceil((2 * radius + 4) / np.array([spacing[0], spacing[1], spacing[1]])).astype(int) + 2 * odd
    affine[:3, 3] = -(affine[:3, :3] @ ((n - 1) / 2)) + off
    volume = Volume(hu=np.zeros(tuple(n), dtype=np.int16), affine=affine)
    index = np.stack(np.meshgrid(*(np.arange(k) for k in n), indexing="ij"), axis=-1).astype(float)
    distance = np.linalg.norm(volume.to_mm(index), axis=-1)
    mask = (distance < radius) | (distance == distance.min())
    held, corner = tight(mask, (0, 0, 0))
    case = Case(volume=volume, nodules=(nodule("n", corner, held),), ignored=())
    form, arrays = prepare_case(scan_of(case, whole_chest=False), case, "key", PREP)
    marked = np.argwhere(arrays["labels"] == 1)
    assert form.nodules[0].voxels == len(marked) >= 1
    grid = Volume(hu=arrays["hu"], affine=grid_affine(np.array(form.origin_mm), 1.0))
    truth = volume.to_mm(np.argwhere(mask).mean(axis=0))
    assert np.linalg.norm(grid.to_mm(marked.mean(axis=0)) - truth) < 0.9
    if radius > 4:
        volumes = len(marked), mask.sum() * volume.voxel_mm3
        # A mask of few large voxels is itself so far from the ball: 28 of 2.5 mm for a radius of 4.5 mm.
        assert volumes[0] == pytest.approx(volumes[1], rel=0.25 if 2.5 in spacing else 0.15)


def test_where_two_nodules_meet_none_is_lost():
    case = Case(
        volume=chest(spacing_mm=(2.0, 1.0, 1.0)),
        nodules=(
            nodule("small", (30, 60, 60), np.ones((2, 3, 3), bool)),
            nodule("large", (26, 56, 56), np.ones((9, 12, 12), bool)),
        ),
        ignored=(),
    )
    form, arrays = prepare_case(scan_of(case, whole_chest=False), case, "key", PREP)
    assert all(n.voxels > 0 for n in form.nodules)
    assert form.nodules[0].voxels == int((arrays["labels"] == 1).sum())


def test_a_nodule_far_from_the_lungs_is_still_in_the_crop():
    volume = chest(spacing_mm=(2.0, 1.5, 1.5))
    at = np.rint(volume.to_index((0.0, 0.0, 57.0))).astype(int)
    far = nodule("far", (int(at[0]), int(at[1]), int(at[2])), np.ones((1, 3, 3), bool))
    behind = nodule("behind", (20, 0, 60), np.ones((3, 3, 3), bool))
    case = Case(volume=volume, nodules=(far, behind), ignored=())
    form, _ = prepare_case(scan_of(case), case, "key", PREP)
    assert all(n.voxels >= 1 for n in form.nodules)


def test_256_nodules_are_refused_by_name():
    one = nodule("n", (20, 40, 40), np.ones((2, 2, 2), bool))
    case = Case(volume=ONE.volume, nodules=(one,) * 256, ignored=())
    with pytest.raises(DataProblem, match=r"1\.2\.3 has 256 nodules, at most 255"):
        prepare_case(scan_of(case), case, "key", PREP)


def test_ignored_findings_keep_their_radius():
    balls = (Ignored(center_mm=(1.0, 2.0, 3.0), diameter_mm=-1), Ignored(center_mm=(4.0, 5.0, 6.0), diameter_mm=4.0))
    case = Case(volume=ONE.volume, nodules=(), ignored=balls)
    form, _ = prepare_case(scan_of(case, whole_chest=False), case, "key", PREP)
    assert form.ignored == ((1.0, 2.0, 3.0, 5.0), (4.0, 5.0, 6.0, 2.0))


# -- resume, change, damage ------------------------------------------------------------------------


def test_what_is_there_is_not_done_again(tmp_path: Path, luna: list[Scan]):
    told: list[Progress] = []
    prepare(luna[:1], tmp_path / "cache", PREP, report=told.append)
    before = contents(tmp_path / "cache")
    index = prepare(luna, tmp_path / "cache", PREP, report=told.append)
    assert [(p.uid, p.done, p.of, p.seconds > 0) for p in told] == [
        ("1.2.1", 1, 1, True),
        ("1.2.1", 1, 2, False),
        ("1.2.2", 2, 2, True),
    ]
    after = contents(tmp_path / "cache")
    entry = index.keys["1.2.1"]
    assert {k: v for k, v in after.items() if k.startswith(entry)} == {
        k: v for k, v in before.items() if k.startswith(entry)
    }
    assert told[-1].size_mb == pytest.approx(
        4e-6 * np.prod(open_prepared(tmp_path / "cache", PREP)[1].form.shape), rel=0.01
    )


def test_two_workers_make_the_same_cache_as_one(tmp_path: Path, luna: list[Scan]):
    prepare(luna, tmp_path / "one", PREP)
    prepare(luna, tmp_path / "two", PREP, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert leftovers(tmp_path / "two") == []


def test_changed_truth_bytes_or_numbers_change_the_key(tmp_path: Path, luna: list[Scan]):
    cache = tmp_path / "cache"
    first = prepare(luna, cache, PREP).keys
    assert prepare(luna, cache, PREP).keys == first
    truth = prepare([replace(luna[0], truth="other"), luna[1]], cache, PREP).keys
    assert truth["1.2.1"] != first["1.2.1"]
    assert truth["1.2.2"] == first["1.2.2"]
    raw = tmp_path / "luna" / "subset0" / "1.2.1.raw"
    changed = bytearray(raw.read_bytes())
    changed[1000] ^= 1
    raw.write_bytes(changed)
    os.utime(raw, ns=(0, time.time_ns() + 10**9))
    assert prepare(luna, cache, PREP).keys["1.2.1"] not in (first["1.2.1"], truth["1.2.1"])
    assert prepare(luna[1:], cache, PreprocessSpec(spacing_mm=2.0)).keys["1.2.2"] != first["1.2.2"]
    with pytest.raises(DataProblem, match="prepare again"):
        open_prepared(cache, PREP)


def test_a_touched_file_of_the_same_bytes_keeps_its_entry(tmp_path: Path, luna: list[Scan]):
    first = prepare(luna[:1], tmp_path / "cache", PREP).keys
    os.utime(tmp_path / "luna" / "subset0" / "1.2.1.raw", ns=(0, 0))
    told: list[Progress] = []
    assert prepare(luna[:1], tmp_path / "cache", PREP, report=told.append).keys == first
    assert told[0].seconds == 0


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import training.prepare as prepare
    from dicom_node.model.spec import PreprocessSpec
    from training.readers.luna16 import list_luna16
    luna, cache, calls = Path(sys.argv[1]), Path(sys.argv[2]), []
    def die(descriptor):
        calls.append(descriptor)
        if len(calls) == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
    prepare._sync = die
    prepare.prepare(list_luna16(luna, database=luna / "lidc.sqlite").scans, cache, PreprocessSpec())
"""


@pytest.mark.parametrize("at", [1, 4, 5, 11])
def test_a_run_killed_at_any_point_is_finished_by_the_next(tmp_path: Path, luna: list[Scan], at: int):
    """1: arrays of the first scan; 4: its form; 5: the hashes, its entry is complete; 11: the index."""
    cache = tmp_path / "cache"
    code = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "luna"), str(cache), str(at)]
    assert subprocess.run(code, check=False).returncode == -signal.SIGKILL
    for entry in (path for path in cache.iterdir() if path.is_dir() and not path.name.startswith(".")):
        assert PreparedScan(folder=entry, form=open_form(entry)).hu().size > 0
    with pytest.raises(DataProblem, match="prepare"):
        read_index(cache)
    assert len(leftovers(cache)) == 1
    os.utime(cache / leftovers(cache)[0], (0, 0))
    prepare(luna, cache, PREP)
    assert leftovers(cache) == []
    prepare(luna, tmp_path / "whole", PREP)
    assert contents(cache) == contents(tmp_path / "whole")


def open_form(entry: Path) -> Any:
    from training.prepared import open_scan

    return open_scan(entry).form


def test_what_another_run_is_writing_is_left_alone(tmp_path: Path, luna: list[Scan]):
    writing = tmp_path / "cache" / ".0123.abcd"
    writing.mkdir(parents=True)
    prepare(luna[:1], tmp_path / "cache", PREP)
    assert leftovers(tmp_path / "cache") == [".0123.abcd"]


def test_two_runs_at_once_do_no_harm(tmp_path: Path, luna: list[Scan]):
    context = multiprocessing.get_context("spawn")
    runs = [context.Process(target=prepare, args=(luna, tmp_path / "cache", PREP)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(120)
        assert run.exitcode == 0
    prepare(luna, tmp_path / "alone", PREP)
    assert contents(tmp_path / "cache") == contents(tmp_path / "alone")
    assert leftovers(tmp_path / "cache") == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_scan_that_can_not_be_prepared_is_refused_or_noted(tmp_path: Path, luna: list[Scan], workers: int):
    (tmp_path / "luna" / "subset0" / "1.2.1.raw").unlink()
    with pytest.raises(DataProblem, match=r"1\.2\.1\.raw can't be read"):
        prepare(luna, tmp_path / "refuse", PREP, workers=workers)
    told: list[Progress] = []
    index = prepare(
        luna, tmp_path / "skip", PREP, workers=workers, on_problem="skip", report=told.append, left_out={"x": "before"}
    )
    assert set(index.keys) == {"1.2.2"}
    assert set(index.left_out) == {"1.2.1", "x"}
    assert {p.uid for p in told if p.problem} == {"1.2.1"}
    assert read_index(tmp_path / "skip") == index


def test_a_scan_without_lungs_is_named(tmp_path: Path):
    empty = Volume(hu=np.full((30, 40, 40), 40, np.int16), affine=ONE.volume.affine)
    scan = scan_of(Case(volume=empty, nodules=(), ignored=()))
    with pytest.raises(DataProblem, match=r"1\.2\.3: 0 mL look like lung"):
        prepare([scan], tmp_path, PREP)


def test_two_scans_of_one_uid_are_refused(tmp_path: Path, luna: list[Scan]):
    with pytest.raises(DataProblem, match="1 scans have a UID that another scan has"):
        prepare([luna[0], luna[0]], tmp_path, PREP)


# -- real data -------------------------------------------------------------------------------------

REAL = "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192"


@pytest.fixture(scope="module")
def two_forms(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Scan, Scan]:
    """LIDC-IDRI-0001 as DICOM, and as LUNA16 gives it."""
    folder = tmp_path_factory.mktemp("real")
    with tarfile.open(shared_data / "chest_ct/lidc_idri_0001/LIDC-IDRI-0001.tar.xz", "r:xz") as archive:
        archive.extractall(folder / "dicom", filter="data")
    (dicom,) = list_dicom_seg(folder / "dicom", unlabelled="negative").scans
    sitk = simple_itk()
    names = max(
        (sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(d)) for d in {f.parent for f in dicom.files}), key=len
    )
    (folder / "luna" / "subset1").mkdir(parents=True)
    image = sitk.ReadImage(names, sitk.sitkInt16)
    sitk.WriteImage(image, str(folder / "luna" / "subset1" / f"{dicom.uid}.mhd"))
    for name in ("annotations.csv.gz", "annotations_excluded.csv.gz"):
        (folder / "luna" / name).write_bytes((shared_data / "luna16" / name).read_bytes())
    (luna,) = list_luna16(folder / "luna").scans
    return dicom, luna


@pytest.mark.slow
def test_dicom_and_mhd_of_one_scan_give_the_network_the_same_bits(two_forms: tuple[Scan, Scan]):
    dicom, luna = two_forms
    assert dicom.uid == luna.uid == REAL
    there = luna.read()
    here = replace(dicom.read(), nodules=there.nodules, ignored=there.ignored)
    assert np.array_equal(here.volume.hu, there.volume.hu)
    forms, arrays = zip(*(prepare_case(luna, case, "key", PREP) for case in (here, there)), strict=True)
    assert forms[0] == forms[1]
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])
    centers = list(range(0, forms[0].shape[0], 17))
    seen = [network_input(slice_stacks(torch.from_numpy(a["hu"]), centers, PREP), PREP) for a in arrays]
    assert torch.equal(seen[0], seen[1])
    (form,) = forms[1].nodules
    assert (form.mask_from, form.readers) == ("contours", 4)
    assert (6 * form.voxels / np.pi) ** (1 / 3) == pytest.approx(form.diameter_mm, rel=0.02)
    assert form.diameter_mm == pytest.approx(23.35, abs=0.01)
    assert len(forms[1].ignored) == 25
    # The nodule's own voxels are tissue, what it touches is lung.
    assert np.median(arrays[1]["hu"][arrays[1]["labels"] == 1]) > -100
    # As docs/training.md says of the cache: 4 bytes for each mm3 of the crop.
    assert 60 < 4e-6 * np.prod(forms[1].shape) < 120


@pytest.mark.slow
def test_real_nodules_keep_their_size_on_the_grid(shared_data: Path):
    """Every tenth of the 904: volume on the 1 mm grid beside volume on the scan's own.

    Crops that end with the nodule are left aside: a grid reaches to the last slice's centre, not to its far side.
    """
    ratios = []
    for scan in list_nifti(shared_data / "nodule_voi", labelling="values", whole_chest=False).scans[::10]:
        case = scan.read()
        (real,) = case.nodules
        if real.corner[0] > 0 and real.corner[0] + len(real.mask) < len(case.volume.hu):
            form, _ = prepare_case(scan, case, "key", PREP)
            ratios.append(form.nodules[0].voxels / (np.pi / 6 * real.diameter_mm**3))
    assert len(ratios) > 30
    assert np.percentile(ratios, [0, 50, 100]) == pytest.approx([0.90, 0.99, 1.05], abs=0.02)


def test_a_mask_beyond_the_grid_is_cut_off_not_moved():
    volume = Volume(hu=np.zeros((10, 10, 10), np.int16), affine=grid_affine(np.zeros(3), 1.0))
    grid = Volume(hu=np.zeros((4, 4, 4), np.int16), affine=grid_affine(np.full(3, 4.0), 1.0))
    inside, window = on_grid(volume, nodule("n", (0, 0, 0), np.ones((6, 6, 6), bool)), grid)
    full = np.zeros((4, 4, 4), bool)
    full[window] = inside
    assert np.argwhere(full).max(axis=0).tolist() == [1, 1, 1]
    assert full.sum() == 8
