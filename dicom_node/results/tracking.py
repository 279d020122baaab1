"""Finding -> the name and UID that it has in the SEG, in the SR and in every list."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.sr.codedict import codes

from dicom_node.comparison import Comparison
from dicom_node.domain import Finding
from dicom_node.results.headers import Origin

LATERALITY = {"left": codes.SCT.Left, "right": codes.SCT.Right}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """Tracking Identifier and Tracking Unique Identifier (PS3.16 TID 4108)."""

    identifier: str
    uid: str


def track(findings: Sequence[Finding], origin: Origin, comparison: Comparison | None = None) -> tuple[Tracking, ...]:
    """Names for the findings of one Detection, in its order: "Nodule 1" has the highest score.

    A nodule that the earlier report has keeps its UID, which is what tells its history; its number is that of this
    report. Where two findings answer to one earlier nodule, the first keeps the UID: within a report each is unique.
    """
    earlier = _earlier_uids(comparison)
    taken: set[str] = set()
    names = []
    for number, finding in enumerate(findings, start=1):
        uid = earlier.get(number)
        if uid is None or uid in taken:
            uid = origin.uid("tracking", str(number), _fingerprint(finding))
        taken.add(uid)
        names.append(Tracking(identifier=f"Nodule {number}", uid=uid))
    return tuple(names)


def _earlier_uids(comparison: Comparison | None) -> dict[int, str]:
    """Number of a finding -> the UID of the earlier nodule that it is."""
    if comparison is None:
        return {}
    return {change.number: change.prior.tracking_uid for change in comparison.changes if change.prior is not None}


def _fingerprint(finding: Finding) -> str:
    place = f"{finding.corner} {finding.mask.shape} ".encode()
    return hashlib.sha256(place + np.packbits(finding.mask).tobytes()).hexdigest()
