"""A Reading or a Refusal, and the profiles of its destinations -> each object once, checked, with who gets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

from pydicom.dataset import Dataset

from dicom_node.profiles import KINDS, ResultProfile
from dicom_node.results.check import check_objects, check_refusal
from dicom_node.results.reading import Made, Predecessor, Reading, Refusal, name_of
from dicom_node.results.seg import build_seg
from dicom_node.results.sr import build_not_analysed, build_report

_Source = TypeVar("_Source", Reading, Refusal)
_NONE: Mapping[str, Predecessor] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Addressed:
    """A finished object and the destinations that get it."""

    made: Made
    destinations: frozenset[str]


def objects_for(
    reading: Reading, profiles: Mapping[str, ResultProfile], predecessors: Mapping[str, Predecessor] = _NONE
) -> tuple[Addressed, ...]:
    """What the destinations of an analysed series get, in the order to send it. Equal arguments give equal bytes.

    profiles: of each destination. Objects that two of them share are one object. predecessors: reports on an earlier
    state of the series, by name or kind of the reports that replace them.

    Raises ResultError when the objects of a destination fail their own checks.
    """
    workshop = _Workshop(predecessors=predecessors)
    return _addressed({name: _of_reading(reading, profile, workshop) for name, profile in profiles.items()})


def refusals_for(
    refusal: Refusal, profiles: Mapping[str, ResultProfile], predecessors: Mapping[str, Predecessor] = _NONE
) -> tuple[Addressed, ...]:
    """The same for a series that was not analysed: that it was not, and why."""
    workshop = _Workshop(predecessors=predecessors)
    return _addressed({name: _of_refusal(refusal, profile, workshop) for name, profile in profiles.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workshop:
    """Makes each object when it is asked for first, by its name, which says all in which it can differ."""

    predecessors: Mapping[str, Predecessor]
    made: dict[str, Made] = field(default_factory=dict)

    def once(self, kind: str, form: str, build: Callable[[], Dataset]) -> Made:
        name = name_of(kind, form)
        if name not in self.made:
            self.made[name] = Made(kind=kind, form=form, ds=build())
        return self.made[name]

    def grounded(self, source: _Source, kind: str, form: str) -> _Source:
        """The same Reading or Refusal, to be reported as what replaces the earlier report of this form, if any."""
        old = self.predecessors.get(name_of(kind, form)) or self.predecessors.get(kind)
        return source if old is None else replace(source, grounds=replace(source.grounds, predecessor=old))


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
    grounded = workshop.grounded(reading, "sr", words)
    yield workshop.once("sr", words, lambda: build_report(grounded, None if seg is None else seg.ds))


def _of_refusal(refusal: Refusal, profile: ResultProfile, workshop: _Workshop) -> tuple[Made, ...]:
    made = (workshop.once("sr", "", lambda: build_not_analysed(workshop.grounded(refusal, "sr", ""))),)
    check_refusal(made, refusal)
    return made


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
