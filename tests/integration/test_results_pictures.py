"""Third parties read and judge the pictures: dicom3tools, DCMTK, Orthanc."""

from __future__ import annotations

import re
import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from dicom_node.results import to_bytes
from dicom_node.results.capture import build_captures, build_refusal_capture
from dicom_node.results.key_objects import build_key_objects
from dicom_node.results.pages import pages_of
from dicom_node.results.pdf import build_pdf, build_refusal_pdf
from dicom_node.results.presentation import build_presentation_states
from dicom_node.results.reading import Made, Reading
from dicom_node.series import read_series, to_volume
from tests import peers
from tests.fakes.ct import make_ct_series
from tests.fakes.enhanced import make_enhanced_ct
from tests.fakes.readings import reading_of, refusal_of, two_balls


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Reading:
    series = read_series(make_ct_series(tmp_path_factory.mktemp("ct")))
    volume = to_volume(series)
    return reading_of(series, volume, *two_balls(volume))


@pytest.fixture(scope="module")
def of_frames(tmp_path_factory: pytest.TempPathFactory) -> Reading:
    """On a multi-frame source."""
    folder = tmp_path_factory.mktemp("enhanced")
    series = read_series(make_enhanced_ct(make_ct_series(folder / "single"), folder / "enhanced"))
    volume = to_volume(series)
    return reading_of(series, volume, *two_balls(volume))


# The tool's tables are older than the Device UID of a Contributing Equipment item (PS3.3 C.12.1.1.5).
EXPECTED = re.compile(r"^Warning - .*(Device UID|this is a Standard Extended SOP Class)")


def objects_of(reading: Reading) -> dict[str, Dataset]:
    """One of each kind and form."""
    nothing = reading_of(reading.series, reading.volume)
    refusal = refusal_of(reading.series)
    (state,) = build_presentation_states(reading)
    selection = build_key_objects(reading, [Made(kind="presentation", ds=state)])
    assert selection is not None
    return {
        "frames": build_captures(reading, multi_frame=True)[0],
        "page": build_captures(reading, multi_frame=False)[1],
        "none": build_captures(nothing, multi_frame=True)[0],
        "refused": build_refusal_capture(refusal),
        "state": state,
        "selection": selection,
        "pdf": build_pdf(reading),
        "pdf_refused": build_refusal_pdf(refusal),
    }


def written(ds: Dataset, folder: Path) -> Path:
    path = folder / "object.dcm"
    path.write_bytes(to_bytes(ds))
    return path


def said(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("source", ["reading", "of_frames"])
def test_dciodvfy_has_nothing_to_say(source: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    for name, ds in objects_of(request.getfixturevalue(source)).items():
        lines = said(peers.packaged("dciodvfy"), written(ds, tmp_path)).splitlines()
        unexpected = [line for line in lines if not EXPECTED.match(line)]
        assert len(unexpected) == 1, (name, unexpected)  # the name of the IOD


@pytest.mark.peers
@pytest.mark.parametrize("source", ["reading", "of_frames"])
def test_dcmtk_finds_the_presentation_state_right(source: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    (state,) = build_presentation_states(request.getfixturevalue(source))

    report = said(peers.tool("dcmpschk") or "dcmpschk", "-v", written(state, tmp_path))

    assert "Test passed" in report
    assert not re.search(r"^[EF]:", report, re.MULTILINE)


@pytest.mark.peers
def test_dsrdump_reads_the_selection(reading: Reading, tmp_path: Path) -> None:
    report = said(peers.tool("dsrdump") or "dsrdump", written(objects_of(reading)["selection"], tmp_path))

    assert 'CONTAINER:(,,"Of Interest")' in report
    assert report.count("<contains IMAGE:=(CT image,),(GSPS,)>") == 2
    # That it does not check templates is all that it warns of.
    assert re.findall(r"^[EFW]:.*", report, re.MULTILINE) == ["W: Check for template constraints not yet supported"]


@pytest.mark.peers
def test_orthanc_stores_all_and_shows_the_pages_pixel_by_pixel(reading: Reading, orthanc: peers.Orthanc) -> None:
    stored = {name: orthanc.upload(to_bytes(ds)) for name, ds in objects_of(reading).items()}
    pages = [np.asarray(page.image) for page in pages_of(reading)]

    def shown(path: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return np.asarray(Image.open(BytesIO(orthanc.request("GET", path))).convert("RGB"))

    for number, page in enumerate(pages):
        np.testing.assert_array_equal(shown(f"/instances/{stored['frames']}/frames/{number}/preview"), page)
    np.testing.assert_array_equal(shown(f"/instances/{stored['page']}/preview"), pages[1])
    assert orthanc.request("GET", f"/instances/{stored['pdf']}/pdf").startswith(b"%PDF-")
