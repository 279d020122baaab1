"""The self-check lets sound objects leave, and sees each way in which one could be wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.comparison import Comparison, PriorExam, PriorNodule
from dicom_node.domain import CTSeries, Finding, LungDistance, Volume
from dicom_node.errors import Reason, ResultError, SeriesRejected
from dicom_node.profiles import ResultProfile
from dicom_node.results import objects as of_profiles
from dicom_node.results.build import build_objects, build_rejection, read
from dicom_node.results.check import check_objects, check_refusal, reports
from dicom_node.results.headers import Origin
from dicom_node.results.reading import Grounds, Made, Reading, Refusal
from dicom_node.results.references import references_of
from dicom_node.results.seg import build_seg
from dicom_node.results.sr import build_not_analysed, build_report
from dicom_node.series import read_series, to_volume
from tests.fakes.ct import make_ct_series
from tests.fakes.enhanced import make_enhanced_ct
from tests.fakes.findings import JOB, ball, detection_of, finding_of
from tests.fakes.pictures import pictures_of

FORMS: tuple[Any, ...] = ("binary", "fractional", "labelmap")
FRAMES: tuple[Any, ...] = ("sparse", "full")


def reported(reading: Reading, seg: Dataset | None) -> Dataset:
    return build_report(reading, seg, narrative=True)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> CTSeries:
    return read_series(make_ct_series(tmp_path_factory.mktemp("ct")))


@pytest.fixture(scope="module")
def volume(series: CTSeries) -> Volume:
    return to_volume(series)


def reading_of(series: CTSeries, volume: Volume, *findings: Finding, **detection: Any) -> Reading:
    return read(series, volume, replace(detection_of(*findings), **detection), **JOB)


def objects_of(reading: Reading, form: Any = "binary", frames: Any = "sparse") -> dict[str, Dataset]:
    seg = build_seg(reading, form=form, frames=frames)
    made = [
        Made(kind="seg", ds=seg),
        Made(kind="sr", ds=reported(reading, seg)),
        *pictures_of(reading),
    ]
    return {each.kind: each.ds for each in made}


def check(objects: dict[str, Dataset], reading: Reading) -> None:
    check_objects([Made(kind=kind, ds=ds) for kind, ds in objects.items()], reading)


@pytest.fixture(scope="module")
def reading(series: CTSeries, volume: Volume) -> Reading:
    return reading_of(series, volume, ball(volume, (10, 20, 20), 4.0), ball(volume, (30, 40, 45), 6.0, side="right"))


@pytest.fixture(scope="module")
def sound(reading: Reading) -> dict[str, dict[str, Dataset]]:
    """By form of the Segmentation."""
    return {form: objects_of(reading, form) for form in FORMS}


@pytest.fixture
def objects(sound: dict[str, dict[str, Dataset]]) -> dict[str, Dataset]:
    """To spoil."""
    return deepcopy(sound["binary"])


# -- sound objects ---------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("form", FORMS)
def test_sound_objects_may_leave(reading: Reading, form: str, frames: str) -> None:
    check(objects_of(reading, form, frames), reading)


def test_sound_objects_on_a_multi_frame_source_may_leave(tmp_path: Path) -> None:
    ct = make_enhanced_ct(make_ct_series(tmp_path / "ct"), tmp_path / "enhanced", parts=2)
    series = read_series(ct)
    volume = to_volume(series)
    check_objects(*_all_but_pictures(reading_of(series, volume, ball(volume, (20, 30, 30), 5.0))))


def _all_but_pictures(reading: Reading) -> tuple[list[Made], Reading]:
    seg = build_seg(reading)
    return [Made(kind="seg", ds=seg), Made(kind="sr", ds=reported(reading, seg))], reading


def test_reports_without_a_segmentation_may_leave(reading: Reading, series: CTSeries, volume: Volume) -> None:
    none = reading_of(series, volume)
    check_objects([Made(kind="sr", ds=reported(none, None))], none)


def test_a_source_with_faults_of_its_own_does_not_keep_results_back(tmp_path: Path) -> None:
    other = Dataset()
    other.PatientID = "X"  # PS3.3 C.7.1.1: TypeOfPatientID is required here, too
    header = {"OtherPatientIDsSequence": [other], "PatientBirthDate": None, "StudyTime": "10:11", "PatientSex": "male"}
    series = read_series(make_ct_series(tmp_path, header=header))
    volume = to_volume(series)
    check_objects(*_all_but_pictures(reading_of(series, volume, ball(volume, (20, 30, 30), 5.0))))


# -- what a standard asks --------------------------------------------------------------------------


def _set(path: str, value: Any) -> Callable[[Dataset], None]:
    """`_set("SegmentSequence.0.SegmentLabel", None)`; DELETE takes the attribute out."""
    *way, last = path.split(".")

    def spoil(ds: Dataset) -> None:
        item: Any = ds
        for step in way:
            item = item[int(step)] if step.isdigit() else getattr(item, step)
        if value is DELETE:
            delattr(item, last)
        else:
            setattr(item, last, value)

    return spoil


DELETE = object()
FRAME = "PerFrameFunctionalGroupsSequence.0"
GRAPHIC = "GraphicAnnotationSequence.0.GraphicObjectSequence.0"

UNFIT: list[tuple[str, Callable[[Dataset], None], str]] = [
    ("seg", _set("SegmentSequence.0.SegmentLabel", DELETE), "SegmentSequence/SegmentLabel is missing"),
    ("seg", _set("SegmentSequence.1.TrackingID", DELETE), "SegmentSequence/TrackingID is missing"),
    ("seg", _set("ContentLabel", ""), "ContentLabel is empty"),
    ("seg", _set("ContentLabel", "lower case"), "ContentLabel is no CS"),
    ("seg", _set("FrameOfReferenceUID", DELETE), "FrameOfReferenceUID is missing"),
    ("seg", _set("DimensionIndexSequence", []), "DimensionIndexSequence is empty"),
    ("seg", _set("ContributingEquipmentSequence", []), "ContributingEquipmentSequence is there without an item"),
    ("seg", _set("PatientID", DELETE), "PatientID is missing"),
    ("seg", _set(f"{FRAME}.PlanePositionSequence", DELETE), "PlanePositionSequence is not in the shared"),
    ("seg", _set("SharedFunctionalGroupsSequence.0.PixelMeasuresSequence", DELETE), "PixelMeasuresSequence is not in"),
    ("seg", _set(f"{FRAME}.DerivationImageSequence.0.SourceImageSequence", []), "names no image"),
    ("seg", _set("SegmentationType", "CLEAR"), "SegmentationType has a value that is not among those"),
    ("seg", _set("BitsStored", 7), "BitsStored, HighBit or PixelRepresentation"),
    ("seg", _set("SeriesNumber", DELETE), "SeriesNumber is missing"),
    ("seg", _set("StudyInstanceUID", "1.02.3"), "StudyInstanceUID is not that of the source"),
    ("seg", _set("DeviceSerialNumber", "n" * 65), "DeviceSerialNumber is no LO"),
    ("seg", _set("ContentDescription", "Knöllchen. Research use, not for diagnosis"), "SpecificCharacterSet has not"),
    ("sr", _set("CompletionFlag", "MAYBE"), "CompletionFlag has a value"),
    ("sr", _set("ContentTemplateSequence.0.TemplateIdentifier", DELETE), "no TemplateIdentifier"),
    ("sr", _set("ContentSequence.3.ConceptNameCodeSequence.0.CodeMeaning", DELETE), "no CodeMeaning"),
    ("sr", _set("ContentSequence.3.RelationshipType", DELETE), "no RelationshipType"),
    ("sr", _set("ContentSequence.3.ValueType", "POEM"), "a value type that this IOD does not hold"),
    ("sr", _set("ContentSequence", []), "ContentSequence is missing"),
    ("capture", _set("ConversionType", DELETE), "ConversionType is missing"),
    ("capture", _set("PatientOrientation", DELETE), "PatientOrientation is missing"),
    ("capture", _set("PlanarConfiguration", None), "PlanarConfiguration is empty"),
    ("key_objects", _set("CurrentRequestedProcedureEvidenceSequence", DELETE), "EvidenceSequence is missing"),
    ("key_objects", _set("ContentSequence.0.ValueType", "NUM"), "a value type that this IOD does not hold"),
    ("presentation", _set("GraphicLayerSequence", DELETE), "GraphicLayerSequence is missing"),
    ("presentation", _set(f"{GRAPHIC}.GraphicFilled", DELETE), "GraphicFilled is missing"),
    ("presentation", _set("PresentationLUTShape", DELETE), "PresentationLUTShape is missing"),
    ("presentation", _set("DisplayedAreaSelectionSequence.0.PresentationSizeMode", "HUGE"), "PresentationSizeMode has"),
    ("pdf", _set("DocumentTitle", DELETE), "DocumentTitle is missing"),
    ("pdf", _set("MIMETypeOfEncapsulatedDocument", "text/html"), "MIMETypeOfEncapsulatedDocument has a value"),
]


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) else None


@pytest.mark.parametrize(("kind", "spoil", "complaint"), UNFIT, ids=_name)
def test_what_ps3_3_does_not_allow_does_not_leave(
    objects: dict[str, Dataset], reading: Reading, kind: str, spoil: Callable[[Dataset], None], complaint: str
) -> None:
    spoil(objects[kind])

    with pytest.raises(ResultError, match=f"{kind}: .*{complaint}"):
        check(objects, reading)


def test_an_object_of_an_unknown_class_does_not_leave(objects: dict[str, Dataset], reading: Reading) -> None:
    objects["sr"].SOPClassUID = "1.2.3"
    with pytest.raises(ResultError, match="sr: SOPClassUID is none"):
        check(objects, reading)


def test_a_number_without_a_value_does_not_leave(objects: dict[str, Dataset], reading: Reading) -> None:
    del named(objects["sr"], "Long Axis")[0].MeasuredValueSequence[0].NumericValue
    with pytest.raises(ResultError, match="has no NumericValue"):
        check(objects, reading)


# -- what it means ---------------------------------------------------------------------------------


def items(ds: Dataset) -> Iterator[Dataset]:
    for item in ds.get("ContentSequence", ()):
        yield item
        yield from items(item)


def named(sr: Dataset, meaning: str) -> list[Dataset]:
    return [
        item
        for item in items(sr)
        if item.get("ConceptNameCodeSequence")
        and item.ConceptNameCodeSequence[0].CodeMeaning.lower() == meaning.lower()
    ]


def pixels_of(seg: Dataset) -> NDArray[Any]:
    """(frame, row, column), to be changed and put back."""
    shape = int(seg.NumberOfFrames), int(seg.Rows), int(seg.Columns)
    if seg.BitsAllocated == 1:
        return np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")[: np.prod(shape)].reshape(shape)
    return np.frombuffer(seg.PixelData, np.uint8)[: np.prod(shape)].reshape(shape).copy()


def put_pixels(seg: Dataset, pixels: NDArray[Any]) -> None:
    flat = np.packbits(pixels.ravel(), bitorder="little") if seg.BitsAllocated == 1 else pixels.ravel()
    seg.PixelData = flat.tobytes()


def empty_second_segment(objects: dict[str, Dataset]) -> None:
    seg = objects["seg"]
    pixels = pixels_of(seg)
    if seg.SegmentationType == "LABELMAP":
        pixels[pixels == 2] = 0
    else:
        for number, frame in enumerate(seg.PerFrameFunctionalGroupsSequence):
            if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 2:
                pixels[number] = 0
    put_pixels(seg, pixels)


def lose_one_voxel(objects: dict[str, Dataset]) -> None:
    pixels = pixels_of(objects["seg"])
    pixels[tuple(np.argwhere(pixels)[0])] = 0
    put_pixels(objects["seg"], pixels)


def gain_one_voxel(objects: dict[str, Dataset]) -> None:
    pixels = pixels_of(objects["seg"])
    pixels[0, 0, 0] = pixels.max()
    put_pixels(objects["seg"], pixels)


def lose_the_last_byte(objects: dict[str, Dataset]) -> None:
    objects["seg"].PixelData = objects["seg"].PixelData[:-2]


def lie_about_overlap(objects: dict[str, Dataset]) -> None:
    seg = objects["seg"]
    seg.SegmentsOverlap = "YES"


def swap_two_frames(objects: dict[str, Dataset]) -> None:
    frames = objects["seg"].PerFrameFunctionalGroupsSequence
    frames[0], frames[1] = frames[1], frames[0]


def name_the_image_next_to_it(objects: dict[str, Dataset]) -> None:
    one, other = (
        frame.DerivationImageSequence[0].SourceImageSequence[0]
        for frame in objects["seg"].PerFrameFunctionalGroupsSequence[:2]
    )
    one.ReferencedSOPInstanceUID = other.ReferencedSOPInstanceUID


def state_another_volume(objects: dict[str, Dataset]) -> None:
    named(objects["sr"], "Volume")[0].MeasuredValueSequence[0].NumericValue = "1.0"


def state_no_volume(objects: dict[str, Dataset]) -> None:
    named(objects["sr"], "Volume")[0].ConceptNameCodeSequence[0].CodeValue = "0"


def refer_to_the_other_segment(objects: dict[str, Dataset]) -> None:
    for item in named(objects["sr"], "Referenced Segment"):
        item.ReferencedSOPSequence[0].ReferencedSegmentNumber = 2


def refer_to_a_third_segment(objects: dict[str, Dataset]) -> None:
    named(objects["sr"], "Referenced Segment")[0].ReferencedSOPSequence[0].ReferencedSegmentNumber = 3


def track_by_another_uid(objects: dict[str, Dataset]) -> None:
    named(objects["sr"], "Tracking Unique Identifier")[0].UID = "1.2.3"


def share_one_tracking_uid(objects: dict[str, Dataset]) -> None:
    segments = objects["seg"].SegmentSequence
    segments[-1].TrackingUID = segments[-2].TrackingUID


def track_segments_by_another_uid(objects: dict[str, Dataset]) -> None:
    objects["seg"].SegmentSequence[-1].TrackingUID = "1.2.3"


def drop_the_outline(objects: dict[str, Dataset]) -> None:
    (measurements,) = named(objects["sr"], "Imaging Measurements")
    groups = measurements.ContentSequence
    del groups[next(number for number, group in enumerate(groups) if "Image Region" in names_in(group))]


def names_in(item: Dataset) -> list[str]:
    """The concept names of an item's own children."""
    return [child.ConceptNameCodeSequence[0].CodeMeaning for child in item.get("ContentSequence", [])]


