"""Who gets in, who does not, and what ends a login: the real application on real rows."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from dicom_node import schema
from dicom_node.config import ROLES, Config, WebConfig
from dicom_node.errors import ConfigError, DicomNodeError
from dicom_node.web import pages
from dicom_node.web.access.limits import TRIES_OF_ADDRESS, TRIES_OF_ONE, WINDOW_S
from dicom_node.web.access.principal import ALLOWED, Deed
from dicom_node.web.access.users import UsersFile
from tests.web import PASSWORD, QUICK, Web, cookie, log_in, web_role

PROXY = {"proxy": {"from": ["10.0.0.5", "10.1.0.0/16"], "user_header": "X-Remote-User",
                   "groups_header": "X-Remote-Groups", "roles": {"pacs": "operator", "it": "admin"}}}  # fmt: skip


@pytest.fixture
def build(node_config: Callable[..., Config]) -> Callable[..., Config]:
    return node_config


@pytest.fixture
def web(build: Callable[..., Config]) -> Iterator[Web]:
    with web_role(build()) as made:
        made.user("anna", "operator")
        made.user("vera", "viewer")
        yield made


# -- where it listens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::", "node.example"])
def test_beyond_loopback_there_must_be_tls_or_a_proxy(host: str) -> None:
    with pytest.raises(ValidationError, match="is reached by others: give tls"):
        WebConfig(host=host)
    assert WebConfig.model_validate({"host": host, **PROXY}).host == host
    assert WebConfig().host == "127.0.0.1"


# -- login -----------------------------------------------------------------------------------------------


def test_only_health_and_the_login_answer_without_a_login(web: Web) -> None:
    client = web.client()
    app_routes = [
        (path, method.upper())
        for path, methods in client.get("/api/v1/openapi.json").json()["paths"].items()
        for method in methods
    ]
    assert len(app_routes) > 12
    parts = [part.original_router.routes for part in pages.router.routes]  # type: ignore[attr-defined]
    shown = [(route.path, method) for part in parts for route in part for method in route.methods]
    assert len(shown) > 15
    app_routes += [each for each in shown if each != ("/viewer.js", "GET")]
    for path, method in app_routes:
        path = path.replace("{job_id}", f"1.2-{'0' * 16}").replace("{sop_instance_uid}", "1.2").replace("{name}", "x")
        answer = client.request(method, path.replace("{number}", "0"))
        assert answer.status_code == 401, (method, path, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
    for path in ("/healthz", "/readyz", "/login"):
        assert client.get(path).status_code == 200


def test_where_a_request_says_to_come_from_no_address_it_comes_from_elsewhere(web: Web) -> None:
    client = web.client(Referer="http://[", Accept="text/html")
    assert log_in(client, "anna").status_code == 403
    assert client.post("/logout").headers["location"] == "/login?next=%2F"


def test_a_login_is_a_cookie_that_scripts_and_other_sites_do_not_get(web: Web) -> None:
    client = web.client(Origin="http://127.0.0.1:8114")
    answer = log_in(client, "anna", to="/jobs?state=failed")
    assert (answer.status_code, answer.headers["location"]) == (303, "/jobs?state=failed")
    assert {"HttpOnly", "Path=/", "SameSite=lax"} <= set(cookie(answer).split("; "))
    assert client.get("/api/v1/session").json()["name"] == "anna"
    secret = cookie(answer).split("=", 1)[1].split(";")[0]
    with web.node.database.engine.connect() as connection:
        dump = str(connection.exec_driver_sql("SELECT * FROM web_session").all())
    assert secret not in dump, "who reads the database must not be able to take over a login"


def test_behind_tls_the_cookie_is_secure_and_bound_to_the_host(web: Web) -> None:
    client = web.client(base_url="https://127.0.0.1:8114", Origin="https://127.0.0.1:8114")
    answer = log_in(client, "anna")
    assert cookie(answer).startswith("__Host-dicom_node=")
    assert "Secure" in cookie(answer).split("; ")


@pytest.mark.parametrize("to", ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "/a\nb"])
def test_a_login_leads_to_no_other_site(web: Web, to: str) -> None:
    client = web.client(Origin="http://127.0.0.1:8114")
    assert log_in(client, "anna", to=to).headers["location"] == "/"


def test_a_wrong_password_and_an_unknown_user_are_answered_alike(web: Web) -> None:
    client = web.client(Origin="http://127.0.0.1:8114")
    answers = [log_in(client, "anna", "wrong"), log_in(client, "nobody", "wrong")]
    assert {answer.status_code for answer in answers} == {401}
    assert answers[0].text == answers[1].text


def test_an_unknown_user_takes_as_long_as_a_wrong_password(tmp_path: Any) -> None:
    users = UsersFile(tmp_path / "users.json")
    users.add("anna", "viewer", PASSWORD)

    def median_s(name: str) -> float:
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            assert users.verify(name, "wrong") is None
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    assert 0.4 < median_s("nobody") / median_s("anna") < 2.5


def test_too_many_tries_of_one_user_from_one_address_wait_and_nobody_else_does(web: Web) -> None:
    limits = web.node.access.rows
    for _ in range(TRIES_OF_ONE):
        assert limits.begin_login("anna", "10.0.0.9") == 0
    assert limits.begin_login("anna", "10.0.0.9") == WINDOW_S
    assert limits.begin_login("anna", "10.0.0.10") == limits.begin_login("vera", "10.0.0.9") == 0
    web.clock += WINDOW_S
    assert limits.begin_login("anna", "10.0.0.9") == 0


def test_tries_at_the_same_time_count_each_other(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    checked, full = [], threading.Event()

    def verify(*_: str) -> None:
        checked.append(1)
        full.wait(5)

    monkeypatch.setattr(UsersFile, "verify", verify)
    client = web.client(Origin="http://127.0.0.1:8114")
    with ThreadPoolExecutor(12) as pool:
        tries = [pool.submit(log_in, client, "anna", "wrong") for _ in range(12)]
        waits = [each.result() for each in islice(as_completed(tries), 12 - TRIES_OF_ONE)]
        assert {answer.status_code for answer in waits} == {429}
        full.set()
    assert len(checked) == TRIES_OF_ONE


def test_the_right_password_does_not_get_past_the_limit(web: Web, counts: Callable[[str], dict[str, float]]) -> None:
    client = web.client(Origin="http://127.0.0.1:8114")
    for _ in range(TRIES_OF_ONE):
        assert log_in(client, "anna", "wrong").status_code == 401
    answer = log_in(client, "anna")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "301")
    assert log_in(client, "vera").status_code == 303
    web.clock += WINDOW_S
    assert log_in(client, "anna").status_code == 303
    assert counts("dicom_node_logins_total") == {"failed": TRIES_OF_ONE, "limited": 1, "ok": 2}


def test_one_address_has_a_limit_over_all_users_and_a_whole_ipv6_network_counts_as_one(web: Web) -> None:
    limits = web.node.access.rows
    for number in range(TRIES_OF_ADDRESS - 1):
        assert limits.begin_login(f"user{number}", f"2001:db8::{number:x}") == 0
    assert limits.begin_login("vera", "2001:db8::1") == 0
    limits.login_succeeded("vera", "2001:db8::1")
    assert limits.begin_login("anna", "2001:db8::ffff") == 0
    assert limits.begin_login("anna", "2001:db8::ffff") == WINDOW_S, "one known password buys no tries at others"
    assert limits.begin_login("anna", "2001:db8:0:1::1") == 0
    for _ in range(TRIES_OF_ONE):
        assert limits.begin_login("bob", "::ffff:10.0.0.7") == 0
    assert limits.begin_login("bob", "10.0.0.7") == WINDOW_S, "the same host"
    assert limits.begin_login("bob", "::ffff:10.0.0.8") == 0, "another one"


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.peers)])
def test_two_web_roles_over_one_database_count_together_also_after_a_restart(
    build: Callable[..., Config], kind: str, request: pytest.FixtureRequest
) -> None:
    sections = {"database": {"url": request.getfixturevalue("postgres_url")}} if kind == "postgresql" else {}
    with web_role(build(**sections)) as one, web_role(build(**sections)) as two:
        one.user("anna", "operator")
        clients = [web.client(Origin="http://127.0.0.1:8114") for web in (one, two)]
        with ThreadPoolExecutor(8) as pool:
            tries = [pool.submit(log_in, clients[number % 2], "anna", "wrong") for number in range(8)]
            answers = Counter(each.result().status_code for each in tries)
        assert answers == {401: TRIES_OF_ONE, 429: 8 - TRIES_OF_ONE}
    with web_role(build(**sections)) as again:
        client = again.client(Origin="http://127.0.0.1:8114")
        assert log_in(client, "anna").status_code == 429
        again.clock += WINDOW_S
        assert log_in(client, "anna").status_code == 303
        with again.node.database.engine.connect() as connection:
            assert connection.execute(sa.select(schema.login_try)).all() == [], "what is over does not stay"


def test_what_was_typed_as_a_name_is_not_kept(web: Web) -> None:
    web.node.access.rows.begin_login(PASSWORD, "10.0.0.9")
    with web.node.database.engine.connect() as connection:
        [row] = connection.execute(sa.select(schema.login_try)).all()
    assert len(row.name_mark) == 4
    assert row.network == "10.0.0.9"


def test_nobody_logs_in_while_the_database_is_away(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr(UsersFile, "verify", lambda *_: checked.append("tried"))
    client = web.client(Origin="http://127.0.0.1:8114")
    with web.node.database.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE login_try RENAME TO away"))
    answer = log_in(client, "anna")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert checked == []


# -- what ends a login -----------------------------------------------------------------------------------


def test_a_login_ends_by_idling_and_by_its_age(web: Web) -> None:
    client = web.browser("vera")
    for _ in range(23):
        web.clock += 29 * 60
        assert client.get("/api/v1/session").status_code == 200
    web.clock += 61 * 60
    assert client.get("/api/v1/session").status_code == 401
    client = web.browser("vera")
    for _ in range(24):
        web.clock += 29 * 60
        client.get("/api/v1/session")
    web.clock += 29 * 60
    assert client.get("/api/v1/session").status_code == 401, "longest_login_h is 12"


OF_THE_PAGE = {"HX-Request": "true"}


def test_what_an_open_page_asks_by_itself_keeps_no_login_alive(web: Web) -> None:
    client = web.browser("anna")
    for _ in range(6):
        web.clock += 5 * 60
        assert client.get("/", headers=OF_THE_PAGE).status_code == 200
    web.clock += 60
    assert client.get("/", headers=OF_THE_PAGE).status_code == 401, "idle_min is 30"
    assert client.get("/events", headers={"Accept": "text/event-stream"}).status_code == 401


@pytest.mark.parametrize("by", ["a page", "a form"])
def test_what_its_user_does_keeps_a_login_alive(web: Web, by: str) -> None:
    client = web.browser("anna")
    web.clock += 29 * 60
    if by == "a page":
        client.get("/jobs")
    else:
        # By htmx as well, but somebody pressed a button.
        client.post("/peers/pacs/echo", headers=OF_THE_PAGE)
    web.clock += 29 * 60
    assert client.get("/", headers=OF_THE_PAGE).status_code == 200


def test_whose_login_ended_is_led_to_it_and_back_also_from_a_form(web: Web) -> None:
    client = web.browser("anna", Accept="text/html")
    web.clock += 31 * 60
    job = f"/jobs/1.2-{'0' * 16}"
    answer = client.post(f"{job}/retry", headers={"Referer": f"{client.base_url}{job}?level=error"})
    assert (answer.status_code, answer.headers["location"]) == (
        303,
        f"/login?next={quote(job + '?level=error', safe='')}",
    )
    searched = client.get("/jobs?state=failed&text=Doe^Jane&other=Doe", headers={"Accept": "text/html"})
    assert searched.headers["location"] == f"/login?next={quote('/jobs?state=failed', safe='')}", (
        "nothing that was typed"
    )
    assert "Your login has ended" in client.get(answer.headers["location"]).text
    assert log_in(client, "anna", to=f"{job}?level=error").headers["location"] == f"{job}?level=error"
    client.post("/logout")
    assert "has ended" not in client.get("/login").text


def test_a_logout_ends_the_login_also_for_who_copied_the_cookie(web: Web) -> None:
    client = web.browser("anna")
    copied = dict(client.cookies)
    answer = client.post("/logout")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    thief = web.client()
    thief.cookies.update(copied)
    assert thief.get("/api/v1/session").status_code == 401


@pytest.mark.parametrize("change", ["password", "removed"])
def test_another_password_or_no_user_ends_the_logins(web: Web, change: str) -> None:
    client, other = web.browser("anna"), web.browser("vera")
    elsewhere = UsersFile(web.node.access.users.path, hasher=QUICK)
    if change == "password":
        elsewhere.change_password("anna", "another one, quite long")
    else:
        elsewhere.remove("anna")
    assert client.get("/api/v1/session").status_code == 401
    assert other.get("/api/v1/session").status_code == 200


def test_a_planted_cookie_is_worth_nothing_after_the_login(web: Web) -> None:
    client = web.client(Origin="http://127.0.0.1:8114")
    client.cookies.set("dicom_node", "planted")
    secret = cookie(log_in(client, "anna")).split("=", 1)[1].split(";")[0]
    assert secret != "planted"
    assert web.node.access.rows.session("planted", idle_s=1e9, longest_s=1e9) is None


# -- CSRF ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoilt",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"X-CSRF-Token": "0" * 64},
        {"X-CSRF-Token": "é".encode()},
    ],
)
def test_a_change_from_another_site_or_without_the_token_is_refused(web: Web, spoilt: dict[str, Any]) -> None:
    client = web.browser("anna")
    target = f"/api/v1/jobs/1.2-{'0' * 16}/retry"
    assert client.post(target).status_code == 404, "the check let it through, and there is no such job"
    assert client.post(target, headers=spoilt).status_code == 403


def test_a_change_without_origin_or_without_token_is_refused(web: Web) -> None:
    client = web.browser("anna")
    for missing in ("Origin", "X-CSRF-Token"):
        kept = client.headers.pop(missing)
        assert client.post("/logout").status_code == 403
        client.headers[missing] = kept
    assert client.post("/logout").status_code == 303


def test_a_form_brings_the_token_in_a_field(web: Web) -> None:
    client = web.browser("anna")
    token = client.headers.pop("X-CSRF-Token")
    assert client.post("/logout", data={"csrf_token": "0" * 64}).status_code == 403
    assert client.post("/logout", data={"csrf_token": token}).status_code == 303


def test_another_site_cannot_log_a_browser_in(web: Web) -> None:
    assert log_in(web.client(Origin="https://evil.example"), "anna").status_code == 403
    assert log_in(web.client(), "anna").status_code == 403


# -- roles and tokens ------------------------------------------------------------------------------------


def test_each_role_may_the_same_on_pages_and_in_the_api(web: Web) -> None:
    job = f"1.2-{'0' * 16}"
    api = f"/api/v1/jobs/{job}"
    web.user("otto", "operator")
    asked: dict[Deed, list[tuple[str, str]]] = {
        "look": [
            ("GET", "/jobs"), ("GET", "/api/v1/jobs"), ("GET", f"/jobs/{job}"), ("GET", api),
            ("GET", f"/jobs/{job}/log"), ("GET", f"{api}/log"),
            ("GET", "/api/v1/corrections"), ("GET", "/api/v1/models/shadows"),
        ],
        "download": [("GET", f"/jobs/{job}/objects/1.2"), ("GET", f"{api}/objects/1.2")],
        "act": [
            *(("POST", f"{at}/{verb}") for at in (f"/jobs/{job}", api) for verb in ("retry", "cancel", "send")),
            *(("POST", f"{at}/models/shadows/{job}/retry") for at in ("", "/api/v1")),
            ("POST", "/peers/none/echo"), ("POST", "/api/v1/peers/none/echo"),
        ],
        "read settings": [("GET", "/configuration"), ("GET", "/api/v1/config")],
    }  # fmt: skip
    assert asked.keys() == ALLOWED.keys()
    for client, role in ((web.browser("vera"), "viewer"), (web.browser("otto"), "operator")):
        for deed, requests in asked.items():
            allowed = ROLES.index(role) >= ROLES.index(ALLOWED[deed])
            for method, path in requests:
                status = client.request(method, path).status_code
                assert status in ((200, 404) if allowed else (403,)), (role, method, path)
    assert 'href="/configuration"' not in web.browser("vera").get("/").text


def test_a_token_counts_until_it_expires_or_is_revoked_and_only_its_hash_is_kept(web: Web) -> None:
    rows = web.node.access.rows
    token = rows.add_token("grafana", "viewer", web.clock + 100)
    client = web.client(Authorization=f"Bearer {token}")
    assert client.get("/api/v1/session").json() == {
        "name": "token:grafana", "role": "viewer", "method": "token", "csrf_token": None,
    }  # fmt: skip
    with web.node.database.engine.connect() as connection:
        assert token not in str(connection.exec_driver_sql("SELECT * FROM api_token").all())
    web.clock += 101
    assert client.get("/api/v1/session").status_code == 401
    other = rows.add_token("other", "viewer", None)
    client = web.client(Authorization=f"Bearer {other}")
    assert client.get("/api/v1/session").status_code == 200
    rows.revoke_token("other")
    assert client.get("/api/v1/session").status_code == 401
    with pytest.raises(DicomNodeError, match="a token grafana already"):
        rows.add_token("grafana", "admin", None)


@pytest.mark.parametrize("header", ["Bearer nope", "Bearer ", "bearer", "Bearer é", "Bearer a b"])
def test_a_token_that_is_none_is_refused_even_beside_a_login(web: Web, header: str) -> None:
    client = web.browser("anna")
    answer = client.get("/api/v1/session", headers={"Authorization": header.encode()})
    assert answer.status_code == 401


# -- the proxy -------------------------------------------------------------------------------------------


def test_only_the_proxy_can_say_who_calls_and_from_where(build: Callable[..., Config]) -> None:
    said = {"X-Remote-User": "paula", "X-Remote-Groups": "nurses, pacs", "X-Forwarded-Proto": "https"}
    with web_role(build(web=PROXY)) as web:
        assert web.client("10.0.0.5", **said).get("/api/v1/session").json()["role"] == "operator"
        assert web.client("10.1.7.7", **said).get("/api/v1/session").json()["name"] == "paula"
        assert web.client("10.0.0.6", **said).get("/api/v1/session").status_code == 403
        assert web.client("127.0.0.1", **said).get("/api/v1/session").status_code == 401
        foreign = web.client("10.0.0.5", **{**said, "X-Remote-Groups": "nurses"})
        assert foreign.get("/api/v1/session").status_code == 403


def test_what_the_proxy_asks_of_browsers_is_no_token_of_ours(build: Callable[..., Config]) -> None:
    """nginx with auth_basic passes Authorization: Basic on."""
    said = {"X-Remote-User": "paula", "X-Remote-Groups": "pacs", "X-Forwarded-Proto": "https"}
    with web_role(build(web=PROXY)) as web:
        basic = {"Authorization": "Basic cGF1bGE6eA=="}
        assert web.client("10.0.0.5", **said, **basic).get("/api/v1/session").json()["name"] == "paula"
        assert web.client("10.0.0.5", **basic).get("/api/v1/session").status_code == 401


@pytest.mark.parametrize(
    "path", ["/jobs/1%00", "/jobs?text=%00", "/jobs?peer=a%00b", "/jobs?older=1_%00", "/api/v1/jobs?text=%00"]
)
def test_a_nul_in_an_address_is_refused_before_a_database_sees_it(web: Web, path: str) -> None:
    assert web.browser("anna").get(path).status_code == 400


def test_a_change_through_the_proxy_needs_its_page_too(build: Callable[..., Config]) -> None:
    said = {"X-Remote-User": "paula", "X-Remote-Groups": "pacs", "X-Forwarded-Proto": "https"}
    target = f"/api/v1/jobs/1.2-{'0' * 16}/retry"
    with web_role(build(web=PROXY)) as web:
        client = web.client("10.0.0.5", base_url="http://node.example", **said)
        token = client.get("/api/v1/session").json()["csrf_token"]
        assert client.post(target, headers={"X-CSRF-Token": token}).status_code == 403
        ours = {"Origin": "https://node.example", "X-CSRF-Token": token}
        assert client.post(target, headers=ours).status_code == 404


def test_the_address_is_the_last_that_no_proxy_of_ours_has(build: Callable[..., Config]) -> None:
    from dicom_node.web.access.caller import caller

    config = build(web=PROXY).web

    def address(peer: str, forwarded: str) -> str:
        headers = [(b"x-forwarded-for", forwarded.encode())]
        return caller({"client": (peer, 1), "scheme": "http", "headers": headers, "type": "http"}, config).address

    assert address("10.0.0.5", "1.1.1.1, 192.0.2.7, 10.1.0.9") == "192.0.2.7"
    assert address("10.0.0.5", "rubbish") == "10.0.0.5"
    assert address("192.0.2.1", "192.0.2.7") == "192.0.2.1"


# -- every answer ----------------------------------------------------------------------------------------


def test_every_answer_carries_strict_headers(web: Web) -> None:
    client = web.client()
    for path in ("/login", "/healthz", "/nope", "/api/v1/jobs", "/static/login.css"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "same-origin")
        assert headers["cache-control"] == "no-store"


def test_a_body_that_is_too_large_is_refused_with_and_without_its_length(web: Web) -> None:
    client = web.client(Origin="http://127.0.0.1:8114")
    assert log_in(client, "anna", "x" * 70_000).status_code == 413
    chunks = (b"user=" + b"x" * 30_000 for _ in range(4))
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/login", content=chunks, headers=form).status_code in (400, 413)


def test_an_unexpected_error_tells_nothing(web: Web, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Canary^Secret")

    monkeypatch.setattr("dicom_node.web.answers.jobs.jobs", fail)
    answer = web.token("viewer").get("/api/v1/jobs")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "Canary" not in answer.text + caplog.text
    assert answer.headers["content-security-policy"]
    assert "RuntimeError at" in caplog.records[-1].error


def test_ready_says_no_more_than_whether(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    assert web.client().get("/readyz").json() == {"ready": True}
    monkeypatch.setattr(web.node.storage, "_min_free_bytes", 10**18)
    answer = web.client().get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"ready": False})
    health = web.token("viewer").get("/api/v1/health").json()
    assert {check["name"]: check["ok"] for check in health["checks"]} == {
        "database": True, "storage": True, "disk": False,
    }  # fmt: skip


@pytest.mark.parametrize(("metrics", "local"), [("loopback", 200), ("token", 401)])
def test_metrics_are_for_tokens_and_where_it_is_set_for_this_machine(
    build: Callable[..., Config], metrics: str, local: int
) -> None:
    with web_role(build(web={"metrics": metrics, **PROXY})) as web:
        assert web.client().get("/metrics").status_code == local
        assert web.client("10.0.0.5").get("/metrics").status_code == 401
        answer = web.token("viewer").get("/metrics")
        assert answer.status_code == 200
        assert "dicom_node_database_up 1.0" in answer.text


# -- the users' file -------------------------------------------------------------------------------------


def test_the_users_file_is_for_its_owner_alone_and_holds_no_password(tmp_path: Any) -> None:
    users = UsersFile(tmp_path / "users.json")
    users.add("anna", "operator", PASSWORD)
    assert users.path.stat().st_mode & 0o777 == 0o600
    kept = json.loads(users.path.read_text())["users"]["anna"]
    assert kept["hash"].startswith("$argon2id$")
    assert PASSWORD not in users.path.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["users.json"]


def test_passwords_and_names_that_will_not_do_are_refused(tmp_path: Any) -> None:
    users = UsersFile(tmp_path / "users.json", hasher=QUICK)
    for name, password in (("anna", "short"), ("anna", "x" * 257), ("an na", PASSWORD), ("", PASSWORD)):
        with pytest.raises(DicomNodeError):
            users.add(name, "viewer", password)
    assert users.users() == {}
    users.add("anna", "viewer", "ﬁne password")
    assert users.verify("anna", "fine password") is not None, "one character in two ways"


def test_a_damaged_users_file_lets_nobody_in_and_is_named(tmp_path: Any) -> None:
    users = UsersFile(tmp_path / "users.json", hasher=QUICK)
    users.path.write_text('{"users": {"anna": {"role": "king", "hash": ""}}}')
    with pytest.raises(ConfigError, match=r"users\.json is damaged"):
        users.users()
