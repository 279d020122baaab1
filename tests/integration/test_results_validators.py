"""Third parties read and judge every kind of result: dicom3tools, DCMTK, dcmqi, PixelMed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  # the name that everyone uses
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import BasicTextSRStorage, ChestCADSRStorage, Comprehensive3DSRStorage

from dicom_node.config import GateConfig
from dicom_node.domain import CTSeries, Detection, Finding, Volume
from dicom_node.errors import Reason, ResultError, SeriesRejected
from dicom_node.results import Predecessor, Results, build_rejection, build_results, to_bytes
from dicom_node.results.check import check_objects, content, modules
from dicom_node.results.narrative import finding_text
from dicom_node.results.reading import Made, Refusal
from dicom_node.results.references import references_of
from dicom_node.results.seg import build_seg
from dicom_node.results.sr import build_report
from dicom_node.results.sr_cad import build_cad_not_analysed, build_cad_report
from dicom_node.results.sr_text import build_text_not_analysed, build_text_report
from dicom_node.series import read_series, to_volume
from tests.fakes.comparisons import GONE, GROWN, NEW, compared
from tests.fakes.ct import PRONE, make_ct_series
from tests.fakes.enhanced import make_enhanced_ct, make_legacy_ct
from tests.fakes.findings import JOB, ball, detection_of, finding_of
from tests.fakes.pictures import pictures_of
from tests.peers import packaged
from tests.pixelmed import complaints_in, needs_pixelmed, verdicts_on

# The tool knows neither private coding schemes nor UTF-8, and wants what an empty study date cannot give.
EXPECTED_WARNINGS = re.compile(
    r"^Warning .*(<99DICOMNODE>|ISO_IR 192|would be needed to build DICOMDIR"
    # Of PS3.3 C.12.1.1.5, newer than the tool's tables.
    r"|ContributingEquipmentSequence\(0018,a001\)\[1\]/DeviceUID)"
)
REPORT_IODS = {
    Comprehensive3DSRStorage: "Comprehensive3DSR",
    BasicTextSRStorage: "BasicTextSR",
    ChestCADSRStorage: "ChestCADSR",
}


@dataclass(frozen=True)
class Case:
    """One source series, what was found in it, and the files of each kind of report in each form."""

    series: CTSeries
    volume: Volume
    detection: Detection
    found: Results
    files: dict[str, Path]
    ct: list[Path]


SEGMENTATIONS = ("seg", "fractional", "labelmap")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, errors="replace", timeout=120, check=False
    )


def two_nodules(volume: Volume) -> tuple[Finding, ...]:
    return ball(volume, (10, 20, 20), 4.0), ball(volume, (30, 40, 45), 6.0, score=0.7, side="right")


def one_nodule(volume: Volume) -> tuple[Finding, ...]:
    return (ball(volume, (20, 30, 30), 5.0),)


def overlapping_nodules(volume: Volume) -> tuple[Finding, ...]:
    return ball(volume, (20, 30, 30), 6.0), ball(volume, (21, 33, 33), 6.0, score=0.6, side=None)


def single_voxel(volume: Volume) -> tuple[Finding, ...]:
    mask = np.zeros(volume.hu.shape, np.bool_)
    mask[0, 0, 0] = True
    return (finding_of(volume, mask),)


NO_TYPE_2 = dict.fromkeys(
    (
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "StudyID",
        "AccessionNumber",
        "ReferringPhysicianName",
    )
)
JAPANESE = {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"}
LOSSY = {
    "LossyImageCompression": "01",
    "LossyImageCompressionRatio": "9.5",
    "LossyImageCompressionMethod": "ISO_15444_1",
}
CHINESE = {"SpecificCharacterSet": "GB18030", "PatientName": "Wang^XiaoDong=王^小东"}

HEADINGS_2022 = {
    "Summary": codes.DCM.Summary,
    "Findings": Code("121070", "DCM", "Findings"),
    "Current Procedure Descriptions": Code("121064", "DCM", "Current Procedure Descriptions"),
    "Key Images": Code("121180", "DCM", "Key Images"),
}

Converter = Callable[[list[Path], Path], list[Path]]


def as_they_are(ct: list[Path], _folder: Path) -> list[Path]:
    return ct


def concatenation(ct: list[Path], folder: Path) -> list[Path]:
    return make_enhanced_ct(ct, folder, parts=3)


CASES: dict[str, tuple[dict[str, Any], Callable[[Volume], tuple[Finding, ...]], Converter]] = {
    "two nodules": ({}, two_nodules, as_they_are),
    "prone": ({"orientation": PRONE, "spacing_mm": (2.5, 0.6, 0.8)}, one_nodule, as_they_are),
    "overlapping": ({}, overlapping_nodules, as_they_are),
    "single voxel, odd matrix": ({"shape": (44, 61, 63)}, single_voxel, as_they_are),
    "bare header": ({"header": NO_TYPE_2}, one_nodule, as_they_are),
    "Japanese": ({"header": JAPANESE}, one_nodule, as_they_are),
    "Chinese": ({"header": CHINESE}, one_nodule, as_they_are),
    "lossy": ({"header": LOSSY}, one_nodule, as_they_are),
    "Enhanced CT": ({}, two_nodules, make_enhanced_ct),
    "Enhanced CT, a concatenation": ({"header": JAPANESE}, overlapping_nodules, concatenation),
    "Legacy Converted Enhanced CT": ({}, two_nodules, make_legacy_ct),
}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    source, make_findings, convert = request.param
    folder = tmp_path_factory.mktemp("case")
    ct = convert(make_ct_series(folder / "ct", **source), folder / "converted")
    return build_case(folder, ct, make_findings, GateConfig(lossy="accept"))


def build_case(
    folder: Path,
    ct: list[Path],
    make_findings: Callable[[Volume], tuple[Finding, ...]],
    limits: GateConfig | None = None,
) -> Case:
    series = read_series(ct, limits)
    volume = to_volume(series)
    detection = detection_of(*make_findings(volume))
    found = build_results(series, volume, detection, **JOB)
    old = Predecessor(study_uid=series.study_uid, series_uid="1.2.8", sop_instance_uid="1.2.9")
    none = build_results(series, volume, detection_of(), **JOB, predecessor=old)
    rejection = build_rejection(
        series.header,
        dict.fromkeys((image.sop_class_uid, image.sop_instance_uid) for image in series.images),
        SeriesRejected(Reason.SLICE_GAP, "gap of 5.00 mm after slice 12 of 44, elsewhere 2.50 mm"),
        **JOB,
    )
    assert found.seg is not None
    fractional = build_seg(found.reading, form="fractional", frames="full")
    labelmap = build_seg(found.reading, form="labelmap")
    refusal = Refusal(
        rejected=SeriesRejected(Reason.SLICE_GAP, "gap of 5.00 mm after slice 12 of 44, elsewhere 2.50 mm"),
        instances=tuple(references_of(series)),
        origin=replace(found.reading.origin, model=None),
        grounds=found.reading.grounds,
    )
    objects = {
        "seg": found.seg,
        "fractional": fractional,
        "labelmap": labelmap,
        "found": found.sr,
        "without SEG": build_report(found.reading, None, narrative=True),
        "none": none.sr,
        "rejected": rejection,
        "text": build_text_report(found.reading),
        "text, none": build_text_report(none.reading),
        "text, rejected": build_text_not_analysed(refusal),
        "CAD": build_cad_report(found.reading),
        "CAD, none": build_cad_report(none.reading),
        "CAD, rejected": build_cad_not_analysed(refusal),
        "CAD, failed": build_cad_not_analysed(replace(refusal, origin=found.reading.origin)),
    }
    files = {kind: folder / f"{kind}.dcm" for kind in objects}
    for kind, ds in objects.items():
        files[kind].write_bytes(to_bytes(ds))
    return Case(series=series, volume=volume, detection=detection, found=found, files=files, ct=ct)


def test_dciodvfy_finds_no_error(case: Case) -> None:
    for kind, file in case.files.items():
        said = run(packaged("dciodvfy"), "-new", file).stderr.splitlines()
        sop_class = pydicom.dcmread(file, specific_tags=["SOPClassUID"]).SOPClassUID
        iod = "Segmentation" if kind in SEGMENTATIONS else REPORT_IODS[sop_class]
        assert iod in said
        assert [line for line in said if line != iod and not EXPECTED_WARNINGS.search(line)] == [], kind


def test_dcentvfy_finds_every_reference_and_one_patient(case: Case) -> None:
    # Where findings overlap, the label map is the very BINARY object.
    results = {file.read_bytes(): file for file in case.files.values()}.values()
    said = run(packaged("dcentvfy"), *case.ct, *results).stderr.splitlines()

    predecessor = "Missing SOPInstanceUID that was referenced - 1.2.9 for file"
    errors = [line for line in said if line.startswith("Error") and predecessor not in line]
    # A converted source names the images that it was made of, which are not here.
    errors = [line for line in errors if "legacy.dcm>" not in line]
    # It compares bytes, and where ISO 2022 became UTF-8 they differ on purpose.
    if isinstance(case.series.header.get("SpecificCharacterSet"), MultiValue):
        errors = [line for line in errors if "PatientName" not in line]
    assert errors == []


@pytest.mark.peers
@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="no DCMTK here: tests/peers.sh installs it")
def test_dsrdump_prints_reports_that_a_person_can_read(case: Case) -> None:
    printed = {}
    for kind in case.files.keys() - set(SEGMENTATIONS):
        dump = run("dsrdump", "+Pl", "+U8", case.files[kind])
        assert dump.returncode == 0, dump.stderr
        assert not re.search("^[EF]:", dump.stderr, re.MULTILINE), dump.stderr
        printed[kind] = dump.stdout
        assert "Research use, not for diagnosis" in dump.stdout
        if not kind.startswith("CAD"):
            assert "Research use, not for diagnosis. Made by software, verified by nobody." in dump.stdout
            assert "44 of 44 instances, contiguous; quiet time 10 s" in dump.stdout
    assert f'"Tracking Identifier")="Nodule {len(case.detection.findings)}"' in printed["found"]
    assert "The series was analysed and no lung nodule candidate was found" in printed["none"]
    assert "NOT ANALYSED. No statement about lung nodules is made. SLICE_GAP: gap of 5.00 mm" in printed["rejected"]
    for number in range(1, len(case.detection.findings) + 1):
        assert f'"Finding")="{finding_text(case.found.reading, number)}"' in printed["text"]
    assert "The series was analysed and no lung nodule candidate was found" in printed["text, none"]
    assert "Reason: SLICE_GAP: gap of 5.00 mm" in printed["text, rejected"]
    assert printed["CAD"].count("Single Image Finding Modifier") == len(case.detection.findings)
    assert "Not analysed: SLICE_GAP" in printed["CAD, rejected"]


@pytest.mark.parametrize("kind", SEGMENTATIONS)
def test_dcmqi_reads_the_voxels_where_they_lay(case: Case, tmp_path: Path, kind: str) -> None:
    done = run(
        packaged("segimage2itkimage"), "--inputDICOM", case.files[kind], "--outputDirectory", tmp_path, "-t", "nii"
    )
    assert done.returncode == 0, done.stderr

    groups = json.loads((tmp_path / "meta.json").read_text())["segmentAttributes"]
    seen = {}
    for number, group in enumerate(groups, start=1):
        image = sitk.ReadImage(str(tmp_path / f"{number}.nii.gz"))
        labels = sitk.GetArrayFromImage(image)
        for segment in group:
            # It leaves fractions as they are: each segment has a file, and a whole voxel is 255.
            voxels = np.argwhere(labels == (255 if kind == "fractional" else segment["labelID"]))
            seen[segment["TrackingUniqueIdentifier"]] = points(
                [image.TransformIndexToPhysicalPoint([int(v) for v in voxel[::-1]]) for voxel in voxels]
            )
    meant = {
        uid: points(case.volume.to_mm((np.argwhere(f.mask) + np.array(f.corner)).astype(float)).tolist())
        for uid, f in zip(case.found.tracking_uids, case.detection.findings, strict=True)
    }
    assert seen == meant


def points(positions_mm: Any) -> set[tuple[float, ...]]:
    # + 0.0 makes -0.0 the same as 0.0.
    return {tuple(round(float(value), 2) + 0.0 for value in position) for position in positions_mm}


def read_by_dcmqi(file: Path, to: Path) -> dict[str, Any]:
    # The exit status is 0 for a broken report too: only what it read counts.
    run(packaged("tid1500reader"), "--inputDICOM", file, "--outputMetadata", to)
    read: dict[str, Any] = json.loads(to.read_text())
    return read


def test_dcmqi_reads_the_numbers(case: Case, tmp_path: Path) -> None:
    read = read_by_dcmqi(case.files["found"], tmp_path / "found.json")

    groups: dict[int, Any] = {}
    for group in read["Measurements"]:
        if "ReferencedSegment" in group:
            groups[group["ReferencedSegment"]] = group
    assert len(read["Measurements"]) == 3 * len(groups)
    assert sorted(groups) == list(range(1, len(case.detection.findings) + 1))
    for number, group in sorted(groups.items()):
        assert group["TrackingIdentifier"] == f"Nodule {number}"
        assert group["TrackingUniqueIdentifier"] == case.found.tracking_uids[number - 1]
        assert group["Finding"]["CodeMeaning"] == "Nodule"
        assert group["SourceSeriesForImageSegmentation"] == case.series.series_uid
        assert numbers_in(group) == numbers_meant(case, number)


def test_dcmqi_reads_the_same_numbers_without_a_segmentation(case: Case, tmp_path: Path) -> None:
    read = read_by_dcmqi(case.files["without SEG"], tmp_path / "alone.json")

    groups = [group for group in read["Measurements"] if len(group["measurementItems"]) > 2]
    assert [numbers_in(group) for group in groups] == [
        numbers_meant(case, number) for number in range(1, len(case.detection.findings) + 1)
    ]


def numbers_in(group: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Name, derivation and value of each measurement that dcmqi read."""
    return [
        (
            item["quantity"]["CodeMeaning"],
            item.get("derivationModifier", {}).get("CodeMeaning", ""),
            float(item["value"]),
        )
        for item in group["measurementItems"]
    ]