def draw_beside_the_image(objects: dict[str, Dataset]) -> None:
    outline = named(objects["sr"], "Image Region")[0]
    outline.GraphicData = [float(value) + 60 for value in outline.GraphicData]


def say_the_other_side(objects: dict[str, Dataset]) -> None:
    code = named(objects["sr"], "Laterality")[0].ConceptCodeSequence[0]
    code.CodeValue, code.CodeMeaning = "24028007", "Right"


def refer_elsewhere_in_the_report(objects: dict[str, Dataset]) -> None:
    region = named(objects["sr"], "Image Region")[0]
    region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def refer_elsewhere_in_the_segmentation(objects: dict[str, Dataset]) -> None:
    frame = objects["seg"].PerFrameFunctionalGroupsSequence[3]
    frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def refer_to_a_frame_of_a_single_frame_image(objects: dict[str, Dataset]) -> None:
    source = objects["seg"].PerFrameFunctionalGroupsSequence[3].DerivationImageSequence[0].SourceImageSequence[0]
    source.ReferencedFrameNumber = 2


def refer_by_the_wrong_class(objects: dict[str, Dataset]) -> None:
    region = named(objects["sr"], "Image Region")[0]
    region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"


def refer_to_the_wrong_series(objects: dict[str, Dataset]) -> None:
    evidence = objects["sr"].CurrentRequestedProcedureEvidenceSequence[0]
    evidence.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


