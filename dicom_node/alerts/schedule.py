"""Looks at what is wrong, and tells each channel of it, beside the queues of the deliver role.

Of several such processes one at a time. A thread for each channel, so that a dead mail server holds up neither the
webhook nor anything else.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from dicom_node.alert_rows import Problem
from dicom_node.alerts.channels import Channel, channels_of
from dicom_node.alerts.message import Item, Message, compose, trial_message
from dicom_node.alerts.problems import KINDS, Looks
from dicom_node.config import Config
from dicom_node.db import Database, Row
from dicom_node.errors import AlertNotSent
from dicom_node.locks import Lock, try_lock
from dicom_node.turns import Turns

log = logging.getLogger(__name__)

LOCK = "alerts"
# A channel that does not take messages is tried again ever more seldom.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 30.0, 900.0


def node_name(config: Config) -> str:
    """How this node calls itself in messages."""
    return f"{config.receive.ae_title}@{socket.gethostname()}"


@dataclass(slots=True)
class _Pause:
    """Until when a channel is left alone, and after how many failures in a row."""

    until: float = 0.0
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerts:
    """`look` brings the rows up to date, `tell` one channel. What was told is in rows; only pauses are in memory."""

    config: Config
    database: Database
    looks: Looks
    channels: Sequence[Channel]
    now: Callable[[], float]
    _pauses: dict[str, _Pause] = field(default_factory=dict)

    def look(self) -> None:
        """What is wrong now, and what is not any more."""
        held = [
            Problem(kind=row["kind"], subject=row["subject"], text=row["text"], job_id=row["job_id"])
            for row in self.database.alerts()
            if row["ended_at"] is None
        ]
        self.database.alerts_seen(self.looks.problems(held), over_after_s=self._group_s)

    def tell(self, channel: Channel) -> None:
        """A message of each kind that is due; none while the channel pauses after a failure."""
        pause = self._pauses.setdefault(channel.name, _Pause())
        if self.now() < pause.until:
            return
        rows = self.database.alerts_for(channel.name)
        sent = {row["kind"]: row["sent_at"] for row in self.database.alert_channels() if row["channel"] == channel.name}
        for kind in KINDS:
            # One that was sent in the future was sent by a clock that went wrong: it must not silence the channel.
            if 0 <= self.now() - (sent.get(kind) or 0.0) < self._group_s:
                continue
            of_kind = [row for row in rows if row["kind"] == kind]
            raised = [row for row in of_kind if self._is_due(row)]
            over = [row for row in of_kind if self._is_over(row)]
            if (raised or over) and not self._send(channel, pause, kind, raised, over):
                return

    @property
    def _group_s(self) -> float:
        return self.config.alerts.group_every_min * 60

    def _is_due(self, row: Row) -> bool:
        """It holds, and the channel was not told, or long ago."""
        if row["ended_at"] is not None:
            return False
        repeat_h = self.config.alerts.repeat_after_h
        return row["told_at"] is None or (repeat_h is not None and self.now() - row["told_at"] >= repeat_h * 3600)

    def _is_over(self, row: Row) -> bool:
        """It does not hold any more, for good, and the channel still believes that it does."""
        ended, told = row["ended_at"], row["told_at"]
        return ended is not None and told is not None and self.now() - ended >= self._group_s

    def _send(self, channel: Channel, pause: _Pause, kind: str, raised: Sequence[Row], over: Sequence[Row]) -> bool:
        message = self._message(kind, raised, over)
        extra = {"action": "alert", "channel": channel.name, "kind": kind, "raised": len(raised), "over": len(over)}
        try:
            channel.send(message)
        except AlertNotSent as err:
            pause.failures += 1
            again_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(pause.failures - 1, 10))
            pause.until = self.now() + again_s
            log.warning("alert not sent", extra={**extra, "why": str(err), "again_s": again_s})
            self.database.alert_failed(channel.name, kind, str(err))
            return False
        pause.failures = 0
        self.database.alerts_told(
            channel.name, kind, raised=[row["subject"] for row in raised], over=[row["subject"] for row in over]
        )
        log.info("alert sent", extra=extra)
        return True

    def _message(self, kind: str, raised: Sequence[Row], over: Sequence[Row]) -> Message:
        link = self.config.alerts.link
        items = [[Item.of(row, link) for row in rows] for rows in (raised, over)]
        return compose(node_name(self.config), kind, *items)


def alerts_of(config: Config, database: Database, looks: Looks) -> Alerts:
    """With the channels of the settings."""
    channels = channels_of(config.alerts)
    return Alerts(config=config, database=database, looks=looks, channels=channels, now=looks.now)


def try_channels(config: Config, *, now: Callable[[], float] = time.time) -> list[tuple[str, bool, str]]:
    """A message through each channel: its name, whether it took it, and what it said or what is wrong."""
    told = []
    for channel in channels_of(config.alerts):
        try:
            told.append((channel.name, True, channel.send(trial_message(node_name(config), now()))))
        except AlertNotSent as err:
            told.append((channel.name, False, str(err)))
    return told


class AlertSchedule:
    """Threads that look, and tell each channel; of several processes in one at a time."""

    def __init__(self, alerts: Alerts) -> None:
        self._alerts = alerts
        # Set while this process is the one that tells.
        self._ours = threading.Event()
        self._lock: Lock | None = None
        self._turns = Turns("alert", waits="alerts wait", failed="alerts failed")
        every_s = alerts.config.alerts.every_s
        self._turns.add(self._look, "alerts", every_s=every_s)
        for channel in alerts.channels:
            self._turns.add(partial(self._tell, channel), f"alerts {channel.name}", every_s=every_s)

    def start(self) -> None:
        self._turns.start()

    def stop(self, wait_s: float) -> None:
        """A message that is on its way may be sent again by whoever looks next."""
        self._turns.stop(wait_s)
        if self._lock is not None:
            self._lock.release()

    def _look(self) -> None:
        if self._lock is None or not self._lock.still_held():
            self._ours.clear()
            self._lock = try_lock(self._alerts.database.url, LOCK)
        if self._lock is not None:
            self._alerts.look()
            self._ours.set()

    def _tell(self, channel: Channel) -> None:
        # Until there was a look: what an earlier process saw may be over.
        while not self._ours.wait(0.5):
            if self._turns.stopping.is_set():
                return
        self._alerts.tell(channel)