def numbers_meant(case: Case, number: int) -> list[tuple[str, str, Any]]:
    measured, score = case.found.measurements[number - 1], case.detection.findings[number - 1].score
    percentiles = measured.percentiles_hu
    meant = [
        ("Volume", "", measured.volume_mm3),
        ("Long axis", "", measured.long_axis_mm),
        ("Short axis", "", measured.short_axis_mm),
        ("Diameter", "Mean", measured.mean_diameter_mm),
        ("Attenuation Coefficient", "Mean", measured.mean_hu),
        ("Standard deviation of the volume", "", measured.volume_error_mm3),
        ("Attenuation Coefficient", "Standard Deviation", measured.sd_hu),
        ("Attenuation Coefficient", "5th percentile", percentiles[5]),
        ("Attenuation Coefficient", "25th percentile", percentiles[25]),
        ("Attenuation Coefficient", "Median", percentiles[50]),
        ("Attenuation Coefficient", "75th percentile", percentiles[75]),
        ("Attenuation Coefficient", "95th percentile", percentiles[95]),
        ("Diameter", "", measured.equivalent_diameter_mm),
        ("Detection score", "", score),
    ]
    return [(name, derivation, pytest.approx(value, abs=1e-3)) for name, derivation, value in meant]


def test_dcmqi_reads_no_measurement_where_there_is_none(case: Case, tmp_path: Path) -> None:
    for kind in ("none", "rejected"):
        read = read_by_dcmqi(case.files[kind], tmp_path / f"{kind}.json")
        assert read["Measurements"] == []
        assert read["VerificationFlag"] == "UNVERIFIED"