def leave_the_segmentation_out_of_the_evidence(objects: dict[str, Dataset]) -> None:
    del objects["sr"].CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[1]


def select_what_is_not_there(objects: dict[str, Dataset]) -> None:
    ko = objects["key_objects"]
    for item in items(ko):
        if item.ValueType == "IMAGE":
            item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def name_a_predecessor(objects: dict[str, Dataset]) -> None:
    ds = objects["sr"]
    ds.PredecessorDocumentsSequence = deepcopy(ds.CurrentRequestedProcedureEvidenceSequence)


def belong_to_another_study(objects: dict[str, Dataset]) -> None:
    objects["sr"].StudyInstanceUID = "1.2.3"


def belong_to_another_patient(objects: dict[str, Dataset]) -> None:
    objects["presentation"].PatientName = "Someone^Else"


def share_one_instance_uid(objects: dict[str, Dataset]) -> None:
    objects["sr"].SOPInstanceUID = objects["seg"].SOPInstanceUID


def share_one_series_uid(objects: dict[str, Dataset]) -> None:
    objects["sr"].SeriesInstanceUID = objects["seg"].SeriesInstanceUID


def join_the_source_series(objects: dict[str, Dataset]) -> None:
    objects["sr"].SeriesInstanceUID = objects["seg"].ReferencedSeriesSequence[0].SeriesInstanceUID


