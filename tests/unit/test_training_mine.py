"""Claims about mining: each candidate is told apart by LUNA16's rule, and a scan is looked at once."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dicom_node.model.bundle import Bundle, write_bundle
from dicom_node.model.detector import Detector
from dicom_node.model.network import build_network
from dicom_node.model.spec import MergeSpec, PreprocessSpec
from tests.unit.test_model_bundle import TINY, description
from training.cases import DataProblem
from training.mine import NEAR_MM, MinedCandidate, judged, mine, read_candidates, spread
from training.prepared import LAYOUT, Index, PreparedForm, PreparedNodule, PreparedScan, grid_numbers, to_json

PREP = PreprocessSpec(upsampling=1)
ORIGIN = (-20.0, -30.0, -40.0)
Ball = tuple[float, float, float, float]  # slice, row, column, radius in voxels


def ball_mask(shape: Sequence[int], ball: Ball) -> NDArray[np.bool_]:
    z, y, x = np.ogrid[tuple(slice(0, n) for n in shape)]
    return np.asarray((z - ball[0]) ** 2 + (y - ball[1]) ** 2 + (x - ball[2]) ** 2 < ball[3] ** 2)


def prepared(
    cache: Path,
    uid: str,
    hu: NDArray[np.int16],
    nodules: Sequence[Ball] = (),
    ignored: Sequence[Ball] = (),
    composite: bool = True,
    patient: str = "background",
) -> PreparedScan:
    """A scan of the cache, written by hand: all of it is lung. Balls are given on the grid."""
    labels = np.zeros(hu.shape, dtype=np.uint8)
    for number, ball in enumerate(nodules, start=1):
        labels[ball_mask(hu.shape, ball)] = number
    in_mm = [tuple(float(v) for v in (*(np.array(b[2::-1]) + ORIGIN), b[3])) for b in (*nodules, *ignored)]
    known = tuple(
        PreparedNodule(
            number=i, name=f"n{i}", center_mm=(x, y, z), diameter_mm=2 * radius, mask_from="voxels", readers=None,
            voxels=int((labels == i).sum()),
        )
        for i, (x, y, z, radius) in enumerate(in_mm[: len(nodules)], start=1)
    )  # fmt: skip
    form = PreparedForm(
        layout=LAYOUT, key=f"key-{uid}", uid=uid, patient=patient, subset=None, composite=composite, whole_chest=False,
        preprocessing=grid_numbers(PREP), origin_mm=ORIGIN, spacing_mm=1.0, shape=hu.shape, nodules=known,
        ignored=tuple((x, y, z, radius) for x, y, z, radius in in_mm[len(nodules) :]),
    )  # fmt: skip
    folder = cache / form.key
    folder.mkdir(parents=True)
    distance = np.full(hu.shape, -20, dtype=np.int8)
    for name, array in {"hu": hu, "labels": labels, "distance": distance}.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "case.json").write_text(to_json(form))
    return PreparedScan(folder=folder, form=form)


def write_index(cache: Path, scans: Sequence[PreparedScan]) -> None:
    keys = {s.form.uid: s.form.key for s in scans}
    (cache / "index.json").write_text(to_json(Index(preprocessing=grid_numbers(PREP), keys=keys)))


def lung(seed: int, shape: tuple[int, int, int] = (20, 40, 40)) -> NDArray[np.int16]:
    return np.random.default_rng(seed).normal(-850, 60, shape).round().astype(np.int16)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Random weights that report everything they imagine, however long it is."""
    torch.manual_seed(0)
    form = description(
        preprocessing=PREP.model_dump(mode="json"),
        merging=MergeSpec(elongation=(50.0, 60.0), nms_iou=0.9, link_iou=0.95, link_mm=0.5).model_dump(mode="json"),
        thresholds={"proposal_score": 0.0, "operating_point": 0.9},
    )
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    return write_bundle(folder, form, build_network(TINY, PREP).state_dict(), "card")


@pytest.fixture
def scan(tmp_path: Path) -> PreparedScan:
    return prepared(
        tmp_path / "cache", "1.2", lung(1), nodules=[(10, 12, 14, 4), (16, 30, 30, 2)], ignored=[(12, 28, 8, 5)]
    )


OFFSET = st.floats(-7, 7)


BALLS: list[Ball] = [(10, 12, 14, 4), (16, 30, 30, 2)]
UNSURE: Ball = (12, 28, 8, 5)
NEAR = st.tuples(st.sampled_from([*BALLS, UNSURE]), st.tuples(OFFSET, OFFSET, OFFSET)).map(
    lambda drawn: tuple(a + b for a, b in zip(drawn[0][:3], drawn[1], strict=True))
)


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> PreparedScan:
    return prepared(tmp_path_factory.mktemp("cache"), "1.2", lung(1), nodules=BALLS, ignored=[UNSURE])


