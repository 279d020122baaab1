"""A role's life as others see it: ready, alive, reloading, stopping. One object a role holds its settings through.

`beat` belongs into the main loop: only a loop that turns says that the role lives, and only while what it watches does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from dicom_node.audit import Auditor, Outcome, process_user, settings_read_again
from dicom_node.config import Config, load_config
from dicom_node.errors import ConfigError, DicomNodeError
from dicom_node.live import Change, change
from dicom_node.logs import describe
from dicom_node.notify import Notifier
from dicom_node.presence import Presence

log = logging.getLogger(__name__)


class Life:
    """`config` is what holds now; it is swapped as a whole, and whoever took it before goes on with theirs.

    source: the settings' file; None: they do not change. present: whether `dicom-node reload` finds this process.
    """

    def __init__(
        self,
        config: Config,
        role: str,
        source: Path | None = None,
        name: str | None = None,
        *,
        notifier: Notifier | None = None,
        present: bool = True,
    ) -> None:
        self.config, self.role, self.name = config, role, name or role
        # beat_at: when the main loop last turned, time.monotonic(). stops: it ends in order.
        self.beat_at, self.stops = time.monotonic(), False
        self._source, self._notifier = source, notifier or Notifier()
        self._presence = Presence(config.storage.root, role, name) if present else None
        self._apply: Callable[[Config], None] = lambda _config: None
        self._healthy: Callable[[], bool] = lambda: True
        self._status = "starting"
        self._ill = False

    def ready(
        self,
        status: str,
        *,
        healthy: Callable[[], bool] = lambda: True,
        apply: Callable[[Config], None] = lambda _config: None,
    ) -> None:
        """The role serves. healthy: asked at each beat. apply: hands new settings on to what runs."""
        self._status, self._healthy, self._apply = status, healthy, apply
        self._notifier.ready(status)

    def beat(self, reload_asked: Callable[[], bool] = lambda: False) -> None:
        """To be called every second or so from the main loop."""
        self.beat_at = time.monotonic()
        if reload_asked():
            self.reload()
        if self._healthy():
            self._ill = False
            self._notifier.alive()
        elif not self._ill:
            self._ill = True
            log.error("a part of this role hangs", extra={"action": "hung"})

    def reload(self) -> None:
        """Read the file again. Wrong settings are logged and change nothing."""
        self._notifier.reloading()
        try:
            done = self._take_over()
            self._tell(", ".join(done.applied) or "nothing to take over")
            self._answer(applied=done.applied, restart=done.restart)
        except DicomNodeError as err:
            log.error("settings stay as they were", extra={"action": "reload refused", "why": str(err)})
            self._tell("refused: the settings stay as they were", outcome=4)
            self._answer(problem=str(err))
        except Exception as err:  # noqa: BLE001  a role that serves must not die of new settings
            log.error("settings not taken over in full", extra={"action": "reload failed", "error": describe(err)})
            self._tell("failed: not taken over in full", outcome=8)
            self._answer(problem="they could not be taken over in full: restart this role; its log says why")
        self._notifier.ready(self._status)

    def _tell(self, what: str, *, outcome: Outcome = 0) -> None:
        """The audit trail, of a reload by whatever told us to. A signal says nothing of its sender, so whom the process
        runs as stands for who did it: nobody else but root may send it one. A part of a role leaves it to the role."""
        if self._presence is None:
            return
        event = settings_read_again(process_user(), self.role, str(self._source), what, outcome=outcome)
        Auditor.of(self.config).write(event)

    def _take_over(self) -> Change:
        if self._source is None:
            raise ConfigError("this process was not started from a settings' file")
        done = change(self.config, load_config(self._source))
        if done.applied:
            self._apply(done.config)
            self.config = done.config
            logging.getLogger().setLevel(done.config.log.level_of(self.role).upper())
        extra = {"action": "reload", "applied": ",".join(done.applied), "restart": ",".join(done.restart)}
        log.info("settings read again", extra=extra)
        return done

    def _answer(
        self, *, applied: tuple[str, ...] = (), restart: tuple[str, ...] = (), problem: str | None = None
    ) -> None:
        if self._presence is not None:
            self._presence.reloaded(applied=applied, restart=restart, problem=problem)

    @property
    def is_role(self) -> bool:
        """Else it is a part of one, which nobody asks about by itself."""
        return self._presence is not None

    def stopping(self) -> None:
        self.stops = True
        self._notifier.stopping()
        if self._presence is not None:
            self._presence.close()
