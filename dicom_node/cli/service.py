"""Commands around the service: reload, install-service, backup, restore."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dicom_node import logs
from dicom_node.cli.audit import tell_trail
from dicom_node.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, out, print_json
from dicom_node.config import load_config
from dicom_node.presence import Standing


def add_to(app: typer.Typer) -> None:
    for command in (reload, install_service, backup, restore):
        app.command(command.__name__.replace("_", "-"))(command)


def reload(
    config: ConfigOption = DEFAULT_CONFIG,
    pid: Annotated[int | None, typer.Option(help="One role alone, by its process.")] = None,
    wait_s: Annotated[float, typer.Option(min=0.1, help="How long a role may take to answer.")] = 90.0,
    as_json: JsonOption = False,
) -> None:
    """Check the settings, have the roles of this machine take them over, say what waits for a restart.

    Wrong settings change nothing. Exit code 1: a role keeps its old ones.

    Example: dicom-node reload --config /etc/dicom-node/config.yaml
    """
    from dicom_node.reload import reload as run_reload

    logs.configure("error", "text", "reload")
    answers = run_reload(config, wait_s=wait_s, pid=pid)
    # Who may connect, and by which certificates, is part of what they take over.
    tell_trail(config, "reload", str(config.absolute()), kind="security_configuration")
    if as_json:
        print_json([asdict(answer) for answer in answers])
    else:
        for answer in answers:
            out.print(_line(answer), markup=False, highlight=False)
    if any(answer.problem for answer in answers):
        raise typer.Exit(1)


def _line(answer: Standing) -> str:
    who = answer.role if answer.name == answer.role else f"{answer.role} {answer.name}"
    if answer.problem:
        return f"{who}: {answer.problem}"
    applied = f"took over {', '.join(answer.applied)}" if answer.applied else "nothing to take over"
    return f"{who}: {applied}" + (f"; restart it for {', '.join(answer.restart)}" if answer.restart else "")


def install_service(
    config: ConfigOption = DEFAULT_CONFIG,
    workers: Annotated[str, typer.Option(help="Its instances: GPU numbers and cpu, like 0,1.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the files, write nothing.")] = False,
    prefix: Annotated[Path | None, typer.Option(help="Write below this folder, as an image or a test does.")] = None,
) -> None:
    """Write the systemd units with the paths of this installation, and say what to do next.

    Example: dicom-node install-service --config /etc/dicom-node/config.yaml --workers 0,1
    """
    from dicom_node.service_units import Installation, next_steps, rendered, write

    settings = load_config(config)
    installation = Installation.of_this_process(config.absolute(), settings, workers)
    files = rendered(installation)
    if dry_run:
        for name, text in files.items():
            out.print(f"# {name}\n{text}", markup=False, highlight=False)
        return
    for path in write(files, prefix):
        out.print(f"wrote {path}", markup=False, highlight=False)
    out.print(next_steps(installation), markup=False, highlight=False)


def backup(
    out_dir: Annotated[Path, typer.Option("--out", help="A new folder, on another disk.")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Copy database and files, consistent with each other, while the node runs. With PostgreSQL: pg_dump first.

    Example: dicom-node backup --out /backup/2026-11-25
    """
    from dicom_node.backup import backup as run_backup

    made = run_backup(load_config(config), out_dir)
    tell_trail(config, "backup", str(out_dir.absolute()))
    if as_json:
        print_json(asdict(made))
        return
    out.print(f"{made.files} files, {made.bytes / 1e6:.1f} MB, databases: {_names(made.databases)}", markup=False)


def restore(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="What backup wrote.")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Put a backup back. The storage root must be empty, and with PostgreSQL its dump restored.

    Example: dicom-node restore /backup/2026-11-25
    """
    from dicom_node.backup import restore as run_restore

    made = run_restore(load_config(config), source)
    # Not before: the trail is one of the things that it puts back.
    tell_trail(config, "restore", str(source.absolute()))
    if as_json:
        print_json(asdict(made))
        return
    out.print(f"{made.files} files, {made.bytes / 1e6:.1f} MB, databases: {_names(made.databases)}", markup=False)


def _names(databases: dict[str, str]) -> str:
    return ", ".join(databases) or "none: they are in PostgreSQL, for pg_dump and pg_restore"
