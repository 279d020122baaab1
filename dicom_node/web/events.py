"""The database, asked once a second for all open pages -> a server-sent event a change. No page open: nothing asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool

from dicom_node.errors import StorageError

log = logging.getLogger(__name__)

_EVERY_S = 1.0
# A proxy drops a line that is silent for a minute or so.
_BEAT_S = 20.0


def _told(allowed: Callable[[], bool]) -> bool:
    """While the database is away nobody can say: then it is told later."""
    try:
        return allowed()
    except StorageError:
        return True


class Events:
    """version: a value that differs when something changed; it may raise StorageError while the database is away."""

    def __init__(self, version: Callable[[], Any], *, every_s: float = _EVERY_S, beat_s: float = _BEAT_S) -> None:
        self._version, self._every_s, self._beat_s = version, every_s, beat_s
        self._clients: set[asyncio.Event] = set()
        # Their pages may be older than what was seen last: told once, after the next look.
        self._new: set[asyncio.Event] = set()
        self._watch: asyncio.Task[None] | None = None

    @property
    def clients(self) -> int:
        return len(self._clients)

    async def stream(self, allowed: Callable[[], bool] = lambda: True) -> AsyncIterator[str]:
        """In the form of text/event-stream: `changed`, a comment now and then, and `over` where it is not `allowed`
        any more, which is asked about as often as there would be a comment."""
        mine = asyncio.Event()
        self._clients.add(mine)
        self._new.add(mine)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look())
        try:
            yield "retry: 3000\n\n"
            clock = asyncio.get_running_loop().time
            due = clock() + self._beat_s
            while True:
                # However much changes in between.
                if clock() >= due:
                    due = clock() + self._beat_s
                    if not await run_in_threadpool(_told, allowed):
                        yield "event: over\ndata: \n\n"
                        return
                    yield ": still here\n\n"
                try:
                    await asyncio.wait_for(mine.wait(), max(0.0, due - clock()))
                except TimeoutError:
                    continue
                mine.clear()
                yield "event: changed\ndata: \n\n"
        finally:
            self._clients.discard(mine)
            self._new.discard(mine)

    async def _look(self) -> None:
        """Ends when the last client has gone."""
        seen: Any = None
        while self._clients:
            try:
                now = await run_in_threadpool(self._version)
            except StorageError:
                now = "away"
            told = self._new if seen is None or now == seen else self._clients
            for client in told:
                client.set()
            self._new.clear()
            seen = now
            await asyncio.sleep(self._every_s)
