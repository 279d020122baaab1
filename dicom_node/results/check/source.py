"""What objects are made of -> what they may refer to, and whose they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydicom.dataset import Dataset

from dicom_node.domain import RESEARCH_USE
from dicom_node.results.check import content, values
from dicom_node.results.check.conditions import SEGMENTATIONS
from dicom_node.results.check.modules import elements
from dicom_node.results.headers import PATIENT_AND_STUDY, decoded
from dicom_node.results.reading import Grounds, Made, Reading, Refusal

# An archive joins objects to patients and studies by these.
_IDENTITY = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
    "StudyTime", "StudyID", "AccessionNumber",
)  # fmt: skip

# Where an object that is no report says to its reader what it is not for. A picture's comment stands for its pixels.
_TOLD_IN = (
    "ContentDescription", "ImageComments", "DerivationDescription", "DocumentTitle", "CompletionFlagDescription",
)  # fmt: skip

# Documents that lie outside the source on purpose, and what the source itself says of its study.
_ELSEWHERE = {"PredecessorDocumentsSequence", *PATIENT_AND_STUDY}


@dataclass(frozen=True, slots=True)
class Instance:
    """Something to refer to. frames: the numbers that it has; None for an Instance without frames of its own."""

    sop_class_uid: str
    series_uid: str
    frames: frozenset[int] | None = None
    segments: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """header: of any Instance of the source. instances: by SOP Instance UID. taken: UIDs that no object may have."""

    header: Dataset
    instances: Mapping[str, Instance]
    taken: frozenset[str]
    grounds: Grounds
    earlier: Mapping[str, Instance] = field(default_factory=dict)

    @property
    def study_uid(self) -> str:
        return str(self.header.StudyInstanceUID)


def source_of(reading: Reading) -> Source:
    series = reading.series
    frames: dict[str, set[int]] = {}
    classes: dict[str, str] = {}
    for image in series.images:
        classes[image.sop_instance_uid] = image.sop_class_uid
        if image.frame is not None:
            frames.setdefault(image.sop_instance_uid, set()).add(image.frame)
    instances = {
        uid: Instance(sop_class, series.series_uid, frozenset(frames[uid]) if uid in frames else None)
        for uid, sop_class in classes.items()
    }
    left_out = (key.split()[0] for key in series.left_out)
    prior = reading.comparison.prior if reading.comparison else None
    earlier = {}
    if prior is not None:
        report = Instance(prior.report_sop_class_uid, prior.report_series_uid)
        earlier = {prior.report_sop_instance_uid: report}
    return Source(
        header=series.header,
        instances=instances,
        taken=frozenset({series.study_uid, series.series_uid, *instances, *left_out, *earlier}),
        grounds=reading.grounds,
        earlier=earlier,
    )


def source_of_refusal(refusal: Refusal) -> Source:
    instances = {
        each.sop_instance_uid: Instance(each.sop_class_uid, each.series_uid)
        for each in refusal.instances
        if each.sop_instance_uid
    }
    return Source(
        header=refusal.origin.header,
        instances=instances,
        taken=frozenset({refusal.origin.study_uid, refusal.origin.series_uid, *instances}),
        grounds=refusal.grounds,
    )


def identity_faults(ds: Dataset, source: Source) -> Iterator[str]:
    """Patient and study are the source's, and the object says what it is not for."""
    for keyword in _IDENTITY:
        meant = decoded(source.header, keyword).value if keyword in source.header else None
        if str(ds.get(keyword) or "") != str(meant or ""):
            yield f"{keyword} is not that of the source"
    if RESEARCH_USE not in str(ds.get("SeriesDescription") or ""):
        yield f"SeriesDescription lacks {RESEARCH_USE!r}"
    told = [str(ds.get(keyword) or "") for keyword in _TOLD_IN]
    told += [str(item.get("TextValue") or "") for item in content.items(ds)]
    if not any(RESEARCH_USE in text for text in told):
        yield f"content lacks {RESEARCH_USE!r}"


def uid_faults(objects: Sequence[Made], source: Source) -> Iterator[str]:
    """Instances have UIDs of their own; a series holds the objects of one kind, and only captures are several."""
    instances, series = set(source.taken), {}
    for made in objects:
        instance_uid, series_uid = (str(made.ds.get(k) or "") for k in ("SOPInstanceUID", "SeriesInstanceUID"))
        if instance_uid in instances:
            yield f"{made.kind}: SOPInstanceUID {instance_uid} is taken"
        if series_uid in instances:
            yield f"{made.kind}: SeriesInstanceUID {series_uid} is taken"
        instances.add(instance_uid)
        first = series.setdefault(series_uid, made.ds)
        if first is not made.ds and (first.get("SOPClassUID"), first.get("Modality")) != (
            made.ds.get("SOPClassUID"),
            made.ds.get("Modality"),
        ):
            yield f"{made.kind}: SeriesInstanceUID {series_uid} is that of another kind of object"
        if first is not made.ds and made.ds.SOPClassUID in SEGMENTATIONS:
            yield f"{made.kind}: SeriesInstanceUID {series_uid} has two Segmentations"
    for uid in instances & set(series):
        yield f"UID {uid} names a series and an Instance"


