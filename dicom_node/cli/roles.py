"""The commands that run the node: the roles receive, work, deliver and web, each alone or, by serve, all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicom_node import logs
from dicom_node.cli.common import DEFAULT_CONFIG, ConfigOption
from dicom_node.config import Config, load_config

NameOption = Annotated[str | None, typer.Option("--name", help="This process's name; one living process a name.")]


def add_to(app: typer.Typer) -> None:
    for command in (serve, receive, work, deliver, web):
        app.command()(command)


def serve(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the whole node on this machine.

    Example: dicom-node serve --config /etc/dicom-node/config.yaml
    """
    from dicom_node.roles import open_state
    from dicom_node.supervisor import Supervisor

    settings = _role(config, "serve")
    _, database = open_state(settings)
    database.close()
    code = Supervisor(config, ("receive", "work", "deliver", "web"), drain_s=settings.work.drain_s).run()
    raise typer.Exit(code)


def receive(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the Storage SCP alone.

    Example: dicom-node receive --config config.yaml
    """
    from dicom_node import receivers, roles

    receivers.receive(_role(config, "receive"), roles.Stop().on_signals(), source=config)


def work(
    config: ConfigOption = DEFAULT_CONFIG,
    name: NameOption = None,
    device: Annotated[str | None, typer.Option(help="cpu, or a GPU: its number or cuda:N; else work.device.")] = None,
) -> None:
    """Run one analysing process alone.

    Example: dicom-node work --config config.yaml --name gpu0
    """
    from dicom_node import roles
    from dicom_node.service_units import device_of

    chosen = None if device is None else device_of(device)
    roles.work(_role(config, "work"), roles.Stop().on_signals(), name, source=config, device=chosen)


def deliver(config: ConfigOption = DEFAULT_CONFIG, name: NameOption = None) -> None:
    """Run the sending process alone.

    Example: dicom-node deliver --config config.yaml
    """
    from dicom_node import roles

    roles.deliver(_role(config, "deliver"), roles.Stop().on_signals(), name, source=config)


def web(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the dashboard and the JSON API alone.

    Example: dicom-node web --config config.yaml
    """
    from dicom_node import roles
    from dicom_node.web.server import web as run_web

    run_web(_role(config, "web"), roles.Stop().on_signals(), source=config)


def _role(config: Path, role: str) -> Config:
    settings = load_config(config)
    logs.configure(settings.log.level_of(role), settings.log.format, role)
    return settings
