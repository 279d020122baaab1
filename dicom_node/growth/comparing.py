"""Findings, two CTs and our earlier report -> Comparison: what became of each nodule, or why nothing can be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from dicom_node.comparison import Comparison, NoduleChange, Outcome, PriorExam, PriorNodule
from dicom_node.domain import Finding, Volume
from dicom_node.errors import SeriesRejected
from dicom_node.growth import quality as gates
from dicom_node.growth.alignment import Alignment, align
from dicom_node.growth.change import change_percent, doubling_time, judged, log_ratio_sd
from dicom_node.growth.matching import Matches, Place, match
from dicom_node.growth.tissue import covers, shows_the_like
from dicom_node.lungs import find_lungs
from dicom_node.results.measure import Measurement

_DAY_S = 86400.0
LEAST_DAYS = 1.0
# Beyond this a place is only guessed, and nothing is called new or gone by it.
LARGEST_SD_MM = 6.0

_WORDS: dict[str, str] = {
    "new": "new",
    "grown": "grown",
    "stable": "stable",
    "shrunk": "shrunk",
    "not_judged": "not judged",
}
_FATES: dict[str, str] = {
    "gone": "gone",
    "unmarked": "still visible but not marked now",
    "not_covered": "outside this CT",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """Both exams, laid on each other."""

    current: Volume
    prior: Volume
    alignment: Alignment
    days: float


def compare(
    current: Volume,
    findings: Sequence[Finding],
    measurements: Sequence[Measurement],
    acquired_at: datetime,
    prior_volume: Volume,
    prior: PriorExam,
) -> Comparison:
    """What became of the nodules of `prior`, and which findings are new.

    acquired_at: of the current CT, as `prior.acquired_at` on the scanner's clock; a time zone is left out.
    prior_volume: the CT that `prior` reports on.
    """
    days = (acquired_at.replace(tzinfo=None) - prior.acquired_at.replace(tzinfo=None)).total_seconds() / _DAY_S
    if acquired_at.date() < prior.acquired_at.date():
        return not_compared("not_available", "The other CT is later than this one, so nothing was compared.")
    days = max(0.0, days)
    try:
        lungs, prior_lungs = find_lungs(current), find_lungs(prior_volume)
    except SeriesRejected:
        return not_compared("not_registered", "No lungs were found in one of the two CTs, so nothing was compared.")
    try:
        alignment = align(lungs, prior_lungs)
    except RuntimeError:  # SimpleITK's, where not a quarter of the lungs is common to both
        return not_compared("not_registered", _not_registered("they have too little lung in common"))
    quality = gates.figures(lungs, prior_lungs, alignment)
    why_not = gates.fault(quality)
    if why_not is not None:
        return Comparison(outcome="not_registered", text=_not_registered(why_not), quality=quality)
    pair = _Pair(current=current, prior=prior_volume, alignment=alignment, days=days)
    return _compared(pair, findings, measurements, prior, quality)


def not_compared(outcome: Outcome, text: str) -> Comparison:
    """A Comparison that says why there is none."""
    return Comparison(outcome=outcome, text=text)


def _not_registered(why: str) -> str:
    return f"The earlier CT could not be laid on this one, so nothing was compared: {why}."


def _compared(
    pair: _Pair,
    findings: Sequence[Finding],
    measurements: Sequence[Measurement],
    prior: PriorExam,
    quality: dict[str, float],
) -> Comparison:
    earlier = [_place(nodule, pair.alignment) for nodule in prior.nodules]
    now = [
        Place(point_mm=np.array(finding.center_mm), volume_mm3=measured.volume_mm3)
        for finding, measured in zip(findings, measurements, strict=True)
    ]
    matches = match(now, earlier, pair.days)
    changes = tuple(
        _change(number, measurements[number - 1], now[number - 1], matches, prior.nodules, pair)
        for number in range(1, len(findings) + 1)
    )
    answered = set(matches.pairs.values()) | {nodule for nodules in matches.doubtful.values() for nodule in nodules}
    left: dict[str, list[PriorNodule]] = {"gone": [], "unmarked": [], "not_covered": []}
    for index, (nodule, place) in enumerate(zip(prior.nodules, earlier, strict=True)):
        if index not in answered:
            left[_fate(nodule, place, pair)].append(nodule)
    return Comparison(
        outcome="compared",
        text=_text(pair.days, changes, left),
        prior=prior,
        interval_days=pair.days,
        quality=quality,
        changes=changes,
        gone=tuple(left["gone"]),
        unmarked=tuple(left["unmarked"]),
        not_covered=tuple(left["not_covered"]),
    )


def _place(nodule: PriorNodule, alignment: Alignment) -> Place:
    point_mm, sd_mm = alignment.to_current(np.array(nodule.center_mm))
    return Place(point_mm=point_mm, volume_mm3=nodule.volume_mm3, sd_mm=sd_mm)


def _change(
    number: int,
    measured: Measurement,
    place: Place,
    matches: Matches,
    nodules: Sequence[PriorNodule],
    pair: _Pair,
) -> NoduleChange:
    index = number - 1
    if index in matches.pairs:
        return _measured_change(number, measured, nodules[matches.pairs[index]], pair.days)
    if index in matches.doubtful:
        names = " or ".join(nodules[nodule].tracking_identifier for nodule in matches.doubtful[index])
        return _not_judged(number, f"Which earlier nodule it is cannot be told: it may be {names} of the earlier CT.")
    why_not = _not_new(place, pair)
    if why_not is not None:
        return _not_judged(number, why_not)
    return NoduleChange(number=number, change="new", prior=None, volume_change_percent=None, doubling_time=None)


def _measured_change(number: int, now: Measurement, then: PriorNodule, days: float) -> NoduleChange:
    percent = change_percent(now.volume_mm3, then.volume_mm3)
    sd = log_ratio_sd(now.volume_mm3, now.volume_error_mm3, then.volume_mm3, then.volume_error_mm3)
    if days < LEAST_DAYS:
        return NoduleChange(
            number=number,
            change="not_judged",
            prior=then,
            volume_change_percent=percent,
            doubling_time=None,
            note="The two CTs were made within a day, in which no nodule grows measurably.",
        )
    return NoduleChange(
        number=number,
        change=judged(now.volume_mm3, then.volume_mm3, sd),
        prior=then,
        volume_change_percent=percent,
        doubling_time=doubling_time(now.volume_mm3, then.volume_mm3, sd, days),
    )


def _not_judged(number: int, note: str) -> NoduleChange:
    return NoduleChange(
        number=number, change="not_judged", prior=None, volume_change_percent=None, doubling_time=None, note=note
    )


def _not_new(place: Place, pair: _Pair) -> str | None:
    """Why a finding without an earlier nodule can't be called new; None where it can."""
    there, sd_mm = pair.alignment.to_prior(place.point_mm)
    if not covers(pair.prior, there, place.radius_mm + sd_mm):
        return "The earlier CT does not show this place."
    if sd_mm > LARGEST_SD_MM:
        return "Where this place lies in the earlier CT is too uncertain."
    if shows_the_like(
        pair.prior, there, sd_mm, model=pair.current, center_mm=place.point_mm, radius_mm=place.radius_mm
    ):
        return "The earlier CT shows tissue at this place that was not marked then."
    return None


def _fate(nodule: PriorNodule, place: Place, pair: _Pair) -> str:
    """Of an earlier nodule that no finding answers to."""
    if not covers(pair.current, place.point_mm, place.radius_mm + min(place.sd_mm, LARGEST_SD_MM)):
        return "not_covered"
    if place.sd_mm > LARGEST_SD_MM or shows_the_like(
        pair.current,
        place.point_mm,
        place.sd_mm,
        model=pair.prior,
        center_mm=np.array(nodule.center_mm),
        radius_mm=place.radius_mm,
    ):
        return "unmarked"
    return "gone"


def _text(days: float, changes: Sequence[NoduleChange], left: dict[str, list[PriorNodule]]) -> str:
    counts = [(change, sum(item.change == change for item in changes)) for change in _WORDS]
    counts += [(fate, len(nodules)) for fate, nodules in left.items()]
    said = [f"{count} {(_WORDS | _FATES)[key]}" for key, count in counts if count]
    when = f"{days:.0f} days" if days >= 1.5 else "1 day" if days >= LEAST_DAYS else "less than a day"
    return f"Compared with a CT made {when} before: {', '.join(said) or 'no nodule then or now'}."
