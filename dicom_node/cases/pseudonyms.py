"""A site's salt -> the same pseudonym, UID and part for the same patient in each export, and no way back without it."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dicom_node.errors import ConfigError

Part = Literal["train", "validation", "test"]
# Of patients, by the first bits of their hash.
SHARES: tuple[tuple[Part, float], ...] = (("train", 0.7), ("validation", 0.15), ("test", 0.15))
_LEAST_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Pseudonyms:
    """salt: of the site, secret."""

    salt: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.salt) < _LEAST_BYTES:
            raise ConfigError(f"a salt has {_LEAST_BYTES} bytes or more")

    def patient(self, identity: str) -> str:
        return f"CASE-{self._digest('patient', identity)[:16].upper()}"

    def uid(self, uid: str) -> str:
        """PS3.5 B.2: 128 bits of a keyed hash under 2.25."""
        return f"2.25.{int(self._digest('uid', uid)[:32], 16)}"

    def part(self, identity: str) -> Part:
        at = int(self._digest("part", identity)[:13], 16) / 16**13
        for part, share in SHARES:
            if at < share:
                return part
            at -= share
        return SHARES[-1][0]

    def _digest(self, what: str, value: str) -> str:
        return hmac.new(self.salt, f"{what}\\{value}".encode(), hashlib.sha256).hexdigest()


def read_salt(path: Path) -> bytes:
    """The salt in a file, which is made at first use, readable by its owner alone. Raises ConfigError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    except OSError as err:
        raise ConfigError(f"{path}: the salt can't be written: {err.strerror}") from err
    else:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
    try:
        return path.read_bytes().strip()
    except OSError as err:
        raise ConfigError(f"{path}: the salt can't be read: {err.strerror}") from err


def patients_file(salt: Path) -> Path:
    """Beside the salt: what was said of patients under it."""
    return salt.with_name(f"{salt.stem}.patients")