@settings(deadline=None)
@given(at=st.lists(NEAR, min_size=1, max_size=8))
def test_a_hit_is_strictly_within_the_radius_and_near_misses_teach_nothing(
    listed: PreparedScan, at: list[tuple[float, float, float]]
):
    found = judged(listed, np.array(at).reshape(-1, 3), [0.5] * len(at))
    for place, candidate in zip(at, found, strict=True):
        beyond = [float(np.linalg.norm(np.subtract(place, ball[:3]))) - ball[3] for ball in (*BALLS, UNSURE)]
        assert listed.to_index(np.array(candidate.center_mm)) == pytest.approx(np.array(place), abs=1e-3)
        if min(abs(b) for b in beyond) < 1e-6:
            continue
        if min(beyond[:2]) < 0:
            assert (candidate.kind, candidate.nodule) == ("hit", int(np.argmin(beyond[:2])) + 1)
        elif beyond[2] < 0 or min(beyond[:2]) < NEAR_MM:
            assert (candidate.kind, candidate.nodule) == ("ignored", None)
        else:
            assert (candidate.kind, candidate.nodule) == ("false", None)


def test_mined_candidates_are_read_back_best_first(bundle: Bundle, scan: PreparedScan, tmp_path: Path):
    counts = mine(bundle, [scan], tmp_path / "mined", say=lambda text: None)
    found = read_candidates(tmp_path / "mined")["1.2"]
    assert len(found) > 10
    assert sum(counts.values()) == len(found)
    scores = [c.score for c in found]
    assert scores == sorted(scores, reverse=True)
    # The operating point of this bundle is 0.9; its candidates are mined below it all the same.
    assert 0.02 <= scores[-1] < 0.9


def test_a_mined_scan_is_not_looked_at_again(
    bundle: Bundle, scan: PreparedScan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = mine(bundle, [scan], tmp_path / "mined", say=lambda text: None)
    text = (tmp_path / "mined" / "key-1.2.json").read_bytes()
    monkeypatch.setattr(Detector, "look", lambda *_: pytest.fail("looked again"))
    assert mine(bundle, [scan], tmp_path / "mined", say=lambda text: None) == first
    assert (tmp_path / "mined" / "key-1.2.json").read_bytes() == text


def test_mining_twice_gives_the_same_bytes(bundle: Bundle, scan: PreparedScan, tmp_path: Path):
    texts = []
    for name in ("a", "b"):
        mine(bundle, [scan], tmp_path / name, say=lambda text: None)
        texts.append((tmp_path / name / "key-1.2.json").read_bytes())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("left", ["", '{"layout": 1, "uid": "1.2", "cand', '{"layout": 1}'])
def test_what_a_killed_or_other_run_left_is_written_anew(bundle: Bundle, scan: PreparedScan, tmp_path: Path, left: str):
    path = tmp_path / "mined" / "key-1.2.json"
    path.parent.mkdir()
    path.write_text(left)
    mine(bundle, [scan], tmp_path / "mined", say=lambda text: None)
    assert len(read_candidates(tmp_path / "mined")["1.2"]) > 10


def test_another_bundle_mines_anew(bundle: Bundle, scan: PreparedScan, tmp_path: Path):
    mine(bundle, [scan], tmp_path / "mined", say=lambda text: None)
    path = tmp_path / "mined" / "key-1.2.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"made_by": "another", "candidates": []}))
    mine(bundle, [scan], tmp_path / "mined", say=lambda text: None)
    assert json.loads(path.read_text()) == raw


def test_candidates_that_do_not_belong_together_are_refused(bundle: Bundle, scan: PreparedScan, tmp_path: Path):
    mine(bundle, [scan], tmp_path / "mined", say=lambda text: None)
    path = tmp_path / "mined" / "key-1.2.json"
    (tmp_path / "mined" / "key-1.2-before.json").write_text(path.read_text())
    with pytest.raises(DataProblem, match="a scan twice, before and after it changed"):
        read_candidates(tmp_path / "mined")
    other = json.loads(path.read_text()) | {"uid": "9", "made_by": "another"}
    (tmp_path / "mined" / "key-1.2-before.json").write_text(json.dumps(other))
    with pytest.raises(DataProblem, match="what different bundles found"):
        read_candidates(tmp_path / "mined")


def test_some_scans_are_spread_over_all():
    scans = [f"1.{n}" for n in range(5)]
    assert spread(scans, 3) == ["1.0", "1.2", "1.4"]  # type: ignore[arg-type, comparison-overlap]
    assert spread(scans, None) == spread(scans, 9) == scans  # type: ignore[arg-type, comparison-overlap]


def test_a_folder_without_candidates_is_named(tmp_path: Path):
    with pytest.raises(DataProblem, match="nowhere holds no mined candidates: run `python -m training mine`"):
        read_candidates(tmp_path / "nowhere")


def test_a_broken_list_is_named_with_what_to_do(tmp_path: Path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataProblem, match=r"x\.json is no list .* remove it and mine again"):
        read_candidates(tmp_path)


def test_a_hit_names_its_nodule():
    with pytest.raises(ValueError, match="a hit candidate with nodule None"):
        MinedCandidate(center_mm=(0.0, 0.0, 0.0), score=0.5, kind="hit", nodule=None)
