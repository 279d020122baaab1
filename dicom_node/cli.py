"""The command line: parse, call the library, print. Exit code 0, 1 (it failed, and why) or 2 (called wrongly)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dicom_node import __version__, cli_access, cli_audit, cli_corrections, cli_network, cli_service, logs, present
from dicom_node.cli_alerts import alert_app
from dicom_node.cli_common import DEFAULT_CONFIG, ConfigOption, JsonOption, err, out, print_json, progress_bar
from dicom_node.cli_models import model_app
from dicom_node.config import SERIES_STATES, Config, GateConfig, SeriesState, load_config
from dicom_node.config.masked import resolved
from dicom_node.domain import RESEARCH_USE
from dicom_node.errors import ConfigError, DicomNodeError
from dicom_node.forms import did_you_mean
from dicom_node.profiles import BUILT_IN_PROFILES, DEFAULT_PROFILE, ResultProfile

if TYPE_CHECKING:
    from dicom_node.db import Database
    from dicom_node.engine import EngineClient
    from dicom_node.storage import Storage

app = typer.Typer(
    help=f"A DICOM node that finds lung nodules in CT. {RESEARCH_USE}.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
jobs_app = typer.Typer(help="List, show, retry and cancel jobs.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")
app.add_typer(model_app, name="model")
app.add_typer(alert_app, name="alert")
cli_network.add_to(app)
cli_service.add_to(app)
cli_access.add_to(app)
cli_corrections.add_to(app)
cli_audit.add_to(app)

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or a part of it that no other has.")]
NameOption = Annotated[str | None, typer.Option("--name", help="This process's name; one living process a name.")]


def main() -> NoReturn:
    """Entry point of the command `dicom-node`."""
    try:
        app()
    except ConfigError as error:
        err.print(str(error), style="red", markup=False)
        sys.exit(2)
    except DicomNodeError as error:
        err.print(str(error), style="red", markup=False)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    sys.exit(0)


# -- the node --------------------------------------------------------------------------------------


@app.command()
def serve(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the whole node on this machine.

    Example: dicom-node serve --config /etc/dicom-node/config.yaml
    """
    from dicom_node.roles import open_state
    from dicom_node.supervisor import Supervisor

    settings = _role(config, "serve")
    _, database = open_state(settings)
    database.close()
    code = Supervisor(config, settings.served_roles(), drain_s=settings.work.drain_s).run()
    raise typer.Exit(code)


