"""Claims about training data: who may be learned from, and that a composite is what its truth says it is."""

from pathlib import Path

import numpy as np
import pytest

from dicom_node.domain import Volume
from dicom_node.model.spec import PreprocessSpec
from training.augment import random_frame, vary_intensity
from training.compose import Background, SliceComposer, background_from, blend, box_of
from training.insert import compose_volume
from training.phantom import HALF_LUNG_MM, LUNG_CENTERS_MM, chest
from training.prepare import BACKGROUNDS, ignored
from training.voi import HELD_OUT_SUBSET, TEST_PATIENTS, Voi, load_vois, split

PREP = PreprocessSpec(slice_offsets=(-2, 0, 2))


def ball(radius_mm: float = 6.0, *, patient: str = "P1", subset: int = 0, spacing: float = 1.0) -> Voi:
    """A solid ball in lung, with a few millimetres round it."""
    n = int((radius_mm + 6) / spacing)
    axis = np.arange(-n, n + 1) * spacing
    distance = np.linalg.norm(np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1), axis=-1) - radius_mm
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = spacing
    affine[:, 3] = -n * spacing, -n * spacing, -n * spacing, 1
    return Voi(
        name=f"{patient}_R_1",
        patient=patient,
        subset=subset,
        diameter_mm=2 * radius_mm,
        volume=Volume(hu=np.where(distance < 0, 40, -850).astype(np.int16), affine=affine),
        mask=distance < 0,
        blend=(255 * ((3.5 - distance) / 2.5).clip(0, 1)).astype(np.uint8),
    )


@pytest.fixture(scope="module")
def background() -> Background:
    volume = chest(spacing_mm=(2.0, 2.0, 2.0))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.hu.shape), indexing="ij"), axis=-1)
    point = volume.to_mm(index)
    balls = [np.linalg.norm((point - c) / HALF_LUNG_MM, axis=-1) - 1 for c in LUNG_CENTERS_MM.values()]
    distance = (np.minimum(*balls) * HALF_LUNG_MM.min()).clip(-100, 100)
    return background_from(volume, distance.astype(np.int8), np.array([[42.0, 0.0, 0.0, 6.0]]))


def test_nobody_learns_from_test_patients_or_held_out_ones():
    vois = [ball(patient=p, subset=1) for p in ("P1", *sorted(TEST_PATIENTS))]
    vois += [ball(patient="P2", subset=HELD_OUT_SUBSET), ball(patient="P2", subset=3)]
    learn, held_out = split(vois)
    assert [v.patient for v in learn] == ["P1"]
    assert [v.patient for v in held_out] == ["P2"]


def test_subset_9_stops_everything():
    with pytest.raises(ValueError, match="subset 9"):
        split([ball(subset=9)])


def test_the_held_out_scan_is_no_background():
    assert "LIDC-IDRI-0001" not in BACKGROUNDS


def test_the_same_number_gives_the_same_sample_whatever_came_before(background: Background):
    first, second = (SliceComposer([background], [ball()], PREP, 48) for _ in range(2))
    second.sample(1, 3)
    a, b = first.sample(1, 7), second.sample(1, 7)
    assert np.array_equal(a.planes_hu, b.planes_hu)
    assert np.array_equal(a.masks, b.masks)
    assert not np.array_equal(a.planes_hu, first.sample(2, 7).planes_hu)


def test_what_a_mask_covers_is_bright_and_inside_the_crop(background: Background):
    composer = SliceComposer([background], [ball(4.0), ball(7.0)], PREP, 64)
    samples = [composer.sample(0, n) for n in range(40)]
    assert sum(len(s.masks) for s in samples) > 15
    for sample in samples:
        assert sample.planes_hu.shape == (3, 64, 64)
        for mask in sample.masks:
            x1, y1, x2, y2 = box_of(mask)
            assert min(x1, y1) > 0
            assert max(x2, y2) < 64
            assert np.median(sample.planes_hu[1][mask >= 0.5]) > -300


def test_spheres_to_ignore_follow_the_background_through_rotation(background: Background):
    composer = SliceComposer([background], [ball()], PREP, 96)
    samples = [composer.sample(3, n) for n in range(40)]
    assert any(len(s.ignore) for s in samples)


