"""Event -> its line in the trail, and the syslog server told. Never raises: an audit must not stop what it records."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from dicom_node import metrics
from dicom_node.audit.events import security_alert
from dicom_node.audit.forwarder import Forwarder
from dicom_node.audit.message import Event, to_xml
from dicom_node.audit.syslog import Link, TLSLink, UDPLink
from dicom_node.audit.trail import Trail, TrailBroken
from dicom_node.config import Config
from dicom_node.config.audit import SyslogConfig

log = logging.getLogger(__name__)

# One that tries doors all day must not fill the disk: the same alert again counts, and is told with the next one.
_SAME_ALERT_S = 60.0
_MOST_ALERTS = 1000


class Audit(Protocol):
    """Where events go."""

    def write(self, event: Event) -> None: ...

    def alert(self, *, address: str | None, peer: str, why: str) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


class NoAudit:
    """Keeps nothing: `audit.file: false`, and tests of other things."""

    def write(self, event: Event) -> None:
        """Nothing happens."""

    def alert(self, *, address: str | None, peer: str, why: str) -> None:
        """Nothing happens."""

    def start(self) -> None:
        """Nothing happens."""

    def stop(self) -> None:
        """Nothing happens."""


class Auditor:
    """The trail of a node. `start` only where a syslog server is to be told by this process."""

    def __init__(
        self, trail: Trail, *, source_id: str, forwarder: Forwarder | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self._trail, self._source_id, self._forwarder, self._now = trail, source_id, forwarder, now
        self._guard = threading.Lock()
        self._alerts: dict[tuple[str | None, str], tuple[float, int]] = {}

    @classmethod
    def of(cls, config: Config) -> Audit:
        """As the settings say."""
        if not config.audit.file:
            return NoAudit()
        trail = Trail(config.audit_folder())
        syslog = config.audit.syslog
        forwarder = None if syslog is None else Forwarder(trail, lambda: connected(syslog))
        source = config.audit.source_id or f"{config.receive.ae_title}@{socket.gethostname()}"
        return cls(trail, source_id=source, forwarder=forwarder)

    def start(self) -> None:
        if self._forwarder is not None:
            self._forwarder.start()

    def stop(self) -> None:
        if self._forwarder is not None:
            self._forwarder.stop()

    def write(self, event: Event) -> None:
        """Returns when the message is on the disk, or when the log says that it could not be."""
        at = self._now()
        try:
            self._trail.append(to_xml(event, at=at, source_id=self._source_id), at)
        except TrailBroken as err:
            metrics.audit_lost()
            log.error("audit message lost", extra={"action": "audit", "event": event.id.meaning, "why": str(err)})
        except OSError as err:
            why = err.strerror or type(err).__name__
            metrics.audit_lost()
            log.error("audit message lost", extra={"action": "audit", "event": event.id.meaning, "why": why})
        if self._forwarder is not None:
            self._forwarder.wake()

    def alert(self, *, address: str | None, peer: str, why: str) -> None:
        """A peer was refused. The same again from one address is counted for a minute."""
        key, now = (address, why), self._now()
        with self._guard:
            since, more = self._alerts.get(key, (float("-inf"), 0))
            if now - since < _SAME_ALERT_S:
                self._alerts[key] = (since, more + 1)
                return
            if len(self._alerts) >= _MOST_ALERTS:
                self._alerts.clear()
            self._alerts[key] = (now, 0)
        event = security_alert(address=address, peer=peer, why=why)
        self.write(replace(event, text=f"{why}; {more} times more before") if more else event)


def connected(syslog: SyslogConfig) -> Link:
    """Raises OSError."""
    if syslog.transport == "udp":
        return UDPLink(syslog.host, syslog.port)
    assert syslog.ca is not None  # noqa: S101  the settings have it where TLS is
    return TLSLink(
        syslog.host,
        syslog.port,
        ca=syslog.ca,
        certificate=syslog.certificate,
        key=syslog.key,
        timeout_s=syslog.timeout_s,
    )
