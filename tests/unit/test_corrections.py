"""Corrected objects on the source's grid, and what they say of our findings."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedSRStorage

from dicom_node.corrections import Ours, Region, SourceGrid, compare, read_correction, references_of, segmentation
from dicom_node.corrections.raster import fill, voxels
from dicom_node.corrections.words import sizes_of
from dicom_node.domain import Volume
from dicom_node.errors import CorrectionUnusable
from dicom_node.series import read_series, to_volume
from tests.fakes.corrected import circle_mm, corrected_seg, images_of, measured, structure_set
from tests.fakes.ct import make_ct_series
from tests.fakes.findings import ball_mask
from tests.peers import packaged

SPACING = (1.7, 0.61, 0.83)
UIDS = ("2.25.1", "2.25.2")


def nothing(_uid: str) -> Dataset | None:
    return None


class Scene:
    """A CT of odd spacing with two of our findings."""

    def __init__(self, folder: Path) -> None:
        self.paths = make_ct_series(folder, shape=(24, 64, 64), spacing_mm=SPACING)
        from dicom_node.config import GateConfig

        series = read_series(self.paths, GateConfig(min_slices=5, min_length_mm=0))
        self.volume: Volume = to_volume(series)
        self.grid = SourceGrid.of(series)
        self.images = images_of(self.paths)
        self.masks = [self.ball((8, 20, 20), 4.0), self.ball((15, 40, 40), 5.0)]
        self.ours = [self._ours(n, mask) for n, mask in enumerate(self.masks, start=1)]

    def ball(self, index: tuple[float, float, float], radius_mm: float) -> NDArray[np.bool_]:
        return ball_mask(self.volume, index, radius_mm)

    def _ours(self, number: int, mask: NDArray[np.bool_]) -> Ours:
        region = Region.of_voxels(np.argwhere(mask))
        x, y, z = self.volume.to_mm(np.argwhere(mask).mean(axis=0)).tolist()
        sizes = sizes_of(region, self.grid)
        return Ours(number=number, tracking_uid=UIDS[number - 1], center_mm=(x, y, z), sizes=sizes, region=region)

    def verdicts(self, ds: Dataset, *, answers: bool = False) -> list[tuple[str, int | None, float | None]]:
        drawn = read_correction(ds, references_of(ds).kind, self.grid, nothing)
        found = compare(self.ours, drawn, self.grid, answers_ours=answers)
        return [(each.verdict, each.number, each.dice) for each in found]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("ct"))


def reread(ds: Dataset, folder: Path) -> Dataset:
    ds.save_as(folder / "x.dcm", enforce_file_format=True)
    return pydicom.dcmread(folder / "x.dcm")


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_a_segmentation_in_each_form_says_what_was_kept_changed_struck_and_added(
    scene: Scene, tmp_path: Path, kind: str
) -> None:
    smaller = scene.ball((8, 20, 20), 3.0)
    new = scene.ball((18, 15, 50), 3.0)
    ds = reread(corrected_seg(scene.images, [("Nodule 1", UIDS[0], smaller), ("", "", new)], kind), tmp_path)
    (changed, one, dice), (removed, two, _), (added, number, _) = scene.verdicts(ds)
    assert (changed, one, removed, two, added, number) == ("changed", 1, "removed", 2, "added", None)
    expected = 2 * smaller.sum() / (smaller.sum() + scene.masks[0].sum())
    assert dice == pytest.approx(expected)


def test_what_was_not_touched_is_confirmed_whatever_the_viewer_forgot(scene: Scene) -> None:
    ds = corrected_seg(scene.images, [("a name", "", scene.masks[1]), ("another", "", scene.masks[0])])
    assert [v[:2] for v in scene.verdicts(ds)] == [("confirmed", 1), ("confirmed", 2)]


def test_a_nodule_drawn_on_the_bare_ct_strikes_nothing_out(scene: Scene) -> None:
    ds = corrected_seg(scene.images, [("own", "", scene.ball((18, 15, 50), 3.0))])
    assert [v[:2] for v in scene.verdicts(ds)] == [("unreviewed", 1), ("unreviewed", 2), ("added", None)]
    assert [v[:2] for v in scene.verdicts(ds, answers=True)] == [("removed", 1), ("removed", 2), ("added", None)]


def test_a_finding_that_was_joined_to_another_is_not_called_false(scene: Scene) -> None:
    ds = corrected_seg(scene.images, [("Nodule 1", UIDS[0], scene.masks[0] | scene.masks[1])])
    drawn = read_correction(ds, "seg", scene.grid, nothing)
    second = compare(scene.ours, drawn, scene.grid, answers_ours=True)[1]
    assert (second.verdict, second.number) == ("changed", 2)
    assert "joined to segment 1" in second.note


def test_dcmqi_s_segmentation_is_read_where_itk_turned_its_slices(scene: Scene, tmp_path: Path) -> None:
    import json

    import SimpleITK as sitk  # noqa: N813

    from dicom_node.grids import to_image

    moved = scene.ball((8, 20, 21), 4.0)
    image = to_image(moved.astype(np.uint8)[::-1], _from_head(scene))
    sitk.WriteImage(image, str(tmp_path / "label.nrrd"))
    code = {"CodeValue": "M-01000", "CodingSchemeDesignator": "SRT", "CodeMeaning": "Morphologically Altered Structure"}
    nodule = {"CodeValue": "M-03010", "CodingSchemeDesignator": "SRT", "CodeMeaning": "Nodule"}
    meta = {
        "ContentCreatorName": "Reader", "SeriesNumber": "9", "InstanceNumber": "1", "ContentLabel": "CORRECTED",
        "segmentAttributes": [[{
            "labelID": 1, "SegmentDescription": "x", "SegmentAlgorithmType": "MANUAL",
            "SegmentedPropertyCategoryCodeSequence": code, "SegmentedPropertyTypeCodeSequence": nodule,
        }]],
    }  # fmt: skip
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    command = [
        str(packaged("itkimage2segimage")), "--inputImageList", str(tmp_path / "label.nrrd"),
        "--inputDICOMDirectory", str(scene.paths[0].parent), "--inputMetadata", str(tmp_path / "meta.json"),
        "--outputDICOM", str(tmp_path / "seg.dcm"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    verdicts = scene.verdicts(pydicom.dcmread(tmp_path / "seg.dcm"))
    shared = (moved & scene.masks[0]).sum()
    assert verdicts[0][:2] == ("changed", 1)
    assert verdicts[0][2] == pytest.approx(2 * shared / (moved.sum() + scene.masks[0].sum()))


def _from_head(scene: Scene) -> NDArray[np.float64]:
    """The grid with its slices counted from the head."""
    affine = scene.grid.affine.copy()
    affine[:3, 3] += (scene.grid.shape[0] - 1) * affine[:3, 0]
    affine[:3, 0] *= -1
    return affine


def test_outlines_of_a_sphere_have_its_volume(scene: Scene) -> None:
    center, radius = scene.volume.to_mm((8, 20, 20)), 4.0
    outlines = []
    for k in range(24):
        z = float(scene.volume.to_mm((k, 0, 0))[2])
        if (left := radius**2 - (z - center[2]) ** 2) > 0:
            outlines.append(circle_mm((center[0], center[1], z), left**0.5))
    ds = structure_set(scene.images, {"Nodule 1": outlines, "Heart": [circle_mm(center, 9.0)]})
    [drawn] = read_correction(ds, "rtstruct", scene.grid, nothing)
    assert drawn.region is not None
    assert drawn.region.voxels == pytest.approx(scene.masks[0].sum(), rel=0.01)
    assert [v[:2] for v in scene.verdicts(ds)] == [("confirmed", 1), ("removed", 2)]


def test_a_ring_keeps_its_hole_as_two_outlines_and_over_a_bridge() -> None:
    outer, inner = (
        np.array([[1, 1], [1, 9], [9, 9], [9, 1.0]]) - 0.5,
        np.array([[3, 3], [3, 6], [6, 6], [6, 3.0]]) - 0.5,
    )
    keyhole = np.concatenate([outer, outer[:1], inner[:1], inner[::-1], outer[:1]])
    assert fill(outer, (12, 12)).sum() == 64
    assert len(voxels([(0, outer), (0, inner)], (1, 12, 12))) == 64 - 9
    assert fill(keyhole, (12, 12)).sum() == 64 - 9


def test_outlines_in_a_report_count_on_their_slice_on_images_and_in_space(scene: Scene) -> None:
    on_slice = np.argwhere(scene.masks[0][8])
    row, column = on_slice.mean(axis=0)
    turn = np.linspace(0, 2 * np.pi, 60)
    flat = np.stack([column + 0.5 + 4 / 0.83 * np.cos(turn), row + 0.5 + 4 / 0.61 * np.sin(turn)], axis=1)
    space = circle_mm(scene.volume.to_mm((15, 40, 40)), 5.0)
    space = np.concatenate([space, space[:1]])
    ds = measured(scene.images[8], [("Nodule 1", UIDS[0], flat, 8.0), ("mine", "", space, 10.0)])
    drawn = read_correction(ds, "sr", scene.grid, nothing)
    assert [each.extent for each in drawn] == ["plane", "plane"]
    found = scene.verdicts(ds)
    assert [v[:2] for v in found] == [("confirmed", 1), ("confirmed", 2)]
    assert all(dice is not None and dice > 0.9 for _, _, dice in found)


def test_a_report_on_one_nodule_leaves_the_others_open(scene: Scene) -> None:
    space = circle_mm(scene.volume.to_mm((15, 40, 40)), 5.0)
    ds = measured(scene.images[15], [("mine", "", np.concatenate([space, space[:1]]), 10.0)])
    assert [v[:2] for v in scene.verdicts(ds)] == [("unreviewed", 1), ("confirmed", 2)]


def test_hostile_segmentations_are_refused_in_words(scene: Scene) -> None:
    def good() -> Dataset:
        return corrected_seg(scene.images, [("Nodule 1", UIDS[0], scene.masks[0])])

    foreign = good()
    foreign.FrameOfReferenceUID = "1.2.3"
    truncated = good()
    truncated.PixelData = truncated.PixelData[:10]
    larger = good()
    larger.Rows, larger.Columns = 4096, 4096
    huge = corrected_seg(scene.images, [("Nodule 1", UIDS[0], np.ones_like(scene.masks[0]))])
    shifted = good()
    for frame in shifted.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[0] += 0.4
    headless = good()
    del headless.PerFrameFunctionalGroupsSequence
    cases = {
        "frame of reference": foreign, "fewer pixels": truncated, "fewer": larger, "not on the CT's grid": shifted,
        "can't be read": headless,
    }  # fmt: skip
    for text, ds in cases.items():
        with pytest.raises(CorrectionUnusable, match=text):
            read_correction(ds, "seg", scene.grid, nothing)
    wide = SourceGrid(
        shape=scene.grid.shape,
        affine=scene.grid.affine * np.array([10, 10, 10, 1]),
        frame_of_reference_uid=scene.grid.frame_of_reference_uid,
        slices={},
    )
    with pytest.raises(CorrectionUnusable, match="larger than a nodule"):
        read_correction(huge, "seg", wide, nothing)


def test_references_name_what_a_correction_is_about(scene: Scene) -> None:
    of = references_of(corrected_seg(scene.images, [("Nodule 1", UIDS[0], scene.masks[0])]))
    assert (of.kind, of.tracking_uids, of.equipment_is_ours) == ("seg", {UIDS[0]}, False)
    assert scene.images[0].SeriesInstanceUID in of.series_uids
    assert scene.images[8].SOPInstanceUID in of.instances


@pytest.mark.parametrize(
    ("date", "time", "made"),
    [
        ("20260601", "101112.123456", "20260601 101112.123456"),
        ("20260601 ", "10 ", "20260601 10"),
        ("20260601", "9" * 100, "20260601 "),
        ("20260601", "1011\0", "20260601 "),
        ("20261301", "101112", "20251231 0900"),
        ("", "101112", "20251231 0900"),
    ],
)
def test_when_a_correction_was_made_is_a_date_and_a_time_whatever_is_written_there(
    date: str, time: str, made: str
) -> None:
    ds = Dataset()
    ds.SOPClassUID = EnhancedSRStorage
    ds.SeriesDate, ds.SeriesTime = "20251231", "0900"
    with pydicom.config.disable_value_validation():
        ds.ContentDate, ds.ContentTime = date, time
    assert references_of(ds).made == made


# -- as other programs save them -------------------------------------------------------------------

TISSUE, ANATOMY = ("T-D0050", "SRT", "Tissue"), ("123037004", "SCT", "Anatomical Structure")
SPLEEN, BONE = ("78961009", "SCT", "x"), ("T-D016E", "SRT", "Bone")


def coded(ds: Dataset, number: int, category: tuple[str, str, str], kind: tuple[str, str, str], label: str) -> None:
    segment = ds.SegmentSequence[number - 1]
    for keyword, (value, scheme, meaning) in (("Category", category), ("Type", kind)):
        [code] = segment[f"SegmentedProperty{keyword}CodeSequence"].value
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    segment.SegmentLabel = label
    for keyword in ("TrackingID", "TrackingUID"):
        if keyword in segment:
            delattr(segment, keyword)


def test_segments_that_viewers_code_as_tissue_or_spleen_are_nodules_by_what_they_are_called(scene: Scene) -> None:
    balls = [scene.ball((18, 15, 50), 3.0), scene.ball((5, 50, 15), 3.0), scene.ball((20, 50, 50), 3.0)]
    ds = corrected_seg(scene.images, [("x", "", mask) for mask in (*scene.masks, *balls)])
    coded(ds, 1, TISSUE, TISSUE, "Nodule 1")  # OHIF and 3D Slicer, ours kept
    coded(ds, 2, ANATOMY, SPLEEN, "lung nodule")  # MONAI Label
    coded(ds, 3, TISSUE, TISSUE, "Segment 3")  # OHIF, a new one
    coded(ds, 4, TISSUE, BONE, "Rib")
    coded(ds, 5, ANATOMY, SPLEEN, "lung")
    assert [v[:2] for v in scene.verdicts(ds)] == [("confirmed", 1), ("confirmed", 2), ("added", None)]


def test_a_lung_that_a_viewer_calls_tissue_is_left_aside_and_costs_the_nodules_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation, "MOST_MM3", 50_000.0)  # the whole of the scene has 84,000
    ds = corrected_seg(scene.images, [("x", "", np.ones_like(scene.masks[0])), ("x", "", scene.masks[0])])
    coded(ds, 1, TISSUE, TISSUE, "Segment 1")
    coded(ds, 2, TISSUE, TISSUE, "Segment 2")
    assert [each.name for each in read_correction(ds, "seg", scene.grid, nothing)] == ["segment 2"]
    coded(ds, 1, TISSUE, TISSUE, "Nodule 1")
    with pytest.raises(CorrectionUnusable, match="larger than a nodule"):
        read_correction(ds, "seg", scene.grid, nothing)


def ring(center: tuple[float, float, float], radii_mm: tuple[float, float], form: str) -> list[NDArray[np.float64]]:
    """A ring as planning systems write it: two outlines, of which one is a hole (XOR), or one over a bridge."""
    outer, inner = (circle_mm(center, radius, 90) for radius in radii_mm)
    if form == "XOR":
        return [outer, inner]
    return [np.concatenate([outer, outer[:1], inner[:1], inner[::-1], outer[:1]])]


@pytest.mark.parametrize(
    ("form", "kind"), [("keyhole", "CLOSED_PLANAR"), ("XOR", "CLOSED_PLANAR"), ("XOR", "CLOSEDPLANAR_XOR")]
)
def test_a_structure_set_s_hole_stays_open_however_the_planning_system_writes_it(
    scene: Scene, form: str, kind: str
) -> None:
    x, y, z = scene.volume.to_mm((8, 20, 20)).tolist()
    ds = structure_set(scene.images, {"GTV_lung": ring((x, y, z), (6.0, 3.0), form)})
    for contour in ds.ROIContourSequence[0].ContourSequence:
        contour.ContourGeometricType = kind
    ds.RTROIObservationsSequence[0].RTROIInterpretedType = "GTV"
    [drawn] = read_correction(ds, "rtstruct", scene.grid, nothing)
    assert drawn.region is not None
    area_mm2 = drawn.region.voxels * SPACING[1] * SPACING[2]
    assert area_mm2 == pytest.approx(np.pi * (36 - 9), rel=0.05)


def test_points_open_lines_and_organs_of_a_plan_are_left_aside(scene: Scene) -> None:
    center = scene.volume.to_mm((8, 20, 20))
    ds = structure_set(
        scene.images,
        {"Lesion": [circle_mm(center, 4.0)], "Isocentre lesion": [center[None]], "Heart": [circle_mm(center, 8.0)],
         "Lesion line": [circle_mm(center, 4.0)[:20]], "PTV tumour": [circle_mm(center, 9.0)], "Nodule empty": []},
    )  # fmt: skip
    del ds.ROIContourSequence[5].ContourSequence  # Type 3: systems leave it out of an ROI that nobody drew
    ds.ROIContourSequence[1].ContourSequence[0].ContourGeometricType = "POINT"
    ds.ROIContourSequence[3].ContourSequence[0].ContourGeometricType = "OPEN_PLANAR"
    ds.RTROIObservationsSequence[4].RTROIInterpretedType = "PTV"
    assert [each.name for each in read_correction(ds, "rtstruct", scene.grid, nothing)] == ["ROI 1"]