def look_diagnostic_in_the_list(objects: dict[str, Dataset]) -> None:
    objects["seg"].SeriesDescription = "Lung nodules"


def look_diagnostic_in_the_text(objects: dict[str, Dataset]) -> None:
    for item in items(objects["sr"]):
        if "Research use" in item.get("TextValue", ""):
            item.TextValue = "none"


def look_diagnostic_in_the_picture(objects: dict[str, Dataset]) -> None:
    objects["capture"].ImageComments = "none"


def crop_the_picture(objects: dict[str, Dataset]) -> None:
    objects["capture"].Columns = 31


def paint_the_picture_black(objects: dict[str, Dataset]) -> None:
    objects["capture"].PixelData = bytes(len(objects["capture"].PixelData))


def call_the_picture_coloured(objects: dict[str, Dataset]) -> None:
    objects["capture"].PhotometricInterpretation = "RGB"


def draw_a_graphic_beside_the_image(objects: dict[str, Dataset]) -> None:
    drawn = objects["presentation"].GraphicAnnotationSequence[0].GraphicObjectSequence[0]
    drawn.GraphicData = [float(value) + 60 for value in drawn.GraphicData]


def lose_a_point_of_a_graphic(objects: dict[str, Dataset]) -> None:
    objects["presentation"].GraphicAnnotationSequence[0].GraphicObjectSequence[0].NumberOfGraphicPoints = 3


