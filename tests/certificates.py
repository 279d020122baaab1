"""Certificates for tests, made by the openssl command: an authority, and what it issues."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate and its key, PEM files."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority in `folder`. `ca`: its own certificate."""

    def __init__(self, folder: Path, name: str = "Test CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._key, self.ca = folder, folder / "ca.key", folder / "ca.pem"
        openssl(
            "req",
            "-x509",
            *_EC,
            "-keyout",
            str(self._key),
            "-out",
            str(self.ca),
            "-days",
            "3650",
            "-subj",
            f"/CN={name}",
        )

    def issue(self, name: str, *, days: int = 365, also: str = "DNS:localhost,IP:127.0.0.1") -> Issued:
        """`days` below zero: expired. `also`: its alternative names."""
        issued = Issued(certificate=self._folder / f"{name}.pem", key=self._folder / f"{name}.key")
        request = str(self._folder / f"{name}.csr")
        openssl(
            "req", *_EC, "-keyout", str(issued.key), "-out", request, "-subj", f"/CN={name}",
            "-addext", f"subjectAltName={also}",
        )  # fmt: skip
        openssl(
            "x509", "-req", "-in", request, "-CA", str(self.ca), "-CAkey", str(self._key), "-CAcreateserial",
            "-days", str(days), "-copy_extensions", "copy", "-out", str(issued.certificate),
        )  # fmt: skip
        return issued
