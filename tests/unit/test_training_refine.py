"""Claims about fitting the second network: same samples every time, a stopped run goes on, and it learns."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from dicom_node.model.bundle import load_bundle, write_bundle
from dicom_node.model.network import build_network
from dicom_node.model.preprocess import windowed
from dicom_node.model.refine import Refiner, cut_cubes
from dicom_node.model.spec import RefinementSpec
from tests.unit.test_model_bundle import TINY, description
from tests.unit.test_training_mine import ORIGIN, PREP, Ball, ball_mask, lung, prepared, write_index
from training.augment import exact_frame
from training.cases import DataProblem
from training.cubes import BRIGHT_HU, CubeSampler, turned
from training.mine import MinedCandidate
from training.prepared import PreparedScan, open_prepared
from training.recipe import CubeSampling, RefineSettings
from training.refine import (
    LAST,
    RATES,
    SUMMARY,
    Seen,
    auc,
    build,
    choose_weight,
    divided,
    folded,
    read_refinement,
    refine,
    rehearsals,
    sensitivities,
    together,
    told,
)
from training.train import NON_FINITE, TrainingFailed

SPEC = RefinementSpec(widths=(4, 8, 8, 8), floor=0.0)
QUICK = RefineSettings(steps=4, batch=4, warmup_steps=2, save_every=2, log_every=1)
SHAPE = (40, 64, 64)
VESSELS = [(14.0, 50.0), (44.0, 12.0), (52.0, 52.0)]


def scan_with_vessels(cache: Path, uid: str, seed: int, patient: str = "background") -> PreparedScan:
    """Balls are nodules; bars of the same width through all slices are not."""
    rng = np.random.default_rng(seed)
    balls: list[Ball] = [
        (float(rng.uniform(12, 28)), y, x, float(rng.uniform(3, 4.5))) for y, x in ((16, 16), (34, 34), (54, 28))
    ]
    hu = lung(seed, SHAPE)
    for ball in balls:
        hu[ball_mask(SHAPE, ball)] = 30
    for y, x in VESSELS:
        hu[:, ball_mask((1, *SHAPE[1:]), (0.0, y, x, 3.5))[0]] = 30
    return prepared(cache, uid, hu, nodules=balls, patient=patient)


def candidates(scan: PreparedScan, seed: int = 0) -> list[MinedCandidate]:
    """What slices alone would say: nodules and vessels look the same."""
    rng = np.random.default_rng(seed)
    hits = [(np.array(n.center_mm), "hit", n.number) for n in scan.form.nodules]
    false = [(np.array([x, y, z]) + ORIGIN, "false", None) for y, x in VESSELS for z in (12.0, 20.0, 28.0)]
    found = [
        MinedCandidate(
            center_mm=tuple(float(v) for v in center), score=float(rng.uniform(0.2, 0.9)), kind=kind, nodule=nodule
        )
        for center, kind, nodule in (*hits, *false)
    ]  # fmt: skip
    return sorted(found, key=lambda c: -c.score)


def write_mined(folder: Path, scans: Sequence[PreparedScan]) -> Path:
    folder.mkdir()
    for n, scan in enumerate(scans):
        entries = [
            {"center_mm": c.center_mm, "score": c.score, "kind": c.kind, "nodule": c.nodule}
            for c in candidates(scan, seed=n)
        ]
        told = {"uid": scan.form.uid, "made_by": "a bundle", "floor": 0.02, "candidates": entries}
        (folder / f"{scan.form.key}.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedScan]:
    cache = tmp_path_factory.mktemp("data") / "cache"
    made = [scan_with_vessels(cache, f"1.{n}", seed=n) for n in range(5)]
    write_index(cache, made)
    write_mined(cache.parent / "mined", made)
    return made


@pytest.fixture
def data(scans: list[PreparedScan]) -> Path:
    return scans[0].folder.parent.parent


@pytest.fixture
def sampler(scans: list[PreparedScan]) -> CubeSampler:
    mined = {s.form.uid: candidates(s) for s in scans}
    return CubeSampler(scans, mined, SPEC.cube, PREP, CubeSampling())


def run(data: Path, out: Path, plan: RefineSettings = QUICK, spec: RefinementSpec = SPEC, **other: object) -> object:
    say = other.get("say", lambda text: None)
    return refine(open_prepared(data / "cache", PREP), data / "mined", out, PREP, spec, plan, say=say)  # type: ignore[arg-type]


def test_a_run_on_other_candidates_is_not_gone_on_with(data: Path, tmp_path: Path):
    run(data, tmp_path / "run")
    path = next((data / "mined").glob("*.json"))
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"candidates": raw["candidates"][:-1]}))
    with pytest.raises(DataProblem, match="second stage of other scans or candidates"):
        run(data, tmp_path / "run")


def test_scans_given_for_validation_choose_the_weight(data: Path, scans: list[PreparedScan], tmp_path: Path):
    first, *rest = open_prepared(data / "cache", PREP)
    refine(rest, data / "mined", tmp_path / "run", PREP, SPEC, QUICK, validation=[first], say=lambda text: None)
    made_of = json.loads((tmp_path / "run" / SUMMARY).read_text())["scans"]
    assert made_of == {"training": [s.form.uid for s in rest], "validation": [first.form.uid]}


def test_sample_n_of_seed_s_is_always_the_same(sampler: CubeSampler, scans: list[PreparedScan]):
    again = CubeSampler(scans, {s.form.uid: candidates(s) for s in scans}, SPEC.cube, PREP, CubeSampling())
    again.sample(7, 0)
    for number in range(6):
        (cube, label), (cube2, label2) = sampler.sample(3, number), again.sample(3, number)
        assert torch.equal(cube, cube2)
        assert label == label2
        assert cube.shape == (1, 32, 32, 32)
        assert 0 <= cube.min() <= cube.max() <= 1
    assert not torch.equal(sampler.sample(3, 0)[0], sampler.sample(4, 0)[0])


PLAIN = CubeSampling.model_validate(
    {"augmentation": {"exact_share": 1.0, "flips": False, "offset_hu": 0.0, "noise_share": 0.0, "soften_share": 0.0,
                      "contrast_share": 0.0}}
)  # fmt: skip


def test_without_variation_a_sample_is_the_detectors_own_cube(scans: list[PreparedScan]):
    plan = PLAIN.model_copy(update={"positive_share": 0.0, "mined_share": 1.0})
    mined = {s.form.uid: candidates(s) for s in scans}
    sampler = CubeSampler(scans, mined, SPEC.cube, PREP, plan)
    cubes = []
    for scan in scans:
        centers = scan.to_index(np.array([c.center_mm for c in mined[scan.form.uid] if c.kind == "false"]))
        cubes += list(windowed(cut_cubes(scan.hu(), centers, SPEC.cube, PREP), PREP))
    for number in range(8):
        cube, label = sampler.sample(1, number)
        assert label == 0.0
        # Within what the resampling's float arithmetic leaves.
        assert min(float((cube - other).abs().max()) for other in cubes) < 1e-4


def test_a_positive_shows_its_nodule_in_the_middle_and_a_bright_negative_shows_none(scans: list[PreparedScan]):
    mined = {s.form.uid: candidates(s) for s in scans}
    positive = CubeSampler(scans, mined, SPEC.cube, PREP, PLAIN.model_copy(update={"positive_share": 1.0}))
    tissue = windowed(torch.tensor(BRIGHT_HU), PREP)
    for number in range(12):
        cube, label = positive.sample(1, number)
        assert label == 1.0
        assert (cube[0, 14:18, 14:18, 14:18] > tissue).any()
    bright = CubeSampler(
        scans, mined, SPEC.cube, PREP, PLAIN.model_copy(update={"positive_share": 0.0, "mined_share": 0.0})
    )
    for number in range(12):
        scan = number % len(scans)
        rng = np.random.default_rng(number)
        at = bright._bright(rng, scan)
        assert scans[scan].hu()[tuple(at.astype(int))] > BRIGHT_HU
        apart = [np.linalg.norm(scans[scan].to_mm(at) - n.center_mm) - n.diameter_mm / 2 for n in
                 scans[scan].form.nodules]  # fmt: skip
        assert min(apart) >= 6.0
        assert bright.sample(1, number)[1] == 0.0


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), edge=st.sampled_from([5, 8]), extra=st.sampled_from([0, 4]))
def test_quarter_turns_and_flips_move_voxels_onto_voxels(seed: int, edge: int, extra: int):
    rng = np.random.default_rng(seed)
    frame = exact_frame(rng)
    cube = torch.from_numpy(rng.integers(-1000, 400, (1,) + (edge + extra,) * 3)).float()
    out = turned(cube, frame, edge)
    half = (edge - 1) / 2
    for z, y, x in rng.integers(0, edge, (10, 3)):
        offset = frame @ (np.array([x, y, z]) - half)
        column, row, level = (offset + (edge + extra - 1) / 2).round().astype(int)
        assert float(out[0, z, y, x]) == pytest.approx(float(cube[0, level, row, column]), abs=0.1)


def mini(cache: Path, uid: str, patient: str, composite: bool = True) -> PreparedScan:
    return prepared(cache, uid, lung(0, (6, 8, 8)), [(3, 4, 4, 2)], composite=composite, patient=patient)


def test_each_background_of_composites_is_judged_by_a_network_that_never_saw_it(tmp_path: Path):
    scans = [mini(tmp_path, f"1.{n}", "ABC"[n % 3]) for n in range(9)]
    mined: dict[str, list[MinedCandidate]] = {s.form.uid: [] for s in scans[:6]}
    parts = rehearsals(scans, mined)
    assert [{s.form.patient for s in judge} for _, judge in parts] == [{"A"}, {"B"}, {"C"}]
    for learn, judge in parts:
        assert not {s.form.patient for s in learn} & {s.form.patient for s in judge}
        assert {s.form.uid for s in judge} <= mined.keys()
        assert len(learn) == 6


def test_real_scans_and_a_single_background_need_no_rehearsal(tmp_path: Path):
    real = [mini(tmp_path / "real", f"1.{n}", f"p{n}", composite=False) for n in range(4)]
    single = [mini(tmp_path / "single", f"1.{n}", "A") for n in range(4)]
    for scans in (real, single):
        mined: dict[str, list[MinedCandidate]] = {s.form.uid: [] for s in scans}
        assert rehearsals(scans, mined) == []
        training, validation = divided(scans, mined, QUICK)
        assert {s.form.uid for s in training} == {s.form.uid for s in scans} - {s.form.uid for s in validation}
        assert len(validation) == 1


def test_a_patient_of_a_real_set_is_in_one_part_only(tmp_path: Path):
    scans = [mini(tmp_path, f"1.{n}", f"p{n // 2}", composite=False) for n in range(20)]
    for seed in range(10):
        mined: dict[str, list[MinedCandidate]] = {s.form.uid: [] for s in scans[:15]}
        training, validation = divided(scans, mined, QUICK.model_copy(update={"seed": seed}))
        assert not {s.form.patient for s in training} & {s.form.patient for s in validation}
        assert {s.form.uid for s in validation} <= mined.keys()
        assert len(validation) >= 2


def test_too_few_mined_scans_are_refused(scans: list[PreparedScan]):
    with pytest.raises(DataProblem, match="can't be divided into two parts with nodules: mine more"):
        divided(scans[:1], {scans[0].form.uid: []}, QUICK)


def test_a_sampler_without_false_candidates_says_what_to_do(scans: list[PreparedScan]):
    with pytest.raises(DataProblem, match=r"15 places at nodules and 0 false .* mine more scans"):
        CubeSampler(scans, {}, SPEC.cube, PREP, CubeSampling())


def test_folding_the_norms_changes_no_answer():
    torch.manual_seed(0)
    model = build(SPEC)
    for _ in range(3):
        model(torch.rand(4, 1, 32, 32, 32))  # so that the norms have statistics of their own
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm3d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    plain = Refiner(SPEC)
    plain.load_state_dict(folded(model.state_dict(), SPEC))
    cubes = torch.rand(5, 1, 32, 32, 32)
    assert torch.allclose(plain(cubes), model.eval()(cubes), atol=1e-5)


class Killed(Exception):
    """Stands for kill -9 in the middle of a run."""


def test_a_killed_run_goes_on_as_if_it_had_not_been(data: Path, tmp_path: Path):
    def kill_at_3(text: str) -> None:
        if text.startswith("step 3"):
            raise Killed

    run(data, tmp_path / "whole")
    with pytest.raises(Killed):
        run(data, tmp_path / "broken", say=kill_at_3)
    assert not (tmp_path / "broken" / SUMMARY).exists()
    run(data, tmp_path / "broken")
    assert (tmp_path / "broken" / "refinement.safetensors").read_bytes() == (
        tmp_path / "whole" / "refinement.safetensors"
    ).read_bytes()


def test_a_checkpoint_of_other_settings_or_another_network_is_refused(data: Path, tmp_path: Path):
    run(data, tmp_path / "run")
    with pytest.raises(DataProblem, match="other settings"):
        run(data, tmp_path / "run", QUICK.model_copy(update={"seed": 2}))
    with pytest.raises(DataProblem, match="another shape"):
        run(data, tmp_path / "run", spec=SPEC.model_copy(update={"widths": (4, 4)}))
    (tmp_path / "run" / LAST).write_bytes(b"cut short")
    with pytest.raises(DataProblem, match="no checkpoint that can be read"):
        run(data, tmp_path / "run")


def test_updates_that_are_not_finite_are_left_out_kept_and_in_the_end_fatal(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    honest = CubeSampler.sample

    def poisoned(self: CubeSampler, seed: int, number: int) -> tuple[torch.Tensor, float]:
        cube, label = honest(self, seed, number)
        return cube * (float("nan") if number // QUICK.batch in poison else 1.0), label

    monkeypatch.setattr(CubeSampler, "sample", poisoned)
    plan, poison = QUICK.model_copy(update={"non_finite_limit": 2}), {1, 3}
    run(data, tmp_path / "twice", plan)
    kept = sorted((tmp_path / "twice" / NON_FINITE).iterdir())
    assert [path.name for path in kept] == ["step1.safetensors", "step3.safetensors"]
    assert load_file(kept[0])["cubes"].isnan().all()
    weights = load_file(tmp_path / "twice" / LAST)
    assert all(value.isfinite().all() for value in weights.values())
    assert int(weights["model.stem.1.num_batches_tracked"]) == 2
    poison = {1, 2}
    with pytest.raises(TrainingFailed, match="2 updates of the second stage in a row were not finite"):
        run(data, tmp_path / "in_a_row", plan)


def test_a_run_ends_when_its_minutes_are_used_up(data: Path, tmp_path: Path):
    run(data, tmp_path / "run", QUICK.model_copy(update={"steps": 100000, "minutes": 0.02}))
    assert 0 < json.loads((tmp_path / "run" / SUMMARY).read_text())["steps"] < 5000


def test_it_learns_that_a_vessel_is_no_nodule_and_the_bundle_takes_it(data: Path, tmp_path: Path):
    plan = RefineSettings(steps=60, batch=8, learning_rate=0.01, warmup_steps=5, ema_decay=0.9)
    run(data, tmp_path / "run", plan)
    summary = json.loads((tmp_path / "run" / SUMMARY).read_text())
    assert summary["composites"]
    assert summary["note"] == "Research use, not for diagnosis"
    figures = summary["validation"]
    assert figures["area_under_roc"]["cubes"] > 0.95
    assert figures["area_under_roc"]["both"] > figures["area_under_roc"]["slices"]
    assert figures["sensitivity_both"]["1.0"] >= figures["sensitivity_slices"]["1.0"]
    spec, weights = read_refinement(tmp_path / "run")
    assert spec.weight > 0
    lines = told(summary)
    assert f"60 steps; the cubes' weight in the score is {spec.weight:g}, chosen on 1 scans" in lines[0]
    assert [float(value) for value in lines[5].split()] == pytest.approx(
        [1.0, figures["sensitivity_slices"]["1.0"], figures["sensitivity_both"]["1.0"]], abs=5e-4
    )
    assert lines[-1] == "Research use, not for diagnosis"
    form = description(refinement=spec.model_dump(mode="json"), preprocessing=PREP.model_dump(mode="json"))
    write_bundle(tmp_path / "bundle", form, build_network(TINY, PREP).state_dict() | weights, "card")
    second = load_bundle(tmp_path / "bundle").refiner()
    assert second is not None
    cubes = torch.rand(2, 1, 32, 32, 32)
    trained = Refiner(spec)
    trained.load_state_dict({name.removeprefix("refinement."): value for name, value in weights.items()})
    assert torch.allclose(second(cubes), trained(cubes), atol=0.02)


def test_two_backgrounds_choose_the_weight_in_rehearsals_and_both_teach_the_network(tmp_path: Path):
    made = [scan_with_vessels(tmp_path / "cache", f"1.{n}", seed=n, patient="AB"[n % 2]) for n in range(4)]
    write_index(tmp_path / "cache", made)
    write_mined(tmp_path / "mined", made)
    said: list[str] = []
    run(tmp_path, tmp_path / "run", say=said.append)
    summary = json.loads((tmp_path / "run" / SUMMARY).read_text())
    assert (summary["rehearsals"], summary["steps"]) == (2, 4)
    assert sorted(summary["scans"]["training"]) == sorted(summary["scans"]["validation"]) == [s.form.uid for s in made]
    assert summary["validation"]["nodules"] == sum(len(s.form.nodules) for s in made)
    starts = [text.split(",")[0] for text in said if not text.startswith("step")]
    assert starts == ["rehearsal0: 2 scans", "rehearsal1: 2 scans", "run: 4 scans"]


def test_nodules_of_several_rehearsals_stay_apart():
    one, two = seen([0.9, 0.8], [1.0, 2.0], [0, -1], 2, 1), seen([0.7], [3.0], [0], 1, 1)
    both = together([one, two])
    assert both.nodule.tolist() == [0, -1, 2]
    assert both.first.tolist() == [0.9, 0.8, 0.7]
    assert (both.nodules, both.scans) == (3, 2)


def test_a_run_that_has_not_ended_can_not_be_exported(tmp_path: Path):
    with pytest.raises(DataProblem, match=r"holds no refinement that can be read .* run it to its end first"):
        read_refinement(tmp_path)


def seen(first: list[float], logit: list[float], nodule: list[int], nodules: int, scans: int) -> Seen:
    return Seen(
        first=np.array(first), logit=np.array(logit), nodule=np.array(nodule), nodules=nodules, scans=scans
    )  # fmt: skip


def test_the_weight_goes_to_who_is_right():
    hits = [0, 1, -1, -1]
    assert choose_weight(seen([0.9, 0.8, 0.2, 0.1], [-40.0, -30.0, 30.0, 40.0], hits, 2, 8))[0] == 0.0
    assert choose_weight(seen([0.001, 0.001, 0.999, 0.999], [0.2, 0.1, -0.1, -0.2], hits, 2, 8))[0] == 1.0
    assert choose_weight(seen([0.9, 0.8, 0.2, 0.1], [2.0, 1.0, -1.0, -2.0], hits, 2, 8))[0] == 0.5


def test_a_difference_of_one_nodule_in_a_hundred_gives_nobody_all_the_weight():
    first, logit, hits = [0.9] * 100 + [0.5], [5.0] * 100 + [0.0], [*range(100), -1]
    first[0], logit[0] = 0.05, 5.0
    assert choose_weight(seen(first, logit, hits, 100, 1))[0] == 0.5
    first[0], logit[0] = 0.9, -5.0
    assert choose_weight(seen(first, logit, hits, 100, 1))[0] == 0.5


def slow_sensitivity(scores: NDArray[np.float64], nodule: NDArray[np.int64], nodules: int, allowed: float) -> float:
    """From the definition: over all thresholds, the most nodules with no more false ones than allowed."""
    best = 0
    for threshold in (*np.unique(scores), np.inf):
        above = scores >= threshold
        if (above & (nodule < 0)).sum() <= allowed:
            best = max(best, len(set(nodule[above & (nodule >= 0)].tolist())))
    return best / nodules


@settings(deadline=None)
@given(marks=st.lists(st.tuples(st.integers(0, 6), st.integers(-1, 3)), max_size=25), scans=st.integers(1, 4))
def test_sensitivities_equal_their_definition_with_ties_and_doubles(marks: list[tuple[int, int]], scans: int):
    scores, nodule = np.array([s / 6 for s, _ in marks]), np.array([n for _, n in marks], dtype=np.int64)
    found = sensitivities(seen([0.0] * len(marks), [0.0] * len(marks), nodule.tolist(), 4, scans), scores)
    for rate in RATES:
        assert found[rate] == pytest.approx(slow_sensitivity(scores, nodule, 4, rate * scans))
    assert list(found.values()) == sorted(found.values())


@settings(deadline=None)
@given(marks=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=20))
def test_the_area_under_the_roc_curve_is_the_chance_to_rank_a_hit_higher(marks: list[tuple[int, bool]]):
    scores, hits = np.array([float(s) for s, _ in marks]), np.array([h for _, h in marks])
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[hits] for b in scores[~hits]]
    assert auc(scores, hits) == (pytest.approx(float(np.mean(pairs))) if pairs else None)
