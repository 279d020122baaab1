"""Claims about composites: what the lists and masks say is what was put in, and who may be in them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dicom_node.domain import Volume
from dicom_node.grids import trilinear
from dicom_node.lungs import find_lungs
from tests.fakes.vois import ball
from training.augment import random_frame
from training.cases import DataProblem, Ignored
from training.composites import scan as scan_module
from training.composites.backgrounds import Background, crop, make_background, read_background
from training.composites.blend import LungTexture, Placed, blended, graft_of, place, texture_of
from training.composites.montage import write_montage
from training.composites.scan import MOST_BRIGHT, SMALL_MM, Canvas, Composite, compose_scan
from training.composites.sites import SHARES, find_airways
from training.composites.write import BACKGROUNDS, compose, made_up_uid, plans
from training.ct import read_image, read_labels
from training.phantom import AIR, LUNG_CENTERS_MM, chest
from training.voi import HELD_OUT_SUBSET, Voi, read_voi

LISTS = ("annotations", "annotations_excluded")
OWN_FINDING = Ignored(center_mm=(42.0, 0.0, 0.0), diameter_mm=12.0)


def vois() -> list[Voi]:
    return [ball(r, patient=f"P{i}", subset=i % 2) for i, r in enumerate((2.5, 3.0, 4.0, 6.0))]


@pytest.fixture(scope="module")
def background() -> Background:
    return make_background("phantom", chest(spacing_mm=(2.5, 1.2, 1.2)), (OWN_FINDING,))


@pytest.fixture(scope="module")
def composite(background: Background) -> Composite:
    """A crowded one, of nodules brighter than any wall."""
    many = [ball(r, patient=f"P{i}", hu=400) for i, r in enumerate(np.linspace(2.5, 6.0, 16))]
    return compose_scan(background, many, [background], np.random.default_rng(3), own_surroundings=0.3)


@pytest.fixture(scope="module")
def folder(background: Background, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("composites") / "set"
    compose(backgrounds=[background], nodules=vois(), out=out, scans=4, nodules_per_scan=3, seed=5, tag="train")
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as table:
        return list(csv.DictReader(table))


def center_of(row: dict[str, str]) -> NDArray[np.float64]:
    return np.array([float(row[f"coord{axis}"]) for axis in "XYZ"])


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(background: Background, tmp_path: Path):
    contents = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / name
        compose(backgrounds=[background], nodules=vois(), out=out, scans=2, nodules_per_scan=2, seed=seed, tag="t")
        contents.append({f.relative_to(out): f.read_bytes() for f in sorted(out.rglob("*")) if f.is_file()})
    assert contents[0] == contents[1]
    assert contents[0].keys() != contents[2].keys()
    volumes = [{data for path, data in content.items() if path.suffix == ".raw"} for content in contents]
    assert not volumes[0] & volumes[2]


def test_each_listed_nodule_is_its_label(folder: Path):
    scans = json.loads((folder / "composites.json").read_text())["scans"]
    listed = rows_of(folder / "annotations.csv")
    assert len(listed) == 12
    for uid, form in scans.items():
        volume = read_image(folder / f"subset{form['subset']}" / f"{uid}.mhd")
        labels = read_labels(folder / form["masks"], volume)
        rows = [row for row in listed if row["seriesuid"] == uid]
        assert set(np.unique(labels)) == set(range(len(rows) + 1))
        for number, row in enumerate(rows, start=1):
            where = np.argwhere(labels == number)
            assert np.abs(volume.to_mm(where.mean(axis=0)) - center_of(row)).max() < 0.01
            volume_mm3 = np.pi / 6 * float(row["diameter_mm"]) ** 3
            assert len(where) * volume.voxel_mm3 == pytest.approx(volume_mm3, rel=1e-3)
            assert volume.hu[labels == number].mean() > -300


def test_what_was_put_in_has_the_size_it_had(folder: Path):
    sources = [row for row in rows_of(folder / "sources.csv") if row["what"] == "nodule"]
    sizes = {voi.name: voi.diameter_mm for voi in vois()}
    for row in sources:
        # Up to 0.4 of the volume may be behind the wall, and a slice is 2.5 mm thick.
        assert 0.65 < float(row["diameter_mm"]) / sizes[row["source"]] < 1.3


def test_labels_lie_on_the_grid_of_their_scan(folder: Path):
    for uid, form in json.loads((folder / "composites.json").read_text())["scans"].items():
        scan = SimpleITK.ReadImage(str(folder / f"subset{form['subset']}" / f"{uid}.mhd"))
        labels = SimpleITK.ReadImage(str(folder / form["masks"]))
        assert labels.GetPixelID() == SimpleITK.sitkUInt8
        assert scan.GetPixelID() == SimpleITK.sitkInt16
        assert labels.GetSize() == scan.GetSize()
        assert np.allclose(labels.GetOrigin(), scan.GetOrigin(), atol=1e-3)
        assert np.allclose(labels.GetSpacing(), scan.GetSpacing(), atol=1e-5)
        assert np.allclose(labels.GetDirection(), scan.GetDirection(), atol=1e-5)


def test_a_composite_keeps_its_backgrounds_world(folder: Path, background: Background):
    (first, *_) = sorted(folder.glob("subset*/*.mhd"))
    volume = read_image(first)
    assert np.allclose(volume.affine, background.volume.affine, atol=1e-6)
    assert (volume.hu == background.volume.hu).mean() > 0.95


def test_nothing_changes_outside_the_lungs(composite: Composite, background: Background):
    changed = np.argwhere(composite.volume.hu != background.volume.hu).astype(np.float64)
    assert len(changed) > 1000
    distance = background.lungs.distance_at(background.volume.to_mm(changed))
    assert distance.max() <= scan_module.OUTSIDE_MM + scan_module.FADE_OUT_MM


def test_masks_stay_inside_the_lungs_and_clear_of_each_other(composite: Composite, background: Background):
    total = np.zeros(background.volume.hu.shape, dtype=int)
    for inserted in composite.nodules:
        nodule = inserted.nodule
        window = tuple(slice(c, c + n) for c, n in zip(nodule.corner, nodule.mask.shape, strict=True))
        total[window] += nodule.mask
        # Not painted over by what came later: partial volume alone takes some of the 400 HU.
        assert composite.volume.hu[window][nodule.mask].mean() > 0
    assert len(composite.nodules) > 8
    assert total.max() == 1
    points = background.volume.to_mm(np.argwhere(total).astype(np.float64))
    assert background.lungs.distance_at(points).max() <= scan_module.OUTSIDE_MM


def test_what_would_paint_over_a_listed_nodule_is_not_put_there(background: Background):
    taken = np.zeros(background.volume.hu.shape, dtype=np.bool_)
    canvas = Canvas(
        background=background,
        volume=background.volume,
        rng=np.random.default_rng(0),
        busy=np.zeros((0, 4)),
        taken=taken,
    )
    placed = canvas.graft(graft_of(ball(4.0), own_surroundings=True), LUNG_CENTERS_MM["right"])
    assert canvas.spares(placed)
    taken[tuple(np.argwhere(placed.weight == 1)[0] + [s.start for s in placed.window])] = True
    assert not canvas.spares(placed)


def test_the_backgrounds_own_findings_stay_clear_and_are_excluded(folder: Path):
    excluded = rows_of(folder / "annotations_excluded.csv")
    scans = {row["seriesuid"] for row in excluded}
    own = [row for row in excluded if np.allclose(center_of(row), OWN_FINDING.center_mm)]
    assert len(own) == len(scans) == 4
    for row in rows_of(folder / "sources.csv"):
        if row["site"] != "own":
            gap = np.linalg.norm(center_of(row) - OWN_FINDING.center_mm) - OWN_FINDING.radius_mm
            assert gap > float(row["diameter_mm"]) / 2


def test_shrunken_nodules_are_excluded_and_traces_are_in_no_list(folder: Path):
    sources = rows_of(folder / "sources.csv")
    listed = {name: {tuple(center_of(r)) for r in rows_of(folder / f"{name}.csv")} for name in LISTS}
    for row in sources:
        here = [name for name in LISTS if tuple(center_of(row)) in listed[name]]
        assert here == {"nodule": ["annotations"], "excluded": ["annotations_excluded"], "unlisted": []}[row["what"]]
    shrunken = [float(r["diameter_mm"]) for r in sources if r["site"] == "shrunken"]
    assert len(shrunken) >= 4
    assert all(SMALL_MM[0] <= d <= SMALL_MM[1] for d in shrunken)
    assert sum(r["what"] == "unlisted" for r in sources) >= 2


def test_a_trace_is_no_nodule(composite: Composite):
    assert composite.traces
    for trace in composite.traces:
        index = composite.volume.to_index(trace.center_mm).round().astype(int)
        around = composite.volume.hu[tuple(slice(i - 1, i + 2) for i in index)]
        if trace.kind == "lung":
            assert np.median(around) < MOST_BRIGHT["lung"][0] + 50


def test_every_nodule_of_a_small_deck_is_dealt_and_none_is_lost(background: Background, tmp_path: Path):
    held = [ball(3.0, patient=f"P{i}", subset=HELD_OUT_SUBSET) for i in range(4)]
    made = compose(
        backgrounds=[background], nodules=held, out=tmp_path / "s", scans=2, nodules_per_scan=2, seed=8, tag="test"
    )
    sources = [row["source"] for row in rows_of(tmp_path / "s" / "sources.csv") if row["what"] == "nodule"]
    assert sorted(sources) == sorted(v.name for v in held)
    assert (made.nodules, made.left_over) == (4, 0)


def test_a_scan_holds_nodules_of_its_own_subset_only(background: Background):
    many = [ball(2.0 + 0.01 * i, patient=f"P{i}", subset=i % 8) for i in range(40)]
    made = list(plans([background, background], many, 32, 4, 1, "train"))
    assert {plan.subset for plan in made} == set(range(8))
    for plan in made:
        assert {voi.subset for voi in plan.vois} == {plan.subset}


def test_subset_9_is_refused(background: Background, tmp_path: Path):
    with pytest.raises(DataProblem, match="subset 9"):
        compose(
            backgrounds=[background],
            nodules=[ball(subset=9)],
            out=tmp_path,
            scans=1,
            nodules_per_scan=1,
            seed=0,
            tag="t",
        )
    assert not list(tmp_path.iterdir())


def test_parts_share_neither_lung_nor_patient():
    assert not set(BACKGROUNDS["train"]) & set(BACKGROUNDS["test"])
    assert "LIDC-IDRI-0001" not in BACKGROUNDS["train"]


def test_uids_are_made_up_and_never_meet():
    uids = {made_up_uid(seed, tag, number) for seed in range(5) for tag in ("train", "test") for number in range(40)}
    assert len(uids) == 400
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in uids)


def test_every_file_says_composite(folder: Path):
    form = json.loads((folder / "composites.json").read_text())
    assert form["composite"] is True
    assert "omposite" in form["note"]
    assert "Research use, not for diagnosis" in form["note"]
    assert all(one["patient"] == "phantom train" for one in form["scans"].values())


def test_a_folder_in_use_is_left_alone(background: Background, tmp_path: Path):
    (tmp_path / "annotations.csv").write_text("mine")
    with pytest.raises(DataProblem, match="not empty"):
        compose(
            backgrounds=[background], nodules=vois(), out=tmp_path, scans=1, nodules_per_scan=1, seed=0, tag="train"
        )
    assert [f.name for f in tmp_path.iterdir()] == ["annotations.csv"]


@pytest.mark.parametrize("nodules_per_scan", [0, 300])
def test_more_nodules_than_labels_are_refused(background: Background, tmp_path: Path, nodules_per_scan: int):
    with pytest.raises(DataProblem, match="give 1 to 100"):
        compose(
            backgrounds=[background], nodules=vois(), out=tmp_path, scans=1, nodules_per_scan=nodules_per_scan, seed=0,
            tag="t",
        )  # fmt: skip


def test_an_unfinished_set_is_named(folder: Path, tmp_path: Path):
    with pytest.raises(DataProblem, match=r"composites\.json is missing"):
        write_montage(tmp_path, tmp_path / "picture.png")


def test_the_montage_is_a_picture_of_the_set(folder: Path, tmp_path: Path):
    write_montage(folder, tmp_path / "docs" / "picture.png")
    with Image.open(tmp_path / "docs" / "picture.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 16
    assert (tmp_path / "docs" / "picture.png").stat().st_size < 400_000


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), spacing=st.sampled_from([(1.0, 0.7, 0.7), (2.5, 0.8, 0.8), (3.0, 0.6, 0.6)]))
def test_a_turned_nodule_keeps_its_volume_and_its_centre(seed: int, spacing: tuple[float, float, float]):
    rng = np.random.default_rng(seed)
    voi = ball(float(rng.uniform(3.0, 9.0)))
    scan = empty_scan(spacing)
    center, zoom = rng.uniform(-3, 3, 3), float(rng.uniform(0.9, 1.15))
    placed = place(graft_of(voi), scan, center, random_frame(rng, 25, 180, (1 / zoom, 1 / zoom)))
    assert placed.inside.sum() * scan.voxel_mm3 == pytest.approx(voi.mask.sum() * zoom**3, rel=0.06)
    middle = (placed.points_mm * placed.inside[..., None]).sum(axis=(0, 1, 2)) / placed.inside.sum()
    assert np.linalg.norm(middle - center) < 0.2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), own=st.booleans())
def test_weight_ends_within_the_window(seed: int, own: bool):
    rng = np.random.default_rng(seed)
    voi = ball(float(rng.uniform(2.0, 9.0)))
    frame = random_frame(rng, 25, 180, (0.87, 1.11))
    placed = place(graft_of(voi, own_surroundings=own), empty_scan((2.5, 0.8, 0.8)), rng.uniform(-2, 2, 3), frame)
    for axis in range(3):
        ends = np.take(placed.weight, (0, -1), axis=axis)
        assert ends.max() == 0


def empty_scan(spacing: tuple[float, float, float]) -> Volume:
    counts = [int(70 / s) for s in spacing]
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing
    affine[:3, 3] = [-35, -35, -35]
    affine[3, 3] = 1
    return Volume(hu=np.full(counts, -850, dtype=np.int16), affine=affine)


def flat(there: float, content: float, *, behind: bool) -> tuple[NDArray[np.float32], Placed]:
    shape = (1, 3, 3)
    placed = Placed(
        window=(slice(0, 1), slice(0, 3), slice(0, 3)),
        points_mm=np.zeros((*shape, 3)),
        content=np.full(shape, content, dtype=np.float32),
        weight=np.ones(shape, dtype=np.float32),
        inside=np.ones(shape, dtype=np.float32),
        lung=LungTexture(hu=None, noise_hu=0.0),
        behind=behind,
    )
    return np.full(shape, there, dtype=np.float32), placed


@pytest.mark.parametrize(
    ("there", "content", "behind", "expected"),
    [(-850, -100, True, -100), (50, -100, True, 50), (50, -100, False, -100), (-700, 40, True, 40)],
)
def test_blending_leaves_brighter_tissue_in_front(there: float, content: float, behind: bool, expected: float):
    hu, placed = flat(there, content, behind=behind)
    assert np.allclose(blended(hu, placed, LungTexture(hu=-850.0, noise_hu=0.0)), expected)


@pytest.mark.parametrize("own_hu", [5.0, 60.0])
def test_pasted_lung_takes_on_the_noise_and_the_density_of_the_new_one(own_hu: float):
    rng = np.random.default_rng(0)
    there = rng.normal(-860, 25, (4, 40, 40)).astype(np.float32)
    placed = Placed(
        window=(slice(0, 4), slice(0, 40), slice(0, 40)),
        points_mm=np.zeros((4, 40, 40, 3)),
        content=rng.normal(-780, own_hu, there.shape).astype(np.float32),
        weight=np.ones(there.shape, dtype=np.float32),
        inside=np.zeros(there.shape, dtype=np.float32),
        lung=LungTexture(hu=-780.0, noise_hu=own_hu),
        behind=True,
    )
    out = texture_of(blended(there, placed, LungTexture(hu=-860.0, noise_hu=25.0)).round().astype(np.int16))
    assert out.hu == pytest.approx(-860, abs=6)
    assert out.noise_hu == pytest.approx(25, rel=0.35)


def test_noise_is_measured_as_it_was_made():
    hu = np.random.default_rng(1).normal(-850, 30, (6, 60, 60)).round().astype(np.int16)
    assert texture_of(hu).noise_hu == pytest.approx(30, rel=0.05)


def test_a_crop_that_ends_at_its_nodule_lets_the_weight_run_out():
    whole = ball(5.0)
    rows = np.flatnonzero(whole.mask.any(axis=(1, 2)))
    part = slice(int(rows[0]), int(rows[-1]) + 1)
    affine = whole.volume.affine.copy()
    affine[:3, 3] = whole.volume.to_mm((float(part.start), 0.0, 0.0))
    cut = Voi(
        name="cut_R_1", patient="P", subset=0, diameter_mm=10.0, volume=Volume(hu=whole.volume.hu[part], affine=affine),
        mask=whole.mask[part], blend=whole.blend[part],
    )  # fmt: skip
    graft = graft_of(cut)
    assert graft.weight[0].max() == 0
    assert graft.weight[1].max() == 1
    assert np.allclose(graft.volume.to_mm((1.0, 0.0, 0.0)), affine[:3, 3])


def test_sites_are_where_their_name_says():
    made = make_background("phantom", tube(chest(spacing_mm=(2.5, 1.2, 1.2)), (42.0, 0.0), 2.0), ())
    found = {}
    for kind in SHARES:
        points = made.sites.points_mm[made.sites.fitting(kind, 4.0)]
        assert len(points) > 20
        found[kind] = (np.linalg.norm(points[:, :2] - (42.0, 0.0), axis=1) - 2.0, -made.lungs.distance_at(points))
    assert np.abs(found["vessel"][0]).max() < 6
    assert found["wall"][1].max() < 4
    assert found["parenchyma"][1].min() > 4
    assert found["parenchyma"][0].min() > 2


def tube(volume: Volume, at: tuple[float, float], radius_mm: float) -> Volume:
    """A straight vessel along z through one of the phantom's lungs."""
    points = volume.to_mm(np.stack(np.meshgrid(*(np.arange(n) for n in volume.hu.shape), indexing="ij"), axis=-1))
    inside = (np.linalg.norm(points[..., :2] - at, axis=-1) < radius_mm) & (np.abs(points[..., 2]) < 38)
    return Volume(hu=np.where(inside, 30, volume.hu).astype(np.int16), affine=volume.affine)


