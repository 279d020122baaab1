"""The key slices of the findings -> a Key Object Selection (PS3.3 A.35.4, PS3.16 TID 2010): what to look at first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage, KeyObjectSelectionDocumentStorage

from dicom_node.domain import RESEARCH_USE, CTImage
from dicom_node.results.headers import Kind, put_headers
from dicom_node.results.part10 import seal
from dicom_node.results.reading import Made, Reading
from dicom_node.results.references import Reference, reference_to, study_item
from dicom_node.results.sr_content import observer


def build_key_objects(reading: Reading, made: Sequence[Made]) -> Dataset | None:
    """The slice of each finding's long axis, in the findings' order; None without findings.

    made: what the destination gets too. A key image refers to the Presentation State among it that draws on it.
    """
    if not reading.findings:
        return None
    states = [one.ds for one in made if one.ds.SOPClassUID == GrayscaleSoftcopyPresentationStateStorage]
    images = [reading.series.images[index] for index in dict.fromkeys(m.slice_index for m in reading.measurements)]
    shown = [(image, next(_drawn_on(image, states), None)) for image in images]
    ds = Dataset()
    ds.SOPClassUID = KeyObjectSelectionDocumentStorage
    _put_content(ds, _description(reading), shown)
    ds.ReferencedPerformedProcedureStepSequence = []
    references = [_reference(image, reading.series.series_uid) for image in images]
    references += [reference_to(state) for _, state in shown if state is not None]
    evidence = study_item(reading.series.study_uid, list(dict.fromkeys(references)))
    ds.CurrentRequestedProcedureEvidenceSequence = [evidence]
    count = len(reading.findings)
    put_headers(ds, reading.origin, Kind.KEY_OBJECTS, f"Lung nodules: {count} found")
    return seal(ds, reading.origin, Kind.KEY_OBJECTS)


def _description(reading: Reading) -> str:
    count = len(reading.findings)
    return (
        f"Slices of the long axes of {count} lung nodule candidate{'' if count == 1 else 's'}, "
        f"highest score first. {RESEARCH_USE}. Made by software, verified by nobody."
    )


def _put_content(ds: Dataset, description: str, shown: Sequence[tuple[CTImage, Dataset | None]]) -> None:
    root = sr.ContainerContentItem(name=codes.DCM.OfInterest, template_id="2010")
    root.ContentSequence = sr.ContentSequence(
        [
            *sr.LanguageOfContentItemAndDescendants(sr.CodedConcept("en-US", "RFC5646", "English (United States)")),
            *observer(),
            sr.TextContentItem(
                name=codes.DCM.KeyObjectDescription,
                value=description,
                relationship_type=sr.RelationshipTypeValues.CONTAINS,
            ),
        ]
    )
    for element in root:
        ds[element.tag] = element
    ds.ContentSequence = [*root.ContentSequence, *(_image_item(image, state) for image, state in shown)]


def _image_item(image: CTImage, state: Dataset | None) -> Dataset:
    """A nameless IMAGE item, as TID 2010 has it (highdicom's own ask for a name)."""
    item = Dataset()
    item.RelationshipType = "CONTAINS"
    item.ValueType = "IMAGE"
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.sop_class_uid
    reference.ReferencedSOPInstanceUID = image.sop_instance_uid
    if image.frame is not None:
        reference.ReferencedFrameNumber = image.frame
    if state is not None:
        drawn = Dataset()
        drawn.ReferencedSOPClassUID, drawn.ReferencedSOPInstanceUID = state.SOPClassUID, state.SOPInstanceUID
        reference.ReferencedSOPSequence = [drawn]
    item.ReferencedSOPSequence = [reference]
    return item


def _drawn_on(image: CTImage, states: Sequence[Dataset]) -> Iterator[Dataset]:
    for state in states:
        for series in state.ReferencedSeriesSequence:
            for item in series.ReferencedImageSequence:
                frames = item.get("ReferencedFrameNumber")
                numbers = [frames] if isinstance(frames, int) else list(frames or ())
                if item.ReferencedSOPInstanceUID == image.sop_instance_uid and (not numbers or image.frame in numbers):
                    yield state


def _reference(image: CTImage, series_uid: str) -> Reference:
    return Reference(sop_class_uid=image.sop_class_uid, sop_instance_uid=image.sop_instance_uid, series_uid=series_uid)
