"""The report is one file for people: it needs nothing else, hides nothing, and names nobody."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom_node.model.bundle import default_bundle, load_bundle
from tests.fakes.results import mark, nodule, result
from training.cases import DataProblem
from training.evaluation.ceiling import human_ceiling
from training.evaluation.figures import Point, Study, figures
from training.evaluation.marks import ScanResult
from training.evaluation.plots import _cut, false_marks, misses
from training.evaluation.report import read_figures, render, write_report

POINT = Point(score=0.5, rule="for a test")
SMALL, LARGE, FALSE = (2, 2, 2), (20, 20, 20), (30, 50, 50)
NOTICE = "Research use, not for diagnosis"


def judged(uid: str) -> ScanResult:
    """A small nodule found, a large one with a weak mark only, and two false marks."""
    marks = (mark(SMALL, 4, 0.9), mark(LARGE, 12, 0.3), mark(FALSE, 5, 0.8), mark((30, 50, 2), 5, 0.95))
    return result(uid, marks, (nodule(SMALL, 4), nodule(LARGE, 12)))


def study(results: tuple[ScanResult, ...], **more: Any) -> Study:
    bundle = load_bundle(default_bundle())
    fields: dict[str, Any] = {
        "results": results, "left_out": {}, "bundle": bundle.form, "bundle_sha256": bundle.sha256, "point": POINT,
        "command": "python -m training evaluate --bundle bundle", "machine": "a machine", "samples": 30,
        "ceiling": human_ceiling(),
    }  # fmt: skip
    return Study(**fields | more)


class Page(HTMLParser):
    """Text and references of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._style = tag == "style"
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += "" if self._style else data


def page(text: str) -> Page:
    parsed = Page()
    parsed.feed(text)
    return parsed


@pytest.fixture(scope="module")
def two() -> tuple[dict[str, Any], tuple[ScanResult, ...]]:
    results = (judged("1.2.840.1111"), judged("1.2.840.2222"))
    return figures(study(results, left_out={"1.2.3": "<script>alert(1)</script> is cut short"})), results


@pytest.fixture(scope="module")
def html(two: tuple[dict[str, Any], tuple[ScanResult, ...]]) -> str:
    return render(*two)


def test_a_report_needs_nothing_but_itself(html: str) -> None:
    made = page(html)
    assert made.references
    assert all(reference.startswith("data:image/") for reference in made.references)
    assert not {"script", "link", "iframe"} & set(made.tags)


def test_it_says_first_what_it_is_not_for_and_that_composites_are_composites(html: str) -> None:
    text = " ".join(page(html[html.index("<body>") :]).text.split())
    assert text.startswith(NOTICE)
    assert "Composites. The scans are real lungs with real nodules blended into them" in text
    assert "composites (2 scans, no real cases)" in text


def test_it_shows_the_figures_as_they_are(html: str, two: tuple[dict[str, Any], tuple[ScanResult, ...]]) -> None:
    text = page(html).text
    for row in two[0]["claims"]:
        assert f"{row['value']:.3f}" in text
        assert f"{row['low']:.3f} to {row['high']:.3f}" in text
        assert f"{row['human']:.3f}" in text
    assert all(row["name"] in text for row in two[0]["figures"] if not row["key"].startswith("seconds_"))


def test_names_in_it_are_no_markup_and_only_what_was_left_out_is_named(html: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt; is cut short" in html
    assert "1.2.840." not in html
    assert "patient of" not in html


def test_both_files_are_written(two: tuple[dict[str, Any], tuple[ScanResult, ...]], tmp_path: Path) -> None:
    path = write_report(*two, tmp_path / "report")
    assert path == tmp_path / "report" / "report.html"
    assert read_figures(tmp_path / "report" / "figures.json")["claims"] == two[0]["claims"]
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(DataProblem, match=r"other.json holds no figures"):
        read_figures(tmp_path / "other.json")


def test_scans_without_nodules_or_marks_have_a_report_too() -> None:
    empty = (result("1"),)
    text = page(render(figures(study(empty)), empty)).text
    assert "These scans hold no listed nodule." in text
    assert "No false mark reaches the operating point." in text
    assert "The four claims" not in text


def test_real_scans_are_not_called_composites() -> None:
    real = (replace(judged("1"), composite=False), replace(judged("2"), composite=False))
    assert "omposite" not in page(render(figures(study(real)), real)).text


def test_the_worst_come_first() -> None:
    results = (result("1", nodules=(nodule(SMALL, 4), nodule((5, 40, 40), 7))), judged("2"))
    captions = [scene.caption for scene in misses(results, POINT)]
    assert captions == [
        "scan 2, nodule 2\n12.0 mm, best mark 0.30", "scan 1, nodule 2\n7.0 mm, no mark on it",
        "scan 1, nodule 1\n4.0 mm, no mark on it",
    ]  # fmt: skip
    found = [scene.caption for scene in false_marks(results, POINT)]
    assert [re.findall(r"score (\S+),", caption) for caption in found] == [["0.95"], ["0.80"]]


def test_a_false_mark_on_part_of_a_nodule_is_told_apart() -> None:
    """Its middle lies beyond the nodule's radius, its voxels do not."""
    both = result("1", (mark((20, 20, 30), 4, 0.9),), (nodule(LARGE, 12),))
    assert "(part of nodule 1)" in false_marks([both], POINT)[0].caption


def test_a_point_of_ones_own_decides_what_a_scan_missed() -> None:
    strict = Point(score=0.5, rule="", by_scan={"1": 0.95, "2": 0.2})
    assert [scene.caption.split("\n")[0] for scene in misses([judged("1"), judged("2")], strict)] == [
        "scan 1, nodule 2", "scan 1, nodule 1",
    ]  # fmt: skip


@pytest.mark.parametrize("corner", [(20, 20, 20), (20, 0, 0), (20, 45, 50), (3, 20, 20)])
def test_outlines_lie_where_the_masks_lie(corner: tuple[int, int, int]) -> None:
    shape = mark(corner, 12, 0.9)
    picture = judged("1").pictures[1]
    whole = np.zeros((200, 200), dtype=np.bool_)
    k, row, column = picture.corner
    if corner[0] <= k < corner[0] + 12:
        whole[60 + corner[1] : 72 + corner[1], 60 + corner[2] : 72 + corner[2]] = True
    h, w = picture.pixels.shape
    np.testing.assert_array_equal(_cut(picture, shape), whole[60 + row : 60 + row + h, 60 + column : 60 + column + w])
