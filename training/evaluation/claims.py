"""A figure's scans, lists, definition and split -> the name it may be printed under.

LUNA16's name leads a figure only where all four are LUNA16's: exactly its 888 scans or exactly one of its subsets,
each judged by a model that saw no patient of what it judged; its lists of nodules and of excluded findings; its FROC.
Any other figure gets a name that says what it was made on.

The official lists are known by their fingerprints in luna16_lists.json: sha256 of the sorted SeriesInstanceUIDs, and
of the sorted rows of a list with coordinates and diameters in tenths of a micrometre.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.evaluation.froc import Truths

OFFICIAL = Path(__file__).with_name("luna16_lists.json")
ALL = "all"
LUNA16_FROC = "LUNA16's FROC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """Counts and fingerprints of a set of scans with its nodules and excluded findings."""

    scans: int
    scans_sha256: str
    nodules: int
    nodules_sha256: str
    excluded: int
    excluded_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One model and what it judged. tested: scan uid -> patient. trained_patients: all it ever saw, by nodule, scan or
    composite; for choosing a threshold too."""

    tested: Mapping[str, str]
    trained_patients: frozenset[str]

    @property
    def clean(self) -> bool:
        return not self.trained_patients & set(self.tested.values())


def luna16_name(
    scans: Collection[str],
    nodules: Truths,
    excluded: Truths,
    definition: str,
    folds: Sequence[Fold] | None = None,
    composites: bool = False,
) -> str:
    """The name for a figure. Starts with "LUNA16" only where LUNA16's name is earned.

    nodules, excluded: the lists it was made with, rows of other scans allowed. definition: LUNA16_FROC, or in words
    what else was computed. folds: who was trained on whom; None where nobody says. composites: at least one scan holds
    nodules that were put in.
    """
    if composites:
        return f"composites ({len(scans)} scans, no real cases): {definition}"
    official = official_lists()
    mine = describe(scans, nodules, excluded)
    place = next((name for name, lists in official.items() if lists.scans_sha256 == mine.scans_sha256), None)
    if place is None:
        return f"{_own_scans(scans)}: {definition}"
    where = f"LUNA16's {mine.scans} scans" if place == ALL else f"the {mine.scans} scans of LUNA16's subset {place}"
    faults = [*_list_faults(mine, official[place]), *_split_faults(place, scans, folds)]
    if definition != LUNA16_FROC:
        faults.append("a definition that is not LUNA16's")
    if faults:
        return f"on {where}, with {', '.join(faults)}: {definition}"
    return f"LUNA16 ({'ten folds' if place == ALL else f'subset {place}'}, {mine.scans} scans): {definition}"


def _list_faults(mine: Lists, official: Lists) -> list[str]:
    faults = []
    if mine.nodules_sha256 != official.nodules_sha256:
        faults.append(f"its own list of nodules ({mine.nodules}; LUNA16's has {official.nodules})")
    if mine.excluded_sha256 != official.excluded_sha256:
        faults.append(f"its own list of excluded findings ({mine.excluded}; LUNA16's has {official.excluded})")
    return faults


def _split_faults(place: str, scans: Collection[str], folds: Sequence[Fold] | None) -> list[str]:
    if folds is None:
        return ["an unknown split"]
    official = official_lists()
    subsets = {lists.scans_sha256 for name, lists in official.items() if name != ALL}
    wanted = subsets if place == ALL else {official[place].scans_sha256}
    tested = [fingerprint(fold.tested) for fold in folds]
    if set(tested) != wanted or len(tested) != len(wanted):
        return ["its own split"]
    if not all(fold.clean for fold in folds):
        return ["patients in training that it was tested on"]
    return []


def _own_scans(scans: Collection[str]) -> str:
    known = _official_uids()
    shared = sum(map(is_luna16, set(scans)))
    if not shared:
        return f"{len(scans)} scans, none of LUNA16's"
    if shared == len(scans):
        return f"a subset of LUNA16's scans ({shared} of {len(known)}, own split)"
    return f"{len(scans)} scans, {shared} of them among LUNA16's {len(known)}, own split"


def is_luna16(uid: str) -> bool:
    """Whether a SeriesInstanceUID is one of LUNA16's 888."""
    return _short(uid) in _official_uids()


def describe(scans: Collection[str], nodules: Truths, excluded: Truths) -> Lists:
    """Of the scans and the findings in them."""
    chosen = set(scans)
    found, unsure = _rows(nodules, chosen), _rows(excluded, chosen)
    return Lists(
        scans=len(scans),
        scans_sha256=fingerprint(scans),
        nodules=len(found),
        nodules_sha256=fingerprint(found),
        excluded=len(unsure),
        excluded_sha256=fingerprint(unsure),
    )


def fingerprint(lines: Iterable[str]) -> str:
    """sha256, whatever the order of the lines."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _rows(truths: Truths, scans: set[str]) -> list[str]:
    numbers = zip(truths.series.tolist(), truths.xyz_mm.tolist(), truths.diameter_mm.tolist(), strict=True)
    return [
        ",".join([uid, *(str(round(v * 1e4)) for v in (*xyz_mm, diameter_mm))])
        for uid, xyz_mm, diameter_mm in numbers
        if uid in scans
    ]


@cache
def official_lists() -> dict[str, Lists]:
    """ "all" and "0" to "9" -> what LUNA16 publishes."""
    return {name: Lists(**raw) for name, raw in json.loads(OFFICIAL.read_text())["lists"].items()}


@cache
def _official_uids() -> frozenset[str]:
    return frozenset(json.loads(OFFICIAL.read_text())["scans"].split())


def _short(uid: str) -> str:
    """Eight hex digits tell 888 scans apart, and hand on no list."""
    return hashlib.sha256(uid.encode()).hexdigest()[:8]
