"""What a result is about -> its UID. The same input gives the same UID on every machine, for ever."""

from __future__ import annotations

import hashlib

UUID_ROOT = "2.25"  # PS3.5 B.2: a UUID as one decimal number under this root


def derive_uid(*parts: str) -> str:
    """UID that follows from `parts` alone, their order and their borders included.

    The 128 bits come from SHA-256; version 8 ("custom", RFC 9562) marks the UUID as derived, not random.
    """
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "big") + raw)
    number = int.from_bytes(digest.digest()[:16], "big")
    number = number & ~(0xF << 76) | 0x8 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    return f"{UUID_ROOT}.{number}"
