"""A source that exists nowhere -> each kind of object that the node makes, so that the statement can look into them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage

from dicom_node.domain import CTImage, CTSeries, Detection, Finding, ModelIdentity, Side, Volume
from dicom_node.errors import Reason, SeriesRejected
from dicom_node.results import Predecessor, Results, build_rejection, build_results

_SLICES, _EDGE = 6, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What was made of one source. `reports`: findings, none found, not analysed, and one with a predecessor."""

    header: Dataset
    segmentations: tuple[Dataset, ...]
    reports: tuple[Dataset, ...]


@cache
def make(number: int) -> Samples:
    """All kinds of objects from source `number`, 1 or 2, which differ in all that sources and jobs can differ in."""
    series = _series(number)
    findings = tuple(_finding(side, number) for side in _SIDES[: 2 * number - 1])
    found, none = _results(number, series, findings), _results(number, series, ())
    predecessor = Predecessor(
        study_uid=series.study_uid,
        series_uid=str(found.sr.SeriesInstanceUID),
        sop_instance_uid=str(found.sr.SOPInstanceUID),
    )
    later = _results(number, series, findings, evidence="\u2192 UTF-8", complete=False, predecessor=predecessor)
    refused = build_rejection(
        series.header,
        [(series.images[0].sop_class_uid, uid) for uid in series.sop_instance_uids],
        SeriesRejected(Reason.SLICE_GAP, f"text {number}"),
        evidence=f"evidence {number}",
        manifest_sha256=_sha256(number),
        made_at=_time(number),
    )
    segmentations = (each.seg for each in (found, later) if each.seg is not None)
    return Samples(
        header=series.header, segmentations=tuple(segmentations), reports=(found.sr, none.sr, refused, later.sr)
    )


def _results(
    number: int,
    series: CTSeries,
    findings: tuple[Finding, ...],
    *,
    evidence: str = "",
    complete: bool = True,
    predecessor: Predecessor | None = None,
) -> Results:
    return build_results(
        series,
        Volume(hu=np.full((_SLICES, _EDGE, _EDGE), -800, np.int16), affine=series.affine),
        _detection(findings, number),
        evidence=evidence or f"evidence {number}",
        manifest_sha256=_sha256(number),
        made_at=_time(number),
        complete=complete,
        predecessor=predecessor,
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
