"""LUNA16's FROC: equal to the official script on two submissions, and its rules one by one."""

from __future__ import annotations

import csv
import gzip
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.cases import DataProblem
from training.evaluation import froc as module
from training.evaluation.froc import (
    BAND_RATES,
    RATES,
    Froc,
    Marks,
    Truths,
    froc,
    read_marks,
    read_series,
    read_truths,
    run_froc,
)
from training.evaluation.intervals import bounds, draws

Row = tuple[str, float, float, float, float]
NONE: list[Row] = []
SCANS = ("a", "b", "c", "d")

quick = settings(deadline=None, max_examples=60)


def marks(rows: Sequence[Row]) -> Marks:
    series, xyz_mm, last = _arrays(rows)
    return Marks(series=series, xyz_mm=xyz_mm, score=last)


def truths(rows: Sequence[Row]) -> Truths:
    series, xyz_mm, last = _arrays(rows)
    return Truths(series=series, xyz_mm=xyz_mm, diameter_mm=last)


def _arrays(rows: Sequence[Row]) -> tuple[Any, Any, Any]:
    table = np.array([row[1:] for row in rows], dtype=np.float64).reshape(-1, 4)
    return np.array([row[0] for row in rows], dtype=np.str_), table[:, :3], table[:, 3]


def evaluated(
    marked: Sequence[Row], nodules: Sequence[Row], excluded: Sequence[Row] = (), scans: Sequence[str] = SCANS
) -> Froc:
    return froc(scans, marks(marked), truths(nodules), truths(excluded))


# -- the official script's own answers -----------------------------------------------------------------


@pytest.fixture(params=["deepseed_fold9", "synthetic_888"])
def reference(request: pytest.FixtureRequest, shared_data: Path) -> tuple[Path, Path]:
    """A folder with a submission and the official answers, and its list of scans."""
    folder = shared_data / "luna16" / "froc_reference" / request.param
    own = folder / "seriesuids.csv"
    return folder, own if own.exists() else shared_data / "luna16" / "seriesuids.csv.gz"


@pytest.fixture
def result(reference: tuple[Path, Path], shared_data: Path) -> Froc:
    folder, scans = reference
    return froc(
        read_series(scans),
        read_marks(folder / "predictions.csv.gz"),
        read_truths(shared_data / "luna16" / "annotations.csv.gz"),
        read_truths(shared_data / "luna16" / "annotations_excluded.csv.gz"),
    )


def test_counts_and_sensitivities_are_the_official_scripts(reference: tuple[Path, Path], result: Froc) -> None:
    expected = json.loads((reference[0] / "expected.json").read_text())
    assert result.counts == {name: expected[name] for name in result.counts}
    assert (result.scans, len(result.counts)) == (expected["scans"], 7)
    assert list(result.at) == expected["fp_per_scan"]
    np.testing.assert_allclose(list(result.at.values()), expected["sensitivity"], rtol=0, atol=1e-6)
    assert result.cpm == pytest.approx(expected["cpm"], abs=1e-6)


def test_each_point_of_the_curve_is_the_official_scripts(reference: tuple[Path, Path], result: Froc) -> None:
    expected = np.loadtxt(reference[0] / "froc_curve.csv", delimiter=",", skiprows=1)
    thresholds = np.where(np.isinf(result.thresholds), 1e9, result.thresholds)
    ours = np.column_stack([result.fp_per_scan, result.sensitivity, thresholds])
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)


def test_a_thousand_bootstraps_of_888_scans_take_under_ten_seconds(shared_data: Path) -> None:
    scans = read_series(shared_data / "luna16" / "seriesuids.csv.gz")
    rng = np.random.default_rng(0)
    crowded = Marks(
        series=np.repeat(np.array(scans), 100),
        xyz_mm=rng.normal(size=(88800, 3)) * 100,
        score=rng.random(88800),
    )
    nodules = read_truths(shared_data / "luna16" / "annotations.csv.gz")
    start = time.process_time()
    froc(scans, crowded, nodules, truths(NONE)).interval(1000)
    assert time.process_time() - start < 10


