"""The JSON API on real jobs: what it shows, what it changes, and that no request makes it fail."""

from __future__ import annotations

import base64
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import booleans
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import ignored_auth

from dicom_node import schema
from dicom_node.config import Config
from dicom_node.config.masked import MASK, resolved
from dicom_node.delivery import delivery_id
from dicom_node.storage import Storage
from tests.fakes.ct import HEADER
from tests.peers import free_port
from tests.unit.test_flow import CANARY, SERIES, SETTINGS, Node
from tests.web import Web, audit_trail, serving, web_role


@pytest.fixture
def node(node_config: Callable[..., Config], tmp_path: Path) -> Iterator[Node]:
    made = Node(node_config(**SETTINGS), tmp_path)
    yield made
    made.database.close()


@pytest.fixture
def web(node: Node) -> Iterator[Web]:
    with web_role(node.flow.config, node.database) as made:
        yield made


def test_a_job_is_listed_and_shown_with_all_that_is_known_of_it(node: Node, web: Web) -> None:
    job_id = node.complete()
    client = web.token("viewer")
    page = client.get("/api/v1/jobs", params={"state": ["complete", "failed"], "text": job_id[:20]}).json()
    assert [job["job_id"] for job in page["jobs"]] == [job_id]
    assert (page["older"], page["newer"]) == (None, None)
    assert page["jobs"][0]["objects"] == {"waiting": 4}
    shown = client.get(f"/api/v1/jobs/{job_id}").json()
    assert (shown["state"], shown["series_instance_uid"]) == ("complete", SERIES)
    assert [event["action"] for event in shown["events"]][-1] == "job complete"
    for part in ("events", "deliveries", "findings", "objects"):
        assert client.get(f"/api/v1/jobs/{job_id}/{part}").json() == shown[part]
    assert client.get("/api/v1/jobs", params={"state": "failed"}).json()["jobs"] == []


