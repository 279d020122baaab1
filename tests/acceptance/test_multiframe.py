"""Enhanced CT from another's sender through the whole node: one job, SEG and SR that refer to its frames."""

from __future__ import annotations

import subprocess
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from dicom_node.dimse.archive import Archive
from tests.fakes.enhanced import SERIES_UID, make_enhanced_ct
from tests.node import Node, environment
from tests.peers import tool

pytestmark = pytest.mark.peers


def test_storescu_s_enhanced_ct_comes_back_as_seg_and_sr(
    node: Node, archive: Archive, tiny_files: list[Path], tmp_path: Path
) -> None:
    storescu = tool("storescu")
    if storescu is None:
        pytest.skip("no storescu here: tests/peers.sh installs it")
    files = make_enhanced_ct(tiny_files, tmp_path / "ct", parts=2)
    node.start("receive", "work", "deliver")
    subprocess.run(
        [storescu, "-R", "-aec", "DICOMNODE", "127.0.0.1", str(node.port), *map(str, files)],
        env=environment(), check=True, timeout=120,
    )  # fmt: skip
    ended = node.wait_ended(node.job_of([f"{SERIES_UID}.1", f"{SERIES_UID}.2"], SERIES_UID))
    node.stop()

    assert ended["status"] == "complete", ended
    assert ended["findings"]
    assert [row["state"] for row in ended["deliveries"]] == ["stored", "stored"]
    [seg_path] = [path for path in ended["files"] if path.endswith("seg.dcm")]
    seg = highdicom.seg.segread(seg_path)
    sources = {str(pydicom.dcmread(file).SOPInstanceUID): pydicom.dcmread(file) for file in files}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        source = sources[reference.ReferencedSOPInstanceUID]
        of = source.PerFrameFunctionalGroupsSequence[int(reference.ReferencedFrameNumber) - 1]
        assert np.array_equal(
            frame.PlanePositionSequence[0].ImagePositionPatient, of.PlanePositionSequence[0].ImagePositionPatient
        )
