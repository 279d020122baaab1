"""Claims about the readers: what is there is read as it is, what is broken is named, skipped or refused as told."""

import gzip
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom_node.domain import Volume
from dicom_node.grids import simple_itk, to_image
from dicom_node.results import build_results, to_bytes
from dicom_node.series import read_series, to_volume
from tests.fakes.ct import PRONE, SUPINE, make_ct_series
from tests.fakes.findings import JOB, ball, detection_of
from tests.fakes.luna16 import FakeScan, write_list, write_luna16
from training.cases import Case, DataProblem, Nodule
from training.readers import Listing
from training.readers.dicom_seg import list_dicom_seg
from training.readers.lists import find_list, read_findings
from training.readers.lists import read_series as read_uids
from training.readers.luna16 import list_luna16
from training.readers.nifti import list_nifti

LEFT, RIGHT = (42.0, 10.0, -5.0, 8.0), (-40.0, -8.0, 14.0, 6.0)
ONE = FakeScan(
    uid="1.2.1",
    subset=0,
    patient="LIDC-1",
    nodules=(LEFT, RIGHT),
    outlined=(4, 3),
    excluded=((40.0, -20.0, 20.0, -0.5),),
)
TWO = FakeScan(uid="1.2.2", subset=3, patient="LIDC-2", nodules=(LEFT,), outlined=(0,), compressed=True)


def painted(nodule: Nodule, volume: Volume) -> np.ndarray[Any, Any]:
    full = np.zeros(volume.hu.shape, dtype=bool)
    full[tuple(slice(c, c + n) for c, n in zip(nodule.corner, nodule.mask.shape, strict=True))] = nodule.mask
    return full


def dice(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def true_ball(volume: Volume, x: float, y: float, z: float, radius: float) -> np.ndarray[Any, Any]:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.hu.shape), indexing="ij"), axis=-1)
    return np.asarray(np.linalg.norm(volume.to_mm(index.astype(float)) - (x, y, z), axis=-1) < radius)


def luna(folder: Path, *scans: FakeScan, **how: Any) -> Listing:
    return list_luna16(folder, database=write_luna16(folder, *scans), **how)


# -- LUNA16 ----------------------------------------------------------------------------------------


def test_luna16_is_read_as_downloaded(tmp_path: Path):
    listing = luna(tmp_path, ONE, TWO)
    assert [(s.uid, s.subset, s.patient, s.composite) for s in listing.scans] == [
        ("1.2.1", 0, "LIDC-1", False),
        ("1.2.2", 3, "LIDC-2", False),
    ]
    assert listing.left_out == {}
    assert "2 scans of 2 patients, 3 nodules" in listing.summary
    assert "subsets without scans: 1, 2, 4, 5, 6, 7, 8, 9" in listing.summary
    for scan, fake in zip(listing.scans, (ONE, TWO), strict=True):
        volume = scan.read().volume
        assert np.array_equal(volume.hu, fake.volume.hu)
        assert np.allclose(volume.affine, fake.volume.affine, atol=1e-9)


@pytest.mark.parametrize("flips", [(1, 1, 1), (1, -1, -1)], ids=["supine", "columns and rows backwards"])
def test_masks_are_the_readers_outlines_wherever_the_image_points(tmp_path: Path, flips: tuple[int, int, int]):
    fake = FakeScan(uid="1.2.1", nodules=(LEFT, RIGHT), outlined=(4, 3), flips=flips)
    (scan,) = luna(tmp_path, fake).scans
    case = scan.read()
    assert [(n.mask_from, n.readers) for n in case.nodules] == [("contours", 4), ("contours", 3)]
    for nodule, truth in zip(case.nodules, (LEFT, RIGHT), strict=True):
        assert nodule.center_mm == truth[:3]
        assert dice(painted(nodule, case.volume), true_ball(case.volume, *truth)) > 0.85


