"""Claims about the figures: counted as their definitions say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dicom_node.domain import Detection, Finding, ModelIdentity, Volume
from dicom_node.model.bundle import load_bundle
from dicom_node.model.network import SMALL, build_network
from dicom_node.model.spec import MergeSpec, PreprocessSpec
from training.__main__ import main
from training.evaluate import Judged, choose_point, dice, froc, judge, real_case, summary
from training.export import export
from training.insert import Truth
from training.train import FitSettings, save

SPACE = Volume(hu=np.zeros((40, 40, 40), dtype=np.int16), affine=np.eye(4)[[2, 1, 0, 3]])


def cube(corner: tuple[int, int, int], size: int, score: float) -> Finding:
    center = SPACE.to_mm(np.array(corner) + (size - 1) / 2)
    x, y, z = (float(v) for v in center)
    return Finding(mask=np.ones((size,) * 3, bool), corner=corner, center_mm=(x, y, z), score=score, side=None)


def truth(corner: tuple[int, int, int], size: int) -> Truth:
    return Truth(
        name="t",
        mask=np.ones((size,) * 3, bool),
        corner=corner,
        center_mm=SPACE.to_mm(np.array(corner) + (size - 1) / 2),
        diameter_mm=float(size),
    )


def test_the_best_hit_counts_and_further_hits_on_it_do_not():
    found = (cube((10, 10, 10), 6, 0.9), cube((11, 10, 10), 6, 0.8), cube((30, 30, 30), 4, 0.7))
    judged = judge(SPACE, found, [truth((10, 10, 10), 6), truth((20, 20, 20), 6)], np.zeros((0, 4)))
    assert judged.scores.tolist() == [0.9, 0.7]
    assert judged.hits.tolist() == [0, -1]
    assert judged.truths == 2


def test_a_mark_exactly_on_the_radius_is_no_hit():
    judged = judge(SPACE, (cube((13, 10, 10), 6, 0.9),), [truth((10, 10, 10), 6)], np.zeros((0, 4)))
    assert judged.hits.tolist() == [-1]


def test_marks_in_ignored_places_do_not_count():
    found = (cube((30, 30, 30), 4, 0.7),)
    assert len(judge(SPACE, found, [], np.array([[31.5, 31.5, 31.5, 3.0]])).scores) == 0


def test_dice_by_hand():
    assert dice(SPACE, cube((10, 10, 10), 4, 0.5), truth((10, 10, 12), 4)) == pytest.approx(0.5)
    assert dice(SPACE, cube((10, 10, 10), 4, 0.5), truth((20, 20, 20), 4)) == 0.0


def scan(scores: list[float], hits: list[int], truths: int) -> Judged:
    return Judged(
        scores=np.array(scores), hits=np.array(hits), dice=np.where(np.array(hits) >= 0, 0.8, np.nan), truths=truths
    )


def test_summary_counts_misses_in_the_denominator():
    figures = summary([scan([0.9, 0.5, 0.1], [0, -1, 1], 4), scan([], [], 0)], point=0.3)
    assert figures == pytest.approx({"truths": 4, "sensitivity": 0.25, "false_positives_per_scan": 0.5, "dice": 0.8})


def test_the_curve_by_hand():
    curve = froc([scan([0.9, 0.8, 0.7, 0.6], [0, -1, 1, -1], 2)])
    assert curve["1"] == pytest.approx(1.0)
    assert curve["0.5"] == pytest.approx(0.75)
    assert curve["8"] == pytest.approx(1.0)


def test_the_operating_point_leaves_the_allowed_false_positives():
    point = choose_point([scan([0.9, 0.8, 0.6, 0.4], [-1, 0, -1, -1], 1), scan([0.7], [-1], 0)])
    assert point == pytest.approx(0.41)
    assert choose_point([scan([1.0, 1.0], [-1, -1], 0)]) == 1.0


def test_a_real_case_tells_the_known_nodule_from_false_and_ignored_marks():
    found = (cube((2, 2, 2), 3, 0.95), cube((10, 10, 10), 6, 0.9), cube((30, 30, 30), 4, 0.7), cube((20, 2, 2), 3, 0.1))
    result = Detection(
        findings=found,
        analysed=(0, 40),
        model=ModelIdentity(name="m", version="1", bundle_sha256="", operating_point=0.05, parameters={}),
        timings_s={"network": 2.0, "link": 1.0},
    )
    x, y, z = (float(v) for v in SPACE.to_mm((12.5, 12.5, 14.5)))
    case = real_case(result, 0.5, (x, y, z, 6.0), np.array([[31.5, 31.5, 31.5, 3.0]]))
    assert case == {
        "false_positives": 1, "seconds": 3.0, "found": True, "score": 0.9, "rank": 2, "distance_mm": pytest.approx(2.0),
    }  # fmt: skip


FIGURES: dict[str, Any] = {
    "composites": {
        "truths": 10, "scans": 2, "sensitivity": 0.5, "false_positives_per_scan": 3.0, "dice": 0.7, "froc": {"1": 0.4},
    },
    "LIDC-IDRI-0001": {"false_positives": 2, "seconds": 60.0, "found": True, "score": 0.8},
    "LIDC-IDRI-0002": {"false_positives": 1, "seconds": 60.0},
    "C3N-00247": {"false_positives": 1, "seconds": 60.0, "found": True, "score": 0.8},
}  # fmt: skip


def test_an_exported_bundle_carries_its_figures_and_calls_composites_composites(tmp_path: Path):
    model = build_network(SMALL, PreprocessSpec(), norm=torch.nn.BatchNorm2d)
    save(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.1), FitSettings(), 1, 0.0)
    facts = {"positives": 807, "commands": "python -m training fit", "history": "", "machine": "2 cores"}
    export(
        tmp_path, tmp_path / "bundle", PreprocessSpec(), MergeSpec(),
        version="0.1.0", operating_point=0.4, figures=FIGURES, facts=facts,
    )  # fmt: skip
    bundle = load_bundle(tmp_path / "bundle")
    assert {m.name for m in bundle.form.metrics} >= {"sensitivity", "Dice", "false positives", "seconds"}
    for metric in bundle.form.metrics:
        assert metric.definition
        assert metric.command
        if metric.name.startswith("sensitivity"):
            assert "composites" in metric.data
    card = (bundle.folder / "MODEL_CARD.md").read_text()
    assert "Research use, not for diagnosis" in card
    assert "python -m training fit" in card


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]):
    for arguments in (["--help"], ["fit", "--help"], ["export", "--help"], ["evaluate", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    assert "python -m training fit --data" in capsys.readouterr().out


def test_a_wrong_call_ends_with_2():
    with pytest.raises(SystemExit) as ended:
        main(["fit"])
    assert ended.value.code == 2
