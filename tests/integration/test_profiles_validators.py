"""Every object of every profile before third parties: dicom3tools, DCMTK, PixelMed, dcmqi, highdicom, Orthanc."""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  # the name that everyone uses
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    BasicTextSRStorage,
    ChestCADSRStorage,
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicom_node.dimse.scu import send
from dicom_node.errors import Reason, SeriesRejected
from dicom_node.peers import PeerConfig
from dicom_node.profiles import BUILT_IN_PROFILES, ResultProfile
from dicom_node.results import to_bytes
from dicom_node.results.build import read, refuse
from dicom_node.results.objects import Addressed, objects_for, refusals_for
from dicom_node.results.reading import Reading
from dicom_node.series import read_series, to_volume
from tests.fakes.ct import make_ct_series
from tests.fakes.findings import JOB, ball, detection_of
from tests.peers import Orthanc, packaged, run_orthanc
from tests.pixelmed import complaints_in, needs_pixelmed, verdicts_on

# pydicom 3.0 has no name for it yet.
LABELMAP = "1.2.840.10008.5.1.4.1.1.66.7"

PROFILES: Mapping[str, ResultProfile] = {
    **BUILT_IN_PROFILES,
    "everything": ResultProfile(
        reports=("tid1500", "text", "chest_cad"),
        captures="multi_frame",
        key_objects=True,
        presentation_states=True,
        pdf=True,
    ),
    "fractional": ResultProfile(segmentation="fractional"),
    "labelmap": ResultProfile(segmentation="labelmap", segmentation_frames="full"),
}
SITUATIONS = ("found", "none found", "not analysed")
# dicom3tools' name of the IOD by which it judges.
IODS = {
    SegmentationStorage: "Segmentation",
    LABELMAP: "Segmentation",
    Comprehensive3DSRStorage: "Comprehensive3DSR",
    BasicTextSRStorage: "BasicTextSR",
    ChestCADSRStorage: "ChestCADSR",
    SecondaryCaptureImageStorage: "SCImage",
    MultiFrameTrueColorSecondaryCaptureImageStorage: "MultiframeTrueColorSCImage",
    EncapsulatedPDFStorage: "EncapsulatedPDF",
    GrayscaleSoftcopyPresentationStateStorage: "GrayscaleSoftcopyPresentationState",
    KeyObjectSelectionDocumentStorage: "KeyObjectSelectionDocument",
}
# PixelMed's name of the template by which it judges; it has no rules for TID 4100.
ROOT_TEMPLATES = {
    Comprehensive3DSRStorage: "TID_1500 (MeasurementReport)",
    BasicTextSRStorage: "TID_2000 (BasicDiagnosticImagingReport)",
    KeyObjectSelectionDocumentStorage: "TID_2010 (KeyObjectSelection)",
}
REPORTS = (Comprehensive3DSRStorage, BasicTextSRStorage, ChestCADSRStorage, KeyObjectSelectionDocumentStorage)

dcmtk = pytest.mark.skipif(not Path("/usr/bin/dcmdump").exists(), reason="no DCMTK here: tests/peers.sh installs it")

# Warnings by what is in their text, and why they are none of ours.
TOOLS_OWN = {
    "<99DICOMNODE>": "a private coding scheme, declared in the object, is unknown to the tool",
    "ISO_IR 192": "the tool's VR checker does not read UTF-8",
    "ContributingEquipmentSequence(0018,a001)[1]/DeviceUID": "in PS3.3 C.12.1.1.5, newer than the tool's tables",
    "Check for template constraints not yet supported": "DCMTK 3.6.7 checks no template",
    "Shall not be present for Referenced SOP Class that is not segmentation": "it knows no label maps",
    "would be needed to build DICOMDIR": "empty because it is empty in the source",
}


