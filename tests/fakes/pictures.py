"""Captures, a selection, a presentation state and a document on one image, by highdicom: what the checks look at."""

from __future__ import annotations

import highdicom as hd
import numpy as np
import pydicom
from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.pr import GrayscaleSoftcopyPresentationState
from highdicom.sc import SCImage
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import EncapsulatedPDFStorage

from dicom_node.domain import RESEARCH_USE
from dicom_node.results.headers import Kind, Origin, put_headers
from dicom_node.results.part10 import seal
from dicom_node.results.reading import Made, Reading

PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"


def pictures_of(reading: Reading) -> list[Made]:
    """One of each kind, fit to leave."""
    image = pydicom.dcmread(reading.series.images[3].path)
    makers = {"capture": _capture, "key_objects": _selection, "presentation": _state, "pdf": _document}
    kinds = {
        "capture": Kind.CAPTURE, "key_objects": Kind.KEY_OBJECTS, "presentation": Kind.PRESENTATION, "pdf": Kind.PDF,
    }  # fmt: skip
    return [Made(kind=name, ds=_finished(make(image), reading.origin, kinds[name])) for name, make in makers.items()]


def _finished(ds: Dataset, origin: Origin, kind: Kind) -> Dataset:
    put_headers(ds, origin, kind, "Lung nodules")
    if kind is Kind.PRESENTATION:
        del ds.ContentDate, ds.ContentTime
    return seal(ds, origin, kind)


def _capture(image: Dataset) -> Dataset:
    pixels = np.full((20, 30), 7, np.uint8)
    ds = SCImage.from_ref_dataset(
        ref_dataset=image,
        pixel_array=pixels,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=["L", "P"],
        **_instance(1),
    )
    ds.BurnedInAnnotation = "NO"
    ds.ImageComments, ds.Laterality = RESEARCH_USE, ""
    return ds


def _selection(image: Dataset) -> Dataset:
    content = KeyObjectSelection(
        document_title=codes.DCM.OfInterest, referenced_objects=[image], description=f"Key images. {RESEARCH_USE}"
    )
    return KeyObjectSelectionDocument(evidence=[image], content=content, **_instance(2))


def _state(image: Dataset) -> Dataset:
    outline = np.array([[3.0, 3.0], [9.0, 3.0], [9.0, 9.0], [3.0, 3.0]])
    layer = hd.pr.GraphicLayer("NODULES", 1)
    drawn = hd.pr.GraphicObject("POLYLINE", outline, "PIXEL", is_filled=False)
    annotation = hd.pr.GraphicAnnotation([image], layer, graphic_objects=[drawn])
    ds = GrayscaleSoftcopyPresentationState(
        referenced_images=[image],
        graphic_layers=[layer],
        graphic_annotations=[annotation],
        concept_name=codes.DCM.PresentationState,
        content_label="NODULES",
        content_description=f"Lung nodules. {RESEARCH_USE}",
        content_creator_name="dicom_node^",
        voi_lut_transformations=[hd.pr.SoftcopyVOILUTTransformation(window_center=-600, window_width=1500)],
        **_instance(3),
    )
    ds.Laterality = ""
    return ds


def _document(image: Dataset) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.SOPClassUID = EncapsulatedPDFStorage
    ds.ConversionType = "WSD"
    ds.BurnedInAnnotation, ds.AcquisitionDateTime = "NO", ""
    ds.DocumentTitle, ds.MIMETypeOfEncapsulatedDocument = f"Lung nodules. {RESEARCH_USE}", "application/pdf"
    ds.ConceptNameCodeSequence = []
    ds.EncapsulatedDocument = PDF + b"\0" * (len(PDF) % 2)
    ds.EncapsulatedDocumentLength = len(PDF)
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    ds.SourceInstanceSequence = [source]
    return ds


def _instance(number: int) -> dict[str, object]:
    return {
        "series_instance_uid": f"2.25.{number}1",
        "series_number": number,
        "sop_instance_uid": f"2.25.{number}2",
        "instance_number": 1,
        "manufacturer": "m",
        "manufacturer_model_name": "m",
        "software_versions": "1",
        "device_serial_number": "1",
    }
