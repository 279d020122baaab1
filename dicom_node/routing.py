"""Which series goes to which model and where to: the first route whose conditions all hold, and why not the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dicom_node.config import NODE_ATTRIBUTES, Condition, RouteConfig
from dicom_node.domain import CTSeries
from dicom_node.series import InstanceFile, consensus, images_of
from dicom_node.series.shown import shown

Values = Sequence[str | float]
# keyword -> the series' values of it; None: not known, so a condition on it can't be asked.
Facts = Callable[[str], Values | None]
# keyword, values -> how an explanation says them.
Tell = Callable[[str, Values], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One route against one series: what failed, empty where it matches."""

    route: str
    failed: tuple[str, ...]
    why: str = "matches"

    @property
    def matches(self) -> bool:
        return not self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The route that matched (None: none did) and the verdict on each route that was looked at."""

    route: RouteConfig | None
    verdicts: tuple[Verdict, ...]

    def explain(self) -> list[str]:
        return [f"{v.route}: " + (v.why if v.matches else "; ".join(v.failed)) for v in self.verdicts]


def facts_of(files: Sequence[InstanceFile], series: CTSeries | None, source_ae: str) -> Facts:
    """Attributes by consensus of the axial images; geometry only where the gate passed (`series`)."""
    known: dict[str, Values | None] = {
        "SourceAETitle": [source_ae],
        "SliceCount": None if series is None else [float(len(series.images))],
        "SliceSpacing": None if series is None else [series.spacing_mm[0]],
    }
    images = images_of(files)

    def look_up(keyword: str) -> Values | None:
        return known[keyword] if keyword in NODE_ATTRIBUTES else consensus(images, keyword)

    return look_up


def named(route: RouteConfig, why: str) -> Choice:
    """A route that was named for the series: no condition is asked."""
    return Choice(route=route, verdicts=(Verdict(route=route.name, failed=(), why=why),))


def choose(routes: Sequence[RouteConfig], facts: Facts, *, tell: Tell = shown) -> Choice:
    """Looks no further than the first match: later routes have no say.

    tell: as explanations that are stored, logged or sent may say values, unless it is `in_full`.
    """
    verdicts: list[Verdict] = []
    for route in routes:
        verdicts.append(judge(route, facts, tell=tell))
        if verdicts[-1].matches:
            return Choice(route=route, verdicts=tuple(verdicts))
    return Choice(route=None, verdicts=tuple(verdicts))


def judge(route: RouteConfig, facts: Facts, *, tell: Tell = shown) -> Verdict:
    failed: list[str] = []
    for keyword, condition in route.when.items():
        values = facts(keyword)
        if values is not None:
            failed += [f"{keyword} {problem}" for problem in _problems(condition, values, _said(keyword, values, tell))]
    return Verdict(route=route.name, failed=tuple(failed))


def _problems(condition: Condition, values: Values, said: str) -> list[str]:
    """What of `condition` does not hold. An attribute with several values holds when one of them does."""
    if condition.present is not None and condition.present != bool(values):
        return ["is absent" if condition.present else "is present"]
    problems = []
    if condition.equals is not None and not any(_same(v, condition.equals) for v in values):
        problems.append(f"is {said}, not {condition.equals}")
    if condition.any_of is not None and not any(_same(v, wanted) for v in values for wanted in condition.any_of):
        problems.append(f"is {said}, none of {', '.join(str(wanted) for wanted in condition.any_of)}")
    if condition.regex is not None and not any(re.search(condition.regex, str(v)) for v in values):
        problems.append(f"is {said}, which /{condition.regex}/ does not match")
    numbers = [number for number in map(_number, values) if number is not None]
    if condition.min is not None and not any(number >= condition.min for number in numbers):
        problems.append(f"is {said}, less than {condition.min:g}" if numbers else f"is {said}, no number")
    if condition.max is not None and not any(number <= condition.max for number in numbers):
        problems.append(f"is {said}, more than {condition.max:g}" if numbers else f"is {said}, no number")
    return problems


def in_full(_keyword: str, values: Values) -> str:
    """For a terminal alone, whose reader has the files: a value is what a rule is written with."""
    return " \\ ".join("".join(c for c in str(v) if c.isprintable()) for v in values) or "absent"


def _said(keyword: str, values: Values, tell: Tell) -> str:
    """The node's own attributes are of no header: there is nothing to hide in them."""
    return in_full(keyword, values) if keyword in NODE_ATTRIBUTES else tell(keyword, values)


def _same(value: str | float, wanted: str | float) -> bool:
    if str(value).strip() == str(wanted).strip():
        return True
    left, right = _number(value), _number(wanted)
    return left is not None and left == right


def _number(value: str | float) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
