"""Log lines are events with values; no patient's data is in any of them, whatever goes wrong."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node import logs
from dicom_node.config import GateConfig, LogConfig, RouteConfig
from dicom_node.errors import SeriesRejected
from dicom_node.routing import choose, facts_of
from dicom_node.series import check_series, read_headers, to_volume
from tests.fakes.ct import make_ct_series

CANARY = "Canary^Secret"
_TOUCHED = ("", "pynetdicom", "pydicom", "highdicom", "alembic", "sqlalchemy", "PIL", "matplotlib", "py.warnings")


@pytest.fixture
def configure() -> Iterator[Callable[..., None]]:
    """`logs.configure`, undone after the test."""
    loggers = [logging.getLogger(name) for name in _TOUCHED]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield logs.configure
    logging.captureWarnings(False)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def _nested() -> None:
    try:
        raise KeyError(CANARY)
    except KeyError as err:
        raise ValueError(f"bad value {CANARY}") from err


def test_a_text_line_holds_time_role_level_event_and_values(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    configure("info", "text", "receive")
    logging.getLogger("dicom_node.x").info("series complete", extra={"action": "complete", "slices": 412})
    line = capsys.readouterr().err
    assert line.endswith("Z receive info series complete slices=412\n")
    assert line.startswith("20")


def test_a_json_line_is_one_object(configure: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json", "work")
    logging.getLogger("dicom_node.x").info("object %s", "stored", extra={"action": "sent", "path": Path("a/b"), "n": 3})
    event = json.loads(capsys.readouterr().err)
    assert event.pop("at") > 1e9
    assert event == {
        "role": "work",
        "level": "info",
        "logger": "dicom_node.x",
        "message": "object stored",
        "action": "sent",
        "path": "a/b",
        "n": 3,
    }


def test_the_level_is_kept(configure: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    configure("warning", "text", "work")
    logging.getLogger("dicom_node.x").info("quiet")
    logging.getLogger("dicom_node.x").warning("loud")
    assert "quiet" not in (said := capsys.readouterr().err)
    assert "loud" in said


def test_configuring_twice_says_each_line_once(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    configure("info", "text", "work")
    configure("info", "text", "work")
    logging.getLogger("dicom_node.x").info("once")
    assert capsys.readouterr().err.count("once") == 1


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_exception_shows_its_types_and_places_and_none_of_its_texts(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str], form: str
) -> None:
    configure("debug", form, "work")
    try:
        _nested()
    except ValueError:
        logging.getLogger("dicom_node.x").exception("job failed", extra={"action": "failed"})
    said = capsys.readouterr().err
    assert "ValueError at tests.unit.test_logs" in said
    assert "from KeyError at tests.unit.test_logs" in said
    assert "Canary" not in said


def test_exc_info_without_an_exception_is_no_crash(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    configure("debug", "text", "work")
    logging.getLogger("dicom_node.x").error("odd", exc_info=True)
    assert "odd" in capsys.readouterr().err


@pytest.mark.parametrize("forged", ["A\n2026-01-01T00:00:00Z receive info all is well", "A\r\x1b[2J", "A\u2028B"])
def test_a_peers_words_cannot_forge_a_line(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str], forged: str
) -> None:
    configure("info", "text", "receive")
    logging.getLogger("dicom_node.x").info("association refused", extra={"action": "refused", "ae_title": forged})
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "\x1b" not in said


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.filterwarnings("always")
def test_warnings_of_libraries_are_not_repeated(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str], form: str
) -> None:
    configure("debug", form, "work")
    warnings.warn(f"Invalid value for VR PN: {CANARY!r}", UserWarning, stacklevel=1)
    for name in ("pydicom", "pynetdicom", "highdicom", "pydicom.filereader"):
        logging.getLogger(name).warning("value %s", CANARY)
    assert capsys.readouterr().err == ""


_BROKEN: dict[str, Any] = {
    "PatientName": CANARY * 12,
    "PatientID": f"{CANARY}\\{CANARY}",
    "PatientBirthDate": CANARY,
    "StudyTime": CANARY,
    "AccessionNumber": CANARY * 3,
    "StudyDescription": CANARY,
}


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.filterwarnings("always")
def test_no_step_from_file_to_volume_writes_a_patients_data(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str], form: str, tmp_path: Path
) -> None:
    with pydicom.config.disable_value_validation():
        paths = make_ct_series(tmp_path / CANARY, shape=(4, 16, 16), header=_BROKEN)
    paths[3].write_bytes(paths[3].read_bytes()[:-100])
    configure("debug", form, "work")
    files = read_headers(paths)
    series = check_series(files, GateConfig(min_slices=2, min_length_mm=0))
    rule = RouteConfig.model_validate({"name": "r", "model": "m", "when": {"PatientName": {"equals": "x"}}})
    choose([rule], facts_of(files, series, "CT1"))
    with pytest.raises(SeriesRejected) as caught:
        to_volume(series)
    logging.getLogger("dicom_node.x").error("failed", exc_info=caught.value)
    said = capsys.readouterr().err
    assert "SeriesRejected at " in said
    assert "Canary" not in said + caught.value.text


def test_odd_values_of_received_data_are_no_warning() -> None:
    logs.quiet_pydicom()
    ds = Dataset.from_json({"00100030": {"vr": "DA", "Value": ["no date"]}, "00200037": {"vr": "DS", "Value": ["1"]}})
    assert ds.PatientBirthDate == "no date"


# -- one id a series -----------------------------------------------------------------------------------

UID = "1.2.826.0.1.3680043.8.498.1"


@pytest.mark.parametrize(
    "values",
    [{"series": UID}, {"job": f"{UID}-0123456789abcdef"}, {"workflow": f"{UID}-0123456789abcdef:pacs:1"}],
    ids=["series", "job", "workflow"],
)
def test_series_job_and_workflow_lead_to_one_id(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str], values: dict[str, str]
) -> None:
    configure("info", "json", "work")
    logging.getLogger("dicom_node.x").info("done", extra={"action": "done", **values})
    event = json.loads(capsys.readouterr().err)
    assert event["series"] == logs.series_id(UID)
    assert len(event["series"]) == 12


def test_lines_of_others_within_a_workflow_name_its_series(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    configure("info", "json", "work")
    with logs.about(f"{UID}-0123456789abcdef"):
        logging.getLogger("somebody.else").info("said")
    logging.getLogger("somebody.else").info("said later")
    inside, outside = map(json.loads, capsys.readouterr().err.splitlines())
    assert inside["series"] == logs.series_id(UID)
    assert "series" not in outside


def test_lines_for_the_journal_begin_with_their_priority(tmp_path: Path) -> None:
    code = (
        "import os, logging, sys\nfrom dicom_node import logs\n"
        "here = os.fstat(2)\nos.environ['JOURNAL_STREAM'] = f'{here.st_dev}:{here.st_ino}'\n"
        "logs.configure('info', 'text', 'work')\nlog = logging.getLogger('dicom_node.x')\n"
        "log.info('an event')\nlog.warning('a warning')\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('an error')\n"
    )
    path = tmp_path / "journal"
    with path.open("w") as journal:
        subprocess.run([sys.executable, "-c", code], stderr=journal, check=True)
    lines = path.read_text().splitlines()
    assert [line[:3] for line in lines] == ["<6>", "<4>", "<3>", "<3>"], lines
    assert lines[0].endswith("work info an event")


def test_a_role_may_have_a_level_of_its_own() -> None:
    settings = LogConfig(level="warning", levels={"receive": "debug"})
    assert (settings.level_of("receive"), settings.level_of("work")) == ("debug", "warning")