def test_the_windpipe_is_no_place_for_a_nodule():
    volume = chest(spacing_mm=(2.5, 1.2, 1.2))
    points = volume.to_mm(np.stack(np.meshgrid(*(np.arange(n) for n in volume.hu.shape), indexing="ij"), axis=-1))
    pipe = (np.linalg.norm(points[..., :2] - (42.0, 0.0), axis=-1) < 9) & (np.abs(points[..., 2]) < 30)
    piped = Volume(hu=np.where(pipe, AIR, volume.hu).astype(np.int16), affine=volume.affine)
    lungs = find_lungs(piped)
    airways = find_airways(lungs)
    assert trilinear(airways, lungs.grid.to_index(np.array([42.0, 0.0, 0.0])), 0) > 0.5
    sites = make_background("phantom", piped, ()).sites
    for kind in SHARES:
        near = sites.points_mm[sites.fitting(kind, 3.0)]
        assert not (np.linalg.norm(near[:, :2] - (42.0, 0.0), axis=1)[np.abs(near[:, 2]) < 25] < 9).any()


def test_cropping_moves_no_voxel():
    volume = chest(spacing_mm=(2.0, 2.0, 2.0))
    box = np.array([[-30.0, -20.0, -40.0], [50.0, 30.0, 10.0]])
    part = crop(volume, box)
    middle = np.array(part.hu.shape) // 2
    there = volume.to_index(part.to_mm(middle.astype(np.float64))).round().astype(int)
    assert part.hu[tuple(middle)] == volume.hu[tuple(there)]
    assert (part.to_mm((0.0, 0.0, 0.0)) <= box[0] + 1e-9).all()
    assert (part.to_mm(np.array(part.hu.shape) - 1.0) >= box[1] - 1e-9).all()


