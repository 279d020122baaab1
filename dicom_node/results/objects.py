"""A Reading or a Refusal, and the profiles of its destinations -> each object once, checked, with who gets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pydicom.dataset import Dataset

from dicom_node.profiles import KINDS, REPORT_KINDS, Report, ResultProfile
from dicom_node.results.check import check_objects, check_refusal
from dicom_node.results.reading import Made, Reading, Refusal, name_of
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
    """Makes each object when it is asked for first, by its name, which says all in which it can differ."""

    made: dict[str, Made] = field(default_factory=dict)

    def once(self, kind: str, form: str, build: Callable[[], Dataset]) -> Made:
        name = name_of(kind, form)
        if name not in self.made:
            self.made[name] = Made(kind=kind, form=form, ds=build())
        return self.made[name]


def _grounded(source: _Source, kind: str, form: str) -> _Source:
    return replace(source, grounds=source.grounds.for_report(kind, form))


def _of_reading(reading: Reading, profile: ResultProfile, workshop: _Workshop) -> tuple[Made, ...]:
    made = tuple(_objects(reading, profile, workshop))
    check_objects(made, reading)
    return made


def _objects(reading: Reading, profile: ResultProfile, workshop: _Workshop) -> Iterator[Made]:
    seg = None
    form, frames = profile.segmentation, profile.segmentation_frames
    words = _words(form if form != "binary" else "", frames if frames != "sparse" else "")
    if reading.findings and form != "none":
        seg = workshop.once("seg", words, lambda: build_seg(reading, form=form, frames=frames))
        yield seg
    for report in profile.reports:
        yield _report(report, reading, profile, seg, workshop)


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
    made = tuple(_refused(report, refusal, workshop) for report in profile.reports)
    check_refusal(made, refusal)
    return made


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
