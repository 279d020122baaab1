"""Claims about the lung mask: it finds lungs and only lungs, and it never hides a nodule at the wall."""

from pathlib import Path

import numpy as np
import pytest

from dicom_node.domain import Volume
from dicom_node.errors import Reason, SeriesRejected
from dicom_node.lungs import find_lungs
from training.phantom import LUNG_CENTERS_MM, chest, in_lung


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def indices(volume: Volume) -> np.ndarray:
    return np.stack(np.meshgrid(*(np.arange(n) for n in volume.hu.shape), indexing="ij"), axis=-1)


@pytest.fixture(scope="module")
def phantom() -> Volume:
    return chest(nodules=((42.0 + 33.0 - 6.0, 0.0, 0.0, 11.7),))  # 23 mm, most of it at the outer wall


def test_the_mask_is_the_lungs(phantom):
    lungs = find_lungs(phantom)
    point = lungs.grid.to_mm(indices(lungs.grid).astype(float))
    truth = in_lung(point, "left") | in_lung(point, "right")
    assert dice(lungs.mask, truth) > 0.95


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, 1)])
def test_left_is_the_patients_left_however_the_scan_is_stored(flips):
    lungs = find_lungs(chest(spacing_mm=(3.0, 2.0, 2.0), flips=flips))
    for side, center in LUNG_CENTERS_MM.items():
        assert lungs.side_at(center) == side


def test_a_23_mm_nodule_in_the_wall_stays_inside_the_gate(phantom):
    lungs = find_lungs(phantom)
    center = np.array([69.0, 0.0, 0.0])
    assert lungs.within_reach(center, 11.7, margin_mm=10.0)
    assert not lungs.within_reach(center + np.array([15.0, 0.0, 0.0]), 3.0, margin_mm=10.0)


def test_the_room_and_the_table_are_far_from_the_lungs(phantom):
    lungs = find_lungs(phantom)
    assert float(lungs.distance_at(np.array([0.0, 69.0, 0.0]))) > 15
    assert float(lungs.distance_at(np.array([500.0, 0.0, 0.0]))) == np.inf


def test_the_box_holds_the_lungs_and_the_margin(phantom):
    low, high = find_lungs(phantom).box_mm(12.0)
    assert low == pytest.approx([-75 - 12, -42 - 12, -45 - 12], abs=3)
    assert high == pytest.approx([75 + 12, 42 + 12, 45 + 12], abs=3)


def test_a_body_without_lungs_is_rejected_with_its_code():
    solid = chest(spacing_mm=(3.0, 2.0, 2.0))
    filled = Volume(hu=np.where(solid.hu > -950, 40, solid.hu).astype(np.int16), affine=solid.affine)
    with pytest.raises(SeriesRejected) as caught:
        find_lungs(filled)
    assert caught.value.reason is Reason.NO_LUNG


def test_gas_in_the_bowel_is_no_lung():
    lungs = chest(spacing_mm=(3.0, 2.0, 2.0))
    gas = Volume(
        hu=np.where((lungs.hu < -700) & (lungs.hu > -950), -1005, lungs.hu).astype(np.int16), affine=lungs.affine
    )
    with pytest.raises(SeriesRejected):
        find_lungs(gas)


def test_dice_on_a_real_chest_with_4_mm_voxels(shared_data: Path):
    from training.ct import from_image

    sitk = pytest.importorskip("SimpleITK")
    folder = shared_data / "chest_ct" / "tiny_chest_64"
    lungs = find_lungs(from_image(sitk.ReadImage(str(folder / "ct-64.nrrd"))))
    truth = from_image(sitk.ReadImage(str(folder / "wholeLung-64.nrrd")))
    found = lungs.distance_at(truth.to_mm(indices(truth).astype(float))) <= 0
    assert dice(found, truth.hu > 0) > 0.95
