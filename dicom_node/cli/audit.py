"""`dicom-node audit`, and what the other commands tell the audit trail: who of the operating system did what."""

from __future__ import annotations

from pathlib import Path

import typer

from dicom_node.audit import Audit, Auditor, User, audit_log_used, user_change
from dicom_node.audit.events import AlertKind, os_user
from dicom_node.audit.trail import Trail, TrailBroken
from dicom_node.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, err, out, print_json
from dicom_node.config import Config, load_config
from dicom_node.errors import ConfigError


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    audit = typer.Typer(help="The audit trail: DICOM audit messages, chained by hashes.", no_args_is_help=True)
    app.add_typer(audit, name="audit")
    audit.command("verify")(verify)


def tell_trail(config: Path, action: str, target: str, *, kind: AlertKind = "restricted_function") -> None:
    """The audit trail: this user changes something, or takes it away."""
    audit, user = trail_and_user(load_config(config))
    audit.write(user_change(user, action, target, kind=kind))


def trail_and_user(settings: Config) -> tuple[Audit, User]:
    """The audit trail, and this user of the operating system."""
    return Auditor.of(settings), User(name=os_user())


def verify(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Check that no line of the audit trail was changed, put in or cut out, each machine's by itself.

    Example: dicom-node audit verify
    """
    settings = load_config(config)
    folder = settings.audit_folder()
    hosts = sorted({path.name[: -len("-2000-01-01.jsonl")] for path in folder.glob("*-????-??-??.jsonl")})
    if not hosts:
        raise ConfigError(f"no audit trail in {folder}")
    rows = []
    for host in hosts:
        try:
            rows.append({"host": host, "ok": True, "messages": Trail(folder, host).verify(), "text": "unbroken"})
        except TrailBroken as error:
            rows.append({"host": host, "ok": False, "messages": None, "text": str(error)})
    Auditor.of(settings).write(audit_log_used(User(name=os_user()), str(folder)))
    if as_json:
        print_json(rows)
    for row in [] if as_json else rows:
        to = out if row["ok"] else err
        count = "" if row["messages"] is None else f"{row['messages']} messages, "
        to.print(f"{row['host']}: {count}{row['text']}", markup=False, highlight=False)
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)
