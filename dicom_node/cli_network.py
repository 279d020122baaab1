"""The commands that talk to peers: echo, send, pull, peers. A peer is named by the settings, or AE@HOST:PORT.

AE@HOST:PORT is for what is not configured: one that is keeps its settings and what it may do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from dicom_node import cli_audit, logs
from dicom_node.audit import user_change
from dicom_node.cli_common import DEFAULT_CONFIG, ConfigOption, JsonOption, err, out, print_json, progress_bar
from dicom_node.config import Config, load_config, parse_config
from dicom_node.errors import ConfigError, DeliveryError
from dicom_node.forms import did_you_mean
from dicom_node.peers import PeerConfig, parse_peer

if TYPE_CHECKING:
    from dicom_node.pull import Fetched, Landing, Plan, Planned, Puller, Selection

AsOption = Annotated[str | None, typer.Option("--as", help="Call as this AE title; default: receive.ae_title.")]


def add_to(app: typer.Typer) -> None:
    for command in (echo, send, pull, peers):
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

    settings, name, target = _peer(config, peer)
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

    settings, name, target = _peer(config, to)
    if not target.may_receive:
        raise ConfigError(f"nothing may be sent to {name}: set peers.{name}.may_receive: true")
    if not target.can_receive:
        raise ConfigError(f"{name} has no port: set peers.{name}.port, or give AE@HOST:PORT")
    logs.configure("error", "text", "send")
    files = dicom_files(folder)
    if config.exists():  # else it is no node's doing
        cli_audit.tell(config, "send", f"{len(files)} files to {name}")
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


def pull(
    source: Annotated[str, typer.Option("--from", help="A peer's name, or AE@HOST:PORT.")],
    study: Annotated[str, typer.Option(help="Study Instance UID.")] = "",
    series: Annotated[str, typer.Option(help="Series Instance UID, with --study.")] = "",
    patient: Annotated[str, typer.Option(help="Patient ID.")] = "",
    accession: Annotated[str, typer.Option(help="Accession Number.")] = "",
    since: Annotated[str, typer.Option(help="Studies of the last hours or days: 12h, 2d.")] = "",
    modality: Annotated[str, typer.Option(help="Only series of this Modality; empty: of any.")] = "CT",
    route: Annotated[str | None, typer.Option(help="This route decides, not the first that matches.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched, fetch nothing.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Fetch series from a peer's archive (C-MOVE, C-GET or WADO-RS). What is here already is not fetched again.

    Example: dicom-node pull --from pacs --since 2d --dry-run
    """
    from dicom_node.pull import Puller, Selection, check_allowed, parse_age

    settings, name, target = _peer(config, source)
    check_allowed(settings, name, target)
    routes = [known.name for known in settings.routes]
    if route is not None and route not in routes:
        raise ConfigError(f"no route {route!r} in {config}{did_you_mean(route, routes)}")
    wanted = Selection(
        study_uid=study,
        series_uid=series,
        patient_id=patient,
        accession=accession,
        since=datetime.now().astimezone() - parse_age(since) if since else None,
        match={"Modality": modality} if modality else {},
    )
    logs.configure("error", "text", "pull")
    audit, user = cli_audit.who(settings)
    # Asking alone tells the archive, and who called, of patients: what is asked, the next messages say.
    audit.write(user_change(user, "pull", f"from {name}"))
    with _landing(settings) as (database, landing):
        puller = Puller(settings, database, landing, name=name, peer=target, route=route, audit=audit)
        plan = _planned(puller, wanted, name)
        if not as_json:
            _print_plan(plan, dry_run)
        fetched = [] if dry_run else _fetched(puller, plan, quiet=as_json)
    problems = [*plan.problems, *(one.problem for one in fetched if one.problem)]
    if as_json:
        print_json(_pull_json(name, target, plan, fetched, dry_run, problems))
    else:
        if not dry_run:
            done = sum(not one.problem for one in fetched)
            out.print(f"{done} of {len(fetched)} series fetched", highlight=False)
        for problem in problems:
            err.print(problem, markup=False, style="red")
    if problems:
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


# -- peers -----------------------------------------------------------------------------------------


def _peer(config: Path, text: str) -> tuple[Config, str, PeerConfig]:
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


# -- pull ------------------------------------------------------------------------------------------


@contextmanager
def _landing(settings: Config) -> Iterator[tuple[Any, Landing]]:
    """Database and intake of a pull, in this process: it needs no running role, but for C-MOVE."""
    from dicom_node.engine import EngineClient
    from dicom_node.pull import Landing
    from dicom_node.roles import make_announcer, open_state

    storage, database = open_state(settings)
    client = EngineClient(settings.database_url())
    landing = Landing(storage, database, make_announcer(settings, client))
    landing.start()
    try:
        yield database, landing
    finally:
        landing.stop()
        client.close()
        database.close()


def _planned(puller: Puller, wanted: Selection, name: str) -> Plan:
    from dicom_node.pull import not_found

    plan = puller.plan(wanted)
    if not plan.series and not plan.problems and wanted.since is None:
        raise not_found(name, wanted)
    return plan


def _fetched(puller: Puller, plan: Plan, *, quiet: bool) -> list[Fetched]:
    """Each series that is not complete here, until the peer is gone."""
    todo = [planned for planned in plan.series if not planned.complete]
    total = sum(planned.there for planned in todo) or 1
    before, fetched = 0, []
    for planned in plan.series:
        if planned.complete:
            puller.remind(planned)
    with progress_bar("fetching", quiet=quiet) as progress:
        for planned in todo:
            fetched.append(puller.fetch(planned, lambda here, before=before: progress((before + here) / total)))  # type: ignore[misc]
            before += planned.there
            progress(before / total)
            if not fetched[-1].reached:
                break
    return fetched


def _state(planned: Planned, outcome: Fetched | None, dry_run: bool) -> str:
    if planned.complete:
        return "already here"
    if outcome is None:
        return "would be fetched" if dry_run else "not tried"
    return "incomplete" if outcome.problem else "fetched"


def _print_plan(plan: Plan, dry_run: bool) -> None:
    # Folded, never cut: the UID is what the next command is given.
    table = Table("study date", Column("series", overflow="fold"), "modality", "there", "here", "", box=None)
    for planned in plan.series:
        state = "already here" if planned.complete else "would be fetched" if dry_run else "to fetch"
        counts = str(planned.there), str(planned.here)
        table.add_row(planned.study_date, planned.key.series_uid, planned.modality, *counts, state)
    if plan.series:
        out.print(table)
    else:
        out.print("nothing matches")


def _pull_json(
    name: str, peer: PeerConfig, plan: Plan, fetched: Sequence[Fetched], dry_run: bool, problems: Sequence[str]
) -> dict[str, Any]:
    outcomes = {one.planned.key.series_uid: one for one in fetched}
    series = []
    for planned in plan.series:
        outcome = outcomes.get(planned.key.series_uid)
        series.append(
            {
                "study_uid": planned.key.study_uid,
                "series_uid": planned.key.series_uid,
                "study_date": planned.study_date,
                "modality": planned.modality,
                "there": planned.there,
                "here": planned.here if outcome is None else outcome.here,
                "state": _state(planned, outcome, dry_run),
            }
        )
    return {"peer": name, "by": peer.retrieve_by, "dry_run": dry_run, "series": series, "problems": list(problems)}
