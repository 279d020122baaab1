"""The pulls of config.yaml, each when it is due, on whichever machine gets its lock. Nothing is kept in memory.

When a round began and ended is a row; what is here already is told by the instances' rows. So a crash loses nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

from dicom_node.audit import Audit
from dicom_node.config import Config, PullConfig
from dicom_node.db import Database, Row
from dicom_node.errors import DicomNodeError
from dicom_node.locks import try_lock
from dicom_node.logs import describe
from dicom_node.pull import Landing, Plan, Planned, Puller, due_first
from dicom_node.pull_selection import Selection
from dicom_node.turns import Turns

log = logging.getLogger(__name__)

_LOOK_S = 5.0
# A series of which some Instances never come is asked for ever more seldom.
_LONGEST_PAUSE_S = 86400.0


class PullSchedule:
    """A thread for each pull, so that an archive that is down delays no other."""

    def __init__(
        self,
        config: Config,
        database: Database,
        landing: Landing,
        *,
        audit: Audit | None = None,
        now: Callable[[], float] = time.time,
        look_s: float = _LOOK_S,
    ) -> None:
        self._config, self._database, self._landing = config, database, landing
        self._audit = audit
        self._now = now
        self._turns = Turns("pull", waits="pull waits", failed="pull failed")
        for pull in config.pulls:
            turn = partial(self.round_if_due, pull)
            self._turns.add(turn, f"pull {pull.name}", every_s=look_s, pull=pull.name)

    def start(self) -> None:
        self._landing.start()
        self._turns.start()

    def stop(self, wait_s: float) -> None:
        """No further series is begun; one that is being fetched may end within `wait_s`."""
        self._turns.stop(wait_s)
        self._landing.stop()

    def round_if_due(self, pull: PullConfig) -> bool:
        """One round, unless another process is at it or the last one is too short ago. True when one was made."""
        lock = try_lock(self._database.url, f"pull:{pull.name}")
        if lock is None:
            return False
        try:
            last = self._database.pull_round(pull.name)
            # One that never ended died with its process: it is made again at once.
            ended = last is not None and last["ended_at"] is not None
            if last is not None and ended and self._now() - last["started_at"] < pull.every_min * 60:
                return False
            self._database.pull_round_began(pull.name)
            self._round(pull)
        finally:
            lock.release()
        return True

    def _round(self, pull: PullConfig) -> None:
        fetched = left_over = 0
        problems: list[str] = []
        try:
            puller = self._puller(pull)
            plan = puller.plan(self._selection(pull))
            problems += plan.problems
            todo = self._todo(pull, plan, puller)
            left_over = len(todo)
            for planned in self._settled(pull, puller, todo)[: pull.max_series]:
                if self._turns.stopping.is_set():
                    break
                outcome = puller.fetch(planned)
                fetched += not outcome.problem
                left_over -= 1
                problems += [outcome.problem] if outcome.problem else []
                if not outcome.reached:
                    break
        except DicomNodeError as err:
            problems.append(str(err))
        except Exception as err:  # noqa: BLE001  the round ends: one that did not is made again at once, for ever
            log.error("pull failed", extra={"action": "pull", "pull": pull.name, "error": describe(err)})
            problems.append(f"it failed: {describe(err)}")
        problem = "; ".join(dict.fromkeys(problems))[:1000] or None
        self._database.pull_round_ended(pull.name, fetched=fetched, left_over=left_over, problem=problem)
        extra = {"action": "pull round", "pull": pull.name, "fetched": fetched, "left": left_over}
        if problem:
            log.warning("pull has problems", extra={**extra, "why": problem})
        else:
            log.info("pull round ended", extra=extra)

    def _puller(self, pull: PullConfig) -> Puller:
        peer = self._config.peers[pull.source]
        return Puller(
            self._config,
            self._database,
            self._landing,
            name=pull.source,
            peer=peer,
            route=pull.route,
            audit=self._audit,
        )

    def _selection(self, pull: PullConfig) -> Selection:
        since = datetime.fromtimestamp(self._now()).astimezone() - timedelta(hours=pull.since_h)
        return Selection(since=since, match=pull.match)

    def _todo(self, pull: PullConfig, plan: Plan, puller: Puller) -> list[Planned]:
        known = self._database.pulled([planned.key.series_uid for planned in plan.series])
        todo = []
        for planned in plan.series:
            if planned.complete:
                puller.remind(planned)
            elif not self._waits(pull, planned, known.get(planned.key.series_uid)):
                todo.append(planned)
        return due_first(todo, {uid: row["asked_at"] for uid, row in known.items()})

    def _settled(self, pull: PullConfig, puller: Puller, todo: list[Planned]) -> list[Planned]:
        """Those whose number of Instances stands still over a quiet time.

        What is just being stored in the archive is for a later round: its part would be taken for the whole.
        """
        quiet_time_s = self._config.quiet_time_s(self._config.peers[pull.source].ae_title)
        if not todo or self._turns.stopping.wait(quiet_time_s):
            return []
        now = {planned.key.series_uid: planned.there for planned in puller.plan(self._selection(pull)).series}
        return [planned for planned in todo if now.get(planned.key.series_uid) == planned.there]

    def _waits(self, pull: PullConfig, planned: Planned, row: Row | None) -> bool:
        """True for a series that was here in full and is purged since, or that failed a short time ago."""
        if row is None:
            return False
        if row["done_at"] is not None:
            return bool(row["there"] >= planned.there)
        if not row["attempts"]:
            return False
        pause_s = min(_LONGEST_PAUSE_S, pull.every_min * 60 * 2.0 ** min(row["attempts"] - 1, 20))
        # A round begins a moment after it is due: the first pause must be over by the next one.
        return bool(self._now() - row["asked_at"] < pause_s * 0.9)
