"""The users' file <-> users. Passwords are kept as argon2id hashes (RFC 9106); the file is replaced whole, mode
0600."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import threading
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import argon2

from dicom_node.config import ROLES, WebRole
from dicom_node.errors import ConfigError, DicomNodeError
from dicom_node.storage import sync_folder

SHORTEST, LONGEST = 12, 256
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
# One hash takes 64 MiB: more at once than there are cores gains nothing and could exhaust the memory.
_AT_ONCE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    name: str
    role: WebRole
    hash: str

    @property
    def mark(self) -> str:
        """Differs once the password does. Tells nothing of it."""
        return hashlib.sha256(self.hash.encode()).hexdigest()


class UsersFile:
    """Users by name. Read again when it changed; safe to share between threads."""

    def __init__(self, path: Path, *, hasher: argon2.PasswordHasher | None = None) -> None:
        self.path = path
        self._hasher = hasher or argon2.PasswordHasher()
        self._nobody = self._hasher.hash(secrets.token_hex(16))
        self._hashing = threading.BoundedSemaphore(_AT_ONCE)
        self._read: tuple[tuple[int, int, int], dict[str, User]] | None = None

    def users(self) -> dict[str, User]:
        """Raises ConfigError when the file can't be read; no file: no users."""
        try:
            status = self.path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if self._read is None or self._read[0] != seen:
                self._read = (seen, _parse(self.path, self.path.read_bytes()))
        except FileNotFoundError:
            return {}
        except OSError as err:
            raise ConfigError(f"users file {self.path} cannot be read: {err.strerror}") from err
        return self._read[1]

    def verify(self, name: str, password: str) -> User | None:
        """The user with this password. Takes as long for a name that nobody has."""
        user = self.users().get(name)
        with self._hashing:
            try:
                self._hasher.verify(self._nobody if user is None else user.hash, _normal(password))
            except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
                return None
        return user

    def add(self, name: str, role: WebRole, password: str) -> None:
        """Raises DicomNodeError when there is such a user, or the name or password will not do."""
        if name in self.users():
            raise DicomNodeError(f"there is a user {name} already: dicom-node user passwd {name} changes the password")
        if not _NAME.fullmatch(name):
            raise DicomNodeError("a user's name is 1 to 63 letters, digits, and . _ @ -, the first a letter or digit")
        self._write({**self.users(), name: User(name=name, role=role, hash=self._hash(password))})

    def change_password(self, name: str, password: str) -> None:
        """All logins of the user end by it."""
        user = self._known(name)
        self._write({**self.users(), name: User(name=name, role=user.role, hash=self._hash(password))})

    def remove(self, name: str) -> None:
        self._known(name)
        self._write({other: user for other, user in self.users().items() if other != name})

    def _known(self, name: str) -> User:
        user = self.users().get(name)
        if user is None:
            raise DicomNodeError(f"no user is named {name}; dicom-node user list shows those there are")
        return user

    def _hash(self, password: str) -> str:
        if not SHORTEST <= len(password) <= LONGEST:
            raise DicomNodeError(f"a password has {SHORTEST} to {LONGEST} characters")
        return self._hasher.hash(_normal(password))

    def _write(self, users: dict[str, User]) -> None:
        form = {"users": {name: {"role": user.role, "hash": user.hash} for name, user in sorted(users.items())}}
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(form, file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
            sync_folder(self.path.parent)
        except OSError as err:
            temporary.unlink(missing_ok=True)
            raise ConfigError(f"users file {self.path} cannot be written: {err.strerror}") from err


def _normal(password: str) -> str:
    # NIST SP 800-63B 3.1.1.2: two keyboards may write one character in two ways.
    return unicodedata.normalize("NFKC", password)


def _parse(path: Path, data: bytes) -> dict[str, User]:
    try:
        users: dict[str, Any] = json.loads(data)["users"]
        return {name: User(name=name, role=_role(form["role"]), hash=str(form["hash"])) for name, form in users.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise ConfigError(f"users file {path} is damaged: make it anew with dicom-node user add") from err


def _role(word: str) -> WebRole:
    if word not in ROLES:
        raise ValueError(word)
    return cast(WebRole, word)
