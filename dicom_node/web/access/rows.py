"""Logins and API tokens as rows, beside the tries to log in. A secret is never kept, only its SHA-256: it has 256
random bits, so that suffices."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import cast

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.config import WebRole
from dicom_node.errors import DicomNodeError
from dicom_node.rows import Row
from dicom_node.web.access.limits import LoginLimits

# Told apart from other secrets by scanners of source code and logs.
TOKEN_PREFIX = "dnt_"  # noqa: S105  the beginning of each, no secret
_SEEN_EVERY_S = 60.0


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A login that counts. mark: of the password it was made by."""

    user: str
    role: WebRole
    method: str
    mark: str | None


class AccessRows(LoginLimits):
    """Statements on web_session and api_token, and those of the limits."""

    def open_session(self, user: str, role: WebRole, method: str, mark: str | None, *, longest_s: float) -> str:
        """The secret for the cookie. Sessions that are over go."""
        secret, now = secrets.token_urlsafe(32), self._now()
        with self._begin() as connection:
            connection.execute(sa.delete(schema.web_session).where(schema.web_session.c.created_at < now - longest_s))
            connection.execute(
                sa.insert(schema.web_session).values(
                    token_sha256=digest(secret), user_name=user, role=role, method=method, mark=mark,
                    created_at=now, seen_at=now,
                )
            )  # fmt: skip
        return secret

    def session(self, secret: str, *, idle_s: float, longest_s: float, touch: bool = True) -> Session | None:
        """The login of this cookie; None once it is over. touch: its user is there, so it idles no longer."""
        s, now = schema.web_session.c, self._now()
        row = self._one(sa.select(schema.web_session).where(s.token_sha256 == digest(secret)))
        if row is None or now - row["seen_at"] > idle_s or now - row["created_at"] > longest_s:
            return None
        if touch and now - row["seen_at"] > min(_SEEN_EVERY_S, idle_s / 4):
            with self._begin() as connection:
                connection.execute(
                    sa.update(schema.web_session).where(s.token_sha256 == digest(secret)).values(seen_at=now)
                )
        role = cast(WebRole, row["role"])
        return Session(user=row["user_name"], role=role, method=row["method"], mark=row["mark"])

    def close_session(self, secret: str) -> None:
        self._delete(schema.web_session, schema.web_session.c.token_sha256 == digest(secret))

    def close_sessions(self, user: str) -> int:
        """All logins of a user; how many there were."""
        return self._delete(schema.web_session, schema.web_session.c.user_name == user)

    def add_token(self, name: str, role: WebRole, expires_at: float | None) -> str:
        """The token, which nobody can tell again. Raises DicomNodeError when the name is taken."""
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        values = {"name": name, "token_sha256": digest(token), "role": role, "expires_at": expires_at}
        insert = self._insert(schema.api_token).values(**values, created_at=self._now())
        with self._begin() as connection:
            made = connection.execute(insert.on_conflict_do_nothing(index_elements=["name"]))
        if not made.rowcount:
            raise DicomNodeError(f"there is a token {name} already: dicom-node token revoke {name} ends it")
        return token

    def tokens(self) -> list[Row]:
        t = schema.api_token.c
        return self._all(sa.select(t.name, t.role, t.created_at, t.expires_at, t.used_at).order_by(t.name))

    def token(self, token: str) -> tuple[str, WebRole] | None:
        """Name and role of a token that counts."""
        t, now = schema.api_token.c, self._now()
        row = self._one(sa.select(schema.api_token).where(t.token_sha256 == digest(token)))
        if row is None or (row["expires_at"] is not None and row["expires_at"] <= now):
            return None
        if row["used_at"] is None or now - row["used_at"] > _SEEN_EVERY_S:
            with self._begin() as connection:
                connection.execute(sa.update(schema.api_token).where(t.name == row["name"]).values(used_at=now))
        return row["name"], cast(WebRole, row["role"])

    def revoke_token(self, name: str) -> None:
        if not self._delete(schema.api_token, schema.api_token.c.name == name):
            raise DicomNodeError(f"no token is named {name}; dicom-node token list shows those there are")

    def _delete(self, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
        with self._begin() as connection:
            return int(connection.execute(sa.delete(table).where(which)).rowcount)
