"""What a look at an earlier CT may have brought: Comparisons of findings whose number the test knows."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from pydicom.uid import Comprehensive3DSRStorage

from dicom_node.comparison import Comparison, DoublingTime, NoduleChange, PriorExam, PriorNodule

EARLIER = PriorNodule(
    tracking_identifier="Nodule 1",
    tracking_uid="1.2.826.0.1.3680043.8.498.7001",
    center_mm=(0.0, 0.0, 0.0),
    volume_mm3=150.0,
    long_axis_mm=6.24,
    short_axis_mm=5.06,
)
GONE = replace(EARLIER, tracking_identifier="Nodule 3", tracking_uid="1.2.826.0.1.3680043.8.498.7003")
EXAM = PriorExam(
    study_uid="1.2.826.0.1.3680043.8.498.7100",
    series_uid="1.2.826.0.1.3680043.8.498.7101",
    acquired_at=datetime(2025, 1, 2, 9, 30),
    report_sop_class_uid=Comprehensive3DSRStorage,
    report_sop_instance_uid="1.2.826.0.1.3680043.8.498.7103",
    report_series_uid="1.2.826.0.1.3680043.8.498.7102",
    nodules=(EARLIER, GONE),
)
GROWN = NoduleChange(
    number=1,
    change="grown",
    prior=EARLIER,
    volume_change_percent=82.1,
    doubling_time=DoublingTime(days=421.4, low=350.2, high=600.8),
)
NEW = NoduleChange(number=2, change="new", prior=None, volume_change_percent=None, doubling_time=None)
NO_PRIOR = Comparison(outcome="no_prior", text="No earlier CT of the chest was found.")


def compared(*changes: NoduleChange, **fields: Any) -> Comparison:
    """One that speaks of these findings."""
    return Comparison(
        outcome="compared",
        text="Compared with the CT of 2025-01-02, 365 days before.",
        changes=changes,
        **{
            "prior": EXAM,
            "interval_days": 365.0,
            "quality": {"lung overlap, Dice": 0.9712, "lung in common [mL]": 3456.7},
            **fields,
        },
    )