def draw_on_no_layer(objects: dict[str, Dataset]) -> None:
    objects["presentation"].GraphicAnnotationSequence[0].GraphicLayer = "NOWHERE"


def show_nothing(objects: dict[str, Dataset]) -> None:
    area = objects["presentation"].DisplayedAreaSelectionSequence[0]
    area.DisplayedAreaTopLeftHandCorner, area.DisplayedAreaBottomRightHandCorner = [100, 100], [200, 200]


def tear_the_document(objects: dict[str, Dataset]) -> None:
    objects["pdf"].EncapsulatedDocument = objects["pdf"].EncapsulatedDocument[:20]


MEANINGS: list[tuple[Callable[[dict[str, Dataset]], None], str]] = [
    (empty_second_segment, "seg: segment 2 is empty"),
    (lose_one_voxel, "seg: segment 1 has .* voxels, of which"),
    (gain_one_voxel, "seg: segment . has .* voxels, of which"),
    (lose_the_last_byte, "seg: has .* bytes of pixels"),
    (lie_about_overlap, "seg: (SegmentsOverlap does not say|is a label map whose segments overlap)"),
    (swap_two_frames, "seg: frames do not ascend"),
    (name_the_image_next_to_it, "seg: frame 1 names another image"),
    (state_another_volume, "sr: volume 1.000 mm3 of finding 1, whose voxels make"),
    (state_no_volume, "sr: finding 1 has 0 volumes"),
    (refer_to_the_other_segment, "sr: finding 1 refers to segment 2"),
    (refer_to_a_third_segment, "sr: ReferencedSOPSequence refers to a segment that there is not"),
    (track_by_another_uid, "sr: its Tracking UIDs are not those"),
    (share_one_tracking_uid, "seg: two segments have one Tracking UID"),
    (track_segments_by_another_uid, "seg: its Tracking UIDs are not those"),
    (drop_the_outline, "sr: finding 1 has no outline"),
    (draw_beside_the_image, "sr: has an outline outside the image"),
    (say_the_other_side, "sr: finding 1 is said to lie on another side"),
    (refer_elsewhere_in_the_report, "sr: refers to 1 unknown"),
    (refer_elsewhere_in_the_segmentation, "seg: refers to 1 unknown"),
    (refer_to_a_frame_of_a_single_frame_image, "seg: SourceImageSequence refers to frames"),
    (refer_by_the_wrong_class, "sr: ReferencedSOPSequence has the wrong SOP Class"),
    (refer_to_the_wrong_series, "sr: lists an Instance under a series"),
    (leave_the_segmentation_out_of_the_evidence, "sr: 1 Instances of its content are not among its evidence"),
    (select_what_is_not_there, "key_objects: refers to 1 unknown"),
    (name_a_predecessor, "sr: names a predecessor"),
    (belong_to_another_study, "sr: StudyInstanceUID is not that of the source"),
    (belong_to_another_patient, "presentation: PatientName is not that of the source"),
    (share_one_instance_uid, "sr: SOPInstanceUID .* is taken"),
    (share_one_series_uid, "sr: SeriesInstanceUID .* is that of another kind"),
    (join_the_source_series, "sr: SeriesInstanceUID .* is taken"),
    (look_diagnostic_in_the_list, "seg: SeriesDescription lacks"),
    (look_diagnostic_in_the_text, "sr: content lacks"),
    (look_diagnostic_in_the_picture, "capture: content lacks"),
    (crop_the_picture, "capture: has 600 bytes of pixels, not 620"),
    (paint_the_picture_black, "capture: is a black picture"),
    (call_the_picture_coloured, "capture: PhotometricInterpretation does not fit"),
    (draw_a_graphic_beside_the_image, "presentation: has a graphic outside the image"),
    (lose_a_point_of_a_graphic, "presentation: has a graphic whose points"),
    (draw_on_no_layer, "presentation: draws on a graphic layer"),
    (show_nothing, "presentation: shows an area without the image"),
    (tear_the_document, "pdf: holds no whole PDF"),
]


