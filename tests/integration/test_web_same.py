"""What a page shows is what the API answers: each page's data are the forms of its twins under /api/v1, and no more."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import TypeAdapter

import dicom_node.web
from dicom_node import schema
from dicom_node.config import Config
from dicom_node.log_files import folder_of
from dicom_node.log_lines import LEVELS
from dicom_node.shadows import shadow_id
from dicom_node.storage import Storage
from dicom_node.web import pages, templating
from dicom_node.web.pages.log import JobLog
from dicom_node.web.pages.models import AGREEMENT_DAYS, AGREEMENT_SERIES
from tests.dashboard import fail_second_look
from tests.dashboard import job as add_job
from tests.unit.test_flow import SETTINGS, Node
from tests.web import Web, web_role

# Page -> each name in its template -> the request that answers with the same. JOB: of a complete one.
TWINS = {
    "/": {
        "today": "today",
        "trouble": "jobs?state=failed&state=parked&limit=5",
        "recent": "jobs?limit=8",
    },
    "/jobs": {"found": "jobs", "filters": "jobs/filters"},
    "/jobs?state=failed&peer=ORTHANC&route=chest-ct&since=2001-09-09&until=2033-05-18&text=1.2.7": {
        "found": "jobs?state=failed&peer=ORTHANC&route=chest-ct&text=1.2.7&since=SINCE&before=BEFORE",
        "filters": "jobs/filters",
    },
    "/jobs?older=PLACE": {"found": "jobs?older_than=PLACE", "filters": "jobs/filters"},
    # Fewer than a page are newer: the page is the newest one then.
    "/jobs?newer=PLACE": {"found": "jobs", "filters": "jobs/filters"},
    "/jobs/JOB": {"job": "jobs/JOB", "log": "jobs/JOB/log"},
    "/jobs/JOB?level=warning&role=work": {"job": "jobs/JOB", "log": "jobs/JOB/log?level=warning&role=work"},
    "/peers": {"peers": "peers"},
    "/models": {
        "models": "models",
        "agreement": f"models/agreement?days={AGREEMENT_DAYS}&most={AGREEMENT_SERIES}",
        "failed_looks": "models/shadows",
    },
    "/configuration": {"configuration": "config"},
}
# What is no data: who looks and from where, what a form asked, links, what a button just did, functions.
PRESENTATION = {
    "here", "path", "principal", "now", "words", "asked", "first", "newer", "older", "live", "ended", "said", "refused",
    "echo", "agreement_over", "plot", "markdown", "sections", "values_of",
}  # fmt: skip
# Files and streams, a part of a page alone, and what needs the images themselves.
NO_PAGES = {
    "/events", "/viewer.js", "/jobs/{job_id}/log", "/jobs/{job_id}/pictures", "/jobs/{job_id}/slices/{number}.webp",
    "/jobs/{job_id}/objects/{sop_instance_uid}",
}  # fmt: skip
# An action on a page -> the same in the API.
ACTIONS = (
    "/jobs/{job_id}/retry", "/jobs/{job_id}/cancel", "/jobs/{job_id}/send", "/models/shadows/{job_id}/retry",
    "/peers/{name}/echo",
)  # fmt: skip


@pytest.fixture
def node(node_config: Callable[..., Config], tmp_path: Path) -> Iterator[Node]:
    made = Node(node_config(**SETTINGS), tmp_path)
    yield made
    made.database.close()


@pytest.fixture
def web(node: Node) -> Iterator[Web]:
    with web_role(node.flow.config, node.database) as made:
        yield made


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the last template was given."""
    given: dict[str, Any] = {}
    render = templating.render

    def noted(name: str, **values: Any) -> str:
        given.clear()
        given.update(values)
        return render(name, **values)

    monkeypatch.setattr(templating, "render", noted)
    return given


def _plain(value: Any) -> Any:
    """As the API's JSON has it; of log lines without what the page says of them."""
    return TypeAdapter(Any).dump_python(value.lines if isinstance(value, JobLog) else value, mode="json")


def _filled(path: str, names: dict[str, str]) -> str:
    return re.sub("|".join(names), lambda found: names[found[0]], path)