@app.command()
def receive(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the Storage SCP alone.

    Example: dicom-node receive --config config.yaml
    """
    from dicom_node import receivers, roles

    receivers.receive(_role(config, "receive"), roles.Stop().on_signals(), source=config)


@app.command()
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


@app.command()
def deliver(config: ConfigOption = DEFAULT_CONFIG, name: NameOption = None) -> None:
    """Run the sending process alone.

    Example: dicom-node deliver --config config.yaml
    """
    from dicom_node import roles

    roles.deliver(_role(config, "deliver"), roles.Stop().on_signals(), name, source=config)


@app.command()
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


@app.command()
def check(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Validate the settings, print them resolved, and try all that the node needs.

    Example: dicom-node check --config config.yaml
    """
    from dicom_node.check import check as run_check
    from dicom_node.web.check import check_web

    settings = load_config(config)
    logs.configure("error", "text", "check")
    items = [*run_check(settings), *check_web(settings)]
    if as_json:
        print_json({"config": resolved(settings), "items": [asdict(item) for item in items]})
    else:
        _print_resolved(settings)
        for item in items:
            fine = "[yellow]look[/yellow]" if item.warns else "[green]ok  [/green]"
            mark = fine if item.ok else "[red]FAIL[/red]"
            out.print(f"{mark} {item.name}: ", end="")
            out.print(item.text, markup=False, highlight=False)
    if not all(item.ok for item in items):
        raise typer.Exit(1)


def _print_resolved(settings: Config) -> None:
    import yaml

    out.print(yaml.safe_dump(_given(resolved(settings)), sort_keys=False), markup=False, highlight=False)


def _given(value: Any) -> Any:
    """Without what is not set."""
    if isinstance(value, dict):
        return {name: _given(one) for name, one in value.items() if one is not None}
    return [_given(one) for one in value] if isinstance(value, list) else value


@app.command()
def conformance(as_json: JsonOption = False) -> None:
    """Print the DICOM conformance statement of this version, or with --json its tables alone.

    Example: dicom-node conformance --json
    """
    from dicom_node import conformance as statement

    if as_json:
        print_json(statement.tables())
    else:
        print(statement.statement(), end="")


# -- jobs ------------------------------------------------------------------------------------------


@contextmanager
def _rows(config: Path) -> Iterator[tuple[Storage, Database, str]]:
    """Storage, database and its URL of a node that exists."""
    from dicom_node.db import Database
    from dicom_node.storage import Storage

    settings = load_config(config)
    logs.configure("error", "text", "cli")
    if settings.database.url is None and not settings.storage.root.is_dir():
        raise ConfigError(f"no node has run with {config} yet: storage.root {settings.storage.root} is not there")
    database = Database(settings.database_url())
    try:
        database.migrate()
        yield Storage(settings.storage.root), database, settings.database_url()
    finally:
        database.close()


@contextmanager
def _state(config: Path) -> Iterator[tuple[Storage, Database, EngineClient]]:
    """The same with the job engine, which takes a while to import."""
    from dicom_node.engine import EngineClient, migrate

    with _rows(config) as (storage, database, url):
        migrate(url)
        client = EngineClient(url)
        try:
            yield storage, database, client
        finally:
            client.close()


@jobs_app.command("list")
def jobs_list(
    config: ConfigOption = DEFAULT_CONFIG,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """The newest jobs.

    Example: dicom-node jobs list --state failed
    """
    from dicom_node.schema import JOB_STATES

    if state is not None and state not in JOB_STATES:
        raise ConfigError(f"--state {state} is none of {', '.join(JOB_STATES)}")
    with _rows(config) as (_, database, _url):
        rows = database.jobs(state=state, limit=limit)
        objects = database.object_counts([row["job_id"] for row in rows])
    if as_json:
        print_json([{**row, "objects": objects.get(row["job_id"], {})} for row in rows])
    else:
        present.print_jobs(out, rows, objects)


@jobs_app.command("show")
def jobs_show(job: JobArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """All that is known of one job: evidence, findings, deliveries, events.

    Example: dicom-node jobs show 0123456789abcdef --json
    """
    from dicom_node.summary import job_summary

    with _rows(config) as (storage, database, _url):
        shown = job_summary(database, storage, database.find_job(job))
    if as_json:
        print_json(shown)
    else:
        present.print_job(out, shown)


@jobs_app.command("retry")
def jobs_retry(job: JobArgument, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run a failed, parked or cancelled job again, or send its parked objects again.

    Example: dicom-node jobs retry 0123456789abcdef
    """
    from dicom_node.control import retry

    with _state(config) as (_, database, client):
        job_id = database.find_job(job)
        cli_audit.tell(config, "job retry", job_id)
        out.print(retry(database, client, job_id), markup=False)


@jobs_app.command("cancel")
def jobs_cancel(job: JobArgument, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Stop a job, and take what it has not sent out of the queue.

    Example: dicom-node jobs cancel 0123456789abcdef
    """
    from dicom_node.control import cancel

    with _state(config) as (_, database, client):
        job_id = database.find_job(job)
        cli_audit.tell(config, "job cancel", job_id)
        out.print(cancel(database, client, job_id), markup=False)


@app.command()
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

    settings = load_config(config)
    now = time.time()
    states = [_series_state(name) for name in state or DONE]
    if older_than_days is not None:
        before = dict.fromkeys(states, now - older_than_days * DAY_S)
    else:
        before = {name: at for name, at in due_by_age(settings.retention, now).items() if not state or name in states}
    days = settings.retention.history_after_days if older_than_days is None else older_than_days
    spared, forget = kept(settings, now), None if days is None else now - days * DAY_S
    with _state(config) as (storage, database, client):
        gone = run_purge(
            database,
            client,
            storage,
            before=before,
            kept=spared,
            dry_run=dry_run,
            forget_before=forget,
            deleted=audited(*cli_audit.who(settings)),
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


# -- without a node --------------------------------------------------------------------------------


@app.command()
def infer(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="DICOM files of one series.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where SEG, SR and pictures go.")],
    series: Annotated[str | None, typer.Option(help="Series Instance UID, where DIR holds several.")] = None,
    model: Annotated[str, typer.Option(help="A bundle's folder or builtin:NAME.")] = "builtin:lung_nodule_small",
    device: Annotated[str, typer.Option(help="cpu or cuda:N.")] = "cpu",
    profile: Annotated[str, typer.Option(help="Which objects: built-in, or one of the settings.")] = DEFAULT_PROFILE,
    config: ConfigOption = DEFAULT_CONFIG,
    max_slice_spacing_mm: Annotated[
        float, typer.Option(min=0.1, help="Accept slices this far apart.")
    ] = GateConfig().max_slice_spacing_mm,
    as_json: JsonOption = False,
) -> None:
    """Analyse a folder of DICOM files without any network.

    The settings are read for a profile that is not built-in only.

    Example: dicom-node infer /data/ct --out /tmp/results
    """
    from dicom_node.infer import infer as run_infer

    logs.configure("error", "text", "infer")
    chosen = _profile(profile, config)
    limits = GateConfig(
        max_slice_spacing_mm=max_slice_spacing_mm,
        max_slice_thickness_mm=max(max_slice_spacing_mm, GateConfig().max_slice_thickness_mm),
    )
    with progress_bar("analysing", quiet=as_json) as progress:
        result = run_infer(
            folder, out_dir, series, model=model, device=device, limits=limits, profile=chosen, progress=progress
        )
    if as_json:
        print_json(result)
    else:
        present.print_summary(out, result)
    if result["status"] != "complete":
        raise typer.Exit(1)


@app.command()
def render(
    what: Annotated[str, typer.Argument(metavar="JOB|DIR", help="A job's id, or a folder of images and results.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where the page and the pictures go.")],
    series: Annotated[str | None, typer.Option(help="Series Instance UID, where DIR holds several.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """One HTML page to scroll through a series with its findings, and a picture a finding, from SEG and SR alone.

    Example: dicom-node render 0123456789abcdef --out /tmp/look
    """
    from dicom_node import render as look

    logs.configure("error", "text", "render")
    if Path(what).is_dir():
        files = look.folder_files(Path(what))
    else:
        with _rows(config) as (storage, database, _url):
            job_id = database.find_job(what)
            cli_audit.tell(config, "render", job_id)  # pictures and names leave the node
            files = look.job_files(database, storage, job_id)
    result = look.render(files, out_dir, series)
    if as_json:
        print_json(result)
    else:
        present.print_look(out, result)


def _profile(name: str, config: Path) -> ResultProfile:
    if name in BUILT_IN_PROFILES:
        return BUILT_IN_PROFILES[name]
    known = load_config(config).profiles
    if name not in known:
        raise ConfigError(f"no profile is named {name!r}" + did_you_mean(name, (*BUILT_IN_PROFILES, *known)))
    return known[name]


@app.command()
def profiles(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """What each profile sends: the built-in ones, and those of the settings, where there are any.

    Example: dicom-node profiles --json
    """
    own = load_config(config).profiles if config.exists() else {}
    if as_json:
        print_json({name: each.model_dump(mode="json") for name, each in {**BUILT_IN_PROFILES, **own}.items()})
    else:
        named = {name if each.like is None else f"{name} (like {each.like})": each for name, each in own.items()}
        present.print_profiles(out, {**BUILT_IN_PROFILES, **named})


@app.command()
def route(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="DICOM files.")],
    config: ConfigOption = DEFAULT_CONFIG,
    source_ae: Annotated[str, typer.Option(help="As if this AE title had sent them.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Explain what the node would do with each series in a folder, and why.

    Example: dicom-node route /data/ct
    """
    from dicom_node.infer import explain_routes

    settings = load_config(config)
    logs.configure("error", "text", "route")
    explained = explain_routes(folder, settings, source_ae)
    if as_json:
        print_json(explained)
        return
    for one in explained:
        out.print(f"series {one['series_instance_uid']}: {one['files']} files", markup=False)
        gate = f"gate: passed, {one['slices']} slices" if one["reason"] is None else f"gate: {one['reason']}"
        out.print(f"  {gate}", markup=False, highlight=False)
        for line in one["explanation"]:
            out.print(f"  route {line}", markup=False, highlight=False)
        out.print(f"  -> {one['decision']}", markup=False, highlight=False)


@app.command()
def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="Where results and the node's log go.")] = Path("demo-output"),
    data: Annotated[Path | None, typer.Option(help="A folder of CT images; default: the scan that ships.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Start the node and a small test PACS on this machine, send a real CT through, show what is found.

    Example: dicom-node demo --json
    """
    from dicom_node.demo import run_demo

    logs.configure("error", "text", "demo")
    say = (lambda _text: None) if as_json else (lambda text: err.print(text, markup=False, highlight=False))
    with progress_bar("analysing", quiet=as_json) as progress:
        result = run_demo(out_dir, data, say=say, progress=progress)
    if as_json:
        print_json(result)
    else:
        present.print_summary(out, result)
    if result["status"] != "complete" or not result["delivered"]:
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit
