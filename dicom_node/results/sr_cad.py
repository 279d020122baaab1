"""What was found, not found or not analysed -> one Chest CAD SR (PS3.16 TID 4100) for workstations that read only that.

Its templates are closed: growth, type, and the reason of a refusal have no place in them. A finding is a Single Image
Finding on its largest slice. What must be said of the whole stands where workstations show it: "research use" in the
algorithm's name, the reason of a refusal in Completion Flag Description.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ChestCADSRStorage

from dicom_node.domain import RESEARCH_USE, ModelIdentity
from dicom_node.results.headers import Kind, Origin
from dicom_node.results.reading import Grounds, Reading, Refusal
from dicom_node.results.references import Reference, references_of
from dicom_node.results.sr_cad_library import library_entry
from dicom_node.results.sr_content import (
    Item,
    Points,
    Relationship,
    algorithm,
    code,
    container,
    drawn,
    holding,
    language,
    line,
    number,
    outline,
    track_items,
    uid,
)
from dicom_node.results.sr_document import document, incomplete, root_container
from dicom_node.results.tracking import LATERALITY

_PROPERTY, _MODIFIER, _CONTEXT = Relationship.HAS_PROPERTIES, Relationship.HAS_CONCEPT_MOD, Relationship.HAS_OBS_CONTEXT
_FROM = Relationship.INFERRED_FROM
_MM, _HU = codes.UCUM.Millimeter, codes.UCUM.HounsfieldUnit


def build_cad_report(reading: Reading) -> Dataset:
    """The report on an analysed series. Without findings it says that the detection succeeded and saw none."""
    count = len(reading.findings)
    summary = (
        codes.cid6047.AllAlgorithmsSucceededWithFindings
        if count
        else codes.cid6047.AllAlgorithmsSucceededWithoutFindings
    )
    return _document(
        [
            *([_image_library(reading)] if count else []),
            _findings_summary(summary, [_single_image_finding(reading, n) for n in range(1, count + 1)]),
            _detections(codes.DCM.Succeeded, codes.DCM.SuccessfulDetections, reading.origin),
        ],
        references_of(reading.series),
        reading.origin,
        reading.grounds,
        description=f"Lung nodules: {count or 'none'} found",
        unfinished=incomplete(reading.grounds),
    )


def build_cad_not_analysed(refusal: Refusal) -> Dataset:
    """Detection failed where a model refused the series, else it was not attempted; no image and no CT is needed."""
    detections = (
        code(codes.DCM.SummaryOfDetections, codes.DCM.NotAttempted)
        if refusal.origin.model is None
        else _detections(codes.DCM.Failed, codes.DCM.FailedDetections, refusal.origin)
    )
    return _document(
        [_findings_summary(codes.cid6047.NoAlgorithmsSucceededWithoutFindings, []), detections],
        refusal.instances,
        refusal.origin,
        refusal.grounds,
        description="Lung nodules: NOT ANALYSED",
        unfinished=f"Not analysed: {refusal.rejected.reason}. {RESEARCH_USE}",
    )


def _findings_summary(value: Code, findings: Sequence[Item]) -> Item:
    """TID 4101."""
    summary = code(codes.DCM.CADProcessingAndFindingsSummary, value)
    return holding(summary, findings) if findings else summary


def _single_image_finding(reading: Reading, finding_number: int) -> Item:
    """TID 4104. An opacity, in words a nodule."""
    finding = reading.findings[finding_number - 1]
    item = code(codes.DCM.SingleImageFinding, codes.DCM.AbnormalOpacity, _FROM)
    return holding(
        item,
        [
            code(codes.DCM.SingleImageFindingModifier, codes.SCT.Nodule, _MODIFIER),
            code(
                codes.DCM.RenderingIntent,
                codes.cid6034.PresentationRequiredRenderingDeviceIsExpectedToPresent,
                _MODIFIER,
            ),
            *track_items(reading.tracking[finding_number - 1]),
            *algorithm(reading.model, _CONTEXT, name=_name(reading.model)),
            number(codes.DCM.CertaintyOfFinding, 100.0 * finding.score, codes.UCUM.Percent, _PROPERTY),
            *_geometry(reading, finding_number),
            *_sizes(reading, finding_number),
            *_descriptors(reading, finding_number),
        ],
    )


def _name(model: ModelIdentity) -> str:
    return f"{model.name}. {RESEARCH_USE}"


def _geometry(reading: Reading, finding_number: int) -> list[Item]:
    """TID 4107: where it is on its largest slice."""
    measured = reading.measurements[finding_number - 1]
    on = reading.series.images[measured.slice_index]
    center = _center(reading, finding_number)
    return [
        drawn(codes.DCM.Center, "POINT", center, on, _PROPERTY),
        drawn(codes.DCM.Outline, "POLYLINE", outline(measured.contours[0]), on, _PROPERTY),
    ]


def _center(reading: Reading, finding_number: int) -> Points:
    """Centroid of the finding's pixels in its largest slice, (1, 2) as (column, row)."""
    finding, measured = reading.findings[finding_number - 1], reading.measurements[finding_number - 1]
    first_slice, first_row, first_column = finding.corner
    row, column = np.argwhere(finding.mask[measured.slice_index - first_slice]).mean(axis=0)
    return np.array([[first_column + column + 0.5, first_row + row + 0.5]])