# -- the rules -----------------------------------------------------------------------------------------


def test_a_mark_at_exactly_the_radius_misses() -> None:
    nodule = [("a", 0.0, 0.0, 0.0, 6.0)]
    assert evaluated([("a", 3.0, 0.0, 0.0, 0.5)], nodule).counts["true_positives"] == 0
    assert evaluated([("a", 2.999, 0.0, 0.0, 0.5)], nodule).counts["true_positives"] == 1


def test_a_mark_hits_only_in_its_own_scan() -> None:
    counts = evaluated([("b", 0.0, 0.0, 0.0, 0.5)], [("a", 0.0, 0.0, 0.0, 6.0)]).counts
    assert (counts["true_positives"], counts["false_positives"]) == (0, 1)


def test_of_several_hits_the_best_counts_and_the_others_are_ignored() -> None:
    hits = [("a", float(n), 0.0, 0.0, score) for n, score in enumerate([0.3, 0.9, 0.6])]
    result = evaluated(hits, [("a", 0.0, 0.0, 0.0, 10.0)])
    assert result.counts["ignored_double_detections"] == 2
    assert result.counts["false_positives"] == 0
    assert result.thresholds.tolist() == [math.inf, 0.9]


def test_a_mark_between_two_nodules_finds_both() -> None:
    pair = [("a", -1.0, 0.0, 0.0, 6.0), ("a", 1.0, 0.0, 0.0, 6.0)]
    result = evaluated([("a", 0.0, 0.0, 0.0, 0.5)], pair)
    assert result.counts["true_positives"] == 2
    assert result.counts["total_candidates"] == 1


def test_an_excluded_finding_without_a_diameter_ignores_marks_within_five_mm() -> None:
    nodule, excluded = [("a", 90.0, 0.0, 0.0, 6.0)], [("a", 0.0, 0.0, 0.0, -1.0)]
    near = evaluated([("a", 4.9, 0.0, 0.0, 0.5)], nodule, excluded).counts
    far = evaluated([("a", 5.0, 0.0, 0.0, 0.5)], nodule, excluded).counts
    assert (near["ignored_on_excluded"], near["false_positives"]) == (1, 0)
    assert (far["ignored_on_excluded"], far["false_positives"]) == (0, 1)


def test_a_mark_on_a_nodule_counts_though_an_excluded_finding_lies_there_too() -> None:
    counts = evaluated([("a", 0.0, 0.0, 0.0, 0.5)], [("a", 0.0, 0.0, 0.0, 6.0)], [("a", 0.0, 0.0, 0.0, 9.0)]).counts
    assert (counts["true_positives"], counts["ignored_on_excluded"]) == (1, 0)


def test_scans_without_nodules_divide_the_false_marks_too() -> None:
    result = evaluated([("a", 50.0, 0.0, 0.0, 0.9), ("a", 0.0, 0.0, 0.0, 0.5)], [("a", 0.0, 0.0, 0.0, 6.0)])
    assert result.fp_per_scan[-1] == 1 / 4
    assert list(result.at.values()) == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_marks_of_one_score_come_together() -> None:
    """Else the order of rows would decide whether the nodule comes before the two false marks."""
    tied = [("a", 0.0, 0.0, 0.0, 0.5), ("a", 50.0, 0.0, 0.0, 0.5), ("a", 90.0, 0.0, 0.0, 0.5)]
    result = evaluated(tied, [("a", 0.0, 0.0, 0.0, 6.0)])
    assert result.fp_per_scan.tolist() == [0.0, 0.5]
    assert result.at[0.25] == pytest.approx(0.5)


