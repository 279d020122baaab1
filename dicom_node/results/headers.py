"""Source header + job -> what every result says about its patient, its study, its maker and its time."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import StrEnum

from highdicom.sr import CodedConcept
from pydicom.charset import python_encoding
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicom_node.domain import RESEARCH_USE, ModelIdentity
from dicom_node.errors import ResultError
from dicom_node.identity import MANUFACTURER, MODEL_NAME, SOFTWARE_VERSION
from dicom_node.results.uids import derive_uid

UTF_8 = "ISO_IR 192"
_GB2312_ESCAPE = "\x1b$)A"
_TEXT_VRS = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")  # those that Specific Character Set speaks of

# Type 2 attributes of the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): present, maybe empty.
TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip

# PS3.3 C.7.1.1 Patient, C.7.1.3 Clinical Trial Subject, C.7.2.1 General Study, C.7.2.2 Patient Study, C.7.2.3
# Clinical Trial Study. An archive joins objects to patients and studies by these, so they are copied as they are.
PATIENT_AND_STUDY = (
    *TYPE_2,
    "StudyInstanceUID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "TypeOfPatientID",
    "PatientBirthTime", "PatientBirthDateInAlternativeCalendar", "PatientDeathDateInAlternativeCalendar",
    "PatientAlternativeCalendar", "QualityControlSubject", "ReferencedPatientSequence", "OtherPatientIDs",
    "OtherPatientIDsSequence", "OtherPatientNames", "EthnicGroup", "EthnicGroupCodeSequence",
    "PatientComments", "PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription",
    "PatientBreedCodeSequence", "BreedRegistrationSequence", "StrainDescription", "StrainNomenclature",
    "StrainCodeSequence", "ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization",
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "SourcePatientGroupIdentificationSequence", "GroupOfPatientsIdentificationSequence",
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "IssuerOfClinicalTrialProtocolID",
    "ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID", "ClinicalTrialProtocolEthicsCommitteeName",
    "ClinicalTrialProtocolEthicsCommitteeApprovalNumber",
    "StudyDescription", "ReferringPhysicianIdentificationSequence", "ConsultingPhysicianName",
    "ConsultingPhysicianIdentificationSequence", "IssuerOfAccessionNumberSequence", "PhysiciansOfRecord",
    "PhysiciansOfRecordIdentificationSequence", "NameOfPhysiciansReadingStudy",
    "PhysiciansReadingStudyIdentificationSequence", "RequestingService", "RequestingServiceCodeSequence",
    "ReferencedStudySequence", "ProcedureCodeSequence", "ReasonForPerformedProcedureCodeSequence",
    "AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence", "PatientAge", "PatientSize",
    "PatientWeight", "PatientBodyMassIndex", "PatientSizeCodeSequence", "Occupation",
    "AdditionalPatientHistory", "AdmissionID", "IssuerOfAdmissionIDSequence", "ServiceEpisodeID",
    "IssuerOfServiceEpisodeIDSequence", "ServiceEpisodeDescription", "PatientSexNeutered", "MedicalAlerts",
    "Allergies", "SmokingStatus", "PregnancyStatus", "LastMenstrualDate", "PatientState",
    "ReasonForVisit", "ReasonForVisitCodeSequence", "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription", "ConsentForClinicalTrialUseSequence",
    "ClinicalTrialTimePointTypeCodeSequence", "GeneticModificationsSequence", "IssuerOfClinicalTrialSiteID",
    "IssuerOfClinicalTrialSubjectID", "IssuerOfClinicalTrialSubjectReadingID", "MeasuredAPDimension",
    "IssuerOfClinicalTrialTimePointID", "LongitudinalTemporalEventType", "MeasuredLateralDimension",
    "LongitudinalTemporalOffsetFromEvent", "OtherClinicalTrialProtocolIDsSequence",
    "ReferencedPatientPhotoSequence", "StrainAdditionalInformation", "StrainStockSequence",
)  # fmt: skip


class Kind(StrEnum):
    """What a result is. The value takes part in its UIDs."""

    SEGMENTATION = "SEG"
    REPORT = "SR"
    TEXT_REPORT = "SR_TEXT"
    CAD_REPORT = "SR_CAD"
    REJECTION = "REJECTION"
    CAPTURE = "SC"
    KEY_OBJECTS = "KO"
    PRESENTATION = "PR"
    PDF = "DOC"


# Fixed, so that results stand together at the end of a study's list of series and never at random.
SERIES_NUMBER = {
    Kind.SEGMENTATION: 9100,
    Kind.REPORT: 9200,
    Kind.TEXT_REPORT: 9210,
    Kind.CAD_REPORT: 9220,
    Kind.REJECTION: 9300,
    Kind.CAPTURE: 9400,
    Kind.KEY_OBJECTS: 9500,
    Kind.PRESENTATION: 9600,
    Kind.PDF: 9700,
}
MODALITY = {
    Kind.SEGMENTATION: "SEG",
    Kind.REPORT: "SR",
    Kind.TEXT_REPORT: "SR",
    Kind.CAD_REPORT: "SR",
    Kind.REJECTION: "SR",
    Kind.CAPTURE: "OT",
    Kind.KEY_OBJECTS: "KO",
    Kind.PRESENTATION: "PR",
    Kind.PDF: "DOC",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a result comes from: all that its UIDs follow from, beside its own content.

    header: header of one Instance of the source series.
    manifest_sha256: hash of the set of Instances that the result is about.
    made_at: the job's time; with a time zone where the node knows its own.
    model: None where no model saw the series.
    words: other texts of ours that the result will hold: its character set must have them too.
    """

    header: Dataset
    manifest_sha256: str
    made_at: datetime
    model: ModelIdentity | None
    words: str = ""

    def __post_init__(self) -> None:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
            if not self.header.get(keyword):
                raise ResultError(f"the source has no {keyword}: a result would belong nowhere")

    @property
    def study_uid(self) -> str:
        return str(self.header.StudyInstanceUID)

    @property
    def series_uid(self) -> str:
        return str(self.header.SeriesInstanceUID)

    def uid(self, *content: str) -> str:
        """UID that follows from the source, the model and `content`."""
        bundle = self.model.bundle_sha256 if self.model else ""
        return derive_uid(self.study_uid, self.series_uid, self.manifest_sha256, bundle, *content)


