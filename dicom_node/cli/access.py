"""The commands that say who may use the web role: user and token. A password comes from the terminal or from stdin."""

from __future__ import annotations

import getpass
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.table import Table

from dicom_node import logs
from dicom_node.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, err, out, print_json
from dicom_node.config import ROLES, WebRole, load_config
from dicom_node.errors import ConfigError, DicomNodeError

if TYPE_CHECKING:
    from dicom_node.web.node import Access

_DAY_S = 86400.0

user_app = typer.Typer(help="Who may log in to the web role with a password.", no_args_is_help=True)
token_app = typer.Typer(help="What programs call the JSON API with.", no_args_is_help=True)

UserArgument = Annotated[str, typer.Argument(metavar="NAME", help="The user's name.")]
RoleOption = Annotated[str, typer.Option(help=f"One of {', '.join(ROLES)}: each may do what those before it may.")]
TokenArgument = Annotated[str, typer.Argument(metavar="NAME", help="What the token is for.")]


def add_to(app: typer.Typer) -> None:
    app.add_typer(user_app, name="user")
    app.add_typer(token_app, name="token")


@user_app.command("add")
def user_add(name: UserArgument, role: RoleOption = "viewer", config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Let somebody log in. The password is asked for, or read as one line from stdin.

    Example: dicom-node user add anna --role operator
    """
    with _access(config) as (access, told):
        access.users.add(name, _role(role), _password())
        told("user add", name)
    out.print(f"{name} may log in as {role}", markup=False, highlight=False)


@user_app.command("passwd")
def user_passwd(name: UserArgument, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Change a password. All logins of the user end.

    Example: dicom-node user passwd anna
    """
    with _access(config) as (access, told):
        access.users.change_password(name, _password())
        access.rows.close_sessions(name)
        told("user passwd", name)
    out.print(f"{name} has another password", markup=False, highlight=False)


@user_app.command("remove")
def user_remove(name: UserArgument, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Take a user out. All their logins end.

    Example: dicom-node user remove anna
    """
    with _access(config) as (access, told):
        access.users.remove(name)
        access.rows.close_sessions(name)
        told("user remove", name)
    out.print(f"{name} may not log in any more", markup=False, highlight=False)


@user_app.command("list")
def user_list(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Who may log in with a password.

    Example: dicom-node user list --json
    """
    with _access(config) as (access, _):
        users = sorted(access.users.users().values(), key=lambda user: user.name)
    _print([{"name": user.name, "role": user.role} for user in users], as_json, "no users yet: dicom-node user add")


@token_app.command("add")
def token_add(
    name: TokenArgument,
    role: RoleOption = "viewer",
    days: Annotated[float | None, typer.Option(min=0.001, max=3650, help="Valid for so long; default: 365.")] = 365,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Make a token. It is printed this once: only its hash is kept.

    Example: dicom-node token add grafana --role viewer --days 90
    """
    expires_at = None if days is None else time.time() + days * _DAY_S
    with _access(config) as (access, told):
        token = access.rows.add_token(_token_name(name), _role(role), expires_at)
        told("token add", name)
    if as_json:
        print_json({"name": name, "role": role, "expires_at": _when(expires_at), "token": token})
    else:
        err.print(f"token {name}, role {role}, until {_when(expires_at)}; it is not shown again:", highlight=False)
        print(token)


@token_app.command("revoke")
def token_revoke(name: TokenArgument, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """End a token at once.

    Example: dicom-node token revoke grafana
    """
    with _access(config) as (access, told):
        access.rows.revoke_token(name)
        told("token revoke", name)
    out.print(f"token {name} counts no more", markup=False, highlight=False)


@token_app.command("list")
def token_list(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """The tokens there are, without the secrets, which nobody knows.

    Example: dicom-node token list --json
    """
    with _access(config) as (access, _):
        rows = access.rows.tokens()
    shown = [
        {
            "name": row["name"],
            "role": row["role"],
            "created_at": _when(row["created_at"]),
            "expires_at": _when(row["expires_at"]),
            "used_at": _when(row["used_at"]),
        }
        for row in rows
    ]
    _print(shown, as_json, "no tokens yet: dicom-node token add")


def _print(rows: list[dict[str, Any]], as_json: bool, none: str) -> None:
    if as_json:
        print_json(rows)
    elif not rows:
        out.print(none, markup=False)
    else:
        table = Table(*rows[0], box=None)
        for row in rows:
            table.add_row(*(str(value or "") for value in row.values()))
        out.print(table)


@contextmanager
def _access(config: Path) -> Iterator[tuple[Access, Callable[[str, str], None]]]:
    """Users and tokens, and what writes a change of them into the audit trail: action and name."""
    from dicom_node.audit import Auditor, User, user_change
    from dicom_node.audit.events import os_user
    from dicom_node.db import Database
    from dicom_node.web.node import open_access

    settings = load_config(config)
    logs.configure("error", "text", "cli")
    settings.storage.root.mkdir(parents=True, exist_ok=True, mode=0o750)
    database = Database(settings.database_url())
    try:
        database.migrate()
    finally:
        database.close()
    access, auditor, me = open_access(settings), Auditor.of(settings), User(name=os_user())

    def told(action: str, name: str) -> None:
        auditor.write(user_change(me, action, name, kind="user_security"))

    try:
        yield access, told
    finally:
        access.rows.close()


def _role(word: str) -> WebRole:
    for role in get_args(WebRole):
        if role == word:
            return role  # type: ignore[no-any-return]  # get_args tells no types
    raise ConfigError(f"--role {word} is none of {', '.join(ROLES)}")


def _token_name(name: str) -> str:
    if not (1 <= len(name) <= 63) or not all(c.isascii() and (c.isalnum() or c in "_-.") for c in name):
        raise ConfigError("a token's name is 1 to 63 letters, digits, and . _ -")
    return name


def _password() -> str:
    """Twice from a terminal, else one line of stdin: never an argument, which any process could read."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise DicomNodeError("the two passwords differ")
    return password


def _when(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