@dataclass(frozen=True)
class Written:
    """An object as a file, and the profiles that it belongs to."""

    kind: str
    ds: Dataset
    path: Path
    profiles: frozenset[str]

    @property
    def sop_class_uid(self) -> str:
        return str(self.ds.SOPClassUID)

    @property
    def refers_to_label_map(self) -> bool:
        """An SR beside a LABELMAP segmentation, whose SOP class is newer than DCMTK 3.6.7 and dicom3tools."""
        return self.sop_class_uid in REPORTS and LABELMAP.encode() in self.path.read_bytes()


@dataclass(frozen=True)
class Matrix:
    """All objects of all profiles in each situation; what the findings are; the files of the CT."""

    reading: Reading
    ct: Sequence[Path]
    objects: Mapping[str, Sequence[Written]]

    def of(self, *sop_classes: str, situation: str | None = None) -> list[Written]:
        wanted = SITUATIONS if situation is None else (situation,)
        return [one for name in wanted for one in self.objects[name] if one.sop_class_uid in sop_classes]

    def all(self) -> list[Written]:
        return [one for objects in self.objects.values() for one in objects]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    folder = tmp_path_factory.mktemp("matrix")
    ct = make_ct_series(folder / "ct")
    series = read_series(ct)
    volume = to_volume(series)
    found = read(
        series,
        volume,
        detection_of(ball(volume, (10, 20, 20), 4.0), ball(volume, (30, 40, 45), 6.0, score=0.7, side="right")),
        **JOB,
    )
    none_found = read(series, volume, detection_of(), **JOB)
    refusal = refuse(
        series.header,
        dict.fromkeys((image.sop_class_uid, image.sop_instance_uid) for image in series.images),
        SeriesRejected(Reason.SLICE_GAP, "gap of 5.00 mm after slice 12 of 44, elsewhere 2.50 mm"),
        **JOB,
    )
    made = {
        "found": objects_for(found, PROFILES),
        "none found": objects_for(none_found, PROFILES),
        "not analysed": refusals_for(refusal, PROFILES),
    }
    objects = {name: list(written(each, folder / name.replace(" ", "_"))) for name, each in made.items()}
    return Matrix(reading=found, ct=ct, objects=objects)


def written(objects: Sequence[Addressed], folder: Path) -> Iterator[Written]:
    folder.mkdir()
    for number, each in enumerate(objects):
        path = folder / f"{number:02d}_{each.made.kind}.dcm"
        path.write_bytes(to_bytes(each.made.ds))
        yield Written(kind=each.made.kind, ds=pydicom.dcmread(path), path=path, profiles=each.destinations)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, errors="replace", timeout=120, check=False
    )


def not_the_tools_own(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if line.strip() and not any(text in line for text in TOOLS_OWN)]


def test_each_profile_says_something_in_each_situation(matrix: Matrix) -> None:
    for situation in SITUATIONS:
        told = {profile for one in matrix.objects[situation] for profile in one.profiles}
        assert told == PROFILES.keys(), situation


def test_objects_of_all_profiles_can_meet_in_one_archive(matrix: Matrix) -> None:
    by_uid: dict[str, set[bytes]] = defaultdict(set)
    series_of: dict[str, set[str]] = defaultdict(set)
    for one in matrix.all():
        by_uid[str(one.ds.SOPInstanceUID)].add(one.path.read_bytes())
        series_of[str(one.ds.SeriesInstanceUID)].add(one.kind)
    assert {uid for uid, contents in by_uid.items() if len(contents) > 1} == set()
    assert {uid for uid, kinds in series_of.items() if len(kinds) > 1} == set()


def test_dciodvfy_finds_no_error(matrix: Matrix) -> None:
    for one in matrix.all():
        said = run(packaged("dciodvfy"), "-new", one.path).stderr.splitlines()
        iod = IODS[one.sop_class_uid]
        assert iod in said, one.path
        if one.refers_to_label_map:
            # Only the older class for segmentations has segments to refer to, for the tool.
            said = [line for line in said if "ReferencedSegmentNumber(0062,000b)> - Shall not be present" not in line]
        assert not_the_tools_own([line for line in said if line != iod]) == [], one.path


