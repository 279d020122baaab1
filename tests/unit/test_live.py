"""What a reload takes over, and what waits for a restart."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from dicom_node.config import Config, parse_config
from dicom_node.errors import ConfigError
from dicom_node.live import LIVE, all_keys, change, table
from dicom_node.notify import Notifier

PEERS = "peers: {pacs: {ae_title: PACS, host: 127.0.0.1, port: 104}}"


def config(text: str) -> Config:
    return parse_config(text, "config.yaml")


def test_live_keys_are_taken_over_and_the_others_named() -> None:
    old = config("storage: {root: /a}\nreceive: {port: 1104, max_associations: 3}")
    new = config(f"storage: {{root: /a}}\nreceive: {{port: 1105, max_associations: 4}}\n{PEERS}")
    done = change(old, new)
    assert done.applied == ("receive.max_associations", "peers.pacs")
    assert done.restart == ("receive.port",)
    assert (done.config.receive.port, done.config.receive.max_associations) == (1104, 4)
    assert "pacs" in done.config.peers


def test_a_route_whose_model_is_not_loaded_changes_nothing() -> None:
    old = config("storage: {root: /a}")
    new = config("storage: {root: /a}\nmodels: {m: {bundle: /m}}\nroutes: [{name: r, model: m}]")
    with pytest.raises(ConfigError, match=r"restart the roles for models\.m"):
        change(old, new)


def test_each_live_key_exists_and_each_key_is_in_the_document() -> None:
    known = {key for key, _ in all_keys()} | {key.partition(".")[0] for key, _ in all_keys()}
    assert set(LIVE) <= known
    document = (Path(__file__).parents[2] / "docs" / "reload.md").read_text()
    assert table() in document


def test_the_service_manager_hears_what_a_role_says(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")}, clock=lambda: 1.5)
        notifier.ready("receives")
        notifier.reloading()
        notifier.alive()
        notifier.stopping()
        heard = [manager.recv(1000).decode() for _ in range(4)]
    assert heard[0] == "READY=1\nSTATUS=receives"
    assert heard[1].startswith("RELOADING=1\nMONOTONIC_USEC=1500000")
    assert heard[2] == "WATCHDOG=1"
    assert heard[3].startswith("STOPPING=1")
