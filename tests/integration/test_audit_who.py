"""Every change is in the audit trail with who made it: each route that changes or takes away, and each command."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dicom_node.config import Config
from dicom_node.web import pages
from dicom_node.web.access import login, oidc
from tests.dashboard import fail_second_look
from tests.fakes.ct import make_ct_series
from tests.integration.test_cli import COMMANDS, JOB, Ended, PreparedNode, empty_databases, node, run  # noqa: F401
from tests.peers import free_port
from tests.unit.test_flow import SETTINGS, Node
from tests.web import PASSWORD, audit_trail, log_in, web_role

# (method, address, how its message calls it), of page and API alike; in an order in which each has something to do.
ACTS = (
    ("POST", "/jobs/{job_id}/cancel", "job cancel"),
    ("POST", "/jobs/{job_id}/retry", "job retry"),
    ("POST", "/jobs/{job_id}/send", "job send"),
    ("POST", "/models/shadows/{job_id}/retry", "shadow retry"),
    ("POST", "/peers/{name}/echo", "peer echo"),
    ("GET", "/jobs/{job_id}/objects/{sop_instance_uid}", None),
)
# Of logins the trail has messages of their own kind. The way to a provider changes nothing until one comes back.
LOGINS = {"/login", "/logout", "/login/oidc"}

CANCELLED = "1.2.3.5-00000000000000ff"
# In an order in which each has something to do. {name}: put in by the test.
CHANGES: dict[str, tuple[str, ...]] = {
    "jobs cancel": (CANCELLED,),
    "jobs retry": (CANCELLED,),
    "user add": ("bob", "--role", "viewer"),
    "user passwd": ("bob",),
    "user remove": ("bob",),
    "token add": ("grafana",),
    "token revoke": ("grafana",),
    "model shadows retry": (JOB,),
    "model promote": ("other", "--route", "chest", "--force"),
    "model rollback": ("--route", "chest"),
    "send": ("{ct}", "--to", "archive"),
    "pull": ("--from", "archive", "--study", "1.2.3"),
    "render": (JOB, "--out", "{look}"),
    "cases export": ("--out", "{cases}", "--deidentify"),
    "backup": ("--out", "{backup}"),
    "reload": (),
    "purge": ("--older-than-days", "0"),
    "audit verify": (),
}
# PS3.16 CID 401: a role's function, user security, software configuration, security configuration.
KINDS = {"send": "110132", "user add": "110137", "model promote": "110131", "reload": "110129", "backup": "110132"}
# They look, or call; they say what they find to who called, and name no patient.
ASK = {
    "check", "conformance", "peers", "profiles", "route", "echo", "jobs list", "jobs show", "model list",
    "model agreement", "model shadows list", "alert list", "alert test", "user list", "token list", "corrections list",
    "corrections show", "corrections figures", "corrections table",
}  # fmt: skip
# Roles tell of their start and end; the others work on files of who calls, without a node, or before there is one.
OTHERS = {"serve", "receive", "work", "deliver", "web", "demo", "infer", "install-service"}


@pytest.fixture
def analysed(node_config: Callable[..., Config], tmp_path: Path) -> Iterator[Node]:
    made = Node(node_config(**SETTINGS), tmp_path)
    yield made
    made.database.close()


def _routes() -> set[tuple[str, str]]:
    """What is not only read, of all pages."""
    parts = [part.original_router.routes for part in pages.router.routes]  # type: ignore[attr-defined]
    found = [route for part in [*parts, login.router.routes, oidc.router.routes] for route in part]
    return {("POST", route.path) for route in found if "POST" in route.methods}


def test_each_route_that_changes_or_takes_away_is_told_with_who_called_it(
    analysed: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.dimse.scu.echo", lambda *_: None)
    job_id = analysed.complete()
    [made, *_] = analysed.database.results(job_id)
    names = {"job_id": job_id, "name": "pacs", "sop_instance_uid": made["sop_instance_uid"]}
    with web_role(analysed.flow.config, analysed.database) as web:
        web.user("anna", "operator")
        client = web.browser("anna")
        assert len(audit_trail(web)) == 1, "her login"
        described = client.get("/api/v1/openapi.json").json()["paths"]
        changing = {(verb.upper(), path) for path, verbs in described.items() for verb in verbs if verb != "get"}
        posts = {(method, path) for method, path, _ in ACTS if method == "POST"}
        assert changing == {(method, f"/api/v1{path}") for method, path in posts}
        assert _routes() == posts | {("POST", path) for path in LOGINS}
        for prefix in ("", "/api/v1"):
            fail_second_look(analysed.database, job_id)
            for method, path, action in ACTS:
                before = len(audit_trail(web))
                answer = client.request(method, prefix + path.format(**names))
                assert answer.status_code in (200, 303), (path, answer.text)
                [message] = audit_trail(web)[before:]
                assert 'UserID="anna"' in message, path
                assert action is None or base64.b64encode(action.encode()).decode() in message, path
        client.post("/logout")
        assert 'UserID="anna"' in audit_trail(web)[-1]
        log_in(client, "anna", "wrong")
        assert 'UserID="anna"' in audit_trail(web)[-1]


def test_each_command_that_changes_or_takes_away_is_told_with_who_called_it(
    node: PreparedNode,  # noqa: F811
    run: Callable[..., Ended],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert {" ".join(path) for path in COMMANDS} == {*CHANGES, *ASK, *OTHERS, "restore"}
    monkeypatch.setenv("SUDO_USER", "ann")
    monkeypatch.setattr("dicom_node.reload.reload", lambda *_, **__: [])  # no role runs here
    settings = yaml.safe_load(node.config.read_text())
    settings["models"]["other"] = settings["models"]["nodules"]
    gone = {"ae_title": "GONE", "host": "127.0.0.1", "port": free_port(), "may_be_queried": True}
    settings["peers"]["archive"] = {**gone, "retrieve_by": "c_get"}
    node.config.write_text(yaml.safe_dump(settings))
    make_ct_series(tmp_path / "ct", shape=(2, 8, 8))
    node.complete()
    node.move("stored")
    node.job(CANCELLED)
    places = {name: str(tmp_path / name) for name in ("ct", "look", "cases", "backup")}
    for command, arguments in CHANGES.items():
        before = len(_told(node.storage.root))
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PASSWORD}\n"))
        ended = run(*command.split(), *(each.format(**places) for each in arguments), "-c", node.config)
        new = _told(node.storage.root)[before:]
        assert any('UserID="ann"' in message for message in new), (command, ended.out, ended.err)
        if command in KINDS:
            assert f'EventTypeCode csd-code="{KINDS[command]}"' in new[0], command
    restored = tmp_path / "restored.yaml"
    restored.write_text(yaml.safe_dump({**settings, "storage": {"root": str(tmp_path / "new")}}))
    assert run("restore", places["backup"], "-c", restored).code == 0
    assert 'UserID="ann"' in _told(tmp_path / "new")[-1]


def _told(root: Path) -> list[str]:
    lines = [line for file in (root / "audit").glob("*.jsonl") for line in file.read_text().splitlines()]
    messages: list[Any] = [json.loads(line).get("message", "") for line in lines]
    return messages