def test_a_nodule_nobody_outlined_gets_a_flagged_sphere(tmp_path: Path):
    (scan,) = luna(tmp_path, TWO).scans
    case = scan.read()
    (nodule,) = case.nodules
    assert (nodule.mask_from, nodule.readers) == ("sphere", None)
    assert dice(painted(nodule, case.volume), true_ball(case.volume, *LEFT)) > 0.99


def test_an_outline_serves_one_nodule_only(tmp_path: Path):
    database = write_luna16(tmp_path, FakeScan(uid="1.2.1", nodules=(LEFT,), outlined=(4,)))
    x, y, z, radius = LEFT
    write_list(tmp_path / "annotations.csv", {"1.2.1": [(x + 3, y, z, radius), LEFT]})
    (scan,) = list_luna16(tmp_path, database=database).scans
    assert [n.mask_from for n in scan.read().nodules] == ["sphere", "contours"]


def test_excluded_findings_without_diameter_count_as_10_mm(tmp_path: Path):
    (scan,) = luna(tmp_path, ONE).scans
    (finding,) = scan.read().ignored
    assert (finding.center_mm, finding.diameter_mm, finding.radius_mm) == ((40.0, -20.0, 20.0), -1.0, 5.0)


def test_outlines_beyond_the_volume_are_another_scans(tmp_path: Path):
    database = write_luna16(tmp_path, ONE)
    header = tmp_path / "subset0" / "1.2.1.mhd"
    lines = [("Offset = 0 0 500" if line.startswith("Offset") else line) for line in header.read_text().splitlines()]
    header.write_text("\n".join(lines) + "\n")
    (scan,) = list_luna16(tmp_path, database=database).scans
    with pytest.raises(DataProblem, match=r"1\.2\.1: an outline at z = .* lies on no slice"):
        scan.read()


def without_raw(folder: Path) -> str:
    (folder / "subset0" / "1.2.1.raw").unlink()
    return r"1\.2\.1\.raw is missing"


def without_header(folder: Path) -> str:
    (folder / "subset3" / "1.2.2.mhd").unlink()
    return r"1\.2\.2\.zraw has no 1\.2\.2\.mhd beside it"


def cut_raw(folder: Path) -> str:
    raw = folder / "subset0" / "1.2.1.raw"
    raw.write_bytes(raw.read_bytes()[:-1])
    return r"1\.2\.1\.raw has \d+ bytes, its header says \d+"


def cut_zraw(folder: Path) -> str:
    raw = folder / "subset3" / "1.2.2.zraw"
    raw.write_bytes(raw.read_bytes()[:-100])
    return r"1\.2\.2\.zraw has \d+ bytes"


def garbage_header(folder: Path) -> str:
    (folder / "subset0" / "1.2.1.mhd").write_bytes(b"\xff\x00 no header")
    return r"1\.2\.1\.mhd is no MetaImage header"


def other_type(folder: Path) -> str:
    header = folder / "subset0" / "1.2.1.mhd"
    header.write_text(header.read_text().replace("MET_SHORT", "MET_LONG_DOUBLE"))
    return r"1\.2\.1\.mhd is no MetaImage header"


def twice(folder: Path) -> str:
    for file in (folder / "subset0").iterdir():
        (folder / "subset5").mkdir(exist_ok=True)
        (folder / "subset5" / file.name).write_bytes(file.read_bytes())
    return "is there twice, in subset0 too"


@pytest.mark.parametrize("damage", [without_raw, without_header, cut_raw, cut_zraw, garbage_header, other_type, twice])
def test_a_broken_scan_is_named_and_refused_or_skipped(tmp_path: Path, damage: Any):
    database = write_luna16(tmp_path, ONE, TWO)
    what = damage(tmp_path)
    with pytest.raises(DataProblem, match=what):
        list_luna16(tmp_path, database=database)
    listing = list_luna16(tmp_path, database=database, on_problem="skip")
    (name,) = listing.left_out
    assert len(listing.scans) + len(listing.left_out) == (3 if damage is twice else 2)
    assert name.startswith("1.2.")


