"""OHIF 3.13 on Orthanc's DICOMweb, in Chromium: what a reader sees of a real CT and of the node's results.

docs/viewers.md tells it in words; its pictures are what these tests saw:
`DICOM_NODE_SCREENSHOTS=docs/images make test PYTEST_ARGS="-k test_ohif"`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser
from pydicom.dataset import Dataset

from dicom_node.corrections import SourceGrid, compare, read_correction, read_ours, references_of
from dicom_node.errors import Reason, SeriesRejected
from dicom_node.profiles import BUILT_IN_PROFILES, ResultProfile
from dicom_node.results import to_bytes
from dicom_node.results.build import build_objects, finding_rows, refuse
from dicom_node.results.narrative import narrative, refusal_text
from dicom_node.results.objects import refusals_for
from dicom_node.results.reading import Made, Reading
from tests import viewer
from tests.fakes.findings import JOB
from tests.fakes.shipped import FILES, read_shipped
from tests.peers import Orthanc, run_orthanc
from tests.viewer import Page, Picture, run_chromium, run_ohif
from training.readers.dicom_seg import read_segments

pytestmark = [
    pytest.mark.slow,
    pytest.mark.peers,
    pytest.mark.skipif(
        not (viewer.OHIF.is_dir() and viewer.CHROMIUM.exists() and viewer.NGINX.exists()),
        reason="no OHIF, Chromium or nginx here: tests/peers.sh installs them",
    ),
]

EVERYTHING = ResultProfile(
    reports=("tid1500", "text", "chest_cad"),
    captures="single_frame",
    key_objects=True,
    presentation_states=True,
    pdf=True,
)

Show = Callable[..., Page]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with run_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def reading() -> Reading:
    return read_shipped()


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with run_orthanc(tmp_path_factory.mktemp("viewer") / "orthanc") as orthanc:
        yield orthanc


@pytest.fixture(scope="module")
def address(pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with run_ohif(tmp_path_factory.mktemp("ohif"), pacs) as url:
        yield url


@pytest.fixture
def show(pacs: Orthanc, address: str, chromium: Browser, reading: Reading) -> Iterator[Show]:
    """`show(objects)`: the study of the shipped CT and these objects, opened in the viewer, to look or to draw."""
    opened: list[Page] = []

    def store_and_open(objects: Sequence[Made], mode: str = "viewer") -> Page:
        pacs.clear()
        for path in FILES:
            pacs.upload(path.read_bytes())
        for made in objects:
            pacs.upload(to_bytes(made.ds))
        opened.append(Page(chromium, address, reading.series.study_uid, mode))
        return opened[-1]

    yield store_and_open
    for page in opened:
        page.close()


def series_of(objects: Sequence[Made], kind: str) -> int:
    return int(next(made.ds.SeriesNumber for made in objects if made.kind == kind))


def masks_of(reading: Reading) -> NDArray[np.bool_]:
    """All findings in one mask with the shape of the Volume."""
    marked = np.zeros(reading.volume.hu.shape, np.bool_)
    for finding in reading.findings:
        marked[finding.slices] |= finding.mask
    return marked


def shows_ct(picture: Picture, reading: Reading) -> bool:
    """The grey values are those of the CT, in the window that its header asks for, at the place where they lie."""
    hu = picture.sampled(reading.volume, reading.volume.hu, outside=-2000)
    meant = np.clip((hu + 1400) / 1600, 0, 1) * 255
    where = (hu > -1400) & ~picture.coloured()
    grey = picture.rgb.astype(float).mean(axis=-1)
    # The viewer interpolates, the nearest value was taken here.
    return bool(where.mean() > 0.2 and np.abs(grey - meant)[where].mean() < 8)


def covers(picture: Picture, meant: NDArray[np.bool_]) -> bool:
    """Colour lies on what is meant, and nowhere else."""
    coloured = picture.coloured()
    return bool((coloured & meant).sum() > 0.98 * (coloured | meant).sum() > 0)


def wait_for_slice(
    page: Page, reading: Reading, index: int, also: Callable[[Picture], bool] = lambda picture: True
) -> Picture:
    """The picture of this slice of the CT, with what else must be seen. Fails when it doesn't come in a minute."""
    uid = reading.series.images[index].sop_instance_uid
    seen = page.until(lambda p: p.sop_instance_uid == uid and shows_ct(p, reading) and also(p))
    assert seen.sop_instance_uid == uid
    assert shows_ct(seen, reading)
    assert also(seen)
    return seen


