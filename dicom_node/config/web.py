"""The `web` section of config.yaml: where the web role listens, whom it lets in, and how it knows them."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from dicom_node.fields import Network, Section
from dicom_node.peers import TLSVersion

# Each may do what those before it may.
ROLES = ("viewer", "operator", "admin")
WebRole = Literal["viewer", "operator", "admin"]


def _header(name: str) -> str:
    if not name or not all(c.isascii() and (c.isalnum() or c == "-") for c in name):
        raise ValueError("is no name of an HTTP header, like X-Remote-User")
    return name.lower()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class WebTLS(Section):
    """PEM files of the certificate that browsers see and of its key."""

    certificate: Path
    key: Path
    min_version: TLSVersion = "1.2"


class WebProxy(Section):
    """A reverse proxy before the web role, which ends TLS.

    from: its addresses (single or CIDR): its headers X-Forwarded-For and X-Forwarded-Proto count, nobody else's do.
    user_header: where the proxy logs users in: the header that names the user; it must take away any that a browser
    sends. groups_header: their groups, with commas between. roles: which group gives which role; default_role: the
    role of who is in none of them; null: none, refused.
    """

    calls_from: tuple[Network, ...] = Field(alias="from", min_length=1)
    user_header: Annotated[str, AfterValidator(_header)] | None = None
    groups_header: Annotated[str, AfterValidator(_header)] | None = None
    roles: dict[str, WebRole] = Field(default_factory=dict)
    default_role: WebRole | None = None


class WebOIDC(Section):
    """Login by an OpenID provider (authorization code flow with PKCE).

    issuer: its URL, below which /.well-known/openid-configuration lies. client_secret_file: one line; null for a public
    client. user_claim: what users are called by. groups_claim: the claim of the ID token that lists their groups.
    roles, default_role: as for the proxy. ca: who vouches for the provider's certificate, null: the system's.
    """

    issuer: str
    client_id: str = Field(min_length=1)
    client_secret_file: Path | None = None
    scopes: tuple[str, ...] = ("openid", "profile")
    user_claim: str = "preferred_username"
    groups_claim: str = "groups"
    roles: dict[str, WebRole] = Field(default_factory=dict)
    default_role: WebRole | None = None
    ca: Path | None = None

    @field_validator("issuer")
    @classmethod
    def _safe(cls, issuer: str) -> str:
        parts = urlsplit(issuer)
        plain = parts.scheme == "http" and is_loopback(parts.hostname or "")
        if not (parts.scheme == "https" or plain) or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be a URL like https://login.example/realms/hospital")
        return issuer.rstrip("/")

    @field_validator("scopes")
    @classmethod
    def _openid(cls, scopes: tuple[str, ...]) -> tuple[str, ...]:
        if "openid" not in scopes:
            raise ValueError("needs the scope openid")
        return scopes


class WebConfig(Section):
    """The web role. Beyond loopback it listens with `tls` or behind a `proxy` only.

    public_url: how browsers reach it, where that is not its own host and port: needed for `oidc` behind a proxy.
    users_file: who may log in with a password (`dicom-node user add`); null: web_users.json under the storage root.
    patient_names: whether pages may show a patient's name to who is logged in. idle_min, longest_login_h: a login ends
    after so long without a page or form that somebody asked for, and after so long at all. metrics: who may read
    /metrics: `loopback` (calls from this machine, and tokens), or `token` alone.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8114
    tls: WebTLS | None = None
    proxy: WebProxy | None = None
    oidc: WebOIDC | None = None
    public_url: str | None = None
    users_file: Path | None = None
    patient_names: Literal["show", "hide"] = "hide"
    idle_min: float = Field(default=30.0, gt=0, le=24 * 60)
    longest_login_h: float = Field(default=12.0, gt=0, le=24 * 7)
    metrics: Literal["loopback", "token"] = "loopback"

    @field_validator("public_url")
    @classmethod
    def _an_origin(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/") or parts.query:
            raise ValueError("must be a URL without a path, like https://node.example")
        return f"{parts.scheme}://{parts.netloc}"

    @model_validator(mode="after")
    def _protected(self) -> WebConfig:
        if not is_loopback(self.host) and self.tls is None and self.proxy is None:
            raise ValueError(
                f"host {self.host} is reached by others: give tls: {{certificate, key}}, or proxy: {{from: [ADDRESS]}} "
                "where a proxy ends TLS"
            )
        return self
