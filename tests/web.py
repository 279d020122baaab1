"""A web role for tests: its real application on real rows and files, called without a socket."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import argon2
from starlette.testclient import TestClient

from dicom_node import engine
from dicom_node.audit import Auditor
from dicom_node.config import Config, WebRole
from dicom_node.db import Database
from dicom_node.engine import EngineClient
from dicom_node.metrics.exposition import Exposition
from dicom_node.storage import Storage
from dicom_node.web.access.rows import AccessRows
from dicom_node.web.access.users import UsersFile
from dicom_node.web.app import create_app
from dicom_node.web.node import Access, Node
from dicom_node.web.server import _server
from dicom_node.web.trail import Trail

PASSWORD = "correct horse battery"
HOST = "http://127.0.0.1:8114"
# As the real ones, but of microseconds: what is tested here is not the strength of the hash.
QUICK = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@dataclass(kw_only=True)
class Web:
    """clock: seconds since the epoch, what the role takes for now."""

    node: Node
    clock: float = 1_764_000_000.0
    clients: list[TestClient] = field(default_factory=list)

    def client(self, address: str = "127.0.0.1", base_url: str = HOST, **headers: str) -> TestClient:
        made = TestClient(
            create_app(self.node),
            base_url=base_url,
            client=(address, 50000),
            headers=headers,
            follow_redirects=False,
        )
        self.clients.append(made)
        return made

    def user(self, name: str, role: WebRole) -> None:
        self.node.access.users.add(name, role, PASSWORD)

    def token(self, role: WebRole) -> TestClient:
        """A program's client of that role."""
        token = self.node.access.rows.add_token(f"{role}-{len(self.clients)}", role, None)
        return self.client(Authorization=f"Bearer {token}")

    def browser(self, name: str, **options: Any) -> TestClient:
        """A browser in which the user is logged in. It sends Origin and the CSRF token of its pages."""
        client = self.client(**options)
        client.headers["Origin"] = str(client.base_url)
        answer = log_in(client, name)
        assert answer.status_code == 303, answer.text
        client.headers["X-CSRF-Token"] = client.get("/api/v1/session").json()["csrf_token"]
        return client


def log_in(client: TestClient, user: str, password: str = PASSWORD, to: str = "/") -> Any:
    return client.post("/login", data={"user": user, "password": password, "next": to})


@contextmanager
def web_role(config: Config, database: Database | None = None) -> Iterator[Web]:
    storage = Storage(config.storage.root, min_free_gb=config.storage.min_free_gb)
    own = database or Database(config.database_url())
    own.migrate()
    engine.migrate(config.database_url())
    client = EngineClient(config.database_url())
    made: list[Web] = []

    def now() -> float:
        return made[0].clock

    trail = Trail(audit=Auditor.of(config), database=own, storage=storage)
    access = Access(
        users=UsersFile(config.web_users_file(), hasher=QUICK),
        rows=AccessRows(config.database_url(), now=now),
    )
    made.append(
        Web(
            node=Node(
                config=config,
                database=own,
                storage=storage,
                engine=client,
                access=access,
                trail=trail,
                exposition=Exposition(config, own, now=now),
                now=now,
            )
        )
    )
    try:
        yield made[0]
    finally:
        for each in made[0].clients:
            each.close()
        access.rows.close()
        client.close()
        if database is None:
            own.close()


@contextmanager
def serving(web: Web) -> Iterator[str]:
    """The role's own server on a free port of loopback; its URL."""
    server, listening = _server(web.node, create_app(web.node)), socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def audit_trail(web: Web) -> list[str]:
    """The messages of the node's audit trail."""
    lines = [line for file in (web.node.storage.root / "audit").iterdir() for line in file.read_text().splitlines()]
    return [json.loads(line)["message"] for line in lines if "AuditMessage" in line]


def cookie(answer: Any) -> str:
    """The one Set-Cookie line of an answer."""
    found: str = answer.headers["set-cookie"]
    assert re.match(r"[\w-]+=", found)
    return found
