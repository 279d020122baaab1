"""Reading or Refusal -> the summary as an Encapsulated PDF (PS3.3 A.45.1), for archives that show documents."""

from __future__ import annotations

from collections.abc import Sequence

from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import EncapsulatedPDFStorage

from dicom_node.domain import RESEARCH_USE
from dicom_node.identity import MANUFACTURER, MODEL_NAME, SOFTWARE_VERSION
from dicom_node.results.headers import Kind, Origin, put_headers
from dicom_node.results.part10 import seal
from dicom_node.results.reading import Reading, Refusal
from dicom_node.results.references import Reference, references_of


def build_pdf(reading: Reading) -> Dataset:
    """What was found, on paper."""
    # Here, not above: reportlab takes 0.2 s to load, and most nodes send no PDF.
    from dicom_node.results.paper import summary_pdf

    count = len(reading.findings)
    title = f"Lung nodules: {count or 'none'} found"
    return _document(summary_pdf(reading), title, reading.origin, references_of(reading.series))


def build_refusal_pdf(refusal: Refusal) -> Dataset:
    """That the series was not analysed, and why."""
    from dicom_node.results.paper import refusal_pdf

    return _document(refusal_pdf(refusal), "Lung nodules: NOT ANALYSED", refusal.origin, refusal.instances)


def _document(pdf: bytes, title: str, origin: Origin, sources: Sequence[Reference]) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID = EncapsulatedPDFStorage
    ds.ConversionType = "WSD"  # PS3.3 C.8.6.1: from a workstation
    ds.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    ds.SecondaryCaptureDeviceManufacturerModelName = MODEL_NAME
    ds.SecondaryCaptureDeviceSoftwareVersions = SOFTWARE_VERSION
    ds.AcquisitionDateTime = ""
    ds.BurnedInAnnotation = "NO"  # the pages name neither the patient nor the date of the images
    ds.RecognizableVisualFeatures = "NO"
    ds.SourceInstanceSequence = [_item(source) for source in sources]
    ds.DocumentTitle = f"{title}. {RESEARCH_USE}"
    ds.ConceptNameCodeSequence = [CodedConcept.from_code(codes.DCM.ImagingMeasurementReport)]
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    ds.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    ds.EncapsulatedDocumentLength = len(pdf)
    put_headers(ds, origin, Kind.PDF, title)
    return seal(ds, origin, Kind.PDF)


def _item(source: Reference) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.sop_class_uid, source.sop_instance_uid
    return item
