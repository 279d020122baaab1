"""What is known of a series that arrives -> the evidence that it is complete, or how long to wait for more of it.

DICOM has no message "this series is finished". The ladder, strongest evidence first:

archive   the archive counts as many instances as arrived, and the slices are contiguous
released  every Association that brought it was released, the slices are contiguous, InstanceNumbers have no hole
quiet     nothing came for the full quiet time of the source
forced    it still grows when the longest wait is over: the result is marked PARTIAL

The first two need no more than a short quiet time. Pure: the flow gathers the facts and obeys the verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Rung = Literal["archive", "released", "quiet", "forced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveCount:
    """What an archive said of a series: how many instances it has, or why it could not tell ("does not answer")."""

    ae_title: str
    instances: int | None = None
    problem: str | None = None

    def __post_init__(self) -> None:
        if (self.instances is None) == (self.problem is None):
            raise ValueError("an archive's answer is a count or a problem")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A series at one moment.

    instances: how many arrived. slices: axial ones that passed the geometry gate, contiguous; None where it refused.
    left_out: instances that are no part of the volume. dense: no InstanceNumber is missing between the first and the
    last of the slices, none is there twice. released: the Associations that brought it ended in order, none is open.
    quiet_s: since the last new instance. waiting_s: since the first one that was not decided on yet.
    """

    instances: int
    slices: int | None
    left_out: int
    dense: bool
    released: bool
    quiet_s: float
    waiting_s: float
    archive: ArchiveCount | None = None

    @property
    def missing(self) -> int:
        """How many more the archive has."""
        counted = None if self.archive is None else self.archive.instances
        return 0 if counted is None else max(0, counted - self.instances)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait, in seconds: without proof, with proof, and at the very most while a series goes on growing."""

    quiet_time_s: float
    proven_quiet_time_s: float
    longest_wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Why a series counts as complete, or that it does not (`partial`); `text` is for people."""

    rung: Rung
    partial: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing is decided yet; look again after `more_s`, or when something new came."""

    more_s: float


def judge(facts: Facts, patience: Patience) -> Evidence | Wait:
    """The strongest evidence that holds now."""
    rung = proof(facts)
    quiet_for_s = quiet_needed_s(facts, patience) - facts.quiet_s
    if quiet_for_s <= 0:
        return _evidence(rung or "quiet", facts, patience)
    force_in_s = patience.longest_wait_s - facts.waiting_s
    if force_in_s <= 0:
        return _evidence("forced", facts, patience)
    return Wait(more_s=min(quiet_for_s, force_in_s))


def proof(facts: Facts) -> Literal["archive", "released"] | None:
    """What proves the series once it is quiet for a moment. An archive that has more of it refutes its release."""
    if facts.slices is None:
        return None
    if facts.archive is not None and facts.archive.instances == facts.instances:
        return "archive"
    return "released" if facts.released and facts.dense and not facts.missing else None


def quiet_needed_s(facts: Facts, patience: Patience) -> float:
    """How long nothing may have come."""
    full_s = patience.quiet_time_s
    return full_s if proof(facts) is None else min(full_s, patience.proven_quiet_time_s)


def is_dense(instance_numbers: Iterable[int | None]) -> bool:
    """Each number once and none missing in between; they may start anywhere. Without numbers nothing is known."""
    numbers = list(instance_numbers)
    known = {number for number in numbers if number is not None}
    return bool(known) and len(known) == len(numbers) == max(known) - min(known) + 1


def _evidence(rung: Rung, facts: Facts, patience: Patience) -> Evidence:
    partial = rung == "forced" or facts.missing > 0
    text = ", ".join(_words(rung, facts, patience))
    return Evidence(rung=rung, partial=partial, text=f"PARTIAL: {text}" if partial else text)


def _words(rung: Rung, facts: Facts, patience: Patience) -> list[str]:
    """Like "300 of 300 instances by ORTHANC", "300 axial slices contiguous"."""
    words = [_counted(facts)]
    if facts.slices is not None:
        words.append(f"{facts.slices} axial slices contiguous")
        if facts.left_out:
            words.append(f"{facts.left_out} instances not part of them")
    if facts.released:
        words.append("Association released" + (", no InstanceNumber missing" if facts.dense else ""))
    if rung == "forced":
        words.append(f"images still came after {patience.longest_wait_s:g} s")
    elif rung != "archive":
        words.append(f"quiet for {facts.quiet_s:.1f} s")
    if facts.archive is not None and facts.archive.problem is not None:
        words.append(f"{facts.archive.ae_title} {facts.archive.problem}")
    return words


def _counted(facts: Facts) -> str:
    archive = facts.archive
    if archive is None or archive.instances is None:
        return f"{facts.instances} instances received"
    if archive.instances < facts.instances:
        return f"{facts.instances} instances received, {archive.ae_title} has {archive.instances}"
    return f"{facts.instances} of {archive.instances} instances by {archive.ae_title}"


def as_json(evidence: Evidence, facts: Facts) -> dict[str, Any]:
    """What is stored with the job."""
    known = asdict(facts)
    known["archive"] = None if facts.archive is None else asdict(facts.archive)
    return {**asdict(evidence), **known, "quiet_s": round(facts.quiet_s, 1), "waiting_s": round(facts.waiting_s, 1)}
