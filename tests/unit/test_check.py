"""`check` tries each part, and what fails says what to do."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dicom_node.check import Item, check
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.dimse.archive import Archive
from tests.fakes.web import Said, serving
from tests.peers import free_port

ROUTE = {"name": "r", "model": "nodules", "destinations": ["pacs"]}
MODELS = {"nodules": {"bundle": "builtin:lung_nodule_small"}}
PACS = {"ae_title": "PACS", "host": "127.0.0.1", "port": 1, "may_send": True, "connect_timeout_s": 2}


@pytest.fixture
def item(node_config: Callable[..., Config]) -> Callable[..., Item]:
    """`item("storage", storage={...})`: one part tried with these settings, the ones before it tried too."""

    def tried(name: str, **sections: Any) -> Item:
        return next(found for found in check(node_config(**sections)) if found.name == name)

    return tried


def test_free_space_is_told(item: Callable[..., Item]) -> None:
    found = item("storage")
    assert found.ok
    assert "GB free in " in found.text


def test_too_little_space_is_told(item: Callable[..., Item]) -> None:
    found = item("storage", storage={"min_free_gb": 1e7})
    assert not found.ok
    assert "free some space" in found.text


def test_a_root_that_cannot_be_written_fails_storage_and_database_and_hides_nothing(
    node_config: Callable[..., Config], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    items = list(check(node_config(storage={"root": str(tmp_path / "file")}, web={"port": free_port()})))
    assert [found.name for found in items] == ["storage", "database", "port", "device", "routes", "web", "web users"]
    assert [found.ok for found in items] == [False, False, True, True, False, True, False]
    assert "storage.root cannot be written to" in items[0].text


def test_a_database_is_tried_before_and_after_its_first_start(
    item: Callable[..., Item], node_config: Callable[..., Config]
) -> None:
    assert item("database").text == "sqlite; its tables are made at the first start"
    database = Database(node_config().database_url())
    database.migrate()
    database.close()
    assert item("database").text.startswith("sqlite, schema 0")


def test_a_database_that_does_not_answer_is_told_without_its_password(item: Callable[..., Item]) -> None:
    found = item("database", database={"url": "postgresql+psycopg://u:hunter2@127.0.0.1:1/d"})
    assert not found.ok
    assert "does not answer" in found.text
    assert "hunter2" not in found.text


def test_a_port_in_use_is_told(item: Callable[..., Item]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        found = item("port", receive={"port": port})
    assert (found.ok, found.text) == (False, f"127.0.0.1:{port} is in use by another program")
    free = free_port()
    assert item("port", receive={"port": free}).text == f"127.0.0.1:{free} is free"


def test_an_address_of_another_machine_is_told(item: Callable[..., Item]) -> None:
    found = item("port", receive={"host": "192.0.2.1"})
    assert not found.ok
    assert "receive.host 192.0.2.1 is no address of this machine" in found.text


def test_the_cpu_is_always_here_and_a_missing_gpu_is_told(item: Callable[..., Item]) -> None:
    assert item("device").text == "cpu is here"
    assert not item("device", work={"device": "cuda:99"}).ok


def test_a_model_is_loaded_and_named(item: Callable[..., Item]) -> None:
    found = item("model nodules", models=MODELS)
    assert found.ok, found.text
    assert found.text.split()[-1][0].isdigit()


def test_a_model_that_is_not_there_is_told(item: Callable[..., Item], tmp_path: Path) -> None:
    found = item("model m", models={"m": {"bundle": str(tmp_path / "none")}})
    assert not found.ok
    assert "give models.m.bundle the folder of a bundle" in found.text
    assert "no built-in model" in item("model m", models={"m": {"bundle": "builtin:none"}}).text


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({}, "no routes"),
        ({"models": MODELS, "routes": [{"name": "r", "model": "nodules"}]}, "route r has no destinations"),
        (
            {
                "models": MODELS,
                "routes": [ROUTE],
                "peers": {"pacs": {**PACS, "may_send": False}},
                "receive": {"unknown_peers": "refuse"},
            },
            "no peer may send",
        ),
    ],
)
def test_routes_that_would_do_nothing_are_told(item: Callable[..., Item], sections: Any, said: str) -> None:
    found = item("routes", **sections)
    assert not found.ok
    assert said in found.text


def test_routes_that_work_are_counted(item: Callable[..., Item]) -> None:
    found = item("routes", models=MODELS, routes=[ROUTE], peers={"pacs": PACS}, receive={"unknown_peers": "refuse"})
    assert (found.ok, found.text) == (True, "r")


def test_peers_with_a_port_are_called(start_receiver: Callable[..., Any], node_config: Callable[..., Config]) -> None:
    running = start_receiver()
    peers = {
        "here": {"ae_title": running.peer.ae_title, "host": "127.0.0.1", "port": running.port},
        "away": {**PACS, "port": free_port()},
        "sender": {"ae_title": "CT1", "host": "127.0.0.1", "may_send": True},
    }
    items = {found.name: found for found in check(node_config(peers=peers)) if found.name.startswith("peer")}
    assert {name: found.ok for name, found in items.items()} == {"peer here": True, "peer away": False}
    assert items["peer here"].text == f"DICOMNODE at 127.0.0.1:{running.port} answers"


def test_storage_commitment_is_negotiated_where_it_will_be_asked_for(
    start_receiver: Callable[..., Any], node_config: Callable[..., Config], tmp_path: Path
) -> None:
    running = start_receiver()
    deaf = Archive(tmp_path / "archive", "DEAF")
    peers = {
        "here": {"ae_title": running.peer.ae_title, "host": "127.0.0.1", "port": running.port, "may_commit": True},
        "deaf": {"ae_title": "DEAF", "host": "127.0.0.1", "port": deaf.start(), "may_commit": True},
    }
    items = {found.name: found for found in check(node_config(peers=peers)) if found.name.endswith("commitment")}
    deaf.stop()
    assert {name: found.ok for name, found in items.items()} == {
        "peer here commitment": True,
        "peer deaf commitment": False,
    }
    assert "accepts none of these SOP Classes" in items["peer deaf commitment"].text


def test_a_stow_rs_destination_is_asked_whether_it_answers(node_config: Callable[..., Config]) -> None:
    web = {"ae_title": "WEB", "host": "127.0.0.1", "deliver_by": "stow_rs"}
    with serving(lambda request: Said(204)) as up, serving(lambda request: Said(401)) as locked:
        peers = {"up": {**web, "dicomweb": {"url": up}}, "locked": {**web, "dicomweb": {"url": locked}}}
        items = {found.name: found for found in check(node_config(peers=peers)) if found.name.endswith("dicomweb")}
    assert items["peer up dicomweb"].ok
    assert "check dicomweb.username" in items["peer locked dicomweb"].text


def test_a_service_that_is_pulled_from_is_asked_whether_it_answers(node_config: Callable[..., Config]) -> None:
    web = {"ae_title": "WEB", "host": "127.0.0.1", "retrieve_by": "wado_rs", "dicomweb": {"url": "http://127.0.0.1:9/"}}
    peers = {"pulled": {**web, "may_be_queried": True}, "left": {**web, "ae_title": "LEFT"}}
    [item] = [found for found in check(node_config(peers=peers)) if found.name.endswith("dicomweb")]
    assert (item.name, item.ok) == ("peer pulled dicomweb", False)


def test_a_check_makes_nothing(node_config: Callable[..., Config], tmp_path: Path) -> None:
    config = node_config()
    list(check(config))
    assert list(tmp_path.iterdir()) == []
    # As tmpfiles.d leaves it: what root's check made in it would be closed to the roles.
    config.storage.root.mkdir()
    assert all(found.ok for found in check(config) if found.name in ("storage", "storage file system", "database"))
    assert list(tmp_path.rglob("*")) == [config.storage.root]
