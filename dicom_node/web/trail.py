"""Who did what over HTTP -> the log, for the audit trail."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dicom_node.web.access.principal import Principal

log = logging.getLogger(__name__)


class Trail:
    """One line an act. Names users and jobs, never a patient."""

    def changed(self, who: Principal, action: str, target: str) -> None:
        self._write("change", who.name, who.address, what=action, target=target)

    def accessed(self, who: Principal, study_uid: str, sop_classes: Sequence[str]) -> None:
        self._write("access", who.name, who.address, study=study_uid, sop_classes=",".join(sop_classes))

    def login(self, user: str, *, ok: bool, method: str, address: str) -> None:
        # What a person who is not known typed may be a password: it is not written.
        self._write("login" if ok else "login refused", user if ok else "-", address, method=method)

    def logout(self, who: Principal) -> None:
        self._write("logout", who.name, who.address)

    def _write(self, action: str, user: str, address: str, **more: str) -> None:
        log.info(action, extra={"action": action, "user": user, "address": address, **more})