def _sizes(reading: Reading, finding_number: int) -> list[Item]:
    """TID 1400 and 1402."""
    measured = reading.measurements[finding_number - 1]
    on = reading.series.images[measured.slice_index]
    axes = [
        holding(
            number(name, axis.length_mm, _MM, _PROPERTY), [drawn(codes.DCM.Path, "POLYLINE", line(axis), on, _FROM)]
        )
        for name, axis in ((codes.SCT.LongAxis, measured.long_axis), (codes.SCT.ShortAxis, measured.short_axis))
        if axis.length_mm > 0
    ]
    volume = number(codes.SCT.Volume, measured.volume_mm3, codes.UCUM.CubicMillimeter, _PROPERTY)
    method = code(codes.SCT.MeasurementMethod, codes.DCM.SumOfSegmentedVoxelMethodForVolume, _PROPERTY)
    return [*axes, holding(volume, [method])]


def _descriptors(reading: Reading, finding_number: int) -> list[Item]:
    """TID 4105, rows 9 and 20."""
    finding, measured = reading.findings[finding_number - 1], reading.measurements[finding_number - 1]
    side = [code(codes.SCT.Laterality, LATERALITY[finding.side], _PROPERTY)] if finding.side else []
    attenuations = (
        (codes.DCM.MeanAttenuationCoefficient, measured.mean_hu),
        (codes.DCM.StandardDeviationOfAttenuationCoefficient, measured.sd_hu),
        (codes.DCM.MedianAttenuationCoefficient, measured.percentiles_hu[50]),
    )
    return [*side, *(number(name, hu, _HU, _PROPERTY) for name, hu in attenuations)]


def _detections(status: Code, list_name: Code, origin: Origin) -> Item:
    """TID 4100, row 6, with TID 4015 and 4017: which algorithm looked for nodules in which series."""
    performed = code(codes.DCM.DetectionPerformed, codes.SCT.Nodule)
    by = [] if origin.model is None else algorithm(origin.model, _PROPERTY, name=_name(origin.model))
    series = uid(codes.DCM.SeriesInstanceUID, origin.series_uid, _PROPERTY)
    item = code(codes.DCM.SummaryOfDetections, status)
    return holding(item, [container(list_name, [holding(performed, [*by, series])], _FROM)])


def _image_library(reading: Reading) -> Item:
    """TID 4020 of the images that findings lie on."""
    shown = sorted({measured.slice_index for measured in reading.measurements})
    entries = [library_entry(reading.series.images[index], reading.series) for index in shown]
    return container(codes.DCM.ImageLibrary, entries)


def _document(
    sections: Sequence[Item],
    references: Sequence[Reference],
    origin: Origin,
    grounds: Grounds,
    *,
    description: str,
    unfinished: str,
) -> Dataset:
    """No analysis in the standard's sense is attempted: what was measured belongs to the detection."""
    analyses = code(codes.DCM.SummaryOfAnalyses, codes.DCM.NotAttempted)
    items = [*language(), *sections, analyses]
    return document(
        ChestCADSRStorage,
        root_container(codes.DCM.ChestCADReport, "4100", items),
        references,
        origin,
        grounds,
        kind=Kind.CAD_REPORT,
        description=description,
        unfinished=unfinished,
    )
