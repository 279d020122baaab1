"""The command that removes series with their files, by the settings or by an age given to it."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from dicom_node import present
from dicom_node.cli.audit import trail_and_user
from dicom_node.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, out, print_json
from dicom_node.cli.state import rows_and_queues
from dicom_node.config import SERIES_STATES, SeriesState, load_config
from dicom_node.errors import ConfigError


def add_to(app: typer.Typer) -> None:
    app.command()(purge)


def purge(
    older_than_days: Annotated[
        float | None, typer.Option(min=0, help="Only what nothing happened to for so long; default: the settings.")
    ] = None,
    state: Annotated[list[str] | None, typer.Option(help="Only series of this state; may be given again.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, remove nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove series with their files, by the settings under `retention:`, or by the age that is given here: then those
    that are done and delivered. Never what is undelivered, failed or parked, unless --state or a setting names it, and
    not what a peer with may_commit stored and has not committed, for retention.uncommitted_after_days.

    Example: dicom-node purge --older-than-days 30 --dry-run
    """
    from dicom_node.control import purge as run_purge
    from dicom_node.purges import DONE
    from dicom_node.retention import DAY_S, audited, due_by_age, kept
    from dicom_node.storage import Storage

    settings = load_config(config)
    now = time.time()
    states = [_series_state(name) for name in state or DONE]
    if older_than_days is not None:
        before = dict.fromkeys(states, now - older_than_days * DAY_S)
    else:
        before = {name: at for name, at in due_by_age(settings.retention, now).items() if not state or name in states}
    days = settings.retention.history_after_days if older_than_days is None else older_than_days
    spared, forget = kept(settings, now), None if days is None else now - days * DAY_S
    with rows_and_queues(config) as (database, client):
        gone = run_purge(
            database,
            client,
            Storage(settings.storage.root),
            before=before,
            kept=spared,
            dry_run=dry_run,
            forget_before=forget,
            deleted=audited(*trail_and_user(settings)),
        )
        held = database.held_series(before, spared) if dry_run else []
    if as_json:
        result: dict[str, Any] = {"series": gone.series, "jobs": gone.jobs, "bytes": gone.bytes, "dry_run": dry_run}
        result["states"] = dict(gone.states)
        if dry_run:
            result["held"] = [{"series_instance_uid": uid, "why": why} for uid, why in held]
        print_json(result)
        return
    present.print_purged(out, gone, dry_run=dry_run)
    present.print_held(out, held)


def _series_state(name: str) -> SeriesState:
    for known in SERIES_STATES:
        if name == known:
            return known
    raise ConfigError(f"--state {name} is none of {', '.join(SERIES_STATES)}")