@pytest.mark.parametrize(
    ("form", "spoil", "complaint"),
    [(form, *case) for case in MEANINGS for form in (FORMS if case[1].startswith("seg:") else FORMS[:1])],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_untrue_objects_do_not_leave(
    sound: dict[str, dict[str, Dataset]],
    reading: Reading,
    form: str,
    spoil: Callable[[dict[str, Dataset]], None],
    complaint: str,
) -> None:
    objects = deepcopy(sound[form])
    spoil(objects)

    with pytest.raises(ResultError, match=complaint) as caught:
        check(objects, reading)

    assert "Someone" not in str(caught.value)
    assert "Phantom" not in str(caught.value)


def test_measurements_of_what_nobody_found_do_not_leave(reading: Reading, series: CTSeries, volume: Volume) -> None:
    none = reading_of(series, volume)
    with pytest.raises(ResultError, match="sr: refers to 1 unknown"):
        check({"sr": objects_of(reading)["sr"]}, none)
    faults = list(reports.report_faults(objects_of(reading)["sr"], {}, none))
    assert "its measurement groups are not those of the findings" in faults


def test_a_report_may_speak_of_an_earlier_nodule_that_is_gone(
    reading: Reading, objects: dict[str, Dataset], earlier: Comparison
) -> None:
    gone = deepcopy(named(objects["sr"], "Tracking Unique Identifier")[0])
    gone.UID = "1.2.7"
    named(objects["sr"], "Qualitative Evaluations")[0].ContentSequence.append(gone)

    check(objects, replace(reading, comparison=earlier))
    with pytest.raises(ResultError, match="Tracking UIDs are not those"):
        check(objects, reading)


@pytest.fixture
def earlier() -> Comparison:
    nodule = PriorNodule(
        tracking_identifier="Nodule 1",
        tracking_uid="1.2.7",
        center_mm=(0.0, 0.0, 0.0),
        volume_mm3=1.0,
        long_axis_mm=1.0,
        short_axis_mm=1.0,
    )
    prior = PriorExam(
        study_uid="1.2.1",
        series_uid="1.2.2",
        acquired_at=datetime(2025, 1, 1),
        report_sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
        report_sop_instance_uid="1.2.3",
        report_series_uid="1.2.4",
        nodules=(nodule,),
    )
    return Comparison(outcome="compared", text="compared", prior=prior, interval_days=100.0, gone=(nodule,))


# -- geometry --------------------------------------------------------------------------------------


def _flip(axis: int) -> Callable[[Dataset], None]:
    return lambda seg: put_pixels(seg, np.flip(pixels_of(seg), axis))


def _roll(axis: int, by: int) -> Callable[[Dataset], None]:
    return lambda seg: put_pixels(seg, np.roll(pixels_of(seg), by, axis))


def _transpose(seg: Dataset) -> None:
    put_pixels(seg, pixels_of(seg).transpose(0, 2, 1))


def _move(axis: int, mm: float) -> Callable[[Dataset], None]:
    def spoil(seg: Dataset) -> None:
        for frame in seg.PerFrameFunctionalGroupsSequence:
            position = frame.PlanePositionSequence[0].ImagePositionPatient
            frame.PlanePositionSequence[0].ImagePositionPatient = [
                f"{float(value) + (mm if at == axis else 0.0):.6f}" for at, value in enumerate(position)
            ]

    return spoil


def _turn(orientation: list[float]) -> Callable[[Dataset], None]:
    def spoil(seg: Dataset) -> None:
        seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient = orientation

    return spoil


def _stretch(keyword: str, value: Any) -> Callable[[Dataset], None]:
    def spoil(seg: Dataset) -> None:
        setattr(seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], keyword, value)

    return spoil


