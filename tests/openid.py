"""A small OpenID provider for tests: discovery, keys, login without a question, tokens by authorization code and PKCE.

It checks what a strict provider checks: client, redirect URI, verifier, and that each code counts once.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwk, jwt

CLIENT, SECRET = "dicom-node", "a secret & of the client"


class Provider(ThreadingHTTPServer):
    """claims: of whoever logs in. spoil: what is put into the ID token instead of what is right."""

    daemon_threads = True

    def __init__(self, redirect: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.issuer = f"http://127.0.0.1:{self.server_port}/realms/test"
        self.redirect = redirect
        self.key = jwk.RSAKey.generate_key(2048, parameters={"kid": "1", "use": "sig", "alg": "RS256"})
        self.sign_with: Any = self.key
        self.claims: dict[str, Any] = {"sub": "42", "preferred_username": "paula", "groups": ["pacs"]}
        self.spoil: dict[str, Any] = {}
        self.codes: dict[str, dict[str, str]] = {}

    def id_token(self, asked: dict[str, str]) -> str:
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT, "iat": now, "exp": now + 60, "nonce": asked["nonce"]}
        header = {"alg": "RS256", "kid": "1"}
        return str(jwt.encode(header, {**claims, **self.claims, **self.spoil}, self.sign_with))


class _Handler(BaseHTTPRequestHandler):
    server: Provider

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path.endswith("/.well-known/openid-configuration"):
            own = self.server.issuer
            self._json({"issuer": own, "authorization_endpoint": f"{own}/authorize",
                        "token_endpoint": f"{own}/token", "jwks_uri": f"{own}/keys"})  # fmt: skip
        elif url.path.endswith("/keys"):
            self._json({"keys": [self.server.key.as_dict(private=False)]})
        elif url.path.endswith("/authorize"):
            self._authorize({name: values[0] for name, values in parse_qs(url.query).items()})
        else:
            self._json({}, 404)

    def _authorize(self, asked: dict[str, str]) -> None:
        right = (asked["client_id"], asked["redirect_uri"], asked["response_type"], asked["code_challenge_method"])
        assert right == (CLIENT, self.server.redirect, "code", "S256"), right
        assert "openid" in asked["scope"].split()
        code = secrets.token_urlsafe()
        self.server.codes[code] = asked
        self.send_response(302)
        self.send_header("Location", f"{self.server.redirect}?{urlencode({'code': code, 'state': asked['state']})}")
        self.end_headers()

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        form = {name: values[0] for name, values in parse_qs(self.rfile.read(length).decode()).items()}
        scheme, _, given = self.headers.get("Authorization", " ").partition(" ")
        asked = self.server.codes.pop(form.get("code", ""), None)
        if scheme != "Basic" or base64.b64decode(given).decode() != f"{CLIENT}:{SECRET}" or asked is None:
            self._json({"error": "invalid_client"}, 401)
            return
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        if base64.urlsafe_b64encode(digest).decode().rstrip("=") != asked["code_challenge"]:
            self._json({"error": "invalid_grant"}, 400)
            return
        token = self.server.id_token(asked)
        self._json({"access_token": "x", "token_type": "Bearer", "expires_in": 60, "id_token": token})

    def _json(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def openid_provider(redirect: str) -> Iterator[Provider]:
    with Provider(redirect) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
