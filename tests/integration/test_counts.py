"""What an archive says of a series: a count, or one of few texts that a report may quote."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.completeness import ArchiveCount
from dicom_node.dimse.archive import Archive
from dicom_node.dimse.counts import count_instances
from dicom_node.peers import PeerConfig
from tests.fakes.ct import HEADER, make_ct_series
from tests.peers import Orthanc, free_port

STUDY, SERIES = HEADER["StudyInstanceUID"], HEADER["SeriesInstanceUID"]


def ask(port: int | None, ae_title: str = "ORTHANC", series_uid: str = SERIES) -> ArchiveCount:
    peer = PeerConfig(ae_title=ae_title, host="127.0.0.1", port=port, connect_timeout_s=5, response_timeout_s=10)
    return count_instances(peer, "DICOMNODE", study_uid=STUDY, series_uid=series_uid)


@pytest.mark.peers
def test_orthanc_counts_a_series_and_says_which_it_does_not_know(orthanc: Orthanc, tmp_path: Path) -> None:
    for path in make_ct_series(tmp_path, shape=(7, 16, 16)):
        orthanc.upload(path.read_bytes())
    assert ask(orthanc.dicom_port) == ArchiveCount(ae_title="ORTHANC", instances=7)
    unknown = ask(orthanc.dicom_port, series_uid="1.2.3")
    assert unknown == ArchiveCount(ae_title="ORTHANC", problem="does not know the series")


def test_an_archive_that_is_not_there_does_not_answer() -> None:
    assert ask(free_port()) == ArchiveCount(ae_title="ORTHANC", problem="does not answer")


def test_an_archive_that_only_stores_cannot_be_asked(tmp_path: Path) -> None:
    archive = Archive(tmp_path, "ORTHANC")
    port = archive.start()
    try:
        assert ask(port).problem == "can't be asked for a count"
    finally:
        archive.stop()


def test_a_peer_without_a_port_is_said() -> None:
    assert ask(None).problem == "has no port to be asked at"