def test_without_false_marks_each_rate_has_the_whole_sensitivity() -> None:
    result = evaluated([("a", 0.0, 0.0, 0.0, 0.5)], [("a", 0.0, 0.0, 0.0, 6.0), ("b", 0.0, 0.0, 0.0, 6.0)])
    assert set(result.at.values()) == {0.5}


def test_without_any_mark_the_score_is_nought() -> None:
    result = evaluated(NONE, [("a", 0.0, 0.0, 0.0, 6.0)])
    assert (result.cpm, result.counts["false_negatives"]) == (0.0, 1)
    assert result.interval(10).cpm == (0.0, 0.0)


def test_of_101_marks_those_above_the_last_count() -> None:
    scores = [float(n) for n in range(101)]
    assert _candidates(scores) == 100


def test_of_101_marks_that_tie_none_counts() -> None:
    assert _candidates([0.5] * 101) == 0


def test_a_hundred_marks_count_whatever_their_scores() -> None:
    assert _candidates([0.5] * 100) == 100


def _candidates(scores: list[float]) -> int:
    rows = [("a", float(n), 90.0, 0.0, score) for n, score in enumerate(scores)]
    return evaluated(rows, [("a", 0.0, 0.0, 0.0, 6.0)]).counts["total_candidates"]


def test_a_list_that_repeats_a_scan_is_refused() -> None:
    with pytest.raises(DataProblem, match="twice"):
        evaluated(NONE, [("a", 0.0, 0.0, 0.0, 6.0)], scans=("a", "a"))


def test_scans_without_any_nodule_have_no_sensitivity() -> None:
    with pytest.raises(DataProblem, match="hold no nodule"):
        evaluated(NONE, [("elsewhere", 0.0, 0.0, 0.0, 6.0)])


@pytest.mark.parametrize(
    "broken", [{"score": np.zeros(2)}, {"xyz_mm": np.zeros((1, 2))}, {"score": np.array([np.nan])}]
)
def test_marks_that_do_not_fit_are_never_built(broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="marks"):
        replace(marks([("a", 0.0, 0.0, 0.0, 0.5)]), **broken)


def test_a_finding_of_no_size_is_never_built() -> None:
    with pytest.raises(ValueError, match="0 mm"):
        truths([("a", 0.0, 0.0, 0.0, 0.0)])


# -- properties ----------------------------------------------------------------------------------------

# Few places, few scores: ties, double hits and overlaps come by themselves.
_place = st.tuples(st.sampled_from("abcde"), *[st.integers(0, 6).map(float)] * 3)
_marks = st.lists(st.tuples(_place, st.integers(0, 5)).map(lambda m: (*m[0], m[1] / 5)), max_size=25)
_nodules = st.lists(st.tuples(_place, st.sampled_from([3.0, 4.0, 6.5])).map(lambda m: (*m[0], m[1])), max_size=8)
_excluded = st.lists(st.tuples(_place, st.sampled_from([-1.0, 4.0])).map(lambda m: (*m[0], m[1])), max_size=4)
_in_a = [("a", 9.0, 9.0, 9.0, 5.0)]  # so that the scans hold a nodule


