"""Tries to log in -> whether another try is let through, by user and address and by address.

Never by user alone: who knows a name could lock its owner out from elsewhere. Tries are rows, so that all processes of
a database count together and a restart forgets nothing.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.rows import Rows

WINDOW_S = 300.0
TRIES_OF_ONE = 5
TRIES_OF_ADDRESS = 30


class LoginLimits(Rows):
    """Statements on login_try."""

    def begin_login(self, user: str, address: str) -> float:
        """How long until a try is let through; 0: this one is. It counts from here on, so that tries at the same time
        count each other."""
        t, now = schema.login_try.c, self._now()
        network, mark = _network(address), _mark(user)
        # From after now only where a clock was set back: such a row would bar people for as long as that.
        over = sa.or_(t.at <= now - WINDOW_S, t.at > now + WINDOW_S)
        with self._begin() as connection:
            self._alone(connection, network)
            connection.execute(sa.delete(schema.login_try).where(over))
            rows = connection.execute(sa.select(t.name_mark, t.at).where(t.network == network).order_by(t.at)).all()
            wait_s = max(
                _left([at for name, at in rows if name == mark], TRIES_OF_ONE, now),
                _left([at for _, at in rows], TRIES_OF_ADDRESS, now),
            )
            if wait_s == 0:
                connection.execute(sa.insert(schema.login_try).values(network=network, name_mark=mark, at=now))
        return wait_s

    def login_succeeded(self, user: str, address: str) -> None:
        """The count of this user there is over. What the address tried at others still counts: else one known password
        would buy endless tries at them."""
        t = schema.login_try.c
        with self._begin() as connection:
            mine = sa.delete(schema.login_try).where(t.network == _network(address), t.name_mark == _mark(user))
            connection.execute(mine)

    def _alone(self, connection: sa.Connection, network: str) -> None:
        """One try of a network at a time. SQLite has one writer anyhow."""
        if connection.dialect.name != "sqlite":
            key = int.from_bytes(hashlib.sha256(f"login {network}".encode()).digest()[:8], signed=True)
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))


def _left(tries: Sequence[float], most: int, now: float) -> float:
    return min(WINDOW_S, WINDOW_S - (now - tries[-most])) if len(tries) >= most else 0.0


def _mark(user: str) -> str:
    """16 bits of a hash: enough to count by, too few to learn from, for what is typed there may be a password."""
    return hashlib.sha256(user.encode(errors="replace")).hexdigest()[:4]


def _network(address: str) -> str:
    """An IPv6 host has a whole /64 to call from."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            # As some proxies write it: else all of IPv4 were one network.
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)
