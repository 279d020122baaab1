"""A Reading or a Refusal, and the profiles of its destinations -> each object once, checked, with who gets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pydicom.dataset import Dataset

from dicom_node.profiles import KINDS, REPORT_KINDS, Report, ResultProfile
from dicom_node.results.capture import build_captures, build_refusal_capture
from dicom_node.results.check import check_objects, check_refusal
from dicom_node.results.key_objects import build_key_objects
from dicom_node.results.pdf import build_pdf, build_refusal_pdf
from dicom_node.results.presentation import build_presentation_states
from dicom_node.results.reading import Made, Reading, Refusal
from dicom_node.results.seg import build_seg
from dicom_node.results.sr import build_not_analysed, build_report
from dicom_node.results.sr_cad import build_cad_not_analysed, build_cad_report
from dicom_node.results.sr_text import build_text_not_analysed, build_text_report

_Source = TypeVar("_Source", Reading, Refusal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Addressed:
    """A finished object and the destinations that get it."""

    made: Made
    destinations: frozenset[str]


def objects_for(reading: Reading, profiles: Mapping[str, ResultProfile]) -> tuple[Addressed, ...]:
    """What the destinations of an analysed series get, in the order to send it. Equal arguments give equal bytes.

    profiles: of each destination. Objects that two of them share are one object.

    Raises ResultError when the objects of a destination fail their own checks.
    """
    workshop = _Workshop()
    return _addressed({name: _of_reading(reading, profile, workshop) for name, profile in profiles.items()})


def refusals_for(refusal: Refusal, profiles: Mapping[str, ResultProfile]) -> tuple[Addressed, ...]:
    """The same for a series that was not analysed: that it was not, and why."""
    workshop = _Workshop()
    return _addressed({name: _of_refusal(refusal, profile, workshop) for name, profile in profiles.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workshop:
    """Makes each object when it is asked for first, by its kind and a form that says all in which it can differ."""

    made: dict[tuple[str, str], tuple[Made, ...]] = field(default_factory=dict)

    def once(self, kind: str, form: str, build: Callable[[], Dataset]) -> Made:
        if (kind, form) not in self.made:
            self.made[kind, form] = (Made(kind=kind, form=form, ds=build()),)
        return self.made[kind, form][0]

    def several(self, kind: str, form: str, build: Callable[[], Sequence[Dataset]]) -> tuple[Made, ...]:
        """Numbered where there are more than one."""
        if (kind, form) not in self.made:
            objects = build()
            forms = [form] if len(objects) == 1 else [_words(form, f"{n:02}") for n in range(1, len(objects) + 1)]
            self.made[kind, form] = tuple(Made(kind=kind, form=f, ds=ds) for f, ds in zip(forms, objects, strict=True))
        return self.made[kind, form]


def _grounded(source: _Source, kind: str, form: str) -> _Source:
    return replace(source, grounds=source.grounds.for_report(kind, form))


def _of_reading(reading: Reading, profile: ResultProfile, workshop: _Workshop) -> tuple[Made, ...]:
    made = _objects(reading, profile, workshop)
    check_objects(made, reading)
    return tuple(made)


def _objects(reading: Reading, profile: ResultProfile, workshop: _Workshop) -> list[Made]:
    seg = _segmentation(reading, profile, workshop)
    made = [] if seg is None else [seg]
    made += _pictures(reading, profile, workshop)
    made += [_report(report, reading, profile, seg, workshop) for report in profile.reports]
    if profile.key_objects:
        # Key images refer to the states that draw on them.
        form = "states" if profile.presentation_states else ""
        made += workshop.several("key_objects", form, lambda: _key_objects(reading, made))
    return made


def _key_objects(reading: Reading, made: Sequence[Made]) -> list[Dataset]:
    ds = build_key_objects(reading, made)
    return [] if ds is None else [ds]


def _segmentation(reading: Reading, profile: ResultProfile, workshop: _Workshop) -> Made | None:
    form, frames = profile.segmentation, profile.segmentation_frames
    if form == "none" or not reading.findings:
        return None
    words = _words("" if form == "binary" else form, "" if frames == "sparse" else frames)
    return workshop.once("seg", words, lambda: build_seg(reading, form=form, frames=frames))


def _pictures(reading: Reading, profile: ResultProfile, workshop: _Workshop) -> list[Made]:
    made: list[Made] = []
    if profile.captures != "none":
        # Without findings there is one page, which is a single frame either way.
        multi_frame = profile.captures == "multi_frame" and bool(reading.findings)
        form = profile.captures if multi_frame else ""
        made += workshop.several("capture", form, lambda: build_captures(reading, multi_frame=multi_frame))
    if profile.pdf:
        made.append(workshop.once("pdf", "", lambda: build_pdf(reading)))
    if profile.presentation_states:
        made += workshop.several("presentation", "", lambda: build_presentation_states(reading))
    return made


def _report(report: Report, reading: Reading, profile: ResultProfile, seg: Made | None, workshop: _Workshop) -> Made:
    kind = REPORT_KINDS[report]
    if report != "tid1500":
        build = {"text": build_text_report, "chest_cad": build_cad_report}[report]
        return workshop.once(kind, "", lambda: build(_grounded(reading, kind, "")))
    without = "no_seg" if reading.findings and seg is None else ""
    words = _words(seg.form if seg else without, "" if profile.narrative else "plain")
    grounded = _grounded(reading, kind, words)
    return workshop.once(
        kind, words, lambda: build_report(grounded, seg.ds if seg else None, narrative=profile.narrative)
    )


_REFUSALS: Mapping[Report, Callable[[Refusal], Dataset]] = {
    "tid1500": build_not_analysed,
    "text": build_text_not_analysed,
    "chest_cad": build_cad_not_analysed,
}


def _of_refusal(refusal: Refusal, profile: ResultProfile, workshop: _Workshop) -> tuple[Made, ...]:
    made = [_refused(report, refusal, workshop) for report in profile.reports]
    if profile.captures != "none":
        made.append(workshop.once("capture", "", lambda: build_refusal_capture(refusal)))
    if profile.pdf:
        made.append(workshop.once("pdf", "", lambda: build_refusal_pdf(refusal)))
    check_refusal(made, refusal)
    return tuple(made)


def _refused(report: Report, refusal: Refusal, workshop: _Workshop) -> Made:
    kind = REPORT_KINDS[report]
    return workshop.once(kind, "", lambda: _REFUSALS[report](_grounded(refusal, kind, "")))


def _words(*words: str) -> str:
    return "_".join(word for word in words if word)


def _addressed(objects: Mapping[str, Sequence[Made]]) -> tuple[Addressed, ...]:
    """Two names may turn out to be one object: a label map of findings that overlap is a binary segmentation."""
    everything = [made for those in objects.values() for made in those]
    by_uid = {str(made.ds.SOPInstanceUID): made for made in sorted(everything, key=_place, reverse=True)}
    destinations: dict[str, set[str]] = {uid: set() for uid in by_uid}
    for destination, those in objects.items():
        for made in those:
            destinations[str(made.ds.SOPInstanceUID)].add(destination)
    return tuple(
        Addressed(made=made, destinations=frozenset(destinations[uid]))
        for uid, made in sorted(by_uid.items(), key=lambda pair: _place(pair[1]))
    )


def _place(made: Made) -> tuple[int, str]:
    return KINDS.index(made.kind), made.name
