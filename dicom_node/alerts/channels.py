"""A message -> a mail server, or an HTTPS service. Secrets are read from their files for each message.

Neither proxies nor credentials of the environment are used; redirects are not followed.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import http.client
import json
import smtplib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from dicom_node.alerts.message import Message
from dicom_node.config import AlertsConfig, EmailConfig, WebhookConfig
from dicom_node.errors import AlertNotSent

# Of an answer so much is read: none of it is used.
_ANSWER_BYTES = 4096


class Channel(Protocol):
    """Takes messages to where people read them."""

    @property
    def name(self) -> str: ...

    def send(self, message: Message) -> str:
        """What the other side said. Raises AlertNotSent."""

    def probe(self) -> str:
        """As far as `send` would go before the message: what was reached. Raises AlertNotSent."""


def channels_of(settings: AlertsConfig) -> list[Channel]:
    """The channels that are set up."""
    found: list[Channel] = []
    if settings.email is not None:
        found.append(Email(settings.email))
    if settings.webhook is not None:
        found.append(Webhook(settings.webhook))
    return found


@dataclass(frozen=True, slots=True)
class Email:
    """SMTP (RFC 5321), over TLS or turned to it by STARTTLS (RFC 3207) before anything else is said."""

    settings: EmailConfig
    now: Callable[[], float] = time.time
    name: str = "email"

    def send(self, message: Message) -> str:
        settings, password = self.settings, self._password()
        mail = self._mail(message)
        with _smtp_errors(settings), self._server() as server:
            self._log_in(server, password)
            refused = server.send_message(mail, settings.sender, list(settings.to))
        if refused:
            return f"taken; {len(refused)} of {len(settings.to)} recipients refused"
        return f"taken for {len(settings.to)} recipient{'s' * (len(settings.to) > 1)}"

    def probe(self) -> str:
        """Connects, turns to TLS, logs in; no mail."""
        settings, password = self.settings, self._password()
        with _smtp_errors(settings), self._server() as server:
            server.ehlo_or_helo_if_needed()
            self._log_in(server, password)
            code, said = server.noop()
            if code != 250:
                raise smtplib.SMTPResponseException(code, said)
        how = {"starttls": "over STARTTLS", "tls": "over TLS", "none": "without TLS"}[settings.security]
        login = "" if settings.username is None else ", and takes the login"
        return f"{settings.host}:{settings.server_port} answers {how}{login}; no mail was sent"

    def _password(self) -> str | None:
        file = self.settings.password_file
        return None if file is None else _secret(file, "alerts.email.password_file")

    def _log_in(self, server: smtplib.SMTP, password: str | None) -> None:
        if self.settings.username is not None and password is not None:
            server.login(self.settings.username, password)

    def _server(self) -> smtplib.SMTP:
        settings = self.settings
        address, timeout_s = (settings.host, settings.server_port), settings.timeout_s
        # Else the library asks the name service for our full name, which takes its time where there is none.
        us = socket.gethostname()
        if settings.security == "tls":
            return smtplib.SMTP_SSL(*address, us, context=_context(settings.ca), timeout=timeout_s)
        server = smtplib.SMTP(*address, us, timeout=timeout_s)
        if settings.security == "starttls":
            try:
                server.starttls(context=_context(settings.ca))
            except BaseException:
                server.close()
                raise
        return server

    def _mail(self, message: Message) -> EmailMessage:
        mail = EmailMessage()
        mail["Subject"] = f"[{message.payload['node']}] {message.title}"
        mail["From"] = self.settings.sender
        mail["To"] = ", ".join(self.settings.to)
        mail["Date"] = format_datetime(datetime.fromtimestamp(self.now(), UTC))
        mail["Message-ID"] = f"<{message.message_id}@{self.settings.sender.partition('@')[2]}>"
        # RFC 3834: so that nobody's holiday note answers.
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(message.text)
        return mail


@dataclass(frozen=True, slots=True)
class Webhook:
    """POST of JSON, signed as Standard Webhooks says: HMAC-SHA256 over id, time and body."""

    settings: WebhookConfig
    now: Callable[[], float] = time.time
    name: str = "webhook"

    def send(self, message: Message) -> str:
        settings = self.settings
        body = json.dumps({"id": message.message_id, **message.payload}).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "dicom-node", "Connection": "close"}
        headers |= {"webhook-id": message.message_id, "webhook-timestamp": str(int(self.now()))}
        if settings.secret_file is not None:
            key = _key(_secret(settings.secret_file, "alerts.webhook.secret_file"))
            headers["webhook-signature"] = signature(key, message.message_id, headers["webhook-timestamp"], body)
        with _http_errors(settings):
            status = self._post(body, headers)
        if not 200 <= status < 300:
            raise AlertNotSent(f"alerts.webhook.url: the service answers HTTP {status}")
        return f"HTTP {status}"

    def probe(self) -> str:
        """Resolves the name, connects, looks at the certificate; nothing is asked of the service."""
        if self.settings.secret_file is not None:
            _key(_secret(self.settings.secret_file, "alerts.webhook.secret_file"))
        parts = urlsplit(self.settings.url)
        with _http_errors(self.settings), contextlib.closing(self._connection()) as connection:
            connection.connect()
        how = "with a certificate that is trusted" if parts.scheme == "https" else "without TLS"
        return f"{parts.netloc.rpartition('@')[2]} can be reached, {how}; no message was sent"

    def _connection(self) -> http.client.HTTPConnection:
        parts, timeout_s = urlsplit(self.settings.url), self.settings.timeout_s
        assert parts.hostname is not None  # noqa: S101  WebhookConfig looked
        if parts.scheme == "https":
            context = _context(self.settings.ca)
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout_s, context=context)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)

    def _post(self, body: bytes, headers: dict[str, str]) -> int:
        parts = urlsplit(self.settings.url)
        with contextlib.closing(self._connection()) as connection:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", target, body, headers)
            answer = connection.getresponse()
            answer.read(_ANSWER_BYTES)
            return answer.status


def signature(key: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    """The header webhook-signature. timestamp: seconds since the epoch, as in webhook-timestamp."""
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def _key(secret: str) -> bytes:
    """Standard Webhooks hands keys out as whsec_ and Base64; any other text is taken as it is."""
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise AlertNotSent("alerts.webhook.secret_file: after whsec_ there is no Base64") from None


def _secret(path: Path, setting: str) -> str:
    """The one line of a file. The text of an error never holds it."""
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as err:
        raise AlertNotSent(f"{setting}: {path} cannot be read ({type(err).__name__})") from None
    if len(text.splitlines()) != 1:
        raise AlertNotSent(f"{setting}: {path} must hold one line")
    return text


def _context(ca: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as err:
        raise AlertNotSent(f"the file of ca cannot be read: {type(err).__name__}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@contextlib.contextmanager
def _smtp_errors(settings: EmailConfig) -> Iterator[None]:
    """What went wrong in our words: a server's own text may quote addresses or the message."""
    where = f"{settings.host}:{settings.server_port}"
    try:
        yield
    except smtplib.SMTPAuthenticationError as err:
        raise AlertNotSent(f"{where} refuses the login ({err.smtp_code}): check username and password_file") from None
    except smtplib.SMTPRecipientsRefused:
        raise AlertNotSent(f"{where} refuses all recipients") from None
    except smtplib.SMTPNotSupportedError:
        raise AlertNotSent(f"{where} offers no STARTTLS, or no login: check security and port") from None
    except smtplib.SMTPResponseException as err:
        raise AlertNotSent(f"{where} answers {err.smtp_code}") from None
    except smtplib.SMTPException as err:
        raise AlertNotSent(f"{where} speaks no SMTP, or hung up ({type(err).__name__})") from None
    except OSError as err:
        raise AlertNotSent(f"{where}: {_network_error(err)}") from None


@contextlib.contextmanager
def _http_errors(settings: WebhookConfig) -> Iterator[None]:
    # Not the path: chat services put the secret there.
    where = urlsplit(settings.url).netloc
    try:
        yield
    except OSError as err:
        raise AlertNotSent(f"{where}: {_network_error(err)}") from None
    except http.client.HTTPException as err:
        raise AlertNotSent(f"{where} speaks no HTTP, or hung up ({type(err).__name__})") from None


def _network_error(err: OSError) -> str:
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({err.verify_message}): check ca and the name"
    if isinstance(err, ssl.SSLError):
        return f"no TLS ({err.reason}): check security and port"
    if isinstance(err, TimeoutError):
        return "no answer in time"
    if isinstance(err, socket.gaierror):
        return "the name is not known"
    return f"no connection ({err.strerror or type(err).__name__})"
