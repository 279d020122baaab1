"""Several receiving processes on one port: kill -9 of one loses nothing that any of them acknowledged."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dicom_node.dimse.requestor import CannotAssociate, NoAnswer, associate
from dicom_node.peers import PeerConfig
from tests.fakes.instances import SERIES, FakeInstance, fake_instance
from tests.node import Node
from tests.peers import free_port

CT = [("1.2.840.10008.5.1.4.1.1.2", ["1.2.840.10008.1.2.1"])]


@pytest.fixture
def crew(make_node: Callable[..., Node]) -> Node:
    port = free_port()
    receive = {"host": "127.0.0.1", "port": port, "unknown_peers": "accept", "journal_mb": 8, "processes": 2}
    made = make_node(peers={}, receive=receive, routes=[], models={})
    made.port = port
    made.start("receive")
    return made


def members(node: Node) -> list[int]:
    """The processes that were started, in order."""
    events = [json.loads(line) for line in node.log("receive").splitlines() if line.startswith("{")]
    return [event["pid"] for event in events if event.get("action") == "started"]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def peer(node: Node) -> PeerConfig:
    return PeerConfig(ae_title="DICOMNODE", host="127.0.0.1", port=node.port, response_timeout_s=20)


def store(node: Node, fakes: list[FakeInstance], answered: Callable[[FakeInstance], None]) -> None:
    with associate(peer(node), "SENDER", CT) as requested:
        for fake in fakes:
            status, _ = requested.store(1, fake.sop_class_uid, fake.sop_instance_uid, fake.data_set)
            assert status == 0x0000
            answered(fake)


def test_kill_9_of_one_loses_nothing_and_it_is_started_again(crew: Node) -> None:
    killed, acknowledged, unsure = threading.Event(), set[str](), list[int]()

    def answered(fake: FakeInstance) -> None:
        acknowledged.add(fake.sop_instance_uid)
        if len(acknowledged) > 200 and not killed.is_set():
            killed.set()
            os.kill(members(crew)[0], signal.SIGKILL)

    def send(first: int) -> None:
        fakes = [fake_instance(n, pixels=os.urandom(50_000)) for n in range(first, first + 100)]
        try:
            store(crew, fakes, answered)
        except (NoAnswer, CannotAssociate):
            unsure.append(first)

    threads = [threading.Thread(target=send, args=(first,)) for first in range(0, 800, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert killed.is_set()
    crew.wait(lambda: len(members(crew)) == 3, "the killed one to be started again")
    crew.wait(lambda: crew.log("receive").count('"action": "joined"') == 3, "it to listen")
    store(crew, [fake_instance(9001)], answered)
    crew.stop()
    rows = {row["sop_instance_uid"]: row for row in crew.database.instances(SERIES)}
    assert acknowledged <= set(rows)
    assert all(crew.storage.path(row["path"]).stat().st_size == row["size_bytes"] for row in rows.values())
    assert not any(map(alive, members(crew)))


def test_all_members_serve_and_each_keeps_its_part_of_the_associations(make_node: Callable[..., Node]) -> None:
    port = free_port()
    receive = {"host": "127.0.0.1", "port": port, "unknown_peers": "accept", "journal_mb": 4}
    node = make_node(peers={}, receive={**receive, "processes": 2, "max_associations": 3}, routes=[], models={})
    node.port = port
    node.start("receive")
    open_at_once = []
    try:
        for _ in range(40):  # the system spreads them by their ports
            try:
                held = associate(peer(node), "SENDER", CT)
                held.__enter__()
                open_at_once.append(held)
            except CannotAssociate as err:
                assert err.retry_helps  # noqa: PT017  both outcomes are right, each for its own reason
        assert len(open_at_once) == 4, "each process takes its half of three, rounded up"
    finally:
        for held in open_at_once:
            held.__exit__(None, None, None)
    node.stop()


def test_a_killed_parent_takes_its_members_along(crew: Node) -> None:
    crew.kill("receive")
    crew.wait(lambda: not any(map(alive, members(crew))), "the members to end")
    crew.start("receive")
    crew.stop()


def test_a_port_in_use_is_said_at_once(crew: Node, make_node: Callable[..., Node], tmp_path: Path) -> None:
    receive = {"host": "127.0.0.1", "port": crew.port, "processes": 2, "journal_mb": 4}
    other = make_node(peers={}, receive=receive, storage={"root": str(tmp_path / "other")}, routes=[], models={})
    with pytest.raises(AssertionError, match="is it in use"):
        other.start("receive")
    other.processes.clear()