def test_frames_rotate_flip_and_zoom_but_never_shear():
    for seed in range(20):
        frame = random_frame(np.random.default_rng(seed), 30, 180, (0.5, 2.0))
        gram = frame.T @ frame
        assert np.allclose(gram, np.eye(3) * gram[0, 0])
        assert 0.25 <= gram[0, 0] <= 4.0


def real_vois(data: Path, names: set[str]) -> list[Voi]:
    with (data / "nodule_voi" / "metadata.csv").open(newline="") as table:
        return [read_voi(data, row) for row in csv.DictReader(table) if row["voi"] in names]


@pytest.mark.slow
def test_real_nodules_in_a_real_lung_of_low_resolution(shared_data: Path):
    scan = read_image(shared_data / "chest_ct" / "tiny_chest_64" / "ct-64.nrrd")
    rows = rows_of(shared_data / "nodule_voi" / "metadata.csv")
    # A voxel is 4 mm wide there: only large nodules fill some.
    large = {r["voi"] for r in rows if float(r["diameter_mm"]) > 24 and r["luna16_subset"] in "0125"}
    background = make_background("tiny chest", scan, ())
    made = compose_scan(background, real_vois(shared_data, large), [background], np.random.default_rng(0))
    assert len(made.nodules) >= 3
    for inserted in made.nodules:
        nodule = inserted.nodule
        window = tuple(slice(c, c + n) for c, n in zip(nodule.corner, nodule.mask.shape, strict=True))
        brighter = made.volume.hu[window][nodule.mask].mean() - background.volume.hu[window][nodule.mask].mean()
        assert brighter > 200


