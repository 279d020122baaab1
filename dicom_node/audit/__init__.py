"""Who did what to whose data -> DICOM audit messages (PS3.15 A.5) -> a file that shows changes, and a syslog server.

`events` has a function a kind of event, pure; `Auditor.write` makes it last. The trail is the one place outside DICOM
files where a patient's identity may stand.
"""

from dicom_node.audit.auditor import Audit, Auditor, NoAudit
from dicom_node.audit.events import (
    Outcome,
    Patient,
    Study,
    User,
    application_started,
    application_stopped,
    audit_log_used,
    begin_transferring,
    exported,
    instances_accessed,
    instances_transferred,
    login,
    logout,
    process_user,
    query,
    security_alert,
    settings_read_again,
    studies_deleted,
    user_change,
)
from dicom_node.audit.forwarder import Backlog, backlog
from dicom_node.audit.message import Event
from dicom_node.audit.trail import Trail

__all__ = [
    "Audit",
    "Auditor",
    "Backlog",
    "Event",
    "NoAudit",
    "Outcome",
    "Patient",
    "Study",
    "Trail",
    "User",
    "application_started",
    "application_stopped",
    "audit_log_used",
    "backlog",
    "begin_transferring",
    "exported",
    "instances_accessed",
    "instances_transferred",
    "login",
    "logout",
    "process_user",
    "query",
    "security_alert",
    "settings_read_again",
    "studies_deleted",
    "user_change",
]