def put_headers(ds: Dataset, origin: Origin, kind: Kind, description: str) -> None:
    """Write what the source and the job say about `ds`, over whatever a library put there."""
    _put_source(ds, origin)
    _put_series(ds, kind, description)
    _put_equipment(ds, origin)
    _put_times(ds, origin)


def _put_source(ds: Dataset, origin: Origin) -> None:
    """Patient and study as the source has them, in a character set that can hold them and our own words."""
    for keyword in (*PATIENT_AND_STUDY, "TimezoneOffsetFromUTC", "InstitutionName"):
        if keyword in origin.header:
            ds[keyword] = decoded(origin.header, keyword)
        elif keyword in TYPE_2:
            setattr(ds, keyword, "")
        elif keyword in ds:
            del ds[keyword]
    charset = _charset(origin)
    if charset:
        ds.SpecificCharacterSet = charset
    elif "SpecificCharacterSet" in ds:
        del ds.SpecificCharacterSet


def decoded(header: Dataset, keyword: str) -> DataElement:
    """The element with its text decoded, nested text too, so that it can be written in another character set."""
    element = deepcopy(header[keyword])
    if element.VR == "SQ":
        for item in element.value:
            item.walk(lambda _ds, nested: _strip_escapes(nested))
    _strip_escapes(element)
    return element