@quick
@given(marked=_marks, nodules=_nodules, excluded=_excluded, cap=st.integers(1, 6))
def test_curve_and_counts_equal_a_plain_count(
    marked: list[Row], nodules: list[Row], excluded: list[Row], cap: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MARKS_PER_SCAN", cap)
        result = evaluated(marked, nodules + _in_a, excluded)
    counts, events = plainly(marked, nodules + _in_a, excluded, cap)
    assert result.counts == counts
    for x, y, threshold in zip(result.fp_per_scan, result.sensitivity, result.thresholds, strict=True):
        above = [found for score, found in events if score >= threshold]
        assert (x, y) == pytest.approx((above.count(False) / 4, above.count(True) / counts["total_nodules"]))
    last = [found for _, found in events]
    assert result.fp_per_scan[-1] == pytest.approx(last.count(False) / 4)


def plainly(
    marked: list[Row], nodules: list[Row], excluded: list[Row], cap: int
) -> tuple[dict[str, int], list[tuple[float, bool]]]:
    """The rules in plain loops: counts, and (score, whether a nodule was found) of all that counts."""
    events: list[tuple[float, bool]] = []
    kept: list[Row] = []
    for scan in SCANS:
        here = [m for m in marked if m[0] == scan]
        if len(here) > cap:
            limit = sorted((m[4] for m in here), reverse=True)[cap]
            here = [m for m in here if m[4] > limit]
        kept += here
    wanted = [n for n in nodules if n[0] in SCANS]
    doubles = 0
    for nodule in wanted:
        scores = [m[4] for m in kept if _hits(m, nodule)]
        if scores:
            events.append((max(scores), True))
            doubles += len(scores) - 1
    spare = [m for m in kept if not any(_hits(m, n) for n in wanted)]
    false = [m for m in spare if not any(_hits(m, e) for e in excluded)]
    found = len(events)
    counts = {
        "true_positives": found,
        "false_positives": len(false),
        "false_negatives": len(wanted) - found,
        "total_candidates": len(kept),
        "total_nodules": len(wanted),
        "ignored_on_excluded": len(spare) - len(false),
        "ignored_double_detections": doubles,
    }
    return counts, events + [(m[4], False) for m in false]


def _hits(mark: Row, finding: Row) -> bool:
    radius = (10.0 if finding[4] < 0 else finding[4]) / 2
    return mark[0] == finding[0] and sum((a - b) ** 2 for a, b in zip(mark[1:4], finding[1:4], strict=True)) < radius**2


@quick
@given(marked=_marks, nodules=_nodules, excluded=_excluded, order=st.randoms(use_true_random=False))
def test_the_order_of_rows_and_scans_changes_nothing(
    marked: list[Row], nodules: list[Row], excluded: list[Row], order: Any
) -> None:
    first = evaluated(marked, nodules + _in_a, excluded)
    shuffled: list[Any] = [list(rows) for rows in (marked, nodules + _in_a, excluded, SCANS)]
    for rows in shuffled:
        order.shuffle(rows)
    second = evaluated(*shuffled)
    assert (second.counts, second.at) == (first.counts, first.at)
    np.testing.assert_array_equal(second.thresholds, first.thresholds)


@quick
@given(marked=_marks, nodules=_nodules, excluded=_excluded)
def test_the_curve_never_falls(marked: list[Row], nodules: list[Row], excluded: list[Row]) -> None:
    result = evaluated(marked, nodules + _in_a, excluded)
    assert (np.diff(result.fp_per_scan) >= 0).all()
    assert (np.diff(result.sensitivity) >= 0).all()
    assert (np.diff(result.thresholds) < 0).all()
    assert sorted(result.at.values()) == list(result.at.values())
    assert 0 <= result.cpm <= result.sensitivity[-1] + 1e-12 <= 1 + 1e-12


@quick
@given(marked=_marks, nodules=_nodules, excluded=_excluded)
def test_only_the_order_of_scores_matters(marked: list[Row], nodules: list[Row], excluded: list[Row]) -> None:
    stretched = [(*m[:4], math.exp(3 * m[4]) - 7) for m in marked]
    a, b = (evaluated(rows, nodules + _in_a, excluded) for rows in (marked, stretched))
    assert (a.at, a.counts) == (b.at, b.counts)


# -- intervals -----------------------------------------------------------------------------------------


def assert_draw_is_its_scans_evaluated_anew(everything: Sequence[Sequence[Row]], seed: int) -> None:
    first = evaluated(*everything)
    times = next(draws(first.events.nodules, 1, seed))
    scans: list[str] = []
    rows: list[list[Row]] = [[], [], []]
    for scan, count in zip(SCANS, times, strict=True):
        for copy in range(count):
            scans.append(f"{scan}{copy}")
            for kind, listed in zip(rows, everything, strict=True):
                kind += [(scans[-1], *row[1:]) for row in listed if row[0] == scan]
    anew = evaluated(rows[0], rows[1], rows[2], scans)
    interval = first.interval(1, seed)
    assert interval.cpm == pytest.approx((anew.cpm, anew.cpm))
    assert [low for low, _ in interval.at.values()] == pytest.approx(list(anew.at.values()))


@quick
@given(marked=_marks, nodules=_nodules, excluded=_excluded, seed=st.integers(0, 9))
def test_a_draw_scores_as_its_scans_evaluated_anew(
    marked: list[Row], nodules: list[Row], excluded: list[Row], seed: int
) -> None:
    assert_draw_is_its_scans_evaluated_anew((marked, nodules + _in_a, excluded), seed)


@pytest.mark.parametrize("seed", range(12))
def test_a_draw_without_the_scan_that_held_all_false_marks_scores_as_well(seed: int) -> None:
    """Its curve goes on long after the whole list's has passed the last rate."""
    crowd = [("a", 90.0 + n, 0.0, 0.0, 0.9 - n / 1000) for n in range(90)]
    later = [(scan, 90.0 + n, 0.0, 0.0, 0.5 - n / 1000) for scan in "bcd" for n in range(6)]
    nodules = [(scan, 0.0, 0.0, 0.0, 6.0) for scan in SCANS]
    hits = [(scan, 0.0, 0.0, 0.0, 0.498) for scan in SCANS]
    assert_draw_is_its_scans_evaluated_anew((crowd + later + hits, nodules, NONE), seed)


def test_the_same_seed_gives_the_same_interval(result: Froc) -> None:
    first, second, other = (result.interval(50, seed) for seed in (1, 1, 2))
    assert (first.cpm, first.at) == (second.cpm, second.at)
    assert first.cpm != other.cpm


def test_the_interval_holds_the_score_and_the_band_its_mean(result: Froc) -> None:
    interval = result.interval(300)
    assert interval.cpm[0] < result.cpm < interval.cpm[1]
    assert all(low < result.at[rate] < high for rate, (low, high) in interval.at.items())
    assert ((interval.low <= interval.mean) & (interval.mean <= interval.high)).all()
    assert set(RATES) <= set(BAND_RATES.tolist())


def test_a_wider_level_gives_a_wider_interval(result: Froc) -> None:
    narrow, wide = (result.interval(200, level=level).cpm for level in (0.5, 0.95))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_bounds_are_the_order_statistics_that_the_official_script_takes() -> None:
    low, high = bounds(np.arange(1000.0)[::-1, None], 0.95)
    assert (low.tolist(), high.tolist()) == ([25.0], [975.0])


@pytest.mark.parametrize(("samples", "level"), [(0, 0.95), (10, 1.0)])
def test_an_interval_of_nothing_is_refused(samples: int, level: float) -> None:
    result = evaluated(NONE, [("a", 0.0, 0.0, 0.0, 6.0)])
    with pytest.raises(ValueError, match=r"sample|level"):
        result.interval(samples, level=level)


# -- files ---------------------------------------------------------------------------------------------

HEADER = "seriesuid,coordX,coordY,coordZ,probability"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no column seriesuid"),
        ("seriesuid,coordX,coordY,coordZ,diameter_mm\n", "no column probability"),
        (f"{HEADER}\n1.2,0,0,0,0.5\n1.2,0,zero,0,0.5\n", "line 3: coordY is 'zero', which is no number"),
        (f"{HEADER}\n1.2,0,0,0,nan\n", "line 2: probability is 'nan', it has to be finite"),
        (f"{HEADER}\n1.2,0,0,0\n", "line 2: 4 fields"),
        (f"{HEADER}\n1.2,0,0,0,{'9' * 200_000}\n", "line 2: field larger"),
    ],
)
def test_a_broken_submission_is_named_with_its_line(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "marks.csv"
    path.write_text(text)
    with pytest.raises(DataProblem, match=fault) as caught:
        read_marks(path)
    assert str(path) in str(caught.value)


def test_a_spreadsheets_file_reads_like_any_other(tmp_path: Path) -> None:
    """Byte order mark, CRLF, other order of columns, one more, an empty line at the end."""
    path = tmp_path / "marks.csv"
    text = "probability,seriesuid,coordX,coordY,coordZ,note\r\n0.5, 1.2 ,1,2,3,x\r\n\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    read = read_marks(path)
    assert (read.series.tolist(), read.xyz_mm.tolist(), read.score.tolist()) == (["1.2"], [[1, 2, 3]], [0.5])


def test_a_submission_without_marks_is_one(tmp_path: Path) -> None:
    path = tmp_path / "marks.csv"
    path.write_text(HEADER + "\n")
    assert len(read_marks(path).series) == 0


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x1f\x8bnonsense", id="no gzip"),
        pytest.param(gzip.compress(b"x" * 999)[:-9], id="truncated gzip"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
        pytest.param(None, id="no file"),
    ],
)
def test_a_file_that_is_no_csv_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "marks.csv.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataProblem, match=r"marks\.csv\.gz"):
        read_marks(path)