@pytest.mark.peers
@pytest.mark.skipif(shutil.which("dcmdump") is None, reason="no DCMTK here: tests/peers.sh installs it")
def test_dcmdump_reads_the_name_of_the_patient(case: Case) -> None:
    name = str(case.series.header.PatientName)
    for file in case.files.values():
        dump = run("dcmdump", "+U8", "+P", "PatientName", file)
        assert f"[{name}]" in dump.stdout, dump.stderr


@pytest.mark.peers
@needs_pixelmed
@pytest.mark.slow
def test_pixelmed_finds_the_templates_followed(tmp_path: Path) -> None:
    case = build_case(tmp_path, make_ct_series(tmp_path / "ct"), two_nodules)
    compared_file = tmp_path / "compared.dcm"
    growth = build_results(
        case.series, case.volume, case.detection, **JOB, comparison=compared(GROWN, NEW, gone=(GONE,))
    )
    compared_file.write_bytes(to_bytes(growth.sr))
    texts = [as_of_2022(case.files[kind]) for kind in ("text", "text, none", "text, rejected")]
    measured = [case.files[kind] for kind in ("found", "without SEG", "none", "rejected")] + [compared_file]

    verdicts = verdicts_on([*measured, *texts, case.files["CAD"], case.files["CAD, failed"]])

    for file in (*measured, *texts):
        root = "TID_2000 (BasicDiagnosticImagingReport)" if file in texts else "TID_1500 (MeasurementReport)"
        assert f"Found Root Template {root}" in verdicts[file]
        assert "IOD validation complete" in verdicts[file]
        assert complaints_in(verdicts[file]) == [], file
    for file in (case.files["CAD"], case.files["CAD, failed"]):
        # It has no TID 4100 (tests/templates.py has), but knows the IOD and its relationships.
        assert "Found ChestCADSR IOD" in verdicts[file]
        assert not re.search("^Error|illegal", verdicts[file], re.MULTILINE), verdicts[file]


