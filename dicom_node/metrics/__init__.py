"""What the node counts of itself, over all its processes: never a patient's data, and labels that are bounded.

catalogue.py says what there is, record.py is what the roles call, files.py keeps the counts beyond a process's life,
exposition.py shows them together with what the rows say.
"""

from dicom_node.metrics.record import (
    association_accepted,
    association_ended,
    association_rejected,
    delivery_settled,
    gpu_sampled,
    instance_received,
    result_made,
    series_ended,
    stage_took,
    start,
    stop,
)

__all__ = [
    "association_accepted",
    "association_ended",
    "association_rejected",
    "delivery_settled",
    "gpu_sampled",
    "instance_received",
    "result_made",
    "series_ended",
    "stage_took",
    "start",
    "stop",
]
