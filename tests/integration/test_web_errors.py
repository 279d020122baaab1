"""Each kind of refusal, over a socket, by the role's own server: problem details (RFC 9457) that say what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy as sa

from dicom_node.config import Config
from dicom_node.web.access.limits import TRIES_OF_ONE
from tests.unit.test_flow import SETTINGS, Node
from tests.web import PASSWORD, serving, web_role


@pytest.fixture
def node(node_config: Callable[..., Config], tmp_path: Path) -> Iterator[Node]:
    made = Node(node_config(**SETTINGS), tmp_path)
    yield made
    made.database.close()


def _problem(answer: requests.Response, status: int) -> str:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    told: dict[str, Any] = answer.json()
    assert told["status"] == status
    assert {"type", "title", "detail"} < told.keys()
    return str(told["detail"])


def test_each_refusal_says_what_to_do(node: Node) -> None:
    job_id = node.complete()
    for destination in ("archive", "pacs"):
        node.deliver(job_id, destination)
    with web_role(node.flow.config, node.database) as web, serving(web) as url:
        web.user("anna", "viewer")
        api, session = f"{url}/api/v1", requests.Session()
        headers = {
            role: {"Authorization": f"Bearer {web.node.access.rows.add_token(role, role, None)}"}  # type: ignore[arg-type]
            for role in ("viewer", "operator")
        }

        def ask(method: str, path: str, role: str = "operator") -> requests.Response:
            return session.request(method, f"{api}{path}", headers=headers[role], timeout=10)

        assert "send a token" in _problem(session.get(f"{api}/jobs", timeout=10), 401)
        assert "the role operator, you have viewer" in _problem(ask("POST", f"/jobs/{job_id}/retry", "viewer"), 403)
        assert "was purged" in _problem(ask("GET", f"/jobs/1.2-{'0' * 16}"), 404)
        assert "openapi.json" in _problem(ask("GET", "/nothing"), 404)
        assert "Allow" in _problem(ask("DELETE", "/jobs"), 405)
        assert "nothing left to cancel" in _problem(ask("POST", f"/jobs/{job_id}/cancel"), 409)
        invalid = ask("GET", "/jobs?limit=0&text=Canary%C3%A9")
        assert "`errors`" in _problem(invalid, 422)
        assert [one["where"] for one in invalid.json()["errors"]] == [["query", "text"], ["query", "limit"]]
        assert "Canary" not in invalid.text
        for _ in range(TRIES_OF_ONE):
            assert _problem(_log_in(session, url, "wrong"), 401) == "Wrong user name or password."
        too_many = _log_in(session, url, PASSWORD)
        assert _problem(too_many, 429) == "Too many tries. Wait 5 min."
        assert too_many.headers["retry-after"] == "301"
        with web.node.database.engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE api_token RENAME TO away"))
        away = ask("GET", "/jobs")
        assert "dicom-node check" in _problem(away, 503)
        assert away.headers["retry-after"] == "5"


def _log_in(session: requests.Session, url: str, password: str) -> requests.Response:
    form = {"user": "anna", "password": password}
    return session.post(f"{url}/login", data=form, headers={"Origin": url}, timeout=10, allow_redirects=False)


def test_people_get_a_page_of_it_with_the_way_back(node: Node) -> None:
    with web_role(node.flow.config, node.database) as web:
        client = web.token("viewer")
        for path, status in (("/jobs/none", 404), ("/nothing", 404), ("/jobs?older=x", 404), ("/configuration", 403)):
            answer = client.get(path, headers={"accept": "text/html"})
            assert answer.status_code == status
            assert answer.headers["content-type"].startswith("text/html")
            assert 'href="/jobs"' in answer.text
        alone = web.client(Origin="http://127.0.0.1:8114", accept="text/html")
        answer = alone.post("/login", data={"user": "anna", "password": "wrong"})
        assert answer.status_code == 401
        assert 'role="alert">Wrong user name or password.' in answer.text


def test_each_call_of_the_description_has_a_sentence_and_its_refusals_examples(node: Node) -> None:
    with web_role(node.flow.config, node.database) as web:
        described = web.client().get("/api/v1/openapi.json").json()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"] == operation["description"].partition("\n")[0].rstrip("."), path
            for parameter in operation.get("parameters", ()):
                assert parameter.get("description") or parameter.get("example"), (path, parameter["name"])
            for status, answer in operation["responses"].items():
                assert answer["description"], (path, method, status)
                if status[0] in "45":
                    example = answer["content"]["application/problem+json"]["example"]
                    assert (str(example["status"]), bool(example["detail"])) == (status, True)
    for name, form in described["components"]["schemas"].items():
        assert form.get("description"), name
