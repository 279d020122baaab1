"""The web role's process: settings -> a server that answers until it is told to stop."""

from __future__ import annotations

import logging
import socket
import threading
from dataclasses import replace
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from dicom_node import roles
from dicom_node.audit import Auditor, application_started, application_stopped
from dicom_node.config import Config, WebConfig, is_loopback
from dicom_node.engine import EngineClient
from dicom_node.errors import ConfigError, DicomNodeError
from dicom_node.life import Life
from dicom_node.metrics.exposition import Exposition
from dicom_node.web.app import create_app
from dicom_node.web.node import Node, open_access
from dicom_node.web.tls import tls_context
from dicom_node.web.trail import Trail

log = logging.getLogger(__name__)

# Event streams of open pages end so long after a stop; what else runs then is done by itself.
_LAST_WORD_S = 3
# Beyond it a connection is answered 503; each open page holds one for its events.
_MOST_AT_ONCE = 200


def web(config: Config, stop: roles.Stop, *, source: Path | None = None) -> None:
    """Listen until `stop`. Raises ConfigError where nobody could log in,
    DicomNodeError where the port is taken. source: the settings'
    file, read again on SIGHUP."""
    if config.web.port is None:
        raise ConfigError("web.port is null: the web role is off. Set web.port, or leave the role out")
    life = Life(config, "web", source)
    storage, database = roles.open_state(config)
    auditor = Auditor.of(config)
    node = Node(
        config=config,
        database=database,
        storage=storage,
        engine=EngineClient(config.database_url()),
        access=open_access(config),
        exposition=Exposition(config, database, latest=lambda: life.config),
        trail=Trail(audit=auditor, database=database, storage=storage),
    )
    _someone_may_log_in(node)
    observers = roles.observe(life, database)
    app = create_app(node)
    server, listening = _server(node, app), _listen(config.web)

    def take_over(latest: Config) -> None:
        storage.keep_free(latest.storage.min_free_gb)
        # Requests that run keep the one they began with.
        app.state.node = replace(node, config=latest)

    # In a thread: uvicorn's signal handlers are for the main one, and the process has its own.
    thread = threading.Thread(target=server.run, args=([listening],), name="web", daemon=True)
    thread.start()
    for observer in observers:
        observer.start()
    address = f"{config.web.host}:{listening.getsockname()[1]}"
    try:
        auditor.write(application_started("web"))
        auditor.start()
        log.info("serving", extra={"action": "ready", "address": address, "tls": config.web.tls is not None})
        life.ready(f"serves {address}", healthy=thread.is_alive, apply=take_over)

        def watch() -> None:
            life.beat(stop.reload_asked)
            if not thread.is_alive():
                stop.event.set()

        stop.wait(watch)
        if not thread.is_alive():
            raise DicomNodeError("the web server ended by itself")
        log.info("stopping", extra={"action": "stopping"})
        life.stopping()
        auditor.write(application_stopped("web"))
    finally:
        server.should_exit = True
        thread.join(_LAST_WORD_S + 5)
        for observer in observers:
            observer.stop(_LAST_WORD_S)
        auditor.stop()
        roles.unobserve()
        node.access.rows.close()
        node.engine.close()
        database.close()


def _someone_may_log_in(node: Node) -> None:
    web = node.config.web
    by_others = web.oidc is not None or (web.proxy is not None and web.proxy.user_header is not None)
    if by_others or node.access.users.users():
        return
    if not is_loopback(web.host):
        raise ConfigError(
            f"web.host {web.host} is reached by others, and there are no users: dicom-node user add NAME --role admin"
        )
    log.warning("no users yet: dicom-node user add NAME --role admin", extra={"action": "no users"})


def _server(node: Node, app: FastAPI) -> uvicorn.Server:
    web = node.config.web
    settings = uvicorn.Config(
        app,
        log_config=None,
        # Its lines hold queries, in which people search for what must not be logged.
        access_log=False,
        # Whose word on the client counts, `access.caller` decides.
        proxy_headers=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=_LAST_WORD_S,
        limit_concurrency=_MOST_AT_ONCE,
    )
    # What it says at INFO, the role says itself.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    settings.load()
    if web.tls is not None:
        settings.ssl = tls_context(web.tls)
    return uvicorn.Server(settings)


def _listen(web: WebConfig) -> socket.socket:
    assert web.port is not None  # noqa: S101  the caller looked
    host = "127.0.0.1" if web.host == "localhost" else web.host
    try:
        return socket.create_server(
            (host, web.port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128
        )
    except OSError as err:
        # Not for the settings alone to mend: under `serve` the other roles go on, and this one is tried again.
        raise DicomNodeError(
            f"web: cannot listen on {web.host}:{web.port}: {err.strerror}; set web.host, web.port"
        ) from err