def as_of_2022(file: Path) -> Path:
    """The report with the title and the headings that the tool's context groups 7000 and 7001 had then."""
    ds = pydicom.dcmread(file)
    for item, code in (
        (ds, codes.LN.DiagnosticImagingReport),
        *((section, HEADINGS_2022[section.ConceptNameCodeSequence[0].CodeMeaning])
          for section in ds.ContentSequence if section.ValueType == "CONTAINER"),
    ):  # fmt: skip
        item.ConceptNameCodeSequence = [CodedConcept.from_code(code)]
    for section in ds.ContentSequence:
        for item in section.get("ContentSequence", ()):
            if item.ConceptNameCodeSequence[0].CodeMeaning == "Summary":
                item.ConceptNameCodeSequence = [CodedConcept.from_code(codes.DCM.Summary)]
    to = file.with_name(f"{file.stem}, 2022.dcm")
    ds.save_as(to)
    return to


def test_real_chest_gives_valid_results(shared_data: Path, tmp_path: Path) -> None:
    ct = sorted((shared_data / "chest_ct" / "tiny_chest_64" / "dicom").iterdir())

    limits = GateConfig(max_slice_spacing_mm=5.0, max_slice_thickness_mm=5.0)
    case = build_case(tmp_path, ct, lambda volume: (ball(volume, (40, 30, 18), 15.0),), limits)

    for kind, file in case.files.items():
        said = run(packaged("dciodvfy"), "-new", file).stderr.splitlines()
        assert not [line for line in said if line.startswith("Error")], kind


