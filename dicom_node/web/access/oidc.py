"""Login by an OpenID provider: authorization code flow with PKCE (OpenID Connect Core 3.1, RFC 7636, RFC 9700).

Between leaving and coming back nothing is kept here: state, nonce and verifier follow from a secret in a short-lived
cookie, so whoever comes back without it, or with another's code, is refused.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from base64 import urlsafe_b64encode
from typing import Annotated, Any

import requests
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.requests_client import OAuth2Session
from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from joserfc import jwk, jwt
from joserfc.errors import JoseError

from dicom_node.config import WebOIDC, WebRole
from dicom_node.errors import ConfigError
from dicom_node.logs import describe
from dicom_node.web.access.caller import from_ourselves, own_origins, role_of
from dicom_node.web.access.login import inside, logged_in
from dicom_node.web.access.principal import Denied, the_caller, the_node

router = APIRouter(include_in_schema=False)
log = logging.getLogger(__name__)

_COOKIE = "dicom_node_oidc"
_COOKIE_S = 600
_TIMEOUT_S = 10.0
_LEEWAY_S = 60
# Signatures that anybody with the provider's public keys can check; never none, never a shared secret.
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA"]
_DOWN = "The login provider does not answer as it should. Try again, or ask who runs it."


class Provider:
    """What an issuer says of itself, asked once a login: its keys may change at any time."""

    def __init__(self, settings: WebOIDC) -> None:
        self._settings = settings
        self._verify: Any = True if settings.ca is None else str(settings.ca)
        self._said = self._json(f"{settings.issuer}/.well-known/openid-configuration")
        if str(self._said.get("issuer", "")).rstrip("/") != settings.issuer:
            raise ConfigError("the OpenID provider calls itself otherwise than web.oidc.issuer")

    def where_to_log_in(self, redirect: str, attempt: Attempt) -> str:
        with self._session(redirect) as session:
            url, _ = session.create_authorization_url(
                self._said["authorization_endpoint"],
                state=attempt.state,
                nonce=attempt.nonce,
                code_verifier=attempt.verifier,
            )
        return str(url)

    def claims(self, code: str, redirect: str, attempt: Attempt, now: float) -> dict[str, Any]:
        """The checked claims of the ID token (OpenID Connect Core 3.1.3.7)."""
        with self._session(redirect) as session:
            answer = session.fetch_token(
                self._said["token_endpoint"],
                grant_type="authorization_code",
                code=code,
                code_verifier=attempt.verifier,
                verify=self._verify,
                timeout=_TIMEOUT_S,
            )
        keys = jwk.KeySet.import_key_set(self._json(self._said["jwks_uri"]))  # type: ignore[arg-type]
        token = jwt.decode(str(answer["id_token"]), keys, algorithms=_ALGORITHMS)
        jwt.JWTClaimsRegistry(
            now=int(now),
            leeway=_LEEWAY_S,
            iss={"essential": True, "value": str(self._said["issuer"])},
            aud={"essential": True, "value": self._settings.client_id},
            nonce={"essential": True, "value": attempt.nonce},
            exp={"essential": True},
            iat={"essential": True},
            sub={"essential": True},
        ).validate(token.claims)
        party = token.claims.get("azp")
        if party is not None and party != self._settings.client_id:
            raise ConfigError("the ID token was made for another client")
        return dict(token.claims)

    def _session(self, redirect: str) -> Any:
        settings = self._settings
        secret = None
        if settings.client_secret_file is not None:
            secret = settings.client_secret_file.read_text(encoding="utf-8").strip()
        return OAuth2Session(
            settings.client_id,
            secret,
            token_endpoint_auth_method="none" if secret is None else "client_secret_basic",
            scope=" ".join(settings.scopes),
            redirect_uri=redirect,
            code_challenge_method="S256",
        )

    def _json(self, url: str) -> dict[str, Any]:
        answer = requests.get(url, timeout=_TIMEOUT_S, verify=self._verify, allow_redirects=False)
        answer.raise_for_status()
        said = answer.json()
        if not isinstance(said, dict):
            raise ConfigError("the OpenID provider answers with what is no JSON object")
        return said


class Attempt:
    """One way to the provider and back. What is sent along tells nothing of the secret, nor of one another."""

    def __init__(self, secret: str) -> None:
        self.state, self.nonce, self.verifier = (self._of(secret, use) for use in ("state", "nonce", "verifier"))

    @staticmethod
    def _of(secret: str, use: str) -> str:
        digest = hashlib.sha256(f"{use}:{secret}".encode()).digest()
        return urlsafe_b64encode(digest).decode().rstrip("=")


@router.post("/login/oidc")
def leave(request: Request, next: Annotated[str, Form()] = "/") -> Response:
    """To the provider."""
    settings, secure = _settings(request), the_caller(request).secure
    if not from_ourselves(request.scope, the_node(request).config.web, the_caller(request)):
        raise Denied(403, "This request does not come from a page of this node.")
    secret = secrets.token_urlsafe(32)
    try:
        url = Provider(settings).where_to_log_in(_redirect(request), Attempt(secret))
    except Exception as err:  # noqa: BLE001  the provider may answer whatever it likes
        raise _failed(err) from None
    answer = RedirectResponse(url, 303)
    for name, value in ((_COOKIE, secret), (f"{_COOKIE}_next", inside(next).encode().hex())):
        answer.set_cookie(
            name, value, max_age=_COOKIE_S, path="/login/oidc", secure=secure, httponly=True, samesite="lax"
        )
    return answer


@router.get("/login/oidc/callback")
def come_back(request: Request, state: str = "", code: str = "", error: str = "") -> Response:
    """From the provider."""
    node, settings, who = the_node(request), _settings(request), the_caller(request)
    secret = request.cookies.get(_COOKIE, "")
    attempt = Attempt(secret)
    if not secret or not secrets.compare_digest(state.encode(), attempt.state.encode()):
        raise Denied(403, "This login was not begun here, or too long ago: begin it again.")
    if error or not code:
        node.trail.login("unknown", ok=False, address=who.address)
        raise Denied(403, "The login provider did not let you in.")
    try:
        claims = Provider(settings).claims(code, _redirect(request), attempt, node.now())
    except Exception as err:  # noqa: BLE001  as above
        node.trail.login("unknown", ok=False, address=who.address)
        raise _failed(err) from None
    user, role = _user(claims, settings)
    if role is None:
        node.trail.login(user, ok=False, address=who.address)
        raise Denied(403, "You are logged in at the provider, but no group of yours may use this node.")
    answer = logged_in(request, user, role, "oidc", None, _next(request))
    for name in (_COOKIE, f"{_COOKIE}_next"):
        answer.delete_cookie(name, path="/login/oidc", secure=who.secure, httponly=True, samesite="lax")
    return answer


def _user(claims: dict[str, Any], settings: WebOIDC) -> tuple[str, WebRole | None]:
    """Who it is and what they may do. Without the claim that names users it is the subject, which the issuer never
    gives to two."""
    groups = claims.get(settings.groups_claim, [])
    listed = [groups] if isinstance(groups, str) else [str(group) for group in groups if isinstance(group, str)]
    name = str(claims.get(settings.user_claim) or claims["sub"])
    return name[:128], role_of(listed, settings.roles, settings.default_role)


def _settings(request: Request) -> WebOIDC:
    settings = the_node(request).config.web.oidc
    if settings is None:
        raise Denied(404, "There is no login provider here.")
    return settings


def _redirect(request: Request) -> str:
    """Where the provider sends people back to. It knows the addresses that are allowed."""
    web = the_node(request).config.web
    own = web.public_url or next(iter(own_origins(request.scope, web, the_caller(request))))
    return f"{own}/login/oidc/callback"


def _next(request: Request) -> str:
    try:
        return inside(bytes.fromhex(request.cookies.get(f"{_COOKIE}_next", "")).decode() or "/")
    except ValueError:
        return "/"


def _failed(err: Exception) -> Denied:
    known = isinstance(err, (requests.RequestException, AuthlibBaseError, JoseError, ConfigError))
    log.log(
        logging.WARNING if known else logging.ERROR,
        "login provider failed",
        extra={"action": "oidc", "error": describe(err)},
    )
    return Denied(502, _DOWN)
