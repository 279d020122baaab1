"""What `check` says of the web role, and `serve` without one: real ports, certificates and processes."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dicom_node.check import Item
from dicom_node.check.web import check_web
from dicom_node.config import Config
from dicom_node.errors import ConfigError
from dicom_node.roles import Stop
from dicom_node.web.access.users import UsersFile
from dicom_node.web.server import web as run_web
from tests.certificates import Authority
from tests.peers import free_port
from tests.web import PASSWORD, QUICK, serving, web_role


@pytest.fixture
def found(node_config: Callable[..., Config]) -> Callable[..., dict[str, Item]]:
    """`found(port=8114)`: the items by name, with these settings of `web`."""

    def tried(**web: Any) -> dict[str, Item]:
        return {item.name: item for item in check_web(node_config(web={"port": free_port(), **web}))}

    return tried


def test_a_role_that_is_off_is_told_and_not_served(
    found: Callable[..., dict[str, Item]], node_config: Callable[..., Config]
) -> None:
    assert [(item.name, item.ok, item.text) for item in found(port=None).values()] == [
        ("web", True, "off: web.port is null, serve starts no web role")
    ]
    config = node_config(web={"port": None})
    assert config.served_roles() == ("receive", "work", "deliver")
    assert node_config().served_roles()[-1] == "web"
    with pytest.raises(ConfigError, match=r"web\.port is null"):
        run_web(config, Stop())


def test_a_port_that_is_taken_is_told_from_a_web_role_that_answers_there(
    found: Callable[..., dict[str, Item]], node_config: Callable[..., Config]
) -> None:
    port = free_port()
    assert found(port=port)["web"].text == f"127.0.0.1:{port} is free"
    with web_role(node_config()) as web, serving(web) as url:
        assert "a web role answers on" in found(port=int(url.rpartition(":")[2]))["web"].text
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        item = found(port=mute.getsockname()[1])["web"]
    assert not item.ok
    assert "in use by another program" in item.text


def test_a_certificate_without_its_key_is_told(found: Callable[..., dict[str, Item]], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, two = authority.issue("one"), authority.issue("two")
    item = found(tls={"certificate": str(one.certificate), "key": str(two.key)})["web"]
    assert not item.ok
    assert "web.tls" in item.text
    assert found(tls={"certificate": str(one.certificate), "key": str(one.key)})["web"].ok


def test_nobody_who_may_log_in_is_told_and_beyond_loopback_it_is_a_failure(
    found: Callable[..., dict[str, Item]],
) -> None:
    proxy = {"from": ["10.0.0.5"]}
    alone, reached = found()["web users"], found(host="0.0.0.0", proxy=proxy)["web users"]
    assert (alone.ok, alone.warns, reached.ok) == (True, True, False)
    assert "dicom-node user add" in alone.text
    by_proxy = found(host="0.0.0.0", proxy={**proxy, "user_header": "X-Remote-User"})["web users"]
    assert (by_proxy.ok, by_proxy.warns) == (True, False)


def test_a_users_file_that_others_can_read_is_told(found: Callable[..., dict[str, Item]], tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    UsersFile(path, hasher=QUICK).add("anna", "viewer", PASSWORD)
    item = found(users_file=str(path))["web users"]
    assert (item.warns, item.text) == (False, "1 by password")
    path.chmod(0o640)
    item = found(users_file=str(path))["web users"]
    assert item.warns
    assert f"chmod 600 {path}" in item.text
    path.write_text("{}")
    assert not found(users_file=str(path))["web users"].ok


@pytest.mark.parametrize(("network", "warns"), [("10.0.0.5", False), ("10.0.0.0/8", True), ("0.0.0.0/0", True)])
def test_a_proxy_that_is_everybody_is_told(found: Callable[..., dict[str, Item]], network: str, warns: bool) -> None:
    assert ("web.proxy.from" in found(proxy={"from": ["127.0.0.1", network]})) == warns