@pytest.mark.parametrize("situation", SITUATIONS)
def test_dcentvfy_finds_one_patient_one_study_and_every_reference(matrix: Matrix, situation: str) -> None:
    # Profiles that come to the same bytes share an object.
    files = {str(one.ds.SOPInstanceUID): one.path for one in matrix.objects[situation]}
    said = run(packaged("dcentvfy"), *matrix.ct, *files.values()).stderr.splitlines()
    assert [line for line in said if line.startswith("Error")] == []


@pytest.mark.peers
@dcmtk
def test_dcmdump_reads_every_object_without_a_complaint(matrix: Matrix) -> None:
    for one in matrix.all():
        dump = run("/usr/bin/dcmdump", one.path)
        assert dump.returncode == 0, one.path
        assert not_the_tools_own(dump.stderr.splitlines()) == [], one.path


@pytest.mark.peers
@dcmtk
def test_dsrdump_prints_every_report_without_a_complaint(matrix: Matrix) -> None:
    for one in matrix.of(*REPORTS):
        dump = run("/usr/bin/dsrdump", "+U8", one.path)
        if one.refers_to_label_map:
            # docs/viewers.md warns of it.
            assert "Invalid or unknown image SOP class referenced from IMAGE content item" in dump.stderr
            continue
        assert dump.returncode == 0, one.path
        assert not_the_tools_own(dump.stderr.splitlines()) == [], one.path
        assert "Research use, not for diagnosis" in dump.stdout, one.path


@pytest.mark.peers
@pytest.mark.slow
@needs_pixelmed
def test_pixelmed_finds_each_reports_template_followed(matrix: Matrix) -> None:
    reports = {one.path: one for one in matrix.of(*ROOT_TEMPLATES)}
    verdicts = verdicts_on(reports)
    assert verdicts.keys() == reports.keys()
    for path, verdict in verdicts.items():
        assert f"Found Root Template {ROOT_TEMPLATES[reports[path].sop_class_uid]}" in verdict, path
        assert "IOD validation complete" in verdict, path
        lines = complaints_in(verdict)
        if reports[path].sop_class_uid == BasicTextSRStorage:
            # It follows no item below a root that is none of the titles of CID 7000, which may be added to.
            lines = [line for line in lines if "Content Item not in template" not in line]
        assert lines == [], path


def points_mm(matrix: Matrix, number: int) -> set[tuple[float, ...]]:
    """Where the voxels of a finding lie."""
    finding = matrix.reading.findings[number - 1]
    voxels = (np.argwhere(finding.mask) + np.array(finding.corner)).astype(float)
    return rounded(matrix.reading.volume.to_mm(voxels))


def rounded(positions_mm: Iterable[Sequence[float]]) -> set[tuple[float, ...]]:
    # + 0.0 makes -0.0 the same as 0.0.
    return {tuple(round(float(value), 2) + 0.0 for value in position) for position in positions_mm}


def test_dcmqi_reads_the_voxels_of_each_binary_seg(matrix: Matrix, tmp_path: Path) -> None:
    binary = [one for one in matrix.of(SegmentationStorage) if one.ds.SegmentationType == "BINARY"]
    assert {"ohif", "slicer"} <= {profile for one in binary for profile in one.profiles}
    for one in binary:
        folder = tmp_path / one.path.stem
        folder.mkdir()
        done = run(packaged("segimage2itkimage"), "--inputDICOM", one.path, "--outputDirectory", folder, "-t", "nii")
        assert done.returncode == 0, done.stderr
        groups = json.loads((folder / "meta.json").read_text())["segmentAttributes"]
        for file, group in enumerate(groups, start=1):
            image = sitk.ReadImage(str(folder / f"{file}.nii.gz"))
            labels = sitk.GetArrayFromImage(image)
            for segment in group:
                number = int(segment["labelID"])
                voxels = np.argwhere(labels == number)
                seen = [image.TransformIndexToPhysicalPoint([int(v) for v in voxel[::-1]]) for voxel in voxels]
                assert rounded(seen) == points_mm(matrix, number), one.path
                assert segment["TrackingUniqueIdentifier"] == matrix.reading.tracking[number - 1].uid


