"""The command that fetches series from a peer's archive: what is there, what of it is here, and the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from dicom_node import logs
from dicom_node.audit import user_change
from dicom_node.cli.audit import trail_and_user
from dicom_node.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, err, out, print_json, progress_bar
from dicom_node.cli.network import peer_named
from dicom_node.cli.state import counted
from dicom_node.config import Config
from dicom_node.errors import ConfigError
from dicom_node.forms import did_you_mean
from dicom_node.peers import PeerConfig

if TYPE_CHECKING:
    from dicom_node.pull import Fetched, Landing, Plan, Planned, Puller
    from dicom_node.pull_selection import Selection


def add_to(app: typer.Typer) -> None:
    app.command()(pull)


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
    from dicom_node.pull import Puller, check_allowed
    from dicom_node.pull_selection import Selection, parse_age

    settings, name, target = peer_named(config, source)
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
    audit, user = trail_and_user(settings)
    # Asking alone tells the archive, and who called, of patients: what is asked, the next messages say.
    audit.write(user_change(user, "pull", f"from {name}"))
    with counted(settings), _landing(settings) as (database, landing):
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
