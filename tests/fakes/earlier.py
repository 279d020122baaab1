"""An earlier exam of the phantom patient: a CT series, and what this node made of it then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicom_node.config import GateConfig
from dicom_node.results import build_results, to_bytes
from dicom_node.series import read_series, to_volume
from tests.fakes.ct import make_ct_series
from tests.fakes.findings import JOB, ball, detection_of

PRIOR_STUDY, PRIOR_SERIES = "1.2.826.0.1.3680043.8.498.2001", "1.2.826.0.1.3680043.8.498.2002"
PRIOR: dict[str, Any] = {
    "StudyInstanceUID": PRIOR_STUDY,
    "SeriesInstanceUID": PRIOR_SERIES,
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.2003",
    "StudyDate": "20250102",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """Files of one exam. results: SEG and SR, empty where nobody looked at the CT."""

    images: list[Path]
    results: list[Path]

    @property
    def files(self) -> list[Path]:
        return [*self.images, *self.results]


def earlier_exam(folder: Path, *, header: Mapping[str, Any] | None = None, found: bool = True) -> Earlier:
    """Eight slices with one nodule, or with none; the report is this node's own."""
    images = make_ct_series(folder / "images", shape=(8, 32, 32), header={**PRIOR, **(header or {})})
    series = read_series(images, GateConfig(min_slices=5, min_length_mm=0))
    volume = to_volume(series)
    findings = (ball(volume, (4.0, 16.0, 16.0), 4.0),) if found else ()
    made = build_results(series, volume, detection_of(*findings, analysed=(0, 8)), **JOB)
    results = []
    for each in made.objects:
        results.append(folder / f"{each.kind}.dcm")
        results[-1].write_bytes(to_bytes(each.ds))
    return Earlier(images=images, results=results)
