"""A Reading or a Refusal, and the profiles of its destinations -> each object once, checked, with who gets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

from pydicom.dataset import Dataset

from dicom_node.profiles import KINDS, ResultProfile
from dicom_node.results.check import check_results
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
    seg = None
    form = _seg_form(profile)
    if reading.findings:
        seg = workshop.once(
            "seg", form, lambda: build_seg(reading, omit_empty_frames=profile.segmentation_frames == "sparse")
        )
    sr = workshop.once(
        "sr", form, lambda: build_report(workshop.grounded(reading, "sr", form), None if seg is None else seg.ds)
    )
    check_results(None if seg is None else seg.ds, sr.ds, reading.series)
    return tuple(made for made in (seg, sr) if made is not None)


def _of_refusal(refusal: Refusal, profile: ResultProfile, workshop: _Workshop) -> tuple[Made, ...]:
    return (workshop.once("sr", "", lambda: build_not_analysed(workshop.grounded(refusal, "sr", ""))),)


def _seg_form(profile: ResultProfile) -> str:
    words = [] if profile.segmentation == "binary" else [profile.segmentation]
    return "_".join(words + ([] if profile.segmentation_frames == "sparse" else [profile.segmentation_frames]))


def _addressed(objects: Mapping[str, Sequence[Made]]) -> tuple[Addressed, ...]:
    destinations: dict[str, set[str]] = {}
    made: dict[str, Made] = {}
    for destination, those in objects.items():
        for one in those:
            made[one.name] = one
            destinations.setdefault(one.name, set()).add(destination)
    ordered = sorted(made.values(), key=lambda one: (KINDS.index(one.kind), one.name))
    return tuple(Addressed(made=one, destinations=frozenset(destinations[one.name])) for one in ordered)
