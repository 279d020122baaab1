"""Certificate files -> TLS contexts of both sides (PS3.15 B.12: BCP 195 by RFC 9325), and how long they are valid."""

from __future__ import annotations

import logging
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dicom_node.config import Config, ReceiveTLS
from dicom_node.errors import ConfigError
from dicom_node.peers import PeerTLS, TLSVersion

log = logging.getLogger(__name__)

# RFC 9325 4.2, which PS3.15 B.12 follows: forward secrecy and authenticated encryption. The suites of TLS 1.3 all do.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
# What is valid for less long is warned of.
WARN_DAYS = 30
DAY_S = 86400.0

_VERSIONS: Mapping[TLSVersion, ssl.TLSVersion] = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CLIENT_CERTIFICATE = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# X.690: the tags that lie on the way to a certificate's validity (RFC 5280 4.1).
_EXPLICIT_VERSION, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0x17, 0x18


def server_context(settings: ReceiveTLS, where: str = "receive.tls") -> ssl.SSLContext:
    """The context of a port that speaks TLS; `where` is how errors name these settings. Raises ConfigError."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, settings.min_version)
    _load_pair(context, settings.certificate, settings.key, where)
    context.verify_mode = _CLIENT_CERTIFICATE[settings.client_certificate]
    if settings.ca is not None:
        _load_ca(context, settings.ca, where)
    return context


def client_context(settings: PeerTLS, where: str) -> ssl.SSLContext:
    """The context by which a peer is called; `where` is how errors name these settings. Raises ConfigError."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, settings.min_version)
    context.check_hostname = settings.check_host
    _load_ca(context, settings.ca, where)
    if settings.certificate is not None and settings.key is not None:
        _load_pair(context, settings.certificate, settings.key, where)
    return context


def _context(protocol: int, min_version: TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = _VERSIONS[min_version]
    context.set_ciphers(CIPHERS)
    # RFC 9325 3.3 and 3.5: neither compression nor renegotiation.
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path, where: str) -> None:
    _expect_valid(certificate, f"{where}.certificate")
    _read(key, f"{where}.key")
    try:
        # Without a password at hand OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as err:
        if err.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{where}: key {key} does not belong to certificate {certificate}") from err
        raise ConfigError(
            f"{where}.key: {key} is no private key in PEM form without a password: openssl pkey -in KEY -out PLAIN"
        ) from err


def _load_ca(context: ssl.SSLContext, ca: Path, where: str) -> None:
    certificates(ca, f"{where}.ca")
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as err:
        raise ConfigError(f"{where}.ca: {ca} holds a certificate that cannot be read") from err


def _expect_valid(path: Path, where: str) -> None:
    """Raises ConfigError when the file's first certificate, which is the one shown, is not valid now."""
    shown, now = certificates(path, where)[0], datetime.now(UTC)
    if now > shown.not_after:
        raise ConfigError(f"{where}: {path} expired on {shown.not_after:%Y-%m-%d}: renew it")
    if now < shown.not_before:
        raise ConfigError(f"{where}: {path} is valid from {shown.not_before:%Y-%m-%d} on: is the clock right?")


def _read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise ConfigError(f"{where}: {path} cannot be read: {err.strerror}") from err


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """From when to when a certificate is valid."""

    not_before: datetime
    not_after: datetime

    def days_left(self, now_s: float) -> int:
        """Whole days from `now_s` (seconds since 1970); negative once it is over."""
        return int((self.not_after.timestamp() - now_s) // DAY_S)


def certificates(path: Path, where: str) -> list[Validity]:
    """Each certificate of a PEM file, in its order, at least one. Raises ConfigError."""
    found = _PEM.findall(_read(path, where))
    if not found:
        raise ConfigError(f"{where}: {path} holds no certificate in PEM form: openssl x509 -in FILE -out PEM")
    try:
        return [_validity(ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))) for pem in found]
    except ValueError as err:
        raise ConfigError(f"{where}: {path} holds a certificate that cannot be read") from err


def _validity(der: bytes) -> Validity:
    """RFC 5280 4.1: Certificate > TBSCertificate > version, serial number, algorithm, issuer, validity.

    The ssl module tells a certificate's dates only of peers that it has just verified, so never of our own.
    """
    ((_, certificate),) = _elements(der)
    (_, to_be_signed), *_ = _elements(certificate)
    _serial, _algorithm, _issuer, validity, *_ = (
        value for tag, value in _elements(to_be_signed) if tag != _EXPLICIT_VERSION
    )
    not_before, not_after = (_instant(tag, value) for tag, value in _elements(validity))
    return Validity(not_before=not_before, not_after=not_after)


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of each element of DER (X.690 8.1). Raises ValueError."""
    found, at = [], 0
    while at < len(data):
        if at + 2 > len(data):
            raise ValueError("cut short")
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(data[at : at + count], "big")
            at += count
        if at + length > len(data):
            raise ValueError("cut short")
        found.append((tag, data[at : at + length]))
        at += length
    return found


def _instant(tag: int, value: bytes) -> datetime:
    """RFC 5280 4.1.2.5: UTCTime is YYMMDDHHMMSSZ with years from 1950 to 2049, GeneralizedTime has four digits."""
    text = value.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def names_of(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """The names in a verified peer certificate, as `SSLSocket.getpeercert` tells them: alternative names and CN."""
    if not certificate:
        return frozenset()
    alternative = [value for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    common = [value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"]
    return frozenset(name.lower() for name in (*alternative, *common))


# -- how long they are valid ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFile:
    """A file of certificates and the setting that names it, like receive.tls.certificate."""

    setting: str
    path: Path


def certificate_files(config: Config) -> Iterator[CertificateFile]:
    """Every file of certificates that the settings name, ours and those of who vouches for peers."""
    sections: list[tuple[str, ReceiveTLS | PeerTLS]] = []
    if config.receive.tls is not None:
        sections.append(("receive.tls", config.receive.tls))
    sections += [(f"peers.{name}.tls", peer.tls) for name, peer in config.peers.items() if peer.tls is not None]
    if config.web.tls is not None:
        yield CertificateFile(setting="web.tls.certificate", path=config.web.tls.certificate)
    for where, tls in sections:
        if tls.certificate is not None:
            yield CertificateFile(setting=f"{where}.certificate", path=tls.certificate)
        if tls.ca is not None:
            yield CertificateFile(setting=f"{where}.ca", path=tls.ca)


def days_left(file: CertificateFile, now_s: float) -> int:
    """Until the first certificate of the file expires. Raises ConfigError when the file is none, or it expired."""
    first = min(certificates(file.path, file.setting), key=lambda certificate: certificate.not_after)
    if now_s > first.not_after.timestamp():
        raise ConfigError(f"{file.setting}: {file.path} expired on {first.not_after:%Y-%m-%d}: renew it")
    return first.days_left(now_s)


class ExpiryWatch:
    """Warns in the log of certificates that expire soon: at the first look, then once a day."""

    def __init__(self, files: Iterable[CertificateFile], clock: Callable[[], float] = time.time) -> None:
        self._files, self._clock = tuple(files), clock
        self._next_s = 0.0

    def look(self) -> None:
        now_s = self._clock()
        if now_s < self._next_s:
            return
        self._next_s = now_s + DAY_S
        for file in self._files:
            try:
                left = days_left(file, now_s)
            except ConfigError as err:
                log.error("certificate unusable", extra={"action": "certificate", "why": str(err)})
                continue
            if left < WARN_DAYS:
                extra = {"action": "certificate", "setting": file.setting, "days": left}
                log.warning("certificate expires soon: renew it, then restart", extra=extra)
