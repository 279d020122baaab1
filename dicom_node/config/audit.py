"""The section `audit`: where DICOM audit messages go (PS3.15 A.5, A.6)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dicom_node.fields import Seconds, Section


class SyslogConfig(Section):
    """A syslog server. tls (RFC 5425) needs ca: who vouches for the server; certificate and key: ours. PEM files.

    udp (RFC 5426) tells nobody whether a message arrived.
    """

    host: str = Field(min_length=1)
    port: Annotated[int, Field(ge=1, le=65535)] = 6514
    transport: Literal["tls", "udp"] = "tls"
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    timeout_s: Seconds = 10.0

    @model_validator(mode="after")
    def _ca_where_needed(self) -> SyslogConfig:
        if self.transport == "tls" and self.ca is None:
            raise ValueError("needs ca: who vouches for the server; or transport: udp")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together")
        return self


class AuditConfig(Section):
    """The audit trail. file: whether it is kept at all; the syslog server is told from it.

    folder: where; null: storage.root/audit. source_id: how the messages name this node; null: AE title and host.
    """

    file: bool = True
    folder: Path | None = None
    source_id: str | None = None
    syslog: SyslogConfig | None = None

    @model_validator(mode="after")
    def _file_for_syslog(self) -> AuditConfig:
        if self.syslog is not None and not self.file:
            raise ValueError("syslog is fed from the file: it needs file: true")
        return self
