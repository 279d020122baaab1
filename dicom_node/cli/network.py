"""The commands that talk to peers: echo, send, peers. A peer is named by the settings, or AE@HOST:PORT.

AE@HOST:PORT is for what is not configured: one that is keeps its settings and what it may do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from dicom_node import logs
from dicom_node.cli.audit import tell_trail
from dicom_node.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, err, out, print_json, progress_bar
from dicom_node.config import Config, load_config, parse_config
from dicom_node.errors import ConfigError, DeliveryError
from dicom_node.forms import did_you_mean
from dicom_node.peers import PeerConfig, parse_peer

AsOption = Annotated[str | None, typer.Option("--as", help="Call as this AE title; default: receive.ae_title.")]


def add_to(app: typer.Typer) -> None:
    for command in (echo, send, peers):
        app.command()(command)


def echo(
    peer: Annotated[str, typer.Argument(help="A peer's name, or AE@HOST:PORT.")],
    calling_ae: AsOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Verify that a peer answers (C-ECHO).

    Example: dicom-node echo pacs
    """
    from dicom_node.dimse.scu import echo as run_echo

    settings, name, target = peer_named(config, peer)
    if target.port is None:
        raise ConfigError(f"{name} has no port: set peers.{name}.port, or give AE@HOST:PORT")
    logs.configure("error", "text", "echo")
    try:
        run_echo(target, calling_ae or settings.receive.ae_title)
    except DeliveryError as error:
        if not as_json:
            raise
        print_json({"peer": peer, "ok": False, "message": str(error)})
        raise typer.Exit(1) from error
    message = f"{target.ae_title} at {target.host}:{target.port} answers"
    if as_json:
        print_json({"peer": peer, "ok": True, "message": message})
    else:
        out.print(message, markup=False, highlight=False)


def send(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="DICOM files.")],
    to: Annotated[str, typer.Option("--to", help="A peer's name, or AE@HOST:PORT.")],
    calling_ae: AsOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Send a folder of DICOM files to a peer: C-STORE, or STOW-RS where its settings say deliver_by: stow_rs.

    Example: dicom-node send /data/ct --to NODE@10.0.0.5:11112 --as CT1
    """
    from dicom_node.infer import dicom_files
    from dicom_node.sending import send as run_send

    settings, name, target = peer_named(config, to)
    if not target.may_receive:
        raise ConfigError(f"nothing may be sent to {name}: set peers.{name}.may_receive: true")
    if not target.can_receive:
        raise ConfigError(f"{name} has no port: set peers.{name}.port, or give AE@HOST:PORT")
    logs.configure("error", "text", "send")
    files = dicom_files(folder)
    if config.exists():  # else it is no node's doing
        tell_trail(config, "send", f"{len(files)} files to {name}")
    with progress_bar("sending", quiet=as_json) as progress:
        outcomes = []
        for outcome in run_send(files, target, calling_ae or settings.receive.ae_title):
            outcomes.append(outcome)
            progress(len(outcomes) / len(files))
    stored = sum(outcome.kind == "stored" for outcome in outcomes)
    problems = sorted({outcome.message for outcome in outcomes if outcome.kind != "stored"})
    if as_json:
        print_json({"files": len(files), "stored": stored, "problems": problems})
    else:
        out.print(f"{stored} of {len(files)} files stored", highlight=False)
        for problem in problems:
            err.print(problem, markup=False, style="red")
    if stored < len(files):
        raise typer.Exit(1)


def peers(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """The peers of the settings: where they are, what they may do, and whether they answer (C-ECHO, else DICOMweb).

    Example: dicom-node peers
    """
    settings = load_config(config)
    logs.configure("error", "text", "peers")
    rows = [_peer_row(settings, name, peer) for name, peer in settings.peers.items()]
    if as_json:
        print_json(rows)
        return
    table = Table("peer", "AE title", Column("address", overflow="fold"), "it may", "answers", box=None)
    for row in rows:
        may = ", ".join(word for word in ("send", "receive", "be queried", "commit") if word in row["may"])
        answers = "-" if row["answers"] is None else "yes" if row["answers"] else "no"
        table.add_row(row["name"], row["ae_title"], row["address"], may or "nothing", answers)
    out.print(table)
    for row in rows:
        if row["answers"] is False:
            err.print(f"{row['name']}: {row['message']}", markup=False, style="red")


def peer_named(config: Path, text: str) -> tuple[Config, str, PeerConfig]:
    """The settings, and name and settings of the peer that `text` names; AE@HOST:PORT may be one of them."""
    direct = parse_peer(text)
    if direct is not None and not config.exists():
        settings = parse_config("storage: {root: .}", "defaults")
    else:
        settings = load_config(config)
    if direct is not None:
        for name, peer in settings.peers.items():
            if (peer.ae_title, peer.host, peer.port) == (direct.ae_title, direct.host, direct.port):
                return settings, name, peer
        # Whoever writes an address asks for it: only what is configured is held to its settings.
        return settings, direct.ae_title, direct.model_copy(update={"may_be_queried": True})
    if text not in settings.peers:
        hint = did_you_mean(text, settings.peers)
        raise ConfigError(f"no peer {text!r} in {config}{hint}; or give AE@HOST:PORT")
    return settings, text, settings.peers[text]


def _peer_row(settings: Config, name: str, peer: PeerConfig) -> dict[str, Any]:
    from dicom_node.dicomweb.client import service_answers
    from dicom_node.dimse.scu import echo as run_echo

    may = {
        "send": peer.may_send,
        "receive": peer.can_receive,
        "be queried": peer.may_be_queried,
        "commit": peer.may_commit,
    }
    web = peer.dicomweb.url if peer.dicomweb is not None else ""
    row: dict[str, Any] = {
        "name": name,
        "ae_title": peer.ae_title,
        "address": f"{peer.host}:{peer.port}" if peer.port is not None else web or peer.host,
        "may": [word for word, allowed in may.items() if allowed],
        "answers": None,
        "message": "",
    }
    if peer.port is not None or peer.dicomweb is not None:
        try:
            service_answers(peer) if peer.port is None else run_echo(peer, settings.receive.ae_title)
            row["answers"] = True
        except (DeliveryError, ConfigError) as error:
            row |= {"answers": False, "message": str(error)}
    return row
