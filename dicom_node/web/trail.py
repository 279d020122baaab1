"""Who did what over HTTP -> the audit trail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dicom_node import audit, metrics
from dicom_node.audit import Audit, Study, User
from dicom_node.audit.message import Instances
from dicom_node.db import Database
from dicom_node.storage import Storage
from dicom_node.subjects import study_of
from dicom_node.web.access.principal import Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class Trail:
    """One message an act. Whose images they are is read from their files, for the trail alone."""

    audit: Audit
    database: Database
    storage: Storage

    def changed(self, who: Principal, action: str, target: str) -> None:
        """Somebody did something to a job or called a peer: "job retry" and the job's id."""
        self.audit.write(audit.user_change(_user(who), action, target))

    def viewed(self, who: Principal, series_uid: str) -> None:
        """Somebody saw a series' images."""
        self.audit.write(audit.instances_accessed(_user(who), self._studies(series_uid)))

    def downloaded(self, who: Principal, series_uid: str, sop_classes: Sequence[str]) -> None:
        """Somebody took result objects of a series away, these of them."""
        counts = {uid: sop_classes.count(uid) for uid in sop_classes}
        to = who.address or "unknown"
        self.audit.write(audit.exported(_user(who), self._studies(series_uid, counts), to=to))

    def login(self, user: str, *, ok: bool, address: str) -> None:
        metrics.login_tried("ok" if ok else "failed")
        self.audit.write(audit.login(user, ok, address or None))

    def logout(self, who: Principal) -> None:
        self.audit.write(audit.logout(who.name, who.address or None))

    def _studies(self, series_uid: str, counts: Mapping[str, int] | None = None) -> list[Study]:
        study = study_of(self.database, self.storage, series_uid)
        if study is None:
            return []
        if counts is None:
            return [study]
        made = tuple(Instances(sop_class_uid=uid, count=count) for uid, count in sorted(counts.items()))
        return [replace(study, instances=made, series_uids=())]


def _user(who: Principal) -> User:
    return User(name=who.name, address=who.address or None)