@pytest.mark.slow
def test_the_held_out_scan_takes_held_out_nodules_and_keeps_its_own(shared_data: Path):
    background = read_background(shared_data, "LIDC-IDRI-0001")
    own = np.array([56.21, 86.34, -115.87])
    assert any(np.linalg.norm(np.array(e.center_mm) - own) < 0.1 and e.diameter_mm > 23 for e in background.excluded)
    rows = rows_of(shared_data / "nodule_voi" / "metadata.csv")
    vois = real_vois(
        shared_data, {r["voi"] for r in rows if int(r["luna16_subset"]) == HELD_OUT_SUBSET and "9" in r["voi"]}
    )
    made = compose_scan(background, vois, [background], np.random.default_rng(4))
    assert len(made.nodules) == len(vois) > 10
    assert {inserted.kind for inserted in made.nodules} >= {"parenchyma", "wall"}
    for inserted in made.nodules:
        assert np.linalg.norm(np.array(inserted.nodule.center_mm) - own) > 11.7 + inserted.nodule.diameter_mm / 2
    ball_index = background.volume.to_index(own).round().astype(int)
    around = tuple(slice(i - n, i + n) for i, n in zip(ball_index, (3, 12, 12), strict=True))
    assert np.array_equal(made.volume.hu[around], background.volume.hu[around])