def made_instances(objects: Sequence[Made]) -> dict[str, Instance]:
    """The objects as others of them may refer to them."""
    found = {}
    for made in objects:
        ds = made.ds
        frames = frozenset(range(1, int(ds.NumberOfFrames) + 1)) if ds.get("NumberOfFrames") else None
        segments = frozenset(int(item.SegmentNumber) for item in ds.get("SegmentSequence", ()))
        found[str(ds.SOPInstanceUID)] = Instance(str(ds.SOPClassUID), str(ds.SeriesInstanceUID), frames, segments)
    return found


def reference_faults(ds: Dataset, known: Mapping[str, Instance], source: Source) -> Iterator[str]:
    """Each reference is to an Instance that there is, by its right class, series, frames and segments."""
    unknown: list[str] = []
    for reference, sequence in _references(ds):
        uid = str(reference.get("ReferencedSOPInstanceUID") or "")
        instance = known.get(uid)
        if uid == str(ds.SOPInstanceUID):
            yield f"{sequence} refers to the object itself"
        elif instance is None:
            unknown.append(uid)
        else:
            yield from _of_reference(reference, instance, sequence)
    if unknown:
        yield f"refers to {len(set(unknown))} unknown Instances, the first is {unknown[0] or 'none'}"
    yield from _of_series(ds, known)
    yield from _of_evidence(ds)
    yield from _of_predecessor(ds, source.grounds)


def _of_reference(reference: Dataset, instance: Instance, sequence: str) -> Iterator[str]:
    if reference.get("ReferencedSOPClassUID") != instance.sop_class_uid:
        yield f"{sequence} has the wrong SOP Class for an Instance"
    frames = _numbers(reference, "ReferencedFrameNumber")
    if frames - (instance.frames or frozenset({1})):
        yield f"{sequence} refers to frames that an Instance does not have"
    if instance.frames is not None and len(instance.frames) > 1 and not frames and sequence in _NEED_FRAMES:
        yield f"{sequence} names no frame of a multi-frame Instance"
    if _numbers(reference, "ReferencedSegmentNumber") - instance.segments:
        yield f"{sequence} refers to a segment that there is not"


# Where a place in one image is meant.
_NEED_FRAMES = {"SourceImageSequence"}


def _numbers(reference: Dataset, keyword: str) -> frozenset[int]:
    value = reference.get(keyword)
    if value is None or value == "":
        return frozenset()
    return frozenset(int(v) for v in value) if hasattr(value, "__iter__") else frozenset({int(value)})


def _references(ds: Dataset) -> Iterator[tuple[Dataset, str]]:
    """Items that refer to an Instance, with the sequence that they stand in; shared items once."""
    seen: set[int] = set()

    def below(item: Dataset, sequence: str) -> Iterator[tuple[Dataset, str]]:
        if "ReferencedSOPInstanceUID" in item:
            yield item, sequence
        for element in elements(item):
            if element.VR == "SQ" and (keyword := values.keyword(int(element.tag))) not in _ELSEWHERE:
                for each in element.value:
                    if id(each) not in seen:
                        seen.add(id(each))
                        yield from below(each, keyword)

    yield from below(ds, "")


def _of_series(ds: Dataset, known: Mapping[str, Instance]) -> Iterator[str]:
    """Instances are listed under the series that they are in (PS3.3 C.17.2.1, C.12.2, C.11.11)."""
    studies = [
        study
        for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
        for study in ds.get(keyword, ())
    ]
    for study in (ds, *studies):
        for series in study.get("ReferencedSeriesSequence", ()):
            listed = [
                item
                for keyword in ("ReferencedSOPSequence", "ReferencedInstanceSequence", "ReferencedImageSequence")
                for item in series.get(keyword, ())
            ]
            uids = (str(item.get("ReferencedSOPInstanceUID")) for item in listed)
            if any(uid in known and known[uid].series_uid != series.get("SeriesInstanceUID") for uid in uids):
                yield "lists an Instance under a series that it is not in"


def _of_evidence(ds: Dataset) -> Iterator[str]:
    """All Instances that a content tree refers to are in the evidence (PS3.3 C.17.2.3)."""
    if str(ds.SOPClassUID) not in content.VALUE_TYPES:
        return
    keywords = ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
    evidence = {
        str(item.get("ReferencedSOPInstanceUID"))
        for keyword in keywords
        for study in ds.get(keyword, ())
        for series in study.get("ReferencedSeriesSequence", ())
        for item in series.get("ReferencedSOPSequence", ())
    }
    cited = {
        str(reference.get("ReferencedSOPInstanceUID"))
        for item in content.items(ds)
        for reference in item.get("ReferencedSOPSequence", ())
    }
    if cited - evidence:
        yield f"{len(cited - evidence)} Instances of its content are not among its evidence"


def _of_predecessor(ds: Dataset, grounds: Grounds) -> Iterator[str]:
    named = {
        str(item.get("ReferencedSOPInstanceUID"))
        for study in ds.get("PredecessorDocumentsSequence", ())
        for series in study.get("ReferencedSeriesSequence", ())
        for item in series.get("ReferencedSOPSequence", ())
    }
    if not all(map(grounds.allows, named)):
        yield "names a predecessor that it has not"
