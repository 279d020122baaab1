"""Finding and its numbers -> SR content items: measurement groups, image library, statements in plain words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import cast

from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage

from dicom_node.domain import CTImage, CTSeries, Finding, ModelIdentity
from dicom_node.identity import CODING_SCHEME, MANUFACTURER, MODEL_NAME, SOFTWARE_VERSION
from dicom_node.results.measure import Measurement
from dicom_node.results.tracking import LATERALITY, Tracking
from dicom_node.results.uids import derive_uid

# Concepts that no standard scheme has.
COMPLETENESS = Code("COMPLETENESS", CODING_SCHEME, "Series completeness")
SLICES_ANALYSED = Code("SLICES_ANALYSED", CODING_SCHEME, "Slices analysed")
LEFT_OUT = Code("LEFT_OUT", CODING_SCHEME, "Instances left out")
MODEL = Code("MODEL", CODING_SCHEME, "Model")
REASON = Code("REASON", CODING_SCHEME, "Reason for no analysis")
LOSSY = Code("LOSSY", CODING_SCHEME, "Lossy compression of the images")
REPLACES = Code("REPLACES", CODING_SCHEME, "Replaces report")
SCORE = Code("SCORE", CODING_SCHEME, "Detection score")

QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")  # PS3.16 TID 1500, row 12


def observer() -> sr.ObservationContext:
    """The node as the device that observed (PS3.16 TID 1004)."""
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=derive_uid("device", MANUFACTURER, MODEL_NAME, SOFTWARE_VERSION),
        name=MODEL_NAME,
        manufacturer_name=MANUFACTURER,
        model_name=MODEL_NAME,
    )
    return sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        )
    )


def container(name: Code, items: Sequence[sr.ContentItem]) -> sr.ContainerContentItem:
    item = sr.ContainerContentItem(name=name, relationship_type=sr.RelationshipTypeValues.CONTAINS)
    item.ContentSequence = sr.ContentSequence(items)
    return item


def text(name: Code, value: str) -> sr.TextContentItem:
    return sr.TextContentItem(name=name, value=value, relationship_type=sr.RelationshipTypeValues.CONTAINS)


def code(name: Code, value: Code) -> sr.CodeContentItem:
    return sr.CodeContentItem(name=name, value=value, relationship_type=sr.RelationshipTypeValues.CONTAINS)


def model_text(model: ModelIdentity) -> str:
    return f"{model.name} {model.version}, bundle sha256 {model.bundle_sha256}, {_parameters(model)}"


def image_library(images: Sequence[CTImage], series: CTSeries) -> sr.ImageLibrary:
    """PS3.16 TID 1600 of the images that the report refers to, not of the whole series."""
    library = sr.ImageLibrary([_library_entry(image, series) for image in images])
    # highdicom 0.28 has no way to name a frame here, and takes geometry from single-frame headers only.
    entries = [item for item in library[0].ContentSequence[0].ContentSequence if item.ValueType == "IMAGE"]
    for entry, image in zip(entries, images, strict=True):
        reference = entry.ReferencedSOPSequence[0]
        reference.ReferencedSOPClassUID = image.sop_class_uid
        if image.frame is not None:
            reference.ReferencedFrameNumber = image.frame
    return library


def _library_entry(image: CTImage, series: CTSeries) -> Dataset:
    entry = Dataset()
    for keyword in (
        "SOPInstanceUID", "FrameOfReferenceUID", "Rows", "Columns", "PixelSpacing",
        "ImageOrientationPatient", "ImagePositionPatient",
    ):  # fmt: skip
        entry[keyword] = image.header[keyword]
    entry.SOPClassUID = CTImageStorage
    entry.Modality = "CT"
    entry.SliceThickness = float(image.header.get("SliceThickness") or series.spacing_mm[0])
    return entry


def volumetric_group(
    finding: Finding, measurement: Measurement, tracking: Tracking, number: int, seg: Dataset, model: ModelIdentity
) -> sr.ContentItem:
    """PS3.16 TID 1411: the numbers of the whole finding, which is segment `number` of the SEG."""
    # Not ReferencedSegment.from_segmentation: in highdicom 0.28 it fails on a SEG of one segment.
    segment = sr.ReferencedSegment(
        sop_class_uid=seg.SOPClassUID,
        sop_instance_uid=seg.SOPInstanceUID,
        segment_number=number,
        source_series=sr.SourceSeriesForSegmentation(
            str(seg.ReferencedSeriesSequence[0].SeriesInstanceUID),
        ),
    )
    algorithm = _algorithm(model)
    group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(tracking),
        referenced_segment=segment,
        finding_type=codes.SCT.Nodule,
        finding_sites=[_site(finding)],
        measurements=[
            sr.Measurement(
                name=codes.SCT.Volume,
                value=_rounded(measurement.volume_mm3),
                unit=codes.UCUM.CubicMillimeter,
                method=codes.DCM.SumOfSegmentedVoxelMethodForVolume,
                algorithm_id=algorithm,
            ),
            *_axes(measurement, algorithm),
            _attenuation(measurement.mean_hu, codes.SCT.Mean, algorithm),
            _attenuation(measurement.sd_hu, codes.SCT.StandardDeviation, algorithm),
            sr.Measurement(name=SCORE, value=_rounded(finding.score), unit=codes.UCUM.NoUnits, algorithm_id=algorithm),
        ],
    )
    return cast(sr.ContentItem, group[0])


def planar_group(
    finding: Finding, measurement: Measurement, tracking: Tracking, image: CTImage, model: ModelIdentity
) -> sr.ContentItem:
    """PS3.16 TID 1410: the outline on the largest slice. Viewers jump to it and draw it; they do not for TID 1411."""
    group = sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(tracking),
        referenced_region=sr.ImageRegion(
            graphic_type=sr.GraphicTypeValues.POLYLINE,
            graphic_data=measurement.contours[0],
            source_image=sr.SourceImageForRegion(
                referenced_sop_class_uid=image.sop_class_uid,
                referenced_sop_instance_uid=image.sop_instance_uid,
                referenced_frame_numbers=None if image.frame is None else [image.frame],
            ),
        ),
        finding_type=codes.SCT.Nodule,
        finding_sites=[_site(finding)],
        measurements=_axes(measurement, _algorithm(model)),
    )
    return cast(sr.ContentItem, group[0])


def _tracking(tracking: Tracking) -> sr.TrackingIdentifier:
    return sr.TrackingIdentifier(uid=tracking.uid, identifier=tracking.identifier)


def _site(finding: Finding) -> sr.FindingSite:
    return sr.FindingSite(
        anatomic_location=codes.SCT.Lung, laterality=LATERALITY[finding.side] if finding.side else None
    )


def _algorithm(model: ModelIdentity) -> sr.AlgorithmIdentification:
    """PS3.16 TID 4019. It belongs to each measurement: the groups' templates have no place for it."""
    return sr.AlgorithmIdentification(
        name=model.name,
        version=model.version,
        parameters=[f"bundle_sha256={model.bundle_sha256}", _parameters(model)],
    )


def _parameters(model: ModelIdentity) -> str:
    return ", ".join(
        [f"operating_point={model.operating_point:g}"]
        + [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in sorted(model.parameters.items())]
    )


def _axes(measurement: Measurement, algorithm: sr.AlgorithmIdentification) -> list[sr.Measurement]:
    return [
        sr.Measurement(name=name, value=_rounded(length_mm), unit=codes.UCUM.Millimeter, algorithm_id=algorithm)
        for name, length_mm in (
            (codes.SCT.LongAxis, measurement.long_axis_mm),
            (codes.SCT.ShortAxis, measurement.short_axis_mm),
        )
    ]


def _attenuation(hu: float, derivation: Code, algorithm: sr.AlgorithmIdentification) -> sr.Measurement:
    return sr.Measurement(
        name=codes.DCM.AttenuationCoefficient,
        value=_rounded(hu),
        unit=codes.UCUM.HounsfieldUnit,
        derivation=derivation,
        algorithm_id=algorithm,
    )


def _rounded(value: float) -> float:
    """Three decimals: more than the image can give, and short enough for a decimal string."""
    return round(value, 3)