Place = tuple[str | tuple[str, int], ...]


def places(item: Dataset, way: Place = ()) -> Iterator[Place]:
    """Each attribute, of sequences in the first item, of content trees in all of them."""
    for element in item:
        yield (*way, element.keyword)
        if element.VR == "SQ":
            below = element.value if element.keyword == "ContentSequence" else element.value[:1]
            for number, each in enumerate(below):
                yield from places(each, (*way, (element.keyword, number)))


def spoiled(ds: Dataset, place: Place, *, empty: bool) -> Dataset:
    copy = deepcopy(ds)
    item = copy
    for keyword, number in cast("list[tuple[str, int]]", place[:-1]):
        item = item[keyword].value[number]
    element = item[cast(str, place[-1])]
    if empty:
        element.value = [] if element.VR == "SQ" else b"" if element.VR in ("OB", "OW") else None
    else:
        del item[element.tag]
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("empty", [False, True], ids=["taken out", "emptied"])
def test_the_self_check_sees_each_lack_that_dciodvfy_sees(tmp_path: Path, empty: bool) -> None:
    series = read_series(make_ct_series(tmp_path / "ct"))
    volume = to_volume(series)
    results = build_results(series, volume, detection_of(*two_nodules(volume)), **JOB)
    every = [*results.objects, *pictures_of(results.reading)]

    def is_silent(made: Made) -> bool:
        if next(modules.faults(made.ds), None) or next(content.faults(made.ds), None):
            return False
        try:
            check_objects([made if other.kind == made.kind else other for other in every], results.reading)
        except ResultError:
            return False
        return True

    for made in every:
        # Content items are many and alike: one of each depth, sequence and attribute.
        alike: dict[tuple[Any, ...], Place] = {}
        for place in places(made.ds):
            alike.setdefault((len(place), *(p if isinstance(p, str) else p[0] for p in place[-2:])), place)
        for place in alike.values():
            ds = spoiled(made.ds, place, empty=empty)
            if is_silent(Made(kind=made.kind, ds=ds)):
                (tmp_path / "x.dcm").write_bytes(to_bytes(ds))
                said = run(packaged("dciodvfy"), "-new", tmp_path / "x.dcm").stderr
                assert [line for line in said.splitlines() if line.startswith("Error")] == [], (made.kind, place)