def test_a_nodule_of_no_size_is_refused_in_a_list(tmp_path: Path) -> None:
    path = tmp_path / "annotations.csv"
    path.write_text(HEADER.replace("probability", "diameter_mm") + "\n1.2,0,0,0,0\n")
    with pytest.raises(DataProblem, match="0 mm"):
        read_truths(path)


def test_a_list_of_scans_may_have_a_header(tmp_path: Path) -> None:
    path = tmp_path / "seriesuids.csv"
    path.write_text("seriesuid\n1.2\n1.3\n")
    assert read_series(path) == ("1.2", "1.3")


@pytest.mark.parametrize(("text", "fault"), [("", "names no scan"), ("1.2\n1.3\n1.2\n", "1.2 twice")])
def test_a_list_of_scans_that_is_none_is_named(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "seriesuids.csv"
    path.write_text(text)
    with pytest.raises(DataProblem, match=fault):
        read_series(path)


# -- the command ---------------------------------------------------------------------------------------


def _files(folder: Path) -> tuple[Path, Path, Path, Path]:
    rows = {
        "marks": [HEADER.split(","), ["1.2", 0, 0, 0, 0.9], ["1.3", 9, 9, 9, 0.4], ["9.9", 0, 0, 0, 0.9]],
        "nodules": [[*HEADER.split(",")[:4], "diameter_mm"], ["1.2", 0, 0, 0, 6]],
        "excluded": [[*HEADER.split(",")[:4], "diameter_mm"]],
        "scans": [["1.2"], ["1.3"]],
    }
    for name, table in rows.items():
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows(table)
    return folder / "marks", folder / "nodules", folder / "excluded", folder / "scans"


def test_the_command_answers_in_json(tmp_path: Path) -> None:
    report = json.loads(run_froc(*_files(tmp_path), bootstrap=20, json=True))
    assert report["counts"]["true_positives"] == 1
    assert (report["cpm"], report["marks_outside_the_list"]) == (1.0, 1)
    assert report["intervals"]["samples"] == 20
    assert len(report["intervals"]["sensitivity"]) == 7
    assert report["curve"][0] == {"fp_per_scan": 0.0, "sensitivity": 0.0, "threshold": None}
    assert "Research use, not for diagnosis" in report["notice"]


def test_the_command_answers_in_words(tmp_path: Path) -> None:
    text = run_froc(*_files(tmp_path), bootstrap=0, json=False)
    assert "2 scans, none of LUNA16's" in text
    assert "interval" not in text
    assert "CPM     1.000000" in text
    assert "marks outside the list" in text
    assert text.endswith("Research use, not for diagnosis")
    assert "95% interval of 30 bootstraps" in run_froc(*_files(tmp_path), bootstrap=30, json=False)
