"""Whom the node tells when something needs an operator, and what counts as such."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, field_validator, model_validator

from dicom_node.fields import Port, Section

# One address without a display name. A line break in it would be a header of its own.
ADDRESS_PATTERN = r"^[^@\s<>,;:\"]+@[^@\s<>,;:\"]+$"
Address = Annotated[str, StringConstraints(pattern=ADDRESS_PATTERN)]
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class EmailConfig(Section):
    """A mail server. `from`, `to`: plain addresses. security: starttls (port 587), tls (465) or none (25).

    ca: who vouches for the server's certificate, PEM; null: the system's authorities. password_file: holds the
    password of `username`, read anew for each message.
    """

    host: str = Field(min_length=1)
    port: Port | None = None
    security: Literal["starttls", "tls", "none"] = "starttls"
    ca: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    sender: Address = Field(alias="from")
    to: tuple[Address, ...] = Field(min_length=1)
    timeout_s: float = Field(default=20.0, gt=0, le=300)

    @model_validator(mode="after")
    def _login_is_whole(self) -> EmailConfig:
        if (self.username is None) != (self.password_file is None):
            raise ValueError("username and password_file belong together")
        if self.username is not None and self.security == "none":
            raise ValueError("a password goes over starttls or tls only")
        return self

    @property
    def server_port(self) -> int:
        return self.port or {"starttls": 587, "tls": 465, "none": 25}[self.security]


class WebhookConfig(Section):
    """An HTTPS service that takes JSON by POST. secret_file: the key of the signature, read anew for each message;
    null: not signed. ca: as for e-mail."""

    url: str
    secret_file: Path | None = None
    ca: Path | None = None
    timeout_s: float = Field(default=10.0, gt=0, le=300)

    @field_validator("url")
    @classmethod
    def _secure(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme == "http" and parts.hostname in _LOOPBACK:
            return url
        if parts.scheme != "https" or not parts.hostname:
            raise ValueError("must be a URL like https://hooks.example/dicom-node; http on this machine only")
        if parts.username or parts.password:
            raise ValueError("must hold no password: use secret_file")
        return url


class AlertsConfig(Section):
    """Channels, and what is told. Without a channel nothing is sent; `alert list` shows it all the same.

    link: where this node's pages are, for links to jobs. repeat_after_h: what still holds is told again; null: once.
    group_every_min: of one kind one message in so long, what comes meanwhile gathers. every_s: between two looks.
    Null turns off: dead_destination_min: nothing arrived for so long while something waits; queue_age_min: a job or
    a series waits for so long; missing_role_min: a role was not seen for so long and did not stop in order;
    disk_below_gb: less is free; certificate_days: a certificate has fewer left.
    Failed and parked jobs, parked objects, jobs that hang and a disk that takes nothing more are always told.
    """

    email: EmailConfig | None = None
    webhook: WebhookConfig | None = None
    link: str | None = None
    repeat_after_h: Annotated[float, Field(gt=0)] | None = 24.0
    group_every_min: float = Field(default=15.0, ge=0)
    every_s: float = Field(default=30.0, gt=0, le=3600)
    dead_destination_min: Annotated[float, Field(gt=0)] | None = 30.0
    queue_age_min: Annotated[float, Field(gt=0)] | None = 60.0
    missing_role_min: Annotated[float, Field(gt=0)] | None = 5.0
    disk_below_gb: Annotated[float, Field(gt=0)] | None = 10.0
    certificate_days: Annotated[int, Field(ge=0)] | None = 30

    @field_validator("link")
    @classmethod
    def _is_url(cls, link: str | None) -> str | None:
        if link is None:
            return None
        parts = urlsplit(link)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be a URL like https://dicom-node.example, without ? and #")
        return link.rstrip("/")
