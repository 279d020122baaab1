"""Tries to log in -> whether another try is let through, by user and address and by address.

Never by user alone: who knows a name could lock its owner out from elsewhere.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

WINDOW_S = 300.0
TRIES_OF_ONE = 5
TRIES_OF_ADDRESS = 30
_MOST_KEPT = 10_000


class LoginLimits:
    """Counts in memory: a restart forgets them, and each process counts for itself. Safe to share between threads."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._failed: OrderedDict[tuple[str, ...], list[float]] = OrderedDict()

    def begin(self, user: str, address: str) -> float:
        """How long until a try is let through; 0: this one is. It counts from here on, so that tries at the same time
        count each other."""
        with self._lock:
            keys = _keys(user, address)
            if (wait_s := max(self._left(key, most) for key, most in keys)) > 0:
                return wait_s
            for key, most in keys:
                tries = self._failed.pop(key, [])
                self._failed[key] = [*tries[-most + 1 :], self._now()]
            while len(self._failed) > _MOST_KEPT:
                self._failed.popitem(last=False)
            return 0.0

    def succeeded(self, user: str, address: str) -> None:
        """The user's count is over, the address is given back this one try: else one known password would buy endless
        tries at the others."""
        network = (_network(address),)
        with self._lock:
            self._failed.pop((user, *network), None)
            if tries := self._failed.get(network):
                tries.pop()

    def _left(self, key: tuple[str, ...], most: int) -> float:
        recent = [at for at in self._failed.get(key, []) if self._now() - at < WINDOW_S]
        return WINDOW_S - (self._now() - recent[-most]) if len(recent) >= most else 0.0


def _keys(user: str, address: str) -> tuple[tuple[tuple[str, ...], int], ...]:
    network = _network(address)
    return ((user, network), TRIES_OF_ONE), ((network,), TRIES_OF_ADDRESS)


def _network(address: str) -> str:
    """An IPv6 host has a whole /64 to call from."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else str(ip)
