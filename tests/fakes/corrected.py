"""What viewers save of the fake CT: Segmentations, reports and Structure Sets, corrected as the test says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from highdicom.sr import (
    ImageRegion,
    ImageRegion3D,
    Measurement,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    PersonObserverIdentifyingAttributes,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    SourceImageForRegion,
    TrackingIdentifier,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

Masks = Sequence[tuple[str, str, NDArray[np.bool_]]]  # label, Tracking UID or "", mask of the whole grid


def images_of(paths: Sequence[Path]) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in paths]


def corrected_seg(images: Sequence[Dataset], masks: Masks, kind: str = "BINARY", **over: Any) -> Dataset:
    """As a workstation built on highdicom saves it. masks may overlap but in a LABELMAP."""
    described = [
        hd.seg.SegmentDescription(
            segment_number=n,
            segment_label=label or f"Segment {n}",
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Nodule,
            algorithm_type="MANUAL",
            tracking_id=label if uid else None,
            tracking_uid=uid or None,
        )
        for n, (label, uid, _) in enumerate(masks, start=1)
    ]
    pixels = np.stack([mask for _, _, mask in masks], axis=-1).astype(np.uint8)
    if kind == "LABELMAP":
        pixels = (pixels * np.arange(1, len(masks) + 1)).max(axis=-1).astype(np.uint8)
    return hd.seg.Segmentation(
        source_images=list(images),
        pixel_array=pixels.astype(np.float64) if kind == "FRACTIONAL" else pixels,
        segmentation_type=kind,
        segment_descriptions=described,
        **{
            "series_instance_uid": generate_uid(),
            "series_number": 77,
            "sop_instance_uid": generate_uid(),
            "instance_number": 1,
            "manufacturer": "Viewer makers",
            "manufacturer_model_name": "Viewer",
            "software_versions": "1",
            "device_serial_number": "1",
            **over,
        },
    )


def structure_set(images: Sequence[Dataset], rois: Mapping[str, Sequence[NDArray[np.float64]]]) -> Dataset:
    """rois: name -> outlines, each (n, 3) LPS mm."""
    source = images[0]
    ds = Dataset()
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
                    "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):  # fmt: skip
        setattr(ds, keyword, source.get(keyword) or "")
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = RTStructureSetStorage, generate_uid(), generate_uid()
    ds.Modality, ds.Manufacturer, ds.StructureSetLabel = "RTSTRUCT", "Planner", "corrected"
    ds.StructureSetDate, ds.StructureSetTime = "20260601", "101010"
    frame = Dataset()
    frame.FrameOfReferenceUID = source.FrameOfReferenceUID
    ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence, ds.RTROIObservationsSequence = [], [], []
    for number, (name, outlines) in enumerate(rois.items(), start=1):
        roi, item, seen = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm = number, name, "MANUAL"
        roi.ReferencedFrameOfReferenceUID = source.FrameOfReferenceUID
        item.ReferencedROINumber, item.ContourSequence = number, []
        for outline in outlines:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(outline)
            contour.ContourData = [f"{v:.4f}" for v in outline.ravel()]
            item.ContourSequence.append(contour)
        seen.ObservationNumber, seen.ReferencedROINumber, seen.RTROIInterpretedType, seen.ROIInterpreter = (
            number, number, "", "",
        )  # fmt: skip
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(item)
        ds.RTROIObservationsSequence.append(seen)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def measured(image: Dataset, nodules: Sequence[tuple[str, str, NDArray[np.float64], float]]) -> Dataset:
    """A reader's TID 1500 report. nodules: label, Tracking UID, outline (n, 2) of column and row on `image` or (n, 3)
    LPS mm, long axis in mm."""
    groups = []
    for label, uid, outline, long_axis in nodules:
        if outline.shape[1] == 3:
            region: Any = ImageRegion3D("POLYGON", outline, str(image.FrameOfReferenceUID))
        else:
            region = ImageRegion("POLYLINE", outline, SourceImageForRegion.from_source_image(image))
        groups.append(
            PlanarROIMeasurementsAndQualitativeEvaluations(
                referenced_region=region,
                tracking_identifier=TrackingIdentifier(uid=uid or generate_uid(), identifier=label),
                finding_type=codes.SCT.Nodule,
                measurements=[Measurement(name=codes.SCT.LongAxis, value=long_axis, unit=codes.UCUM.Millimeter)],
            )
        )
    observer = ObserverContext(
        observer_type=codes.DCM.Person,
        observer_identifying_attributes=PersonObserverIdentifyingAttributes(name="Reader^One"),
    )
    report = MeasurementReport(
        observation_context=ObservationContext(observer_person_context=observer),
        procedure_reported=codes.cid100.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    return hd.sr.Comprehensive3DSR(
        evidence=[image],
        content=report,
        series_instance_uid=generate_uid(),
        series_number=78,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Viewer makers",
        is_complete=True,
    )


def circle_mm(center: Sequence[float], radius_mm: float, points: int = 180) -> NDArray[np.float64]:
    """(points, 3): a circle at right angles to z."""
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack(
        [center[0] + radius_mm * np.cos(turn), center[1] + radius_mm * np.sin(turn), np.full(points, center[2])], axis=1
    )
