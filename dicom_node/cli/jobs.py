"""The commands on jobs: list, show, retry, cancel."""

from __future__ import annotations

from typing import Annotated

import typer

from dicom_node import present
from dicom_node.cli.audit import tell_trail
from dicom_node.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, out, print_json
from dicom_node.cli.state import rows, rows_and_files, rows_and_queues
from dicom_node.errors import ConfigError

jobs_app = typer.Typer(help="List, show, retry and cancel jobs.", no_args_is_help=True)

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or a part of it that no other has.")]


def add_to(app: typer.Typer) -> None:
    app.add_typer(jobs_app, name="jobs")


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
    with rows(config) as (_, database):
        found = database.jobs(state=state, limit=limit)
        objects = database.object_counts([row["job_id"] for row in found])
    if as_json:
        print_json([{**row, "objects": objects.get(row["job_id"], {})} for row in found])
    else:
        present.print_jobs(out, found, objects)


@jobs_app.command("show")
def jobs_show(job: JobArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """All that is known of one job: evidence, findings, deliveries, events.

    Example: dicom-node jobs show 0123456789abcdef --json
    """
    from dicom_node.summary import job_summary

    with rows_and_files(config) as (storage, database):
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

    with rows_and_queues(config) as (database, client):
        job_id = database.find_job(job)
        tell_trail(config, "job retry", job_id)
        out.print(retry(database, client, job_id), markup=False)


@jobs_app.command("cancel")
def jobs_cancel(job: JobArgument, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Stop a job, and take what it has not sent out of the queue.

    Example: dicom-node jobs cancel 0123456789abcdef
    """
    from dicom_node.control import cancel

    with rows_and_queues(config) as (database, client):
        job_id = database.find_job(job)
        tell_trail(config, "job cancel", job_id)
        out.print(cancel(database, client, job_id), markup=False)
