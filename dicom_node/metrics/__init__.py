"""What the node counts of itself, over all its processes: never a patient's data, and labels that are bounded.

catalogue.py says what there is, record.py is what the roles call, files.py keeps the counts beyond a process's life,
exposition.py shows them together with what the rows say.
"""

from dicom_node.metrics.catalogue import OTHER, UNKNOWN_PEER
from dicom_node.metrics.record import (
    association_accepted,
    association_ended,
    association_rejected,
    audit_lost,
    commitment_settled,
    correction_taken,
    delivery_settled,
    gpu_away,
    gpu_sampled,
    instance_received,
    instance_retrieved,
    login_tried,
    result_made,
    series_deleted,
    series_ended,
    shadow_looked,
    stage_took,
    start,
    stop,
)

__all__ = [
    "OTHER",
    "UNKNOWN_PEER",
    "association_accepted",
    "association_ended",
    "association_rejected",
    "audit_lost",
    "commitment_settled",
    "correction_taken",
    "delivery_settled",
    "gpu_away",
    "gpu_sampled",
    "instance_received",
    "instance_retrieved",
    "login_tried",
    "result_made",
    "series_deleted",
    "series_ended",
    "shadow_looked",
    "stage_took",
    "start",
    "stop",
]
