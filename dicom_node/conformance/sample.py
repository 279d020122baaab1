"""A source that exists nowhere -> each kind of object that the node makes, so that the statement can look into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, CTImageStorage, EnhancedCTImageStorage

from dicom_node.comparison import Comparison, DoublingTime, NoduleChange, PriorExam, PriorNodule
from dicom_node.domain import CTImage, CTSeries, Detection, Finding, ModelIdentity, Side, Volume
from dicom_node.errors import Reason, SeriesRejected
from dicom_node.profiles import ResultProfile
from dicom_node.results.build import read, refuse
from dicom_node.results.objects import objects_for, refusals_for
from dicom_node.results.reading import Predecessor, Reading

_SLICES, _EDGE = 6, 16


# Every kind of object, and every form of a segmentation.
_EVERYTHING: Mapping[str, ResultProfile] = {
    "all": ResultProfile(
        reports=("tid1500", "text", "chest_cad"),
        captures="single_frame",
        key_objects=True,
        presentation_states=True,
        pdf=True,
    ),
    "frames": ResultProfile(segmentation="labelmap", captures="multi_frame", narrative=False),
    "fraction": ResultProfile(segmentation="fractional", segmentation_frames="full"),
    "alone": ResultProfile(segmentation="none"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What was made of one source: with findings, with none, with a predecessor, with a comparison, not analysed."""

    header: Dataset
    objects: tuple[Dataset, ...]


@cache
def make(number: int) -> Samples:
    """All kinds of objects from source `number`, 1 or 2, which differ in all that sources and jobs can differ in."""
    series = _series(number)
    findings = tuple(_finding(side, number) for side in _SIDES[: 2 * number - 1])
    old = Predecessor(study_uid=series.study_uid, series_uid=f"2.25.{number}.6", sop_instance_uid=f"2.25.{number}.7")
    readings = (
        _reading(number, series, findings),
        _reading(number, series, ()),
        _reading(number, series, findings, evidence="\u2192 UTF-8", complete=False, predecessor=old),
        _reading(number, series, findings, comparison=_comparison(number, len(findings))),
    )
    refusal = refuse(
        series.header,
        [(image.sop_class_uid, image.sop_instance_uid) for image in series.images],
        SeriesRejected(Reason.SLICE_GAP, f"text {number}"),
        evidence=f"evidence {number}",
        manifest_sha256=_sha256(number),
        made_at=_time(number),
    )
    made = [each for reading in readings for each in objects_for(reading, _EVERYTHING)]
    made += refusals_for(refusal, _EVERYTHING)
    return Samples(header=series.header, objects=tuple(each.made.ds for each in made))


def _reading(
    number: int,
    series: CTSeries,
    findings: tuple[Finding, ...],
    *,
    evidence: str = "",
    complete: bool = True,
    predecessor: Predecessor | None = None,
    comparison: Comparison | None = None,
) -> Reading:
    return read(
        series,
        Volume(hu=np.full((_SLICES, _EDGE, _EDGE), -800, np.int16), affine=series.affine),
        _detection(findings, number),
        evidence=evidence or f"evidence {number}",
        manifest_sha256=_sha256(number),
        made_at=_time(number),
        complete=complete,
        predecessor=predecessor,
        comparison=comparison,
    )


def _comparison(number: int, findings: int) -> Comparison:
    """The first finding was there before, the others are new."""
    then = PriorNodule(
        tracking_identifier="Nodule 1",
        tracking_uid=f"2.25.{number}.8",
        center_mm=(0.0, 0.0, 0.0),
        volume_mm3=1.0 + number,
        long_axis_mm=1.0 + number,
        short_axis_mm=float(number),
    )
    grown = NoduleChange(
        number=1,
        change="grown",
        prior=then,
        volume_change_percent=100.0 * number,
        doubling_time=DoublingTime(days=100.0 * number, low=90.0 * number, high=110.0 * number),
    )
    new = [
        NoduleChange(number=each, change="new", prior=None, volume_change_percent=None, doubling_time=None)
        for each in range(2, findings + 1)
    ]
    return Comparison(
        outcome="compared",
        text=f"text {number}",
        prior=PriorExam(
            study_uid=f"2.25.{number}.9.1",
            series_uid=f"2.25.{number}.9.2",
            acquired_at=datetime(2025, 1, number),
            report_sop_class_uid=Comprehensive3DSRStorage,
            report_sop_instance_uid=f"2.25.{number}.9.3",
            report_series_uid=f"2.25.{number}.9.4",
            nodules=(then,),
        ),
        interval_days=100.0 * number,
        changes=(grown, *new),
    )