def _strip_escapes(element: DataElement) -> None:
    """pydicom 3.0 leaves the escape sequences of ISO 2022 IR 58 in the text that it decodes (PS3.5 annex K)."""
    if element.VR not in _TEXT_VRS or not element.value:
        return
    values = element.value if element.VM > 1 else [element.value]
    if any(_GB2312_ESCAPE in str(value) for value in values):
        stripped = [str(value).replace(_GB2312_ESCAPE, "") for value in values]
        element.value = stripped if element.VM > 1 else stripped[0]


def _charset(origin: Origin) -> str:
    """The source's own character set where one without code extensions holds all text, else UTF-8.

    highdicom 0.28 and several readers cannot do ISO 2022 code extensions (PS3.5 6.1.2.5).
    """
    declared = origin.header.get("SpecificCharacterSet") or ""
    if not isinstance(declared, str) or declared.startswith("ISO 2022"):
        return UTF_8
    own_text = origin.words
    if origin.model is not None:
        own_text += f"{origin.model.name} {origin.model.version} {origin.model.parameters}"
    if not declared:
        return "" if own_text.isascii() else UTF_8
    try:
        own_text.encode(python_encoding[declared])
    except (KeyError, UnicodeEncodeError):
        return UTF_8
    return declared


def _put_series(ds: Dataset, kind: Kind, description: str) -> None:
    ds.Modality = MODALITY[kind]
    ds.SeriesNumber = SERIES_NUMBER[kind]
    ds.InstanceNumber = 1
    ds.SeriesDescription = f"{description}. {RESEARCH_USE}"


def _put_equipment(ds: Dataset, origin: Origin) -> None:
    """The node as the maker (PS3.3 C.7.5.2), the model as contributing equipment (C.12.1.1.5)."""
    ds.Manufacturer = MANUFACTURER
    ds.ManufacturerModelName = MODEL_NAME
    ds.DeviceSerialNumber = SOFTWARE_VERSION
    ds.SoftwareVersions = SOFTWARE_VERSION
    if origin.model is None:
        if "ContributingEquipmentSequence" in ds:
            del ds.ContributingEquipmentSequence
        return
    model = Dataset()
    model.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.DCM.ProcessingEquipment)]
    model.Manufacturer = MANUFACTURER
    model.ManufacturerModelName = origin.model.name[:64]
    model.SoftwareVersions = [origin.model.version[:64], origin.model.bundle_sha256[:64]]
    model.DeviceUID = derive_uid("model", origin.model.bundle_sha256)  # IHE AI Results 6.5.3.1: another with each model
    model.ContributionDateTime = _datetime_text(origin.made_at)
    model.ContributionDescription = (
        f"Lung nodule model, bundle sha256 {origin.model.bundle_sha256}, "
        f"operating point {origin.model.operating_point:g}. {RESEARCH_USE}."
    )
    ds.ContributingEquipmentSequence = [model]


def _put_times(ds: Dataset, origin: Origin) -> None:
    """Date and time of the job on the clock that the source's own dates are on (PS3.3 C.12.1.1.8)."""
    made_at = origin.made_at
    offset = re.fullmatch(r"([+-])(0\d|1[0-4])([0-5]\d)", str(origin.header.get("TimezoneOffsetFromUTC") or ""))
    if offset and made_at.tzinfo is not None:
        shift = timedelta(hours=int(offset[2]), minutes=int(offset[3]))
        made_at = made_at.astimezone(timezone(-shift if offset[1] == "-" else shift))
    if not offset and "TimezoneOffsetFromUTC" in ds:
        del ds.TimezoneOffsetFromUTC  # what can't be an offset would be said of our own times, too
    for keyword in ("InstanceCreation", "Content", "Series"):
        setattr(ds, f"{keyword}Date", made_at.strftime("%Y%m%d"))
        setattr(ds, f"{keyword}Time", made_at.strftime("%H%M%S.%f"))


def _datetime_text(moment: datetime) -> str:
    """PS3.5 6.2, DT: with its offset from UTC where it is known."""
    return moment.strftime("%Y%m%d%H%M%S.%f%z")