def test_blending_leaves_brighter_tissue_in_front():
    there = np.array([[-800.0, 50.0]], dtype=np.float32)
    nodule = np.full((1, 2), -100.0, dtype=np.float32)
    one = np.ones((1, 2), dtype=np.float32)
    assert blend(there, nodule, one, behind=True).tolist() == [[-100.0, 50.0]]
    assert blend(there, nodule, one, behind=False).tolist() == [[-100.0, -100.0]]


def test_frames_rotate_flip_and_zoom_but_never_shear():
    for seed in range(20):
        frame = random_frame(np.random.default_rng(seed), 30, 180, (0.5, 2.0))
        gram = frame.T @ frame
        assert np.allclose(gram, np.eye(3) * gram[0, 0])
        assert 0.25 <= gram[0, 0] <= 4.0


def test_intensity_changes_keep_lung_dark_and_tissue_bright():
    planes = np.full((3, 16, 16), -850.0, dtype=np.float32)
    planes[:, 4:12, 4:12] = 40.0
    for seed in range(20):
        out = vary_intensity(np.random.default_rng(seed), planes)
        assert out[:, 6:10, 6:10].mean() - out[:, 0, 0].mean() > 500


def test_an_inserted_nodule_is_where_its_truth_says_and_the_rest_is_untouched():
    scan = chest(spacing_mm=(2.0, 1.0, 1.0))
    composite, truths = compose_volume(scan, [ball(5.0), ball(8.0)], np.zeros((0, 4)), seed=0)
    assert len(truths) == 2
    changed = composite.hu != scan.hu
    for truth in truths:
        window = tuple(slice(c, c + n) for c, n in zip(truth.corner, truth.mask.shape, strict=True))
        assert composite.hu[window][truth.mask].mean() > -150
        assert scan.hu[window][truth.mask].mean() < -600
        assert truth.mask.sum() * composite.voxel_mm3 == pytest.approx(np.pi / 6 * truth.diameter_mm**3)
        around = tuple(slice(max(0, s.start - 6), s.stop + 6) for s in window)
        changed[around] = False
    assert not changed.any()


def test_places_to_keep_clear_stay_clear():
    everywhere = np.array([[0.0, 0.0, 0.0, 500.0]])
    _, truths = compose_volume(chest(spacing_mm=(2.0, 2.0, 2.0)), [ball()], everywhere, seed=0, tries=5)
    assert truths == []


def test_a_cache_gives_back_what_was_read(tmp_path: Path, shared_data: Path):
    for name in ("image", "nodule_mask"):
        (tmp_path / "nodule_voi" / name).mkdir(parents=True)
    table = (shared_data / "nodule_voi" / "metadata.csv").read_text().splitlines()[:4]
    (tmp_path / "nodule_voi" / "metadata.csv").write_text("\n".join(table))
    for line in table[1:]:
        for name in ("image", "nodule_mask"):
            file = f"nodule_voi/{name}/{line.split(',')[0]}.nii.gz"
            (tmp_path / file).write_bytes((shared_data / file).read_bytes())
    fresh = load_vois(tmp_path, tmp_path / "cache" / "vois.npz")
    cached = load_vois(tmp_path, tmp_path / "cache" / "vois.npz")
    assert [v.name for v in cached] == [v.name for v in fresh]
    for a, b in zip(fresh, cached, strict=True):
        assert np.array_equal(a.volume.hu, b.volume.hu)
        assert np.array_equal(a.mask, b.mask)
        assert np.allclose(a.volume.affine, b.volume.affine)


def test_crops_lie_where_the_list_of_nodules_says(shared_data: Path, tmp_path: Path):
    import csv

    with (shared_data / "nodule_voi" / "metadata.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    from training.voi import _read

    voi = _read(shared_data / "nodule_voi", row)
    listed = np.array([float(row[f"coord{axis}"]) for axis in "XYZ"])
    assert np.linalg.norm(voi.center_mm - listed) < 3.0


def test_the_real_negative_has_its_excluded_findings(shared_data: Path):
    assert ignored(shared_data, "LIDC-IDRI-0002").shape == (53, 4)
    assert ignored(shared_data, "C3N-00247").shape == (1, 4)