def _sha256(number: int) -> str:
    return f"{number:064x}"


def _time(number: int) -> datetime:
    return datetime(2026, 1, number, number, number, number, tzinfo=UTC)


_SIDES: tuple[Side | None, ...] = ("left", "right", None)


def _finding(side: Side | None, number: int) -> Finding:
    corner = (1, 2, 9 if side == "right" else 2)
    return Finding(
        mask=np.ones((2 + number, 3, 3), bool),
        corner=corner,
        center_mm=(0.0, 0.0, 0.0),
        score=0.5 + number / 10,
        side=side,
    )


def _detection(findings: tuple[Finding, ...], number: int) -> Detection:
    model = ModelIdentity(
        name=f"model {number}",
        version=f"{number}.0",
        bundle_sha256=_sha256(number + 10),
        operating_point=number / 10,
        parameters={},
    )
    return Detection(findings=findings, analysed=(0, _SLICES), model=model, timings_s={})


def _series(number: int) -> CTSeries:
    spacing_mm = 1.0 + number / 2
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, :3] = [[0, 0, 0.5 + number], [0, 0.5 + number, 0], [spacing_mm, 0, 0]]
    affine[2, 3] = number
    images = tuple(_image(number, index, spacing_mm) for index in range(_SLICES))
    return CTSeries(
        images=images,
        affine=affine,
        rows=_EDGE,
        columns=_EDGE,
        left_out={f"2.25.{number}.5": "a localizer"},
        lossy="text 2" if number == 2 else None,
    )


def _image(number: int, index: int, spacing_mm: float) -> CTImage:
    position = (0.0, 0.0, number + index * spacing_mm)
    header = Dataset()
    # Source 2 is one multi-frame Instance.
    frame = index + 1 if number == 2 else None
    header.SOPClassUID = CTImageStorage if frame is None else EnhancedCTImageStorage
    header.Modality = "CT"
    for keyword, part in (("StudyInstanceUID", "1"), ("SeriesInstanceUID", "2"), ("FrameOfReferenceUID", "3")):
        setattr(header, keyword, f"2.25.{number}.{part}")
    header.SOPInstanceUID = f"2.25.{number}.4.{index if frame is None else 0}"
    header.PatientName, header.PatientID = f"Sample^{number}", f"ID{number}"
    header.PatientBirthDate, header.PatientSex = f"1970010{number}", "MFO"[number]
    header.StudyDate, header.StudyTime, header.StudyID = f"2026020{number}", f"10000{number}", f"S{number}"
    header.AccessionNumber, header.ReferringPhysicianName = f"A{number}", f"Doctor^{number}"
    header.PositionReferenceIndicator = f"P{number}"
    if number == 2:
        header.LossyImageCompression, header.LossyImageCompressionRatio = "01", "8"
        header.LossyImageCompressionMethod = "ISO_15444_1"
        header.SpecificCharacterSet, header.TimezoneOffsetFromUTC, header.InstitutionName = "ISO_IR 100", "+0200", "I"
    header.Rows = header.Columns = _EDGE
    header.PixelSpacing = [0.5 + number, 0.5 + number]
    header.SliceThickness = spacing_mm
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.ImagePositionPatient = list(position)
    return CTImage(
        path="",
        sop_instance_uid=str(header.SOPInstanceUID),
        header=header,
        position_mm=position,
        projection_mm=position[2],
        frame=frame,
    )