def test_compressed_data_that_do_not_unpack_are_named_when_read(tmp_path: Path):
    database = write_luna16(tmp_path, TWO)
    raw = tmp_path / "subset3" / "1.2.2.zraw"
    raw.write_bytes(bytes(b ^ 0x55 for b in raw.read_bytes()))
    (scan,) = list_luna16(tmp_path, database=database).scans
    with pytest.raises(DataProblem, match=r"1\.2\.2\.zraw does not unpack to the size that its header says"):
        scan.read()


def test_lists_may_be_gzipped(tmp_path: Path):
    database = write_luna16(tmp_path, ONE)
    plain = list_luna16(tmp_path, database=database)
    for name in ("annotations.csv", "annotations_excluded.csv"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    packed = list_luna16(tmp_path, database=database)
    assert packed.scans[0].truth == plain.scans[0].truth


def test_what_is_there_but_unused_is_said(tmp_path: Path):
    database = write_luna16(tmp_path, ONE)
    (tmp_path / "candidates_V2.csv").write_text("seriesuid\n")
    (tmp_path / "seg-lungs-LUNA16").mkdir()
    (tmp_path / "seg-lungs-LUNA16" / "1.2.1.mhd").write_text("")
    write_list(tmp_path / "annotations.csv", {"1.2.1": [LEFT], "1.2.9": [LEFT, RIGHT]})
    summary = list_luna16(tmp_path, database=database).summary
    assert "2 listed nodules lie in scans that are not here" in summary
    assert "1 lung masks: not used, the node finds lungs itself" in summary
    assert "not used: candidates_V2.csv" in summary


def test_a_listed_scan_that_is_not_there_is_counted_and_named_where_all_subsets_are(tmp_path: Path):
    """Two of ten subsets are a choice; a hole in ten is not."""
    ten = [replace(ONE, uid=f"1.3.{n}", subset=n) for n in range(10)]
    database = write_luna16(tmp_path / "ten", *ten)
    write_luna16(tmp_path / "some", *ten[:2])
    for folder in ("ten", "some"):
        (tmp_path / folder / "seriesuids.csv").write_text("\n".join([*(scan.uid for scan in ten), "1.3.10"]))
    some = list_luna16(tmp_path / "some", database=database)
    assert "9 scans of seriesuids.csv are not here" in some.summary
    assert some.left_out == {}
    with pytest.raises(DataProblem, match=r"1\.3\.10: seriesuids.csv lists it"):
        list_luna16(tmp_path / "ten", database=database)
    whole = list_luna16(tmp_path / "ten", database=database, on_problem="skip")
    assert (len(whole.scans), list(whole.left_out)) == (10, ["1.3.10"])


def test_scans_that_lidc_does_not_know_are_counted(tmp_path: Path):
    write_luna16(tmp_path, ONE, TWO)
    listing = list_luna16(tmp_path, database=write_luna16(tmp_path / "other", ONE))
    assert "1 scans are unknown to the LIDC readers: their nodules are flagged spheres" in listing.summary
    assert [scan.patient for scan in listing.scans] == ["LIDC-1", "1.2.2"]


def test_a_folder_without_scans_or_lists_is_no_luna16(tmp_path: Path):
    with pytest.raises(DataProblem, match=r"annotations\.csv .* is missing"):
        list_luna16(tmp_path)
    database = write_luna16(tmp_path)
    with pytest.raises(DataProblem, match="no subset0 to subset9"):
        list_luna16(tmp_path, database=database)


def test_the_truth_of_one_scan_changes_with_its_own_rows_and_outlines_only(tmp_path: Path):
    before = {s.uid: s.truth for s in luna(tmp_path / "a", ONE, TWO).scans}
    again = {s.uid: s.truth for s in luna(tmp_path / "b", ONE, TWO).scans}
    assert again == before
    moved = FakeScan(uid="1.2.2", subset=3, patient="LIDC-2", nodules=(RIGHT,), outlined=(0,))
    after = {s.uid: s.truth for s in luna(tmp_path / "c", ONE, moved).scans}
    assert after["1.2.1"] == before["1.2.1"]
    assert after["1.2.2"] != before["1.2.2"]
    drawn = FakeScan(uid="1.2.2", subset=3, patient="LIDC-2", nodules=(LEFT,), outlined=(1,))
    assert luna(tmp_path / "d", ONE, drawn).scans[1].truth != before["1.2.2"]


def test_a_listed_scan_goes_to_another_process(tmp_path: Path):
    (scan,) = luna(tmp_path, ONE).scans
    there: Case = pickle.loads(pickle.dumps(scan)).read()
    assert np.array_equal(there.nodules[0].mask, scan.read().nodules[0].mask)


# -- composites ------------------------------------------------------------------------------------


def compose(folder: Path, values: tuple[int, ...] = (1, 2)) -> None:
    write_luna16(folder, ONE)
    labels = np.zeros(ONE.volume.hu.shape, dtype=np.uint8)
    for value, truth in zip(values, (LEFT, RIGHT), strict=True):
        labels[true_ball(ONE.volume, *truth)] = value
    (folder / "masks").mkdir()
    simple_itk().WriteImage(to_image(labels, ONE.volume.affine), str(folder / "masks" / "1.2.1.nii.gz"))
    scans = {"1.2.1": {"patient": "LIDC-IDRI-0002", "subset": 0, "masks": "masks/1.2.1.nii.gz"}}
    (folder / "composites.json").write_text(json.dumps({"composite": True, "scans": scans}))


def test_composites_say_so_and_bring_their_masks(tmp_path: Path):
    compose(tmp_path)
    (scan,) = list_luna16(tmp_path).scans
    assert (scan.composite, scan.patient, scan.subset) == (True, "LIDC-IDRI-0002", 0)
    assert tmp_path / "masks" / "1.2.1.nii.gz" in scan.files
    case = scan.read()
    assert [n.mask_from for n in case.nodules] == ["voxels", "voxels"]
    for nodule, truth in zip(case.nodules, (LEFT, RIGHT), strict=True):
        assert np.array_equal(painted(nodule, case.volume), true_ball(case.volume, *truth))


def test_a_composite_nodule_without_mask_is_named(tmp_path: Path):
    compose(tmp_path, values=(1, 7))
    (scan,) = list_luna16(tmp_path).scans
    with pytest.raises(DataProblem, match="no voxel has the value 2"):
        scan.read()


def test_a_composite_that_the_form_does_not_name_is_not_taken_for_real(tmp_path: Path):
    compose(tmp_path)
    write_luna16(tmp_path / "more", TWO)
    (tmp_path / "more" / "subset3").rename(tmp_path / "subset3")
    with pytest.raises(DataProblem, match=r"1\.2\.2.*composites\.json does not name this scan"):
        list_luna16(tmp_path)
    (tmp_path / "composites.json").write_text("{")
    with pytest.raises(DataProblem, match="does not describe composites"):
        list_luna16(tmp_path)


# -- lists -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ("1.2,1,2,three,4", "line 3: could not convert"),
        ("1.2,1,2,nan,4", "line 3: no finding"),
        ("1.2,1,2,3,-1", "line 3: no finding"),
        ("1.2,1,2", "line 3: the row is cut short"),
    ],
)
def test_a_row_that_is_no_finding_is_named_by_its_line(tmp_path: Path, rows: str, what: str):
    path = tmp_path / "annotations.csv"
    path.write_text(f"seriesuid,coordX,coordY,coordZ,diameter_mm\n1.1,1,2,3,4\n{rows}\n")
    with pytest.raises(DataProblem, match=what):
        read_findings(path)