def test_highdicom_reads_the_voxels_of_each_seg(matrix: Matrix) -> None:
    for one in matrix.of(SegmentationStorage, LABELMAP):
        seg = hd.seg.segread(one.path)
        volume = seg.get_volume(combine_segments=False, rescale_fractional=True)
        numbers = seg.segment_numbers
        assert [seg.get_segment_description(n).tracking_uid for n in numbers] == [
            track.uid for track in matrix.reading.tracking
        ]
        for channel, number in enumerate(numbers):
            voxels = np.argwhere(volume.array[..., channel] > 0.5)
            positions = volume.map_indices_to_reference(voxels)
            assert rounded(positions) == points_mm(matrix, number), one.path


def test_highdicom_reads_the_numbers_of_each_report(matrix: Matrix) -> None:
    for one in matrix.of(Comprehensive3DSRStorage, situation="found"):
        report = hd.sr.srread(one.path)
        groups = report.content.get_volumetric_roi_measurement_groups()
        by_uid = {group.tracking_uid: group for group in groups}
        assert list(by_uid) == [track.uid for track in matrix.reading.tracking], one.path
        for track, measured in zip(matrix.reading.tracking, matrix.reading.measurements, strict=True):
            values = {item.name.value: item.value for item in reversed(by_uid[track.uid].get_measurements())}
            assert values[codes.SCT.Volume.value] == pytest.approx(measured.volume_mm3, abs=1e-3)


def test_dcmqi_reads_the_numbers_of_each_report(matrix: Matrix, tmp_path: Path) -> None:
    for one in matrix.of(Comprehensive3DSRStorage, situation="found"):
        to = tmp_path / f"{one.path.stem}.json"
        # The exit status is 0 for a broken report too: only what it read counts.
        run(packaged("tid1500reader"), "--inputDICOM", one.path, "--outputMetadata", to)
        groups = [g for g in json.loads(to.read_text())["Measurements"] if "ReferencedSegment" in g]
        if not one.profiles <= {name for name, profile in PROFILES.items() if profile.segmentation == "none"}:
            assert [g["ReferencedSegment"] for g in groups] == [1, 2], one.path
        for group, measured in zip(groups, matrix.reading.measurements, strict=False):
            values = {i["quantity"]["CodeMeaning"]: float(i["value"]) for i in reversed(group["measurementItems"])}
            assert values["Volume"] == pytest.approx(measured.volume_mm3, abs=1e-3)
            assert values["Long axis"] == pytest.approx(measured.long_axis_mm, abs=1e-3)
            assert values["Short axis"] == pytest.approx(measured.short_axis_mm, abs=1e-3)


@pytest.mark.peers
def test_orthanc_stores_every_object(matrix: Matrix, orthanc: Orthanc) -> None:
    for one in matrix.all():
        assert orthanc.upload(one.path.read_bytes())
    kept = {str(orthanc.get(f"/instances/{i}/simplified-tags")["SOPInstanceUID"]) for i in orthanc.instances()}
    assert kept == {str(one.ds.SOPInstanceUID) for one in matrix.all()}


@pytest.mark.peers
def test_orthanc_as_it_is_set_up_refuses_label_maps_alone(matrix: Matrix, tmp_path: Path) -> None:
    with run_orthanc(tmp_path / "orthanc", {"UnknownSopClassAccepted": False}) as orthanc:
        peer = PeerConfig(ae_title=orthanc.ae_title, host=orthanc.host, port=orthanc.dicom_port)
        outcomes = {outcome.path: outcome.kind for outcome in send([one.path for one in matrix.all()], peer, "NODE")}
    label_maps = {one.path for one in matrix.of(LABELMAP)}
    assert {path for path, kind in outcomes.items() if kind != "stored"} == label_maps
    assert len(outcomes) == len(matrix.all())