def test_pages_lead_through_all_jobs_and_back(node: Node, web: Web) -> None:
    node.complete()
    job = dict(node.job())
    with node.database.engine.begin() as connection:
        for number in range(6):
            digest = f"{number:016x}"
            connection.execute(
                schema.job.insert().values(
                    **{**job, "job_id": f"1.2.{number}-{digest}", "created_at": 100.0 + number // 2}
                )
            )
    client = web.token("viewer")
    seen, place = [], {}
    while True:
        page = client.get("/api/v1/jobs", params={"limit": 2, **place}).json()
        seen += [one["job_id"] for one in page["jobs"]]
        if page["older"] is None:
            break
        place = {"older_than": page["older"]}
    assert len(seen) == len(set(seen)) == 7
    back = client.get("/api/v1/jobs", params={"limit": 2, "newer_than": page["newer"]}).json()
    assert [one["job_id"] for one in back["jobs"]] == seen[4:6]


def test_an_object_is_downloaded_as_it_was_made_and_the_audit_trail_says_by_whom(
    node: Node, web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = node.complete()
    viewer, operator = web.token("viewer"), web.token("operator")
    name = operator.get("/api/v1/session").json()["name"].removeprefix("token:")
    for made in viewer.get(f"/api/v1/jobs/{job_id}/objects").json():
        assert viewer.get(made["url"]).status_code == 403
        answer = operator.get(made["url"])
        assert answer.headers["content-type"] == "application/dicom"
        [row] = [r for r in node.database.results(job_id) if r["sop_instance_uid"] == made["sop_instance_uid"]]
        assert answer.content == node.storage.path(row["path"]).read_bytes()
        node.storage.path(row["path"]).unlink()
        assert operator.get(made["url"]).status_code == 410
    assert CANARY not in caplog.text
    exports = [message for message in audit_trail(web) if 'csd-code="110106"' in message]
    assert len(exports) == 2
    for message in exports:
        assert HEADER["StudyInstanceUID"] in message
        assert f'UserID="token:{name}"' in message


@pytest.mark.parametrize("names", ["hide", "show"])
def test_a_peers_own_words_are_shown_only_where_names_may_be(node: Node, web: Web, names: str) -> None:
    job_id = node.complete()
    for row in node.database.deliveries(job_id, "pacs"):
        node.database.move_delivery(
            row["sop_instance_uid"], "pacs", ("waiting",), "parked", status=0xC001,
            message=f"the peer cannot understand the data set (0xc001): {CANARY}",
        )  # fmt: skip
    config = web.node.config
    shown = config.model_copy(update={"web": config.web.model_copy(update={"patient_names": names})})
    web.node = replace(web.node, config=shown)
    viewer = web.token("viewer")
    for path in (f"/jobs/{job_id}", f"/api/v1/jobs/{job_id}", f"/api/v1/jobs/{job_id}/deliveries"):
        text = viewer.get(path).text
        assert "the peer cannot understand the data set" in text
        assert "0xC001" in text
        assert (CANARY in text) == (names == "show")


def test_what_an_operator_does_is_done_and_told_with_who(node: Node, web: Web) -> None:
    job_id = node.complete()
    web.user("anna", "operator")
    client = web.browser("anna")
    assert client.post(f"/api/v1/jobs/{job_id}/cancel").json()["done"] == "4 unsent objects cancelled"
    again = client.post(f"/api/v1/jobs/{job_id}/cancel")
    assert (again.status_code, again.headers["content-type"]) == (409, "application/problem+json")
    assert client.post(f"/api/v1/jobs/{job_id}/retry").json()["done"] == "queued for delivery to archive, pacs"
    who = [
        (e["action"], e["details"]["by"])
        for e in client.get(f"/api/v1/jobs/{job_id}/events").json()
        if "asked" in e["action"]
    ]
    assert who == [("cancel asked", "anna"), ("cancel asked", "anna"), ("retry asked", "anna")]
    trail = audit_trail(web)
    # PS3.15 A.5.2: the value of a detail is base64.
    done = [base64.b64encode(what).decode() for what in (b"job cancel", b"job retry")]
    assert sum(done[0] in message for message in trail) == 1, "the second one changed nothing"
    assert 'UserID="anna"' in trail[-1]
    assert done[1] in trail[-1]


def test_send_again_sends_what_is_stored_already_and_only_where_it_is_wanted(node: Node, web: Web) -> None:
    job_id = node.complete()
    for destination in ("archive", "pacs"):
        node.deliver(job_id, destination)
    client = web.token("operator")
    done = client.post(f"/api/v1/jobs/{job_id}/send", params={"destination": "pacs"}).json()["done"]
    assert done == "queued for delivery to pacs"
    assert (set(node.ledger(job_id, "pacs")), set(node.ledger(job_id, "archive"))) == ({"waiting"}, {"stored"})
    assert [state.workflow_id for state in web.node.engine.states()] == [delivery_id(job_id, "pacs")]
    assert client.post(f"/api/v1/jobs/{job_id}/send", params={"destination": "nobody"}).status_code == 409
    node.deliver(job_id, "pacs")
    assert set(node.ledger(job_id)) == {"stored"}


def test_today_is_shown_while_the_storage_root_is_away(node: Node, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_self: Storage) -> int:
        raise FileNotFoundError

    monkeypatch.setattr(Storage, "free_bytes", away)
    shown = web.token("viewer").get("/", headers={"accept": "text/html"})
    assert shown.status_code == 200
    assert "the storage root is away" in shown.text


def test_today_peers_models_and_settings_are_told(node: Node, web: Web) -> None:
    node.complete()
    client = web.token("operator")
    assert client.get("/api/v1/today").json().keys() >= {"received", "waiting", "last_image_to_result"}
    assert [peer["name"] for peer in client.get("/api/v1/peers").json()] == ["pacs", "archive"]
    [model] = client.get("/api/v1/models").json()
    assert (model["bundle_name"], model["routes"]) == ("lung_nodule_small", ["chest"])
    assert "#" in model["card"]
    assert client.get("/api/v1/config").json()["settings"]["routes"][0]["name"] == "chest"


def test_an_echo_says_why_a_peer_does_not_answer(node_config: Callable[..., Config]) -> None:
    peer = {"ae_title": "GONE", "host": "127.0.0.1", "port": free_port(), "connect_timeout_s": 1}
    with web_role(node_config(peers={"gone": peer, "mute": {"ae_title": "M", "host": "h"}})) as web:
        client = web.token("operator")
        told = client.post("/api/v1/peers/gone/echo").json()
        assert told["ok"] is False
        assert str(peer["port"]) in told["message"]
        assert client.post("/api/v1/peers/mute/echo").status_code == 409
        assert client.post("/api/v1/peers/nobody/echo").status_code == 404


def test_no_secret_of_the_settings_is_shown() -> None:
    config = Config.model_validate(
        {
            "storage": {"root": "/x"},
            "database": {"url": "postgresql+psycopg://node:hunter2@db/node?password=hunter3&sslmode=require"},
            "alerts": {"webhook": {"url": "https://hooks.example/services/T0/hunter4?key=hunter5"}},
            "web": {"oidc": {"issuer": "https://login.example", "client_id": "n", "client_secret_file": "/s"}},
        }
    )
    shown = resolved(config)
    assert "hunter" not in str(shown)
    assert shown["alerts"]["webhook"]["url"] == f"https://hooks.example/{MASK}"
    assert MASK in shown["database"]["url"]
    assert shown["web"]["oidc"]["client_secret_file"] == "/s"


@pytest.mark.slow
@pytest.mark.parametrize("role", [None, "viewer", "operator"])
def test_no_request_makes_the_api_fail_or_answer_otherwise_than_it_says(
    node: Node, web: Web, role: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """schemathesis: requests from the OpenAPI document, right and wrong ones; each answer is held against it."""
    job_id = node.complete()
    monkeypatch.setattr("dicom_node.dimse.scu.echo", lambda *_: None)
    headers = {"Authorization": f"Bearer {web.node.access.rows.add_token('t', role, None)}"} if role else {}
    seen: Counter[int] = Counter()
    with serving(web) as url:
        schema = schemathesis.openapi.from_url(f"{url}/api/v1/openapi.json")
        for operation in (found.ok() for found in schema.get_all_operations()):
            for mode in GenerationMode:
                _fuzz(operation, mode, headers, job_id, seen, 12 if role else 3)
    assert seen[500] == 0
    if role is None:
        # 400: a NUL in the address is refused before anything else.
        assert set(seen) <= {400, 401, 405}
    else:
        assert seen[200] > 50
        assert seen[422] > 20


def _fuzz(
    operation: Any, mode: GenerationMode, headers: dict[str, str], job_id: str, seen: Counter[int], most: int
) -> None:
    @settings(max_examples=most, deadline=None, phases=[Phase.generate], database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=operation.as_strategy(mode), known=booleans())
    def call(case: Any, known: bool) -> None:
        # A job that random letters would never hit.
        if known and mode is GenerationMode.POSITIVE and "job_id" in (case.path_parameters or {}):
            case.path_parameters["job_id"] = job_id
        # That one excludes the other, OpenAPI has no words for.
        if mode is GenerationMode.POSITIVE and "older_than" in (case.query or {}):
            case.query.pop("newer_than", None)
        answer = case.call(headers=headers)
        seen[answer.status_code] += 1
        case.validate_response(answer, excluded_checks=[ignored_auth])

    # A form that can't be spoilt has no wrong requests.
    with contextlib.suppress(Unsatisfiable):
        call()
