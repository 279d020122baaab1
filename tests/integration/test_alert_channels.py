"""Alerts through a real SMTP server and a real HTTPS server: what arrives, and what a failure is called."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message as Mail
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword

from dicom_node.alerts.channels import Email, Webhook
from dicom_node.alerts.message import Item, compose
from dicom_node.config import EmailConfig, WebhookConfig
from dicom_node.errors import AlertNotSent
from tests.certificates import Authority, Issued
from tests.peers import free_port

PASSWORD, SECRET = "open sesame", "whsec_" + base64.b64encode(b"k" * 24).decode()
MESSAGE = compose(
    "NODE@host",
    "job_failed",
    [Item(subject="j1", text="FAILED, route chest", since=0.0, job_id="j1", link="https://node.example/jobs/j1")],
    [],
)


@dataclass
class Inbox:
    """What a mail server took, and how it was reached."""

    mails: list[Mail] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)
    logins: list[tuple[bytes, bytes]] = field(default_factory=list)

    async def handle_RCPT(  # noqa: N802  aiosmtpd calls it so
        self, _server: SMTP, _session: Any, envelope: Envelope, address: str, _options: Any
    ) -> str:
        if address.startswith("nobody"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, _session: Any, envelope: Envelope) -> str:  # noqa: N802  the same
        assert isinstance(envelope.content, bytes)
        self.mails.append(message_from_bytes(envelope.content))
        assert server.transport is not None
        self.encrypted.append(server.transport.get_extra_info("ssl_object") is not None)
        return "250 OK"

    def authenticate(self, _server: SMTP, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == PASSWORD.encode(), handled=False)


@contextlib.contextmanager
def mail_server(inbox: Inbox, issued: Issued | None, security: str = "starttls") -> Iterator[int]:
    """A real SMTP server on loopback; its port."""
    context = None
    if issued is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(issued.certificate, issued.key)
    starttls = {"tls_context": context, "require_starttls": True} if security == "starttls" and context else {}
    server = Controller(
        inbox,
        hostname="127.0.0.1",
        port=free_port(),
        ssl_context=context if security == "tls" else None,
        authenticator=inbox.authenticate,
        auth_require_tls=False,
        **starttls,
    )
    server.start()
    try:
        yield server.port
    finally:
        server.stop()


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue("mail")


@pytest.fixture
def email(tmp_path: Path, authority: Authority) -> Callable[..., Email]:
    def build(port: int, **settings: Any) -> Email:
        (tmp_path / "password").write_text(PASSWORD + "\n")
        values = {
            "host": "localhost",
            "port": port,
            "ca": authority.ca,
            "username": "node",
            "password_file": tmp_path / "password",
            "from": "node@hospital.example",
            "to": ["it@hospital.example", "pacs@hospital.example"],
            "timeout_s": 3,
            **settings,
        }
        return Email(EmailConfig.model_validate(values), now=lambda: 1_700_000_000.0)

    return build


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_mail_arrives_encrypted_and_logged_in(email: Callable[..., Email], issued: Issued, security: str) -> None:
    inbox = Inbox()
    with mail_server(inbox, issued, security) as port:
        assert email(port, security=security).send(MESSAGE) == "taken for 2 recipients"
    [mail] = inbox.mails
    assert inbox.encrypted == [True]
    assert inbox.logins == [(b"node", PASSWORD.encode())]
    assert mail["Subject"] == "[NODE@host] job failed"
    assert (mail["From"], mail["To"]) == ("node@hospital.example", "it@hospital.example, pacs@hospital.example")
    assert mail["Date"] == "Tue, 14 Nov 2023 22:13:20 +0000"
    assert mail["Message-ID"] == f"<{MESSAGE.message_id}@hospital.example>"
    assert mail["Auto-Submitted"] == "auto-generated"
    text = mail.get_payload(decode=True).decode()
    assert "FAILED, route chest (since 1970-01-01T00:00:00Z)" in text
    assert "https://node.example/jobs/j1" in text
    assert "Research use, not for diagnosis" in text


def test_no_password_leaves_over_a_line_that_is_not_encrypted(email: Callable[..., Email]) -> None:
    inbox = Inbox()
    with mail_server(inbox, None) as port, pytest.raises(AlertNotSent, match="offers no STARTTLS"):
        email(port).send(MESSAGE)
    assert (inbox.mails, inbox.logins) == ([], [])
    with pytest.raises(ValueError, match="starttls or tls only"):
        email(25, security="none")


def test_a_plain_mail_server_without_login_works_where_it_is_wanted(email: Callable[..., Email]) -> None:
    inbox = Inbox()
    with mail_server(inbox, None) as port:
        email(port, security="none", username=None, password_file=None).send(MESSAGE)
    assert (inbox.encrypted, inbox.logins) == ([False], [])


def test_recipients_that_are_refused_are_counted_and_all_refused_is_a_failure(
    email: Callable[..., Email], issued: Issued
) -> None:
    inbox = Inbox()
    with mail_server(inbox, issued) as port:
        told = email(port, to=["it@hospital.example", "nobody@hospital.example"]).send(MESSAGE)
        assert told == "taken; 1 of 2 recipients refused"
        with pytest.raises(AlertNotSent, match="refuses all recipients"):
            email(port, to=["nobody@hospital.example"]).send(MESSAGE)


def test_each_way_in_which_mail_fails_is_told_apart_without_the_secret(
    email: Callable[..., Email], issued: Issued, other_authority: Authority, tmp_path: Path
) -> None:
    said: dict[str, str] = {}

    def fails(name: str, channel: Email) -> None:
        with pytest.raises(AlertNotSent) as caught:
            channel.send(MESSAGE)
        said[name] = str(caught.value)

    with mail_server(Inbox(), issued) as port:
        wrong = tmp_path / "wrong"
        wrong.write_text("not it")
        fails("password", email(port, password_file=wrong))
        fails("ca", email(port, ca=other_authority.ca))
        fails("no file", email(port, password_file=tmp_path / "none"))
        fails("tls on a plain port", email(port, security="tls"))
    fails("nobody there", email(free_port()))
    assert "refuses the login (535)" in said["password"]
    assert "not trusted" in said["ca"]
    assert "alerts.email.password_file" in said["no file"]
    assert "no TLS" in said["tls on a plain port"]
    assert "no connection" in said["nobody there"]
    assert not any(PASSWORD in text or "not it" in text or "it@hospital" in text for text in said.values())


# -- webhook -------------------------------------------------------------------------------------------


@dataclass
class Hook:
    """An HTTPS service: what it got, and the status that it answers with."""

    status: int = 204
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    pause: threading.Event | None = None


@contextlib.contextmanager
def hook_server(hook: Hook, issued: Issued) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hook.got.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            if hook.pause is not None:
                hook.pause.wait(10)
            self.send_response(hook.status)
            self.send_header("Location", "https://elsewhere.example/")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate, issued.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        if hook.pause is not None:
            hook.pause.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def webhook(tmp_path: Path, authority: Authority) -> Callable[..., Webhook]:
    def build(port: int, **settings: Any) -> Webhook:
        (tmp_path / "secret").write_text(SECRET)
        values = {
            "url": f"https://localhost:{port}/hooks/t0ken?room=1",
            "secret_file": tmp_path / "secret",
            "ca": authority.ca,
            "timeout_s": 3,
            **settings,
        }
        return Webhook(WebhookConfig.model_validate(values), now=lambda: 1_700_000_000.7)

    return build


def test_a_webhook_is_posted_and_its_signature_holds_by_the_standard(
    webhook: Callable[..., Webhook], issued: Issued
) -> None:
    hook = Hook()
    with hook_server(hook, issued) as port:
        assert webhook(port).send(MESSAGE) == "HTTP 204"
    [(path, headers, body)] = hook.got
    assert path == "/hooks/t0ken?room=1"
    assert headers["content-type"] == "application/json"
    assert headers["webhook-timestamp"] == "1700000000"
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(b"k" * 24, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    said = json.loads(body)
    assert said["id"] == headers["webhook-id"] == MESSAGE.message_id
    assert (said["node"], said["kind"], said["raised_count"], said["over_count"]) == ("NODE@host", "job_failed", 1, 0)
    assert said["raised"] == [
        {
            "subject": "j1",
            "text": "FAILED, route chest",
            "since": "1970-01-01T00:00:00Z",
            "job_id": "j1",
            "link": "https://node.example/jobs/j1",
            "repeated": False,
        }
    ]


@pytest.mark.parametrize("status", [302, 401, 500])
def test_any_other_answer_is_a_failure_and_no_redirect_is_followed(
    webhook: Callable[..., Webhook], issued: Issued, status: int
) -> None:
    hook = Hook(status=status)
    with hook_server(hook, issued) as port, pytest.raises(AlertNotSent, match=f"answers HTTP {status}"):
        webhook(port).send(MESSAGE)
    assert len(hook.got) == 1


def test_a_service_that_does_not_answer_is_left_in_time_and_its_token_is_told_nobody(
    webhook: Callable[..., Webhook], issued: Issued, other_authority: Authority
) -> None:
    hook = Hook(pause=threading.Event())
    began = time.monotonic()
    with hook_server(hook, issued) as port:
        with pytest.raises(AlertNotSent, match="no answer in time") as caught:
            webhook(port, timeout_s=0.3).send(MESSAGE)
        assert time.monotonic() - began < 5
        assert "t0ken" not in str(caught.value)
        with pytest.raises(AlertNotSent, match="not trusted"):
            webhook(port, ca=other_authority.ca).send(MESSAGE)


def test_a_webhook_over_plain_http_is_refused_but_on_this_machine() -> None:
    for url in ("http://hooks.example/x", "ftp://hooks.example", "https://user:pw@hooks.example/"):
        with pytest.raises(ValueError, match="url"):
            WebhookConfig(url=url)
    assert WebhookConfig(url="http://127.0.0.1:8080/x").url


# -- tried without a message -------------------------------------------------------------------------------


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_mail_server_is_tried_up_to_the_login_and_gets_no_mail(
    email: Callable[..., Email], issued: Issued, security: str
) -> None:
    inbox = Inbox()
    with mail_server(inbox, issued, security) as port:
        said = email(port, security=security).probe()
        assert said.startswith(f"localhost:{port} answers over ")
        assert said.endswith(", and takes the login; no mail was sent")
        assert inbox.logins == [(b"node", PASSWORD.encode())]
        (channel := email(port, security=security)).settings.password_file.write_text("wrong")  # type: ignore[union-attr]
        with pytest.raises(AlertNotSent, match="refuses the login"):
            channel.probe()
    assert inbox.mails == []
    with pytest.raises(AlertNotSent, match="no connection"):
        email(port, security=security).probe()


def test_a_mail_server_that_is_not_trusted_or_offers_no_tls_fails_the_trial(
    email: Callable[..., Email], issued: Issued, other_authority: Authority
) -> None:
    inbox = Inbox()
    with mail_server(inbox, issued) as port, pytest.raises(AlertNotSent, match="not trusted"):
        email(port, ca=other_authority.ca).probe()
    with mail_server(inbox, None) as port, pytest.raises(AlertNotSent, match="offers no STARTTLS"):
        email(port).probe()
    assert inbox.logins == []


def test_a_webhook_is_tried_by_its_name_and_certificate_and_hears_nothing(
    webhook: Callable[..., Webhook], issued: Issued, other_authority: Authority
) -> None:
    hook = Hook()
    with hook_server(hook, issued) as port:
        said = webhook(port).probe()
        assert said == f"localhost:{port} can be reached, with a certificate that is trusted; no message was sent"
        with pytest.raises(AlertNotSent, match="not trusted"):
            webhook(port, ca=other_authority.ca).probe()
    assert hook.got == []
    with pytest.raises(AlertNotSent, match="no connection"):
        webhook(port).probe()
    with pytest.raises(AlertNotSent, match="the name is not known"):
        Webhook(WebhookConfig(url="https://nowhere.invalid/x")).probe()