CORRUPTIONS = st.one_of(
    st.sampled_from([_flip(0), _flip(1), _flip(2), _transpose]),
    st.builds(_roll, st.integers(0, 2), st.sampled_from([-3, -1, 1, 2])),
    st.builds(_move, st.integers(0, 2), st.sampled_from([-2.5, -0.7, 0.35, 2.5])),
    st.sampled_from([_turn([-1, 0, 0, 0, 1, 0]), _turn([1, 0, 0, 0, -1, 0]), _turn([0, 1, 0, 1, 0, 0])]),
    st.sampled_from([_stretch("PixelSpacing", [0.7, 0.8]), _stretch("SpacingBetweenSlices", 2.0)]),
)


@pytest.fixture(scope="module")
def uneven(series: CTSeries, volume: Volume) -> Reading:
    """One finding that no flip leaves as it is, away from the middle."""
    mask = np.zeros(volume.hu.shape, np.bool_)
    mask[10:14, 20:23, 30:36] = True
    mask[10, 20, 30:33], mask[13, 22, 35] = False, False
    return reading_of(series, volume, finding_of(volume, mask))


@pytest.fixture(scope="module")
def drawn(uneven: Reading) -> dict[tuple[str, str], list[Made]]:
    segs: dict[tuple[str, str], Dataset] = {
        (form, frames): build_seg(uneven, form=form, frames=frames) for form in FORMS for frames in FRAMES
    }
    made = {key: [Made(kind="seg", ds=seg), Made(kind="sr", ds=reported(uneven, seg))] for key, seg in segs.items()}
    for objects in made.values():
        check_objects(objects, uneven)
    return made


@settings(max_examples=60, deadline=None)
@given(spoil=CORRUPTIONS, form=st.sampled_from(FORMS), frames=st.sampled_from(FRAMES))
def test_no_single_fault_in_the_geometry_leaves(
    uneven: Reading,
    drawn: dict[tuple[str, str], list[Made]],
    spoil: Callable[[Dataset], None],
    form: str,
    frames: str,
) -> None:
    made = deepcopy(drawn[form, frames])
    spoil(made[0].ds)

    with pytest.raises(ResultError, match=r"^seg: "):
        check_objects(made, uneven)


