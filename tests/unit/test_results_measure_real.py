"""Measures of real nodules in real CT, with readers' masks, beside ITK's numbers and the readers' own."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from dicom_node.domain import Volume
from dicom_node.results.measure import Measurement, measure
from dicom_node.results.nodule_type import NoduleType
from tests.fakes.findings import finding_of
from training.ct import from_image

EVERY = 10


@dataclass(frozen=True)
class Real:
    row: dict[str, str]
    mask: SimpleITK.Image
    volume: Volume
    measured: Measurement


@pytest.fixture(scope="module")
def nodules(shared_data: Path) -> list[Real]:
    folder = shared_data / "nodule_voi"
    with (folder / "metadata.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))[::EVERY]
    found = []
    for row in rows:
        image, mask = (
            SimpleITK.ReadImage(str(folder / part / f"{row['voi']}.nii.gz")) for part in ("image", "nodule_mask")
        )
        volume = from_image(image)
        voxels = SimpleITK.GetArrayFromImage(mask) > 0
        measured = measure(finding_of(volume, voxels), volume)
        found.append(Real(row=row, mask=mask, volume=volume, measured=measured))
    return found


def column(nodules: list[Real], name: str) -> NDArray[np.float64]:
    return np.array([float(nodule.row[name]) for nodule in nodules])


def test_volume_and_attenuation_are_those_of_itk(nodules: list[Real]) -> None:
    for nodule in nodules:
        label = SimpleITK.Cast(nodule.mask > 0, SimpleITK.sitkUInt8)
        shape, grey = SimpleITK.LabelShapeStatisticsImageFilter(), SimpleITK.LabelStatisticsImageFilter()
        shape.Execute(label)
        hu = SimpleITK.GetImageFromArray(nodule.volume.hu)
        hu.CopyInformation(label)
        grey.Execute(hu, label)
        measured = nodule.measured
        assert measured.volume_mm3 == pytest.approx(shape.GetPhysicalSize(1), rel=1e-5)
        assert measured.equivalent_diameter_mm == pytest.approx(2 * shape.GetEquivalentSphericalRadius(1), rel=1e-5)
        assert measured.mean_hu == pytest.approx(grey.GetMean(1))
        low, high = (np.array(corner) for corner in measured.box_mm)
        np.testing.assert_allclose(high - low, np.array(shape.GetBoundingBox(1)[3:]) * nodule.mask.GetSpacing())


def test_long_axis_lies_between_the_pixels_centres_and_their_corners(nodules: list[Real]) -> None:
    for nodule in nodules:
        pixel_mm = nodule.mask.GetSpacing()[0]
        plane = SimpleITK.GetArrayFromImage(nodule.mask)[nodule.measured.slice_index] > 0
        flat = SimpleITK.GetImageFromArray(plane.astype(np.uint8))
        flat.SetSpacing(nodule.mask.GetSpacing()[:2])
        shape = SimpleITK.LabelShapeStatisticsImageFilter()
        shape.SetComputeFeretDiameter(True)
        shape.Execute(SimpleITK.ConnectedComponent(flat, True))
        # ITK's is the distance between the farthest pixels' centres.
        feret = max(shape.GetFeretDiameter(label) for label in shape.GetLabels())
        assert feret < nodule.measured.long_axis_mm < feret + 1.5 * pixel_mm


def test_sphere_of_the_mask_follows_the_readers_diameter(nodules: list[Real]) -> None:
    measured = np.array([nodule.measured.equivalent_diameter_mm for nodule in nodules])
    error = measured - column(nodules, "diameter_mm")

    # diameter_mm is the readers' mean, strictly within their outlines; these masks hold much of the outline's pixels.
    assert np.median(error) == pytest.approx(0.9, abs=0.15)
    assert np.percentile(error, 75) - np.percentile(error, 25) < 0.8
    assert np.corrcoef(measured, column(nodules, "diameter_mm"))[0, 1] > 0.97


def test_type_agrees_with_the_readers_texture(nodules: list[Real]) -> None:
    texture = column(nodules, "Texture_value")
    said = np.array([nodule.measured.nodule_type or "undetermined" for nodule in nodules])

    assert (said[texture == 1] != NoduleType.SOLID).mean() >= 0.8
    assert np.isin(said[texture == 5], [NoduleType.SOLID]).mean() >= 0.75
    assert (texture[said == NoduleType.SOLID] >= 4).mean() >= 0.97