def test_other_files_are_no_lists(tmp_path: Path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(DataProblem, match="needs the columns seriesuid"):
        read_findings(tmp_path / "a.csv")
    (tmp_path / "b.csv.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(DataProblem, match=r"b\.csv\.gz can't be read"):
        read_findings(tmp_path / "b.csv.gz")


def test_luna16s_own_lists_are_read_whole(shared_data: Path):
    lists = shared_data / "luna16"
    uids = read_uids(find_list(lists, "seriesuids.csv"))
    assert len(uids) == 888
    assert sum(map(len, read_findings(find_list(lists, "annotations.csv")).values())) == 1186
    excluded = read_findings(find_list(lists, "annotations_excluded.csv"), unknown_diameter=True)
    assert sum(map(len, excluded.values())) == 35192


# -- NIfTI -----------------------------------------------------------------------------------------


def write_pair(
    folder: Path, name: str, labels: np.ndarray[Any, Any], images: str = "images", masks: str = "labels"
) -> None:
    volume = ONE.volume
    for sub, array in ((images, volume.hu), (masks, labels)):
        (folder / sub).mkdir(parents=True, exist_ok=True)
        simple_itk().WriteImage(to_image(array, volume.affine), str(folder / sub / f"{name}.nii.gz"))


def two_touching() -> np.ndarray[Any, Any]:
    labels = np.zeros(ONE.volume.hu.shape, dtype=np.uint8)
    labels[10:14, 20:24, 20:24], labels[14:18, 20:24, 20:24], labels[30:32, 5:8, 5:8] = 3, 5, 3
    return labels


def test_nodules_are_connected_pieces_or_values_as_told(tmp_path: Path):
    write_pair(tmp_path, "a", two_touching())
    (pieces,) = list_nifti(tmp_path).scans
    (values,) = list_nifti(tmp_path, labelling="values").scans
    assert sorted(n.mask.shape for n in pieces.read().nodules) == [(2, 3, 3), (8, 4, 4)]
    assert [n.name for n in values.read().nodules] == ["a/3", "a/5"]
    assert pieces.truth != values.truth


def test_pairs_that_lack_one_half_are_named(tmp_path: Path):
    write_pair(tmp_path, "a", two_touching(), "image", "nodule_mask")
    write_pair(tmp_path, "b", two_touching(), "image", "nodule_mask")
    (tmp_path / "nodule_mask" / "b.nii.gz").rename(tmp_path / "nodule_mask" / "c.nii.gz")
    with pytest.raises(DataProblem, match=r"b\.nii\.gz is missing: add it, all zero"):
        list_nifti(tmp_path)
    listing = list_nifti(tmp_path, on_problem="skip")
    assert ([s.uid for s in listing.scans], set(listing.left_out)) == (["a"], {"b", "c"})


@pytest.mark.parametrize("left", [0, 300, -1])
def test_plain_and_gzipped_nifti_are_read_alike_but_not_under_one_name(tmp_path: Path, left: int):
    write_pair(tmp_path, "a", two_touching())
    (packed,) = list_nifti(tmp_path).scans
    before = packed.read()
    plain = tmp_path / "images" / "a.nii"
    plain.write_bytes(gzip.decompress((tmp_path / "images" / "a.nii.gz").read_bytes()))
    with pytest.raises(DataProblem, match="have one name"):
        list_nifti(tmp_path)
    (tmp_path / "images" / "a.nii.gz").unlink()
    (scan,) = list_nifti(tmp_path).scans
    assert scan.uid == packed.uid
    assert np.array_equal(scan.read().volume.hu, before.volume.hu)
    plain.write_bytes(plain.read_bytes()[:left])
    with pytest.raises(DataProblem, match=r"a\.nii can't be read"):
        scan.read()


def test_a_patients_scans_stay_together_where_a_table_says_so(tmp_path: Path):
    for name in ("a", "b"):
        write_pair(tmp_path, name, two_touching())
    (tmp_path / "patients.csv").write_text("name,patient\na,P1\nb,P1\n")
    assert {s.patient for s in list_nifti(tmp_path).scans} == {"P1"}
    for rest in ("", "b,\n", "b\n"):
        (tmp_path / "patients.csv").write_text(f"name,patient\na,P1\n{rest}")
        with pytest.raises(DataProblem, match=r"b: .*patients\.csv does not name it"):
            list_nifti(tmp_path)


def test_labels_off_the_scans_grid_are_refused(tmp_path: Path):
    write_pair(tmp_path, "a", two_touching())
    moved = ONE.volume.affine.copy()
    moved[0, 3] += 1.5
    simple_itk().WriteImage(to_image(two_touching(), moved), str(tmp_path / "labels" / "a.nii.gz"))
    with pytest.raises(DataProblem, match=r"lies up to 1\.50 mm off its scan"):
        list_nifti(tmp_path).scans[0].read()
    simple_itk().WriteImage(to_image(two_touching()[1:], ONE.volume.affine), str(tmp_path / "labels" / "a.nii.gz"))
    with pytest.raises(DataProblem, match="has shape"):
        list_nifti(tmp_path).scans[0].read()


@pytest.mark.parametrize("left", [300, -2000])
def test_a_truncated_nifti_is_named(tmp_path: Path, left: int):
    write_pair(tmp_path, "a", two_touching())
    image = tmp_path / "images" / "a.nii.gz"
    image.write_bytes(image.read_bytes()[:left])
    with pytest.raises(DataProblem, match=r"a\.nii\.gz can't be read"):
        list_nifti(tmp_path).scans[0].read()


def test_real_crops_are_read_as_pairs(shared_data: Path):
    listing = list_nifti(shared_data / "nodule_voi", whole_chest=False)
    assert len(listing.scans) == 904
    assert not any(scan.whole_chest for scan in listing.scans)
    case = listing.scans[0].read()
    assert case.nodules[0].diameter_mm == pytest.approx(24.7, abs=1.5)


# -- DICOM with SEG --------------------------------------------------------------------------------


def write_case(folder: Path, orientation: tuple[float, ...] = SUPINE) -> tuple[Volume, list[Path]]:
    paths = make_ct_series(folder, orientation=orientation)
    return to_volume(read_series(paths)), paths


def write_seg(folder: Path, volume: Volume, paths: list[Path], balls: Any, name: str = "seg.dcm", **put: Any) -> Path:
    found = [ball(volume, at, radius) for at, radius in balls]
    built = build_results(read_series(paths), volume, detection_of(*found), **JOB).seg
    assert built is not None
    for keyword, value in put.items():
        setattr(built, keyword, value)
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(to_bytes(built))
    return folder / name


BALLS = (((10, 20, 20), 4.0), ((30, 40, 45), 6.0))


@pytest.mark.parametrize("orientation", [SUPINE, PRONE], ids=["supine", "prone"])
def test_a_seg_of_the_node_comes_back_as_its_nodules(tmp_path: Path, orientation: tuple[float, ...]):
    volume, paths = write_case(tmp_path / "ct", orientation)
    write_seg(tmp_path / "seg", volume, paths, BALLS)
    (scan,) = list_dicom_seg(tmp_path).scans
    case = scan.read()
    assert np.array_equal(case.volume.hu, volume.hu)
    assert [n.mask_from for n in case.nodules] == ["voxels", "voxels"]
    for nodule, (at, radius) in zip(case.nodules, BALLS, strict=True):
        finding = ball(volume, at, radius)
        assert nodule.corner == finding.corner
        assert np.array_equal(nodule.mask, finding.mask)
        assert np.allclose(nodule.center_mm, finding.center_mm)


def test_no_patient_is_named_by_what_is_listed(tmp_path: Path):
    volume, paths = write_case(tmp_path / "ct")
    write_seg(tmp_path / "seg", volume, paths, BALLS)
    listing = list_dicom_seg(tmp_path)
    assert "PHANTOM" not in repr((listing.scans[0].patient, listing.summary, listing.left_out))


def test_the_newest_segmentation_is_the_correction(tmp_path: Path):
    volume, paths = write_case(tmp_path / "ct")
    write_seg(tmp_path / "seg", volume, paths, BALLS, "a.dcm", ContentDate="20260305", ContentTime="080000")
    new = "1.2.826.0.1.3680043.8.498.7"
    newest = write_seg(
        tmp_path / "seg", volume, paths, BALLS[:1], "b.dcm", ContentDate="20260305", ContentTime="091500"
    )
    dataset = pydicom.dcmread(newest)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = new
    dataset.save_as(newest)
    listing = list_dicom_seg(tmp_path)
    assert len(listing.scans[0].read().nodules) == 1
    assert list(listing.left_out.values()) == ["an older Segmentation of its series"]
    with pytest.raises(DataProblem, match="2 Segmentations refer to it"):
        list_dicom_seg(tmp_path, several="refuse")


def test_a_series_without_segmentation_is_negative_only_where_told(tmp_path: Path):
    write_case(tmp_path / "ct")
    listing = list_dicom_seg(tmp_path)
    assert (listing.scans, list(listing.left_out.values())) == ([], ["no Segmentation refers to it"])
    (scan,) = list_dicom_seg(tmp_path, unlabelled="negative").scans
    assert scan.read().nodules == ()


def test_a_series_that_the_node_would_refuse_is_named_with_its_reason(tmp_path: Path):
    _, paths = write_case(tmp_path / "ct")
    paths[20].unlink()
    with pytest.raises(DataProblem, match="SLICE_GAP"):
        list_dicom_seg(tmp_path, unlabelled="negative")
    listing = list_dicom_seg(tmp_path, unlabelled="negative", on_problem="skip")
    assert listing.scans == []
    assert "SLICE_GAP" in next(iter(listing.left_out.values()))


def test_a_segmentation_without_its_series_is_named(tmp_path: Path):
    volume, paths = write_case(tmp_path / "ct")
    write_seg(tmp_path / "seg", volume, paths, BALLS, ReferencedSeriesSequence=[])
    with pytest.raises(DataProblem, match="does not say which series"):
        list_dicom_seg(tmp_path)
    other = pydicom.Dataset()
    other.SeriesInstanceUID = "1.2.3.4"
    write_seg(tmp_path / "seg", volume, paths, BALLS, ReferencedSeriesSequence=[other])
    listing = list_dicom_seg(tmp_path, on_problem="skip")
    assert any("a series that is not here" in why for why in listing.left_out.values())


def test_a_segmentation_off_the_cts_grid_is_refused(tmp_path: Path):
    volume, paths = write_case(tmp_path / "ct")
    seg = write_seg(tmp_path / "seg", volume, paths, BALLS)
    dataset = pydicom.dcmread(seg)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        position[0] = float(position[0]) + 0.3
    dataset.save_as(seg)
    with pytest.raises(DataProblem, match=r"seg\.dcm is not on its CT's grid"):
        list_dicom_seg(tmp_path).scans[0].read()


def called(segment: pydicom.Dataset, label: str) -> None:
    segment.SegmentLabel = label
    if "TrackingID" in segment:
        segment.TrackingID = label


def test_a_segment_of_an_organ_is_no_nodule(tmp_path: Path):
    volume, paths = write_case(tmp_path / "ct")
    seg = write_seg(tmp_path / "seg", volume, paths, BALLS)
    dataset = pydicom.dcmread(seg)
    category = dataset.SegmentSequence[0].SegmentedPropertyCategoryCodeSequence[0]
    category.CodingSchemeDesignator, category.CodeValue, category.CodeMeaning = "SCT", "123037004", "Anatomy"
    called(dataset.SegmentSequence[0], "lung")
    dataset.save_as(seg)
    assert len(list_dicom_seg(tmp_path).scans[0].read().nodules) == 1


@pytest.mark.parametrize(
    ("category", "kind", "label", "counts"),
    [
        (("SRT", "T-D0050"), ("SRT", "T-D0050"), "Segment 1", True),  # OHIF
        (("SCT", "85756007"), ("SCT", "85756007"), "Segment_1", True),  # 3D Slicer, unless told
        (("SCT", "123037004"), ("SCT", "78961009"), "lung nodule", True),  # MONAI Label
        (("SCT", "123037004"), ("SCT", "78961009"), "lung", False),
        (("SCT", "85756007"), ("SCT", "272673000"), "rib", False),
    ],
)
def test_what_a_viewer_saved_is_read_by_the_node_s_rule(
    tmp_path: Path, category: tuple[str, str], kind: tuple[str, str], label: str, counts: bool
):
    volume, paths = write_case(tmp_path / "ct")
    seg = write_seg(tmp_path / "seg", volume, paths, BALLS)
    dataset = pydicom.dcmread(seg)
    segment = dataset.SegmentSequence[0]
    called(segment, label)
    for sequence, code in (("Category", category), ("Type", kind)):
        [item] = segment[f"SegmentedProperty{sequence}CodeSequence"].value
        item.CodingSchemeDesignator, item.CodeValue = code
    dataset.save_as(seg)
    assert len(list_dicom_seg(tmp_path).scans[0].read().nodules) == 1 + counts


def fractional(dataset: pydicom.Dataset) -> None:
    """The first half of the frames at 45 %, which is no nodule yet."""
    frames = dataset.pixel_array
    frames = frames * np.where(dataset_numbers(dataset) == 1, 90, 100).astype(np.uint8)[:, None, None]
    dataset.SegmentationType, dataset.MaximumFractionalValue = "FRACTIONAL", 200
    eight_bits(dataset, frames)


def label_map(dataset: pydicom.Dataset) -> None:
    """The two nodules share no slice, so that a frame is a label map as it is."""
    frames = dataset.pixel_array * dataset_numbers(dataset).astype(np.uint8)[:, None, None]
    dataset.SegmentationType = "LABELMAP"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.SegmentIdentificationSequence
    eight_bits(dataset, frames)


def dataset_numbers(dataset: pydicom.Dataset) -> np.ndarray[Any, Any]:
    groups = dataset.PerFrameFunctionalGroupsSequence
    return np.array([g.SegmentIdentificationSequence[0].ReferencedSegmentNumber for g in groups])


def eight_bits(dataset: pydicom.Dataset, frames: np.ndarray[Any, Any]) -> None:
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = frames.tobytes() + b"\0" * (frames.size % 2)


@pytest.mark.parametrize(("change", "kept"), [(fractional, [2]), (label_map, [1, 2])])
def test_fractional_segments_and_label_maps_are_read_too(tmp_path: Path, change: Any, kept: list[int]):
    volume, paths = write_case(tmp_path / "ct")
    seg = write_seg(tmp_path / "seg", volume, paths, BALLS)
    dataset = pydicom.dcmread(seg)
    change(dataset)
    dataset.save_as(seg)
    case = list_dicom_seg(tmp_path).scans[0].read()
    assert [n.name.rsplit("/")[-1] for n in case.nodules] == [str(number) for number in kept]
    for nodule, number in zip(case.nodules, kept, strict=True):
        assert np.array_equal(nodule.mask, ball(volume, *BALLS[number - 1]).mask)


def test_a_truncated_file_is_named_and_other_files_are_not_looked_at(tmp_path: Path):
    volume, paths = write_case(tmp_path / "ct")
    write_seg(tmp_path / "seg", volume, paths, BALLS)
    (tmp_path / "ct" / "notes.txt").write_text("nothing")
    assert len(list_dicom_seg(tmp_path).scans) == 1
    assert "1 files that are no DICOM, 0 DICOM objects of other kinds" in list_dicom_seg(tmp_path).summary[1]
    (tmp_path / "ct" / "broken.dcm").write_bytes(paths[0].read_bytes()[:400])
    with pytest.raises(DataProblem, match=r"broken\.dcm: no readable DICOM"):
        list_dicom_seg(tmp_path)
