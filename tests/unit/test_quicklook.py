"""The quick look: what it shows is what SEG and SR say, it stands alone, and it names no patient."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw
from pydicom.uid import RLELossless

from dicom_node.errors import ConfigError
from dicom_node.profiles import ResultProfile
from dicom_node.quicklook import page
from dicom_node.render import folder_files, render
from dicom_node.results.part10 import to_bytes
from dicom_node.results.reading import Reading
from tests.fakes.ct import HEADER, make_ct_series
from tests.golden import made_of
from tests.golden.cases import Case, cases

OHIF = ResultProfile()


@dataclass(frozen=True)
class Source:
    """Images in a folder, and what can be made of them."""

    images: Path
    cases: dict[str, Case]

    def folder(self, target: Path, case: str, profile: ResultProfile = OHIF, leave_out: tuple[str, ...] = ()) -> Path:
        """Images and results in one place, as somebody exported them."""
        target.mkdir(exist_ok=True)
        for path in self.images.glob("*.dcm"):
            (target / path.name).write_bytes(path.read_bytes())
        for each in made_of(self.cases[case], profile):
            if each.made.kind not in leave_out:
                (target / f"{each.made.name}.dcm").write_bytes(to_bytes(each.made.ds))
        return target

    def reading(self, case: str) -> Reading:
        reading = self.cases[case].reading
        assert reading is not None
        return reading


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("source")
    return Source(folder, {case.name: case for case in cases(folder)})


@dataclass(frozen=True)
class Look:
    result: dict[str, Any]
    html: str

    @property
    def scene(self) -> dict[str, Any]:
        text = re.search(r'<script type="application/json" id="scene">(.*?)</script>', self.html, re.DOTALL)
        assert text is not None
        scene: dict[str, Any] = json.loads(text[1])
        return scene

    @property
    def rows(self) -> list[list[str]]:
        """Cells of the table of findings."""
        rows = re.findall(r"<tr><th scope=\"row\">(.*?)</th>(.*?)</tr>", self.html)
        return [
            [re.sub("<.*?>", "", head), *map(unescape, re.findall("<td>(.*?)</td>", cells))] for head, cells in rows
        ]


@pytest.fixture
def look(tmp_path: Path) -> Callable[[Path], Look]:
    def at(folder: Path) -> Look:
        result = render(folder_files(folder), tmp_path / "look")
        return Look(result, (tmp_path / "look" / "quicklook.html").read_text(encoding="utf-8"))

    return at


def test_the_table_holds_the_numbers_of_the_report(source: Source, look: Callable[..., Look], tmp_path: Path) -> None:
    shown = look(source.folder(tmp_path / "ct", "findings"))
    for row, measured in zip(shown.rows, source.reading("findings").measurements, strict=True):
        assert row[2] == f"{measured.long_axis_mm:.1f} x {measured.short_axis_mm:.1f} mm"
        assert row[3] == f"{measured.volume_mm3:.0f} mm3"
        assert row[4] == f"{measured.mean_hu:.0f} HU"
    assert [row[1] for row in shown.rows] == ["right lung", "left lung"]
    assert [row[5] for row in shown.rows] == ["0.90", "0.60"]


@pytest.mark.parametrize("form", ["binary", "fractional", "labelmap"])
@pytest.mark.parametrize("frames", ["sparse", "full"])
def test_outlines_hold_the_voxels_of_the_segments_whatever_their_form(
    source: Source, look: Callable[..., Look], tmp_path: Path, form: Any, frames: Any
) -> None:
    profile = ResultProfile(segmentation=form, segmentation_frames=frames)
    scene = look(source.folder(tmp_path / "ct", "findings", profile)).scene
    for shown, finding in zip(scene["findings"], source.reading("findings").findings, strict=True):
        whole = np.zeros((44, 64, 64), bool)
        whole[finding.slices] = finding.mask
        assert sorted(map(int, shown["slices"])) == np.flatnonzero(whole.any(axis=(1, 2))).tolist()
        for index, paths in shown["slices"].items():
            assert np.array_equal(filled(paths), whole[int(index)])


def test_a_label_map_that_an_archive_compressed_shows_the_same(
    source: Source, look: Callable[..., Look], tmp_path: Path
) -> None:
    folder = source.folder(tmp_path / "ct", "findings", ResultProfile(segmentation="labelmap"))
    before = look(folder).scene["findings"]
    seg = pydicom.dcmread(folder / "seg_labelmap.dcm")
    uid = seg.SOPInstanceUID
    seg.compress(RLELossless, generate_instance_uid=False)
    assert seg.SOPInstanceUID == uid
    seg.save_as(folder / "seg_labelmap.dcm")
    assert look(folder).scene["findings"] == before


def filled(paths: list[str]) -> np.ndarray[Any, Any]:
    """Pixels whose centre lies in an outline, drawn eight times as large."""
    image = Image.new("1", (64 * 8, 64 * 8))
    for path in paths:
        points = [float(number) * 8 for number in re.findall(r"[\d.]+", path)]
        ImageDraw.Draw(image).polygon(points, fill=1)
    return np.array(image)[4::8, 4::8]


def test_the_page_needs_nothing_beside_itself_and_lets_nothing_else_in(
    source: Source, look: Callable[..., Look], tmp_path: Path
) -> None:
    html = look(source.folder(tmp_path / "ct", "findings")).html
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+[^\s\"'<]*", re.sub(r"base64,[\w+/=]+", "", html)))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in html
    assert "Research use, not for diagnosis" in html


def test_no_patient_is_named(source: Source, look: Callable[..., Look], tmp_path: Path) -> None:
    shown = look(source.folder(tmp_path / "ct", "findings"))
    told = shown.html + json.dumps(shown.result)
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "ReferringPhysicianName"):
        word = HEADER[keyword]
        assert not re.search(rf"\b{re.escape(word)}\b", re.sub(r"base64,[\w+/=]+", "", told)), keyword
    assert "Phantom" not in told


def test_each_finding_has_its_montage(source: Source, look: Callable[..., Look], tmp_path: Path) -> None:
    shown = look(source.folder(tmp_path / "ct", "findings"))
    assert [Path(path).name for path in shown.result["files"]] == ["quicklook.html", "finding_1.png", "finding_2.png"]


def test_a_series_without_a_finding_is_shown_with_what_the_report_says(
    source: Source, look: Callable[..., Look], tmp_path: Path
) -> None:
    shown = look(source.folder(tmp_path / "ct", "none_found"))
    assert "no lung nodule candidate was found" in shown.html
    assert len(shown.scene["images"]) == 44
    assert shown.rows == []


def test_a_series_that_was_not_analysed_says_why(source: Source, look: Callable[..., Look], tmp_path: Path) -> None:
    shown = look(source.folder(tmp_path / "ct", "not_analysed"))
    assert "NOT ANALYSED" in shown.html
    assert "SLICE_GAP" in shown.html


def test_images_that_form_no_volume_leave_a_page_without_pictures(
    source: Source, look: Callable[..., Look], tmp_path: Path
) -> None:
    folder = source.folder(tmp_path / "ct", "not_analysed")
    (folder / "0012.dcm").unlink()
    shown = look(folder)
    assert "The images form no volume that could be shown. SLICE_GAP" in shown.html
    assert "images" not in shown.scene
    assert "toolbar" not in re.sub("<style>.*</style>", "", shown.html, flags=re.DOTALL)


def test_a_report_without_its_segmentation_shows_its_own_outlines(
    source: Source, look: Callable[..., Look], tmp_path: Path
) -> None:
    shown = look(source.folder(tmp_path / "ct", "findings", leave_out=("seg",)))
    assert "outlines are those of the report alone" in shown.html
    measured = source.reading("findings").measurements
    assert [list(each["slices"]) for each in shown.scene["findings"]] == [[str(m.slice_index)] for m in measured]


def test_a_segmentation_without_a_report_is_shown_without_numbers(
    source: Source, look: Callable[..., Look], tmp_path: Path
) -> None:
    shown = look(source.folder(tmp_path / "ct", "findings", leave_out=("sr",)))
    assert len(shown.scene["findings"]) == 2
    assert "no numbers" in shown.html


def test_images_alone_can_be_looked_at(source: Source, look: Callable[..., Look]) -> None:
    shown = look(source.images)
    assert len(shown.scene["images"]) == 44
    assert "no measurement report" in shown.html


def test_of_two_series_one_must_be_named(source: Source, tmp_path: Path) -> None:
    make_ct_series(tmp_path / "ct" / "other", header={"SeriesInstanceUID": "1.2.3.4"})
    make_ct_series(tmp_path / "ct" / "one")
    files = folder_files(tmp_path / "ct")
    with pytest.raises(ConfigError, match=r"2 CT series; choose one:\n  --series "):
        render(files, tmp_path / "look")
    assert render(files, tmp_path / "look", "1.2.3.4")["slices"] == 44
    with pytest.raises(ConfigError, match="no CT image of series"):
        render(files, tmp_path / "look", "9.9")


def test_pictures_get_smaller_where_they_would_be_too_many_bytes(
    source: Source, look: Callable[..., Look], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sum(map(len, look(source.images).scene["images"]))
    monkeypatch.setattr(page, "_EDGES_PX", (512, 32))
    monkeypatch.setattr(page, "MOST_PICTURE_BYTES", whole // 2)
    assert sum(map(len, look(source.images).scene["images"])) < whole // 2


def test_the_same_files_make_the_same_page(source: Source, look: Callable[..., Look], tmp_path: Path) -> None:
    folder = source.folder(tmp_path / "ct", "findings")
    assert look(folder).html == look(folder).html


def test_a_text_of_the_report_cannot_become_markup() -> None:
    assert "<" not in page.as_json({"label": "</script><img src=x>"})
