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


class Events:
    """version: a value that differs when something changed; it may raise StorageError while the database is away."""

    def __init__(self, version: Callable[[], Any], *, every_s: float = _EVERY_S) -> None:
        self._version, self._every_s = version, every_s
        self._clients: set[asyncio.Event] = set()
        self._watch: asyncio.Task[None] | None = None

    @property
    def clients(self) -> int:
        return len(self._clients)

    async def stream(self) -> AsyncIterator[str]:
        """In the form of text/event-stream: `changed`, and a comment now and then."""
        mine = asyncio.Event()
        self._clients.add(mine)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look())
        try:
            yield "retry: 3000\n\n"
            while True:
                try:
                    await asyncio.wait_for(mine.wait(), _BEAT_S)
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                mine.clear()
                yield "event: changed\ndata: \n\n"
        finally:
            self._clients.discard(mine)

    async def _look(self) -> None:
        """Ends when the last client has gone."""
        seen: Any = None
        while self._clients:
            try:
                now = await run_in_threadpool(self._version)
            except StorageError:
                now = "away"
            if seen is not None and now != seen:
                for client in self._clients:
                    client.set()
            seen = now
            await asyncio.sleep(self._every_s)
