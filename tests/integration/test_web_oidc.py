"""Login by a real, small OpenID provider over HTTP: who gets in with which role, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from joserfc import jwk
from starlette.testclient import TestClient

from dicom_node.config import Config
from tests.openid import CLIENT, SECRET, Provider, openid_provider
from tests.web import HOST, Web, web_role


@pytest.fixture
def provider() -> Iterator[Provider]:
    with openid_provider(f"{HOST}/login/oidc/callback") as made:
        yield made


@pytest.fixture
def web(provider: Provider, node_config: Callable[..., Config], tmp_path: Path) -> Iterator[Web]:
    secret = tmp_path / "client.secret"
    secret.write_text(SECRET + "\n")
    oidc = {
        "issuer": provider.issuer,
        "client_id": CLIENT,
        "client_secret_file": str(secret),
        "roles": {"pacs": "operator", "readers": "viewer"},
    }
    with web_role(node_config(web={"oidc": oidc})) as made:
        made.clock = time.time()
        yield made


def browser(web: Web) -> TestClient:
    return web.client(Origin=HOST)


def to_provider(client: TestClient) -> str:
    """What the provider sends the browser back with."""
    assert "/login/oidc" in client.get("/login").text
    leave = client.post("/login/oidc", data={"next": "/jobs"})
    assert leave.status_code == 303, leave.text
    back = requests.get(leave.headers["location"], allow_redirects=False, timeout=10)
    return back.headers["location"].removeprefix(HOST)


def test_a_group_gives_its_role_and_the_browser_lands_where_it_wanted_to(web: Web) -> None:
    client = browser(web)
    answer = client.get(to_provider(client))
    assert (answer.status_code, answer.headers["location"]) == (303, "/jobs"), answer.text
    told = client.get("/api/v1/session").json()
    assert (told["name"], told["role"], told["method"]) == ("paula", "operator", "oidc")


@pytest.mark.parametrize("groups", [[], ["nurses"], "nurses", 7, None])
def test_who_is_in_no_group_of_ours_stays_out(web: Web, provider: Provider, groups: Any) -> None:
    provider.claims["groups"] = groups if groups != 7 else [7]
    if groups is None:
        del provider.claims["groups"]
    client = browser(web)
    assert client.get(to_provider(client)).status_code == 403
    assert client.get("/api/v1/session").status_code == 401


@pytest.mark.parametrize(
    "spoil",
    [
        {"nonce": "another"},
        {"aud": "another-client"},
        {"iss": "http://evil.example"},
        {"exp": 1_600_000_000},
        {"azp": "another-client"},
    ],
)
def test_a_token_that_was_not_made_for_this_login_is_refused(
    web: Web, provider: Provider, spoil: dict[str, Any]
) -> None:
    provider.spoil = spoil
    client = browser(web)
    assert client.get(to_provider(client)).status_code == 502
    assert client.get("/api/v1/session").status_code == 401


def test_a_token_by_another_key_is_refused(web: Web, provider: Provider) -> None:
    provider.sign_with = jwk.RSAKey.generate_key(2048, parameters={"kid": "1"})
    client = browser(web)
    assert client.get(to_provider(client)).status_code == 502


def test_a_code_counts_once_and_only_in_the_browser_that_asked_for_it(web: Web) -> None:
    client, thief = browser(web), browser(web)
    back = to_provider(client)
    assert thief.get(back).status_code == 403, "no cookie"
    to_provider(thief)
    assert thief.get(back).status_code == 403, "another's state"
    assert client.get(back).status_code == 303
    assert client.get(back).status_code == 403, "the cookie is gone after it"


def test_a_provider_that_is_down_is_told_without_internals(web: Web, provider: Provider) -> None:
    provider.shutdown()
    provider.server_close()
    answer = browser(web).post("/login/oidc", data={})
    assert answer.status_code == 502
    assert "Connection" not in answer.text