# -- lungs -----------------------------------------------------------------------------------------


def lungs_at(volume: Volume, distance_mm: float, margin_mm: float = 5.0) -> LungDistance:
    """Every place lies this far from the lungs."""
    grid = np.diag([2.0, 2.0, 2.0, 1.0])[[2, 1, 0, 3]]
    grid[:3, 3] = volume.affine[:3, 3]
    return LungDistance(distance_mm=np.full((60, 30, 30), distance_mm, np.float32), affine=grid, margin_mm=margin_mm)


@pytest.mark.parametrize("form", FORMS)
def test_a_segment_far_from_the_lungs_does_not_leave(series: CTSeries, volume: Volume, form: str) -> None:
    nodule = ball(volume, (10, 20, 20), 4.0)
    near = reading_of(series, volume, nodule, lungs=lungs_at(volume, 5.0))
    far = reading_of(series, volume, nodule, lungs=lungs_at(volume, 30.0))

    check(objects_of(near, form), near)
    with pytest.raises(ResultError, match="segment 1 lies 30 mm from the lungs"):
        check(objects_of(far, form), far)


def test_a_large_segment_that_touches_the_lungs_may_leave(series: CTSeries, volume: Volume) -> None:
    """As in the detector: its centre lies outside the margin, but no further than it is large."""
    large = reading_of(series, volume, ball(volume, (20, 32, 32), 18.0), lungs=lungs_at(volume, 15.0))
    check(objects_of(large), large)


def test_where_nobody_looked_for_the_lungs_their_distance_is_not_asked(
    reading: Reading, objects: dict[str, Dataset]
) -> None:
    assert reading.detection.lungs is None
    check(objects, reading)


# -- refusals --------------------------------------------------------------------------------------


def refusal_on(series: CTSeries) -> Refusal:
    return Refusal(
        rejected=SeriesRejected(Reason.SLICE_GAP, "a gap"),
        instances=tuple(references_of(series)),
        origin=Origin(header=series.header, manifest_sha256="a7" * 32, made_at=JOB["made_at"], model=None),
        grounds=Grounds(evidence="44 of 44"),
    )


def test_a_refusal_may_leave_and_a_broken_one_may_not(series: CTSeries) -> None:
    refusal = refusal_on(series)
    report = build_not_analysed(refusal)
    check_refusal([Made(kind="sr", ds=report)], refusal)

    report.PatientID = "another"
    with pytest.raises(ResultError, match="sr: PatientID is not that of the source"):
        check_refusal([Made(kind="sr", ds=report)], refusal)


def test_a_refusal_marks_nothing(series: CTSeries, reading: Reading) -> None:
    with pytest.raises(ResultError, match="seg: marks findings"):
        check_refusal([Made(kind="seg", ds=build_seg(reading))], refusal_on(series))


def test_a_refusal_of_a_series_without_a_readable_instance_may_leave(series: CTSeries) -> None:
    report = build_rejection(series.header, [("", "1.2")], SeriesRejected(Reason.UNREADABLE, "no file"), **JOB)
    assert "CurrentRequestedProcedureEvidenceSequence" not in report


def test_several_faults_are_told_and_the_rest_is_counted(objects: dict[str, Dataset], reading: Reading) -> None:
    for keyword in ("Modality", "SeriesDate", "Manufacturer", "PatientID", "StudyID", "ContentLabel", "InstanceNumber"):
        if keyword in objects["seg"]:
            del objects["seg"][keyword]
    with pytest.raises(ResultError, match=r"^(seg: [^;]*; ){5}and \d+ more$"):
        check(objects, reading)


def test_what_a_profile_asks_for_is_checked(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    def untrue(reading: Reading, **form: Any) -> Dataset:
        seg = build_seg(reading, **form)
        seg.PixelData = bytes(len(seg.PixelData))
        return seg

    monkeypatch.setattr(of_profiles, "build_seg", untrue)
    with pytest.raises(ResultError, match="segment 1 is empty"):
        build_objects(reading, ResultProfile())
