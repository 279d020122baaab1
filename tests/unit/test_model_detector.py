"""Claims about the Detector: same bits every time, honest progress, clean cancellation, and it finds a ball."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dicom_node.domain import Volume
from dicom_node.errors import ConfigError, JobCancelled, Reason, SeriesRejected
from dicom_node.grids import resample
from dicom_node.lungs import find_lungs
from dicom_node.model.bundle import REFINEMENT, default_bundle, load_bundle, write_bundle
from dicom_node.model.detector import Detector, Scored
from dicom_node.model.findings import Candidate
from dicom_node.model.network import build_network
from dicom_node.model.refine import Refiner
from dicom_node.model.spec import PreprocessSpec, RefinementSpec
from tests.unit.test_model_bundle import TINY, description
from training.phantom import chest


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Torch's threads wait by spinning: beside other tests two of them are slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def talkative(talkative_folder: Path) -> Detector:
    """Random weights that report everything they imagine."""
    return Detector.load(talkative_folder)


@pytest.fixture(scope="module")
def talkative_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    prep = PreprocessSpec(upsampling=1)
    weights = build_network(TINY, prep).state_dict()
    form = description(
        preprocessing=prep.model_dump(mode="json"), thresholds={"proposal_score": 0.0, "operating_point": 0.05}
    )
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    write_bundle(folder, form, weights, "card")
    return folder


@pytest.fixture(scope="module")
def refined(talkative_folder: Path) -> Callable[..., Detector]:
    """`refined(weight=1.0, logit=-50.0)`: the same with a second network; logit: what it always answers."""
    bundle = load_bundle(talkative_folder)

    def build(logit: float | None = None, **numbers: Any) -> Detector:
        torch.manual_seed(1)
        spec = RefinementSpec.model_validate({"widths": (2, 4), "floor": 0.05} | numbers)
        second = Refiner(spec).state_dict()
        if logit is not None:
            second["logit.weight"].zero_()
            second["logit.bias"].fill_(logit)
        weights = bundle.weights | {REFINEMENT + name: value for name, value in second.items()}
        form = bundle.form.model_copy(update={"refinement": spec})
        return Detector(replace(bundle, form=form, weights=weights))

    return build


@pytest.fixture(scope="module")
def phantom() -> Volume:
    return chest(spacing_mm=(4.0, 2.0, 2.0))


def test_the_same_volume_gives_the_same_bits(talkative: Detector, phantom: Volume):
    first, second = talkative.detect(phantom), talkative.detect(phantom)
    assert len(first.findings) > 3
    assert [f.score for f in first.findings] == [f.score for f in second.findings]
    assert [f.mask.tobytes() for f in first.findings] == [f.mask.tobytes() for f in second.findings]
    assert [f.center_mm for f in first.findings] == [f.center_mm for f in second.findings]


def test_findings_come_best_first_above_the_operating_point_and_fit_the_volume(talkative: Detector, phantom: Volume):
    result = talkative.detect(phantom)
    scores = [f.score for f in result.findings]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) >= result.model.operating_point
    for finding in result.findings:
        assert phantom.hu[finding.slices].shape == finding.mask.shape
        assert finding.side in ("left", "right")
        expected = phantom.to_mm(np.argwhere(finding.mask).mean(axis=0) + finding.corner)
        assert finding.center_mm == pytest.approx(expected)


def test_a_candidate_far_from_the_lungs_is_not_reported(talkative: Detector, phantom: Volume):
    lungs = find_lungs(phantom)
    grid = resample(phantom, 1.0, -1024)
    near, far = (
        Candidate(
            slices=np.arange(k, k + 4),
            boxes=np.tile(np.array([x, y, x + 6, y + 6], dtype=np.float32), (4, 1)),
            scores=np.full(4, 0.9, dtype=np.float32),
            masks=np.ones((4, 28, 28), dtype=np.float32),
        )
        for k, y, x in [grid.to_index((40.0, 0.0, 0.0)).astype(int), grid.to_index((90.0, 60.0, 0.0)).astype(int)]
    )
    assert len(talkative.place([(near, 0.9)], phantom, grid, lungs)) == 1
    assert talkative.place([(far, 0.9)], phantom, grid, lungs) == []


def test_progress_rises_from_0_to_1(talkative: Detector, phantom: Volume):
    parts: list[float] = []
    talkative.detect(phantom, progress=parts.append)
    assert parts[0] == 0.0
    assert parts[-1] == 1.0
    assert parts == sorted(parts)
    assert len(parts) > 10


def test_what_the_progress_callback_raises_stops_the_work_and_passes_through(talkative: Detector, phantom: Volume):
    parts: list[float] = []

    def cancel(part: float) -> None:
        parts.append(part)
        if part > 0.3:
            raise JobCancelled("by an operator")

    with pytest.raises(JobCancelled, match="by an operator"):
        talkative.detect(phantom, progress=cancel)
    assert parts[-1] < 0.5
    assert len(talkative.detect(phantom).findings) > 0


def test_the_network_sees_few_slices_at_a_time_however_long_the_scan(
    talkative: Detector, phantom: Volume, monkeypatch: pytest.MonkeyPatch
):
    sizes: list[int] = []
    network = talkative._network
    monkeypatch.setattr(talkative, "_network", lambda images: sizes.append(len(images)) or network(images))
    talkative.detect(phantom)
    assert len(sizes) > 10
    assert max(sizes) <= 4


def test_analysed_says_which_slices_the_network_looked_at(talkative: Detector, phantom: Volume):
    first, last = talkative.detect(phantom).analysed
    z = [phantom.to_mm((k, 0, 0))[2] for k in (first, last - 1)]
    # The phantom's lungs reach from -45 to 45 mm; the margin is 12 mm.
    assert z == pytest.approx([-57, 57], abs=6)


def test_every_stage_has_its_seconds(talkative: Detector, phantom: Volume):
    timings = talkative.detect(phantom).timings_s
    assert timings.keys() == {"resample", "lung", "network", "link"}
    assert all(seconds > 0 for seconds in timings.values())


@pytest.fixture(scope="module")
def seen(talkative: Detector, phantom: Volume) -> tuple[Volume, Scored]:
    """(grid, every candidate on it)."""
    grid = resample(phantom, 1.0, -1024)
    return grid, talkative.candidates(talkative.look(grid, lambda part: None))


def test_the_second_network_has_its_seconds_its_part_of_the_progress_and_its_numbers(
    refined: Callable[..., Detector], phantom: Volume
):
    parts: list[float] = []
    result = refined(weight=0.5).detect(phantom, progress=parts.append)
    assert len(result.findings) > 3
    assert result.timings_s.keys() == {"resample", "lung", "network", "refine", "link"}
    assert (parts[0], parts[-1]) == (0.0, 1.0)
    assert parts == sorted(parts)
    assert result.model.parameters["refinement.weight"] == 0.5


def test_the_second_network_gives_the_same_bits_in_whatever_order_candidates_come(
    refined: Callable[..., Detector], seen: tuple[Volume, Scored]
):
    grid, scored = seen
    first, second = (refined().refine(grid, order, lambda part: None) for order in (scored, scored[::-1]))
    assert len(first) > 10
    assert [s for _, s in first] == [s for _, s in second]
    assert [c.box.tobytes() for c, _ in first] == [c.box.tobytes() for c, _ in second]


def test_a_second_network_without_weight_changes_nothing(
    refined: Callable[..., Detector], talkative: Detector, seen: tuple[Volume, Scored]
):
    grid, scored = seen
    both = talkative.chosen(refined(weight=0.0, most=100000).refine(grid, scored, lambda part: None))
    alone = talkative.chosen(scored)
    assert len(alone) > 3
    assert [s for _, s in both] == [s for _, s in alone]
    assert [c.box.tobytes() for c, _ in both] == [c.box.tobytes() for c, _ in alone]


def test_what_the_second_network_rejects_is_not_chosen(refined: Callable[..., Detector], seen: tuple[Volume, Scored]):
    detector = refined(weight=0.5, logit=-20.0)
    assert detector.chosen(detector.refine(*seen, lambda part: None)) == []


def test_the_second_network_sees_the_best_candidates_above_the_floor(
    refined: Callable[..., Detector], seen: tuple[Volume, Scored]
):
    scores = sorted((s for _, s in seen[1]), reverse=True)
    few = refined(weight=1.0, most=5, logit=math.log(3.0)).refine(*seen, lambda part: None)
    assert [s for _, s in few] == pytest.approx([0.75] * 5)
    best = refined(weight=0.0, floor=scores[7]).refine(*seen, lambda part: None)
    assert [s for _, s in best] == [s for s in scores if s >= scores[7]]


def test_no_candidates_are_no_work_for_the_second_network(
    refined: Callable[..., Detector], seen: tuple[Volume, Scored]
):
    assert refined().refine(seen[0], [], lambda part: None) == []


def test_no_lung_no_result(talkative: Detector):
    with pytest.raises(SeriesRejected) as caught:
        talkative.detect(Volume(hu=np.full((30, 64, 64), 40, dtype=np.int16), affine=np.diag([2.0, 2.0, 2.0, 1.0])))
    assert caught.value.reason is Reason.NO_LUNG


@pytest.mark.parametrize(("device", "text"), [("cuda:99", "CUDA devices"), ("gpu", "torch knows"), ("mps", "not supp")])
def test_a_device_that_is_not_here_is_named(device: str, text: str):
    with pytest.raises(ConfigError, match=f"{device}.*{text}"):
        Detector.load(default_bundle(), device)


def test_the_packaged_model_finds_a_ball_in_the_lung_and_little_else():
    detector = Detector.load(default_bundle())
    center, radius = (40.0, -8.0, 10.0), 6.0
    result = detector.detect(chest(spacing_mm=(1.5, 1.0, 1.0), nodules=((*center, radius),)))
    best = result.findings[0]
    assert np.linalg.norm(np.subtract(best.center_mm, center)) < radius
    assert best.side == "left"
    volume_mm3 = best.mask.sum() * 1.5
    assert 0.5 < volume_mm3 / (4 / 3 * np.pi * radius**3) < 1.6
    assert len(result.findings) <= 3


def test_a_detection_knows_how_far_from_the_lungs_a_place_is(talkative: Detector, phantom: Volume):
    lungs, kept = find_lungs(phantom), talkative.detect(phantom).lungs
    assert kept is not None
    places = phantom.to_mm(np.random.default_rng(1).uniform(0, np.array(phantom.hu.shape) - 1, (500, 3)))
    exact = lungs.distance_at(places)
    inside = np.isfinite(exact)
    assert inside.sum() > 450
    assert np.abs(kept.at(places) - exact)[inside].max() < kept.step_mm
    assert np.isinf(kept.at(places + 1000.0)).all()
    assert kept.margin_mm == PreprocessSpec().lung_margin_mm