def show_slice(page: Page, reading: Reading, index: int, also: Callable[[Picture], bool]) -> None:
    page.show_slice(reading.series.images[index].sop_instance_uid)
    wait_for_slice(page, reading, index, also)


def test_seg_covers_the_nodules_on_their_slices_alone(show: Show, reading: Reading) -> None:
    objects = build_objects(reading, BUILT_IN_PROFILES["ohif"])
    page = show(objects)
    page.open_series(series_of(objects, "seg"))
    page.say("Do you want to open this Segmentation?", "Yes")
    page.press("panelSegmentation-btn")
    assert page.rows() == ["Nodule 1", "Nodule 2"]

    marked = masks_of(reading)
    for measured, finding in zip(reading.measurements, reading.findings, strict=True):
        show_slice(page, reading, measured.slice_index, lambda p: covers(p, p.sampled(reading.volume, marked)))
        if measured is reading.measurements[0]:
            page.keep("ohif-seg")
        below, above = finding.corner[0] - 1, finding.corner[0] + finding.mask.shape[0]
        for beyond in (below, above):
            assert not marked[beyond].any()
            show_slice(page, reading, beyond, lambda p: not p.coloured().any())


def number(text: str, unit: str) -> float:
    value, _, said = text.partition(" ")
    assert said == unit
    return float(value)


def test_sr_draws_each_nodule_with_its_numbers(show: Show, reading: Reading) -> None:
    objects = build_objects(reading, BUILT_IN_PROFILES["ohif"])
    page = show(objects)
    page.open_series(series_of(objects, "sr"))
    for measured in reading.measurements:
        wait_for_slice(page, reading, measured.slice_index, lambda _: len(page.outlines_mm()) == 1)
        if measured is reading.measurements[0]:
            page.keep("ohif-sr")
        outline = reading.volume.to_index(page.outlines_mm()[0])
        assert np.abs(outline[:, 0] - measured.slice_index).max() < 0.01
        assert np.abs(outline[:, :0:-1] + 0.5 - measured.contours[0]).max() < 0.1
        said = dict(line.split(": ") for line in page.drawn_text())
        assert number(said["Volume"], "mm3") == pytest.approx(measured.volume_mm3, abs=0.01)
        assert number(said["Long axis"], "mm") == pytest.approx(measured.long_axis_mm, abs=0.01)
        assert number(said["Short axis"], "mm") == pytest.approx(measured.short_axis_mm, abs=0.01)
        page.press("viewport-action-arrows-right")


def reads(page: Page, sentences: Sequence[str]) -> None:
    """The viewport says all of this, however it breaks its lines."""
    for sentence in sentences:
        page.wait_for_text(sentence)


def is_this(picture: Picture, ds: Dataset) -> bool:
    """A picture of ours, whole and as large as it goes."""
    rows, columns = picture.rgb.shape[:2]
    scale = min(rows / ds.Rows, columns / ds.Columns)
    size = (round(ds.Columns * scale), round(ds.Rows * scale))
    meant = np.asarray(Image.fromarray(ds.pixel_array).resize(size), dtype=float)
    top, left = (rows - size[1]) // 2, (columns - size[0]) // 2
    seen = picture.rgb[top : top + size[1], left : left + size[0]]
    return bool(np.abs(seen - meant).mean() < 8)


def test_text_pictures_and_pdf_are_shown_and_what_ohif_cannot_show_is_marked(show: Show, reading: Reading) -> None:
    objects = build_objects(reading, EVERYTHING)
    page = show(objects)

    page.open_series(series_of(objects, "sr_text"))
    reads(page, narrative(reading))

    page.open_series(series_of(objects, "capture"))
    captures = {made.ds.SOPInstanceUID: made.ds for made in objects if made.kind == "capture"}
    seen = page.until(lambda p: p.sop_instance_uid in captures and is_this(p, captures[p.sop_instance_uid]))
    assert is_this(seen, captures[seen.sop_instance_uid])
    page.keep("ohif-capture")

    page.open_series(series_of(objects, "pdf"))
    [pdf] = [made.ds for made in objects if made.kind == "pdf"]
    assert page.pdf()[: pdf.EncapsulatedDocumentLength] == pdf.EncapsulatedDocument[: pdf.EncapsulatedDocumentLength]

    kinds = {made.kind for made in objects}
    assert {kind for kind in kinds if page.is_marked(series_of(objects, kind))} == {
        "key_objects", "presentation", "sr_cad",
    }  # fmt: skip