def test_a_page_shows_what_the_api_answers_and_nothing_else(
    node: Node, web: Web, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = node.complete()
    _lines(web, job_id)
    fail_second_look(node.database, job_id)
    web.clock = node.job()["created_at"]
    for number in range(12):
        state = {"state": "failed", "reason": "FAILED"} if number % 3 else {}
        add_job(node.database, f"1.2.{number}-{number:016x}", f"1.2.{number}", **state)
    monkeypatch.setattr(Storage, "free_bytes", lambda _: 12_345_678_901)
    client = web.token("operator")
    place = client.get("/api/v1/jobs?limit=4").json()["older"]
    names = {"JOB": job_id, "PLACE": place, "SINCE": _epoch(2001, 9, 9), "BEFORE": _epoch(2033, 5, 19)}
    for page, twins in TWINS.items():
        shown = client.get(_filled(page, names))
        assert shown.status_code == 200, shown.text
        seen = dict(told)
        assert seen.keys() - twins.keys() <= PRESENTATION, page
        for name, twin in twins.items():
            answered = client.get(f"/api/v1/{_filled(twin, names)}")
            assert answered.status_code == 200, answered.text
            assert _plain(seen[name]) == answered.json(), f"{name} on {page}"


def _lines(web: Web, job_id: str) -> None:
    """One of each level, said of a job by the role that works on it."""
    file = folder_of(web.node.storage.root, job_id.partition("-")[0]) / "a.work.1.jsonl"
    file.parent.mkdir(parents=True)
    lines = [{"at": 1.5, "level": level, "message": f"one {level}", "values": {"job": job_id}} for level in LEVELS]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def _epoch(year: int, month: int, day: int) -> str:
    return str(time.mktime((year, month, day, 0, 0, 0, 0, 0, -1)))


def test_no_page_is_without_a_twin_and_no_action_either(web: Web) -> None:
    routes = [route for part in pages.router.routes for route in part.original_router.routes]  # type: ignore[attr-defined]
    shown = {route.path for route in routes if "GET" in route.methods} - NO_PAGES
    assert shown == {re.sub(r"\?.*", "", page).replace("JOB", "{job_id}") for page in TWINS}
    described = web.client().get("/api/v1/openapi.json").json()["paths"]
    assert {route.path for route in routes if "POST" in route.methods} == set(ACTIONS)
    assert all("post" in described[f"/api/v1{path}"] for path in ACTIONS)


def test_a_live_part_of_a_page_is_that_page_asked_again() -> None:
    folder = Path(dicom_node.web.__file__).parent / "templates"
    live = {link for file in folder.glob("*.html") for link in re.findall(r'hx-get="([^"]*)"', file.read_text())}
    assert live == {
        "/", "{{ live }}", "/jobs/{{ job.job_id | urlencode }}", "{{ log.here }}",
        "/jobs/{{ job.job_id | urlencode }}/pictures",
    }  # fmt: skip


def test_an_open_page_reads_log_lines_once_each_time_it_asks(
    node: Node, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = node.complete()
    _lines(web, job_id)
    client = web.token("viewer")
    assert "one warning" in client.get(f"/jobs/{job_id}").text
    client.headers["HX-Request"] = "true"
    assert "one warning" in client.get(f"/jobs/{job_id}/log").text
    monkeypatch.setattr("dicom_node.web.pages.job.job_log", None)
    assert 'id="rest"' in client.get(f"/jobs/{job_id}").text


def test_an_echo_on_the_page_says_what_the_api_says(
    web: Web, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.dimse.scu.echo", lambda *_: None)
    client = web.token("operator")
    assert client.post("/peers/pacs/echo").status_code == 200
    [page, api] = [_plain(told["echo"]), client.post("/api/v1/peers/pacs/echo").json()]
    assert {**page, "took_s": 0} == {**api, "took_s": 0}
    assert page["ok"]


def test_a_second_look_that_failed_is_asked_for_again_by_operators_alone(node: Node, web: Web) -> None:
    job_id = node.complete()
    fail_second_look(node.database, job_id, "<b>no such bundle</b>")
    path, viewer, operator = f"/models/shadows/{job_id}/retry", web.token("viewer"), web.token("operator")
    assert "&lt;b&gt;no such bundle" in viewer.get("/models").text
    assert path not in viewer.get("/models").text
    assert path in operator.get("/models").text
    assert {viewer.post(each + path).status_code for each in ("", "/api/v1")} == {403}
    assert operator.post(path).headers["location"] == "/models?done=retry"
    assert node.database.shadow(job_id)["state"] == "queued"  # type: ignore[index]
    assert web.node.engine.ids(shadow_id(job_id)) == [shadow_id(job_id)]
    assert "is queued: nothing to retry" in operator.post(path).text
    assert {operator.post(each + path).status_code for each in ("", "/api/v1")} == {409}
    assert operator.post(f"/api/v1/models/shadows/1.2.3-{0:016x}/retry").status_code == 404
    # Once a job of that id came anew, the old one's images may be others.
    fail_second_look(node.database, job_id)
    with node.database.engine.begin() as connection:
        connection.execute(sa.update(schema.job).values(created_at=schema.job.c.created_at + 1))
    assert path not in operator.get("/models").text
    [look] = operator.get("/api/v1/models/shadows").json()
    assert (look["job_id"], look["state"], look["may_retry"]) == (job_id, "failed", False)
