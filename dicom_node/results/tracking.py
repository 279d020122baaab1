"""Finding -> the name and UID that it has in the SEG, in the SR and in every list."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.sr.codedict import codes

from dicom_node.domain import Finding
from dicom_node.results.headers import Origin

LATERALITY = {"left": codes.SCT.Left, "right": codes.SCT.Right}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """Tracking Identifier and Tracking Unique Identifier (PS3.16 TID 4108)."""

    identifier: str
    uid: str


def track(findings: Sequence[Finding], origin: Origin) -> tuple[Tracking, ...]:
    """Names for the findings of one Detection, in its order: "Nodule 1" has the highest score."""
    return tuple(
        Tracking(
            identifier=f"Nodule {number}",
            uid=origin.uid("tracking", str(number), _fingerprint(finding)),
        )
        for number, finding in enumerate(findings, start=1)
    )


def _fingerprint(finding: Finding) -> str:
    place = f"{finding.corner} {finding.mask.shape} ".encode()
    return hashlib.sha256(place + np.packbits(finding.mask).tobytes()).hexdigest()