def test_none_found_and_not_analysed_can_be_read(show: Show, reading: Reading) -> None:
    # OHIF has nothing to draw of a TID 1500 report without a measurement group: its title tells, and the plain text.
    profile = ResultProfile(reports=("tid1500", "text"))
    none_found = read_shipped(found=False)
    refusal = refuse(
        reading.series.header,
        dict.fromkeys((image.sop_class_uid, image.sop_instance_uid) for image in reading.series.images),
        SeriesRejected(Reason.SLICE_GAP, "gap of 5.00 mm after slice 12 of 133, elsewhere 2.50 mm"),
        **JOB,
    )
    for title, objects, sentences in (
        ("Lung nodules: none found", build_objects(none_found, profile), narrative(none_found)),
        ("Lung nodules: NOT ANALYSED", [e.made for e in refusals_for(refusal, {"": profile})], refusal_text(refusal)),
    ):
        page = show(objects)
        assert title in page.series(series_of(objects, "sr")).inner_text()
        page.open_series(series_of(objects, "sr_text"))
        reads(page, sentences)


def saved_by_ohif(page: Page, pacs: Orthanc) -> Dataset:
    """The Segmentation on the screen, exported and saved to the archive."""
    before = set(pacs.instances())
    page.press("segmentation-collapsed-more-btn-Labelmap")
    page.choose("Export", "DICOM SEG")
    page.press("input-dialog-save-button")
    page.until(lambda _: set(pacs.instances()) != before)
    [new] = set(pacs.instances()) - before
    return pydicom.dcmread(io.BytesIO(pacs.file(new)))


def test_a_segmentation_of_ours_edited_and_saved_in_ohif_is_our_correction_and_a_case(
    show: Show, reading: Reading, pacs: Orthanc, tmp_path: Path
) -> None:
    objects = build_objects(reading, BUILT_IN_PROFILES["ohif"])
    page = show(objects, "segmentation")
    page.open_series(series_of(objects, "seg"))
    page.say("Do you want to open this Segmentation?", "Yes")
    assert page.rows() == ["Nodule 1", "Nodule 2"]
    page.menu_of_row(1)
    page.choose("Delete")
    first = reading.measurements[0]
    page.show_slice(reading.series.images[first.slice_index].sop_instance_uid)
    page.until(lambda p: p.sop_instance_uid == reading.series.images[first.slice_index].sop_instance_uid)
    page.choose_row(0)
    page.press("Brush-btn")
    x, y, z = reading.findings[0].center_mm
    page.paint((x - 22, y, z))
    page.keep("ohif-correction")
    ds = saved_by_ohif(page, pacs)

    of = references_of(ds)
    assert of.series_uids == {reading.series.series_uid}
    grid = SourceGrid.of(reading.series)
    [seg] = [made.ds for made in objects if made.kind == "seg"]
    tracking_uids = [str(segment.TrackingUID) for segment in seg.SegmentSequence]
    ours = read_ours(finding_rows(reading.findings, reading.measurements, tracking_uids), seg, grid)
    drawn = read_correction(ds, of.kind, grid, lambda _: None)
    verdicts = compare(ours, drawn, grid, answers_ours=False)
    assert [(v.verdict, v.number) for v in verdicts] == [("changed", 1), ("removed", 2)]
    grown = verdicts[0].volume_change_percent
    assert grown is not None
    assert grown > 10

    ds.save_as(tmp_path / "saved.dcm")
    nodules = read_segments(tmp_path / "saved.dcm", reading.volume, "x")
    assert [int(n.mask.sum()) for n in nodules] == [d.region.voxels for d in drawn if d.region is not None]
