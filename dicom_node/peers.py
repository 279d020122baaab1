"""The applications beside us, each defined once: where it is, how it is reached, and what it may do."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from dicom_node.errors import ConfigError
from dicom_node.fields import AETitle, Name, Network, Port, Seconds, Section
from dicom_node.profiles import DEFAULT_PROFILE

TRANSFER_SYNTAX_PATTERN = r"^1\.2\.840\.10008\.1\.2(\.[0-9]+)*$"
URL_PATTERN = r"^https?://[^\s?#]+$"
TransferSyntaxUID = Annotated[str, StringConstraints(pattern=TRANSFER_SYNTAX_PATTERN)]
TLSVersion = Literal["1.2", "1.3"]


class PeerTLS(Section):
    """How we call this peer with TLS (PS3.15 B.12, BCP 195). PEM files.

    ca: who vouches for the peer's certificate. certificate, key: ours, where the peer asks for one.
    check_host: the peer's certificate must name its `host`.
    """

    ca: Path
    certificate: Path | None = None
    key: Path | None = None
    min_version: TLSVersion = "1.2"
    check_host: bool = True

    @model_validator(mode="after")
    def _pair(self) -> PeerTLS:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together")
        return self


class DicomWebConfig(Section):
    """A peer's DICOMweb services (PS3.18): QIDO-RS, WADO-RS and STOW-RS under one URL.

    Secrets are not settings: `password_file` and `token_file` hold one line each.
    """

    url: str = Field(pattern=URL_PATTERN)
    username: str | None = None
    password_file: Path | None = None
    token_file: Path | None = None
    ca: Path | None = None

    @model_validator(mode="after")
    def _one_identity(self) -> DicomWebConfig:
        if (self.username is None) != (self.password_file is None):
            raise ValueError("username and password_file belong together")
        if self.username is not None and self.token_file is not None:
            raise ValueError("give username and password_file, or token_file")
        return self


class PeerConfig(Section):
    """A DICOM application beside us.

    may_send: it may store to us. may_receive: results and files may be sent to it. may_be_queried: we may look in it
    (C-FIND, C-MOVE, C-GET, DICOMweb). may_commit: it is asked to confirm that it keeps what it stored (Storage
    Commitment). may_correct: corrected results that it stores to us count (docs/corrections.md).
    from: addresses it may call from (single or CIDR); empty means its `host` alone.
    profile: which objects it gets, and in which form: a built-in profile or one of `profiles`.
    certificate_names: a caller with this AE title must show a client certificate with one of these names.
    accept_first: Transfer Syntaxes that win where it offers several; empty: uncompressed, then lossless, then lossy.
    """

    ae_title: AETitle
    host: str = Field(min_length=1)
    port: Port | None = None
    tls: PeerTLS | None = None
    dicomweb: DicomWebConfig | None = None
    may_send: bool = False
    may_receive: bool = True
    may_be_queried: bool = False
    may_commit: bool = False
    may_correct: bool = False
    deliver_by: Literal["c_store", "stow_rs"] = "c_store"
    profile: Name = DEFAULT_PROFILE
    retrieve_by: Literal["c_move", "c_get", "wado_rs"] = "c_move"
    calls_from: tuple[Network, ...] = Field(default=(), alias="from")
    certificate_names: tuple[str, ...] = ()
    quiet_time_s: Seconds | None = None
    called_as: AETitle | None = None
    max_associations: int | None = Field(default=None, ge=1, le=500)
    accept_first: tuple[TransferSyntaxUID, ...] = ()
    max_pdu_bytes: int = Field(default=131072, ge=4096, le=16 * 1024 * 1024)
    connect_timeout_s: Seconds = 10.0
    response_timeout_s: Seconds = 30.0

    @model_validator(mode="after")
    def _reachable(self) -> PeerConfig:
        if self.deliver_by == "stow_rs" and self.dicomweb is None:
            raise ValueError("deliver_by: stow_rs needs dicomweb: {url: ...}")
        if self.retrieve_by == "wado_rs" and self.dicomweb is None:
            raise ValueError("retrieve_by: wado_rs needs dicomweb: {url: ...}")
        if self.may_be_queried and self.port is None and self.dicomweb is None:
            raise ValueError("may_be_queried needs a port, or dicomweb: {url: ...}")
        if self.may_correct and not self.may_send:
            raise ValueError("may_correct needs may_send: corrections come by C-STORE")
        if self.may_commit and self.port is None:
            raise ValueError("may_commit needs a port: Storage Commitment is asked for over DIMSE")
        return self

    @property
    def can_receive(self) -> bool:
        """Whether something can be sent to it, as the settings stand."""
        reachable = self.port is not None if self.deliver_by == "c_store" else self.dicomweb is not None
        return self.may_receive and reachable

    def shares_address(self, other: PeerConfig) -> bool:
        """Whether both may call from one address. Host names are compared as text: nothing is looked up here."""
        for mine in self._networks():
            for theirs in other._networks():
                if mine == theirs:
                    return True
                if isinstance(mine, str) or isinstance(theirs, str) or mine.version != theirs.version:
                    continue
                if mine.overlaps(theirs):
                    return True
        return False

    def _networks(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network | str]:
        """Where it may call from: its `from`, else its host, a name as it is."""
        if self.calls_from:
            return [ipaddress.ip_network(text, strict=False) for text in self.calls_from]
        try:
            return [ipaddress.ip_network(self.host)]
        except ValueError:
            return [self.host.lower()]


def parse_peer(text: str) -> PeerConfig | None:
    """A peer written as AE@HOST:PORT; None where `text` is a name."""
    match = re.fullmatch(r"(?P<ae>[^@]{1,16})@(?P<host>[^@]+):(?P<port>\d{1,5})", text)
    if match is None:
        return None
    try:
        return PeerConfig(ae_title=match["ae"], host=match["host"].strip("[]"), port=int(match["port"]))
    except ValidationError as err:
        raise ConfigError(f"{text}: {err.errors()[0]['msg']}") from err
