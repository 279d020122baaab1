"""Every object of every profile over the wire: real archives take them, and what one refuses is refused alone."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest

from dicom_node.dimse import scu
from dicom_node.peers import PeerConfig
from dicom_node.profiles import BUILT_IN_PROFILES, ResultProfile
from dicom_node.results.objects import objects_for
from dicom_node.results.part10 import to_bytes
from dicom_node.sending import send
from tests.acceptance.test_tls_peers import once_it_listens, storescp
from tests.golden.cases import cases
from tests.peers import Orthanc

pytestmark = pytest.mark.peers

EVERYTHING = {
    **BUILT_IN_PROFILES,
    "cad": ResultProfile(segmentation="labelmap", reports=("chest_cad",), captures="multi_frame", pdf=True),
}
CLASSES = {
    "Segmentation Storage", "Comprehensive 3D SR Storage", "Basic Text SR Storage", "Chest CAD SR Storage",
    "Secondary Capture Image Storage", "Multi-frame True Color Secondary Capture Image Storage",
    "Key Object Selection Document Storage", "Grayscale Softcopy Presentation State Storage",
    "Encapsulated PDF Storage",
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of one series with findings, in the order to send them. The label map is what old archives refuse."""
    folder = tmp_path_factory.mktemp("objects")
    [case] = [case for case in cases(tmp_path_factory.mktemp("ct")) if case.name == "findings"]
    assert case.reading is not None
    paths = []
    for each in objects_for(case.reading, EVERYTHING):
        paths.append(folder / f"{each.made.name}.dcm")
        paths[-1].write_bytes(to_bytes(each.made.ds))
    return paths


def test_there_is_an_object_of_every_class(files: list[Path]) -> None:
    made = {str(pydicom.dcmread(path, stop_before_pixels=True).SOPClassUID.name) for path in files}
    assert made == {*CLASSES, "1.2.840.10008.5.1.4.1.1.66.7"}


def assert_only_the_label_map_is_refused(outcomes: list[scu.Outcome], text: str) -> None:
    refused = [outcome for outcome in outcomes if outcome.kind != "stored"]
    assert [(outcome.path.stem, outcome.kind) for outcome in refused] == [("seg_labelmap", "refused")]
    assert text in refused[0].message


def test_storescp_takes_every_class_but_the_label_map(files: list[Path], tmp_path: Path) -> None:
    with storescp(tmp_path / "got") as port:
        peer = PeerConfig(ae_title="ANY-SCP", host="127.0.0.1", port=port)
        once_it_listens(peer)
        outcomes = list(scu.send(files, peer, "NODE"))
    assert_only_the_label_map_is_refused(outcomes, "does not accept Label Map Segmentation Storage")
    got = {pydicom.dcmread(path, stop_before_pixels=True).SOPClassUID.name for path in (tmp_path / "got").iterdir()}
    assert got == CLASSES


@pytest.mark.parametrize("way", ["c_store", "stow_rs"])
def test_orthanc_takes_every_class_and_a_refused_one_alone(way: str, files: list[Path], orthanc: Orthanc) -> None:
    peer = PeerConfig(
        ae_title=orthanc.ae_title,
        host="127.0.0.1",
        port=orthanc.dicom_port,
        deliver_by=way,
        dicomweb={"url": f"{orthanc.url}/dicom-web"},
    )
    outcomes = list(send(files, peer, "DICOMNODE"))
    stored = {outcome.path.stem for outcome in outcomes if outcome.kind == "stored"}
    assert {path.stem for path in files} - stored <= {"seg_labelmap"}
    assert len(orthanc.instances()) == len(stored)
    kinds = {str(pydicom.dcmread(path, stop_before_pixels=True).Modality) for path in files}
    assert {orthanc.get(f"/series/{uid}")["MainDicomTags"]["Modality"] for uid in orthanc.find("Series")} == kinds
