"""Commands on what radiologists corrected: list and show it, and export it as training cases."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicom_node import present
from dicom_node.cli.audit import tell_trail
from dicom_node.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, out, print_json
from dicom_node.cli.state import rows
from dicom_node.errors import ConfigError, DicomNodeError, StorageError

if TYPE_CHECKING:
    from dicom_node.reviews import Reviews

corrections_app = typer.Typer(help="Results that a radiologist corrected and a peer sent back.", no_args_is_help=True)
cases_app = typer.Typer(help="Training cases made of corrected results.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    app.add_typer(corrections_app, name="corrections")
    app.add_typer(cases_app, name="cases")


@contextmanager
def reviews(config: Path) -> Iterator[Reviews]:
    """What a node that exists knows of corrections."""
    from dicom_node.reviews import Reviews
    from dicom_node.storage import Storage

    with rows(config) as (settings, database):
        yield Reviews(config=settings, database=database, storage=Storage(settings.storage.root))


@corrections_app.command("list")
def corrections_list(
    config: ConfigOption = DEFAULT_CONFIG,
    job: Annotated[str | None, typer.Option(help="Only those of one job.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """The newest corrections, with what became of our findings.

    Example: dicom-node corrections list --job 0123456789abcdef
    """
    from dicom_node.reviews import newest_corrections

    with reviews(config) as known:
        job_id = None if job is None else known.database.find_job(job)
        found = newest_corrections(known.database, job_id=job_id, limit=limit)
    if as_json:
        print_json(found)
    else:
        present.print_corrections(out, found)


@corrections_app.command("show")
def corrections_show(
    correction: Annotated[str, typer.Argument(metavar="UID", help="Its SOP Instance UID, or a part of it.")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """One correction, finding by finding.

    Example: dicom-node corrections show 4711
    """
    from dicom_node.reviews import shown

    with reviews(config) as known:
        row = known.database.correction(correction)
        if row is None:
            raise DicomNodeError(f"no correction, or more than one, has {correction!r} in its UID")
        told = shown(row, known.database)
    if as_json:
        print_json(told)
    else:
        present.print_correction(out, told)


@corrections_app.command("table")
def corrections_table(
    config: ConfigOption = DEFAULT_CONFIG,
    every: Annotated[
        bool, typer.Option("--every", help="Also what a newer correction of the series replaced.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """A line a finding or missed nodule, as CSV for a spreadsheet or a script: verdict, Dice, sizes, place, model.

    Example: dicom-node corrections table --every
    """
    from dicom_node.reviews import newest_of_each, table
    from dicom_node.reviews.figures import COLUMNS

    with reviews(config) as known:
        found = known.database.corrections(state="compared") if every else newest_of_each(known.database)
        lines = list(table(known.database, found))
    if as_json:
        print_json(lines)
        return
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)


@corrections_app.command("figures")
def corrections_figures(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """How many of our findings readers kept, changed and rejected, and how many nodules we missed, by month and model.

    Example: dicom-node corrections figures
    """
    from dicom_node.reviews import figures

    with reviews(config) as known:
        found = figures(known.database)
    if as_json:
        print_json(found)
    else:
        present.print_figures(out, found)


@cases_app.command("export")
def cases_export(
    out_dir: Annotated[Path, typer.Option("--out", help="Where the cases go.")],
    config: ConfigOption = DEFAULT_CONFIG,
    deidentify: Annotated[bool, typer.Option("--deidentify", help="Take identities out (PS3.15 Annex E).")] = False,
    identified: Annotated[bool, typer.Option("--identified", help="Leave identities in: say so on purpose.")] = False,
    since: Annotated[str | None, typer.Option(help="Only corrections of this day (YYYY-MM-DD) and later.")] = None,
    salt_file: Annotated[
        Path | None, typer.Option(help="Secret of the site, made at first use; default: export.salt in storage.root.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Corrected series as cases that `python -m training prepare --layout dicom` reads.

    A patient is in the same part (train, validation, test) in each export with the same salt.

    Example: dicom-node cases export --out cases --deidentify
    """
    from dicom_node.audit import Auditor, User, exported
    from dicom_node.audit.events import os_user
    from dicom_node.cases import export_cases
    from dicom_node.cases.pseudonyms import Pseudonyms, patients_file, read_salt

    if deidentify == identified:
        raise ConfigError("say --deidentify, or --identified where the cases may name patients")
    now = datetime.now().astimezone()
    with reviews(config) as known:
        secret = salt_file or known.config.export_salt_file()
        names, patients = Pseudonyms(salt=read_salt(secret)), patients_file(secret)
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{out_dir} cannot be written: {error.strerror}") from error
        # An export that is cut off has taken cases out, too; whose they all were says the message at its end.
        tell_trail(config, "cases export", str(out_dir.absolute()))
        made = export_cases(known, out_dir, names, patients, deidentify=deidentify, when=now, since=_day(since))
        Auditor.of(known.config).write(exported(User(name=os_user()), made.studies, to=str(out_dir.absolute())))
        known.database.cases_exported(len(made.cases), deidentified=deidentify)
    if as_json:
        print_json({"cases": made.cases, "left_out": made.left_out, "deidentified": deidentify})
        return
    for name, counts in made.cases.items():
        out.print(f"{name}: " + ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in counts.items()), markup=False)
    for series_uid, why in made.left_out.items():
        out.print(f"left out, series {series_uid}: {why}", markup=False)
    out.print(f"{len(made.cases)} cases in {out_dir}, {len(made.left_out)} left out", markup=False, highlight=False)


def _day(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%d").astimezone().timestamp()
    except ValueError as err:
        raise ConfigError(f"--since {text} is no day like 2026-03-31") from err
