"""OHIF 3.13 on Orthanc's DICOMweb, in Chromium: what a reader sees of a real CT and of the node's results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser

from dicom_node.profiles import BUILT_IN_PROFILES
from dicom_node.results import to_bytes
from dicom_node.results.build import build_objects
from dicom_node.results.headers import SERIES_NUMBER, Kind
from dicom_node.results.reading import Made, Reading
from tests import viewer
from tests.fakes.shipped import FILES, read_shipped
from tests.peers import Orthanc, run_orthanc
from tests.viewer import Page, Picture, run_chromium, run_ohif

pytestmark = [
    pytest.mark.slow,
    pytest.mark.peers,
    pytest.mark.skipif(
        not (viewer.OHIF.is_dir() and viewer.CHROMIUM.exists() and viewer.NGINX.exists()),
        reason="no OHIF, Chromium or nginx here: tests/peers.sh installs them",
    ),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with run_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def reading() -> Reading:
    return read_shipped()


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    folder = tmp_path_factory.mktemp("viewer")
    with run_orthanc(folder / "orthanc") as orthanc:
        yield orthanc


@pytest.fixture(scope="module")
def address(pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with run_ohif(tmp_path_factory.mktemp("ohif"), pacs) as url:
        yield url


def fill(pacs: Orthanc, objects: Sequence[Made]) -> None:
    pacs.clear()
    for path in FILES:
        pacs.upload(path.read_bytes())
    for made in objects:
        pacs.upload(to_bytes(made.ds))


@pytest.fixture
def page(pacs: Orthanc, address: str, chromium: Browser, reading: Reading) -> Iterator[Page]:
    """The study with what the profile `ohif` sends."""
    fill(pacs, build_objects(reading, BUILT_IN_PROFILES["ohif"]))
    opened = Page(chromium, address, reading.series.study_uid)
    yield opened
    opened.close()


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


def test_seg_covers_the_nodules_on_their_slices_alone(page: Page, reading: Reading) -> None:
    page.open_series(SERIES_NUMBER[Kind.SEGMENTATION])
    page.say("Do you want to open this Segmentation?", "Yes")
    page.press("panelSegmentation-btn")
    assert page.rows() == ["Nodule 1", "Nodule 2"]

    marked = masks_of(reading)
    for measurement, finding in zip(reading.measurements, reading.findings, strict=True):
        show_slice(page, reading, measurement.slice_index, lambda p: covers(p, p.sampled(reading.volume, marked)))
        below, above = finding.corner[0] - 1, finding.corner[0] + finding.mask.shape[0]
        for beyond in (below, above):
            assert not marked[beyond].any()
            show_slice(page, reading, beyond, lambda p: not p.coloured().any())


def number(text: str, unit: str) -> float:
    value, _, said = text.partition(" ")
    assert said == unit
    return float(value)


def test_sr_draws_each_nodule_with_its_numbers(page: Page, reading: Reading) -> None:
    page.open_series(SERIES_NUMBER[Kind.REPORT])
    for measurement in reading.measurements:
        wait_for_slice(page, reading, measurement.slice_index, lambda _: len(page.outlines_mm()) == 1)
        outline = reading.volume.to_index(page.outlines_mm()[0])
        assert np.abs(outline[:, 0] - measurement.slice_index).max() < 0.01
        assert np.abs(outline[:, :0:-1] + 0.5 - measurement.contours[0]).max() < 0.1
        said = dict(line.split(": ") for line in page.drawn_text())
        assert number(said["Volume"], "mm3") == pytest.approx(measurement.volume_mm3, abs=0.01)
        assert number(said["Long axis"], "mm") == pytest.approx(measurement.long_axis_mm, abs=0.01)
        assert number(said["Short axis"], "mm") == pytest.approx(measurement.short_axis_mm, abs=0.01)
        page.press("viewport-action-arrows-right")
