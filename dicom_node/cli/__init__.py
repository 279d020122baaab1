"""The command line: parse, call the library, print. Exit code 0, 1 (it failed, and why) or 2 (called wrongly).

A module a subject; `common` holds what all of them share.
"""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from dicom_node import __version__
from dicom_node.cli import (
    access,
    alerts,
    audit,
    corrections,
    files,
    jobs,
    models,
    network,
    pull,
    purge,
    roles,
    service,
    settings,
)
from dicom_node.cli.common import err
from dicom_node.domain import RESEARCH_USE
from dicom_node.errors import ConfigError, DicomNodeError

app = typer.Typer(
    help=f"A DICOM node that finds lung nodules in CT. {RESEARCH_USE}.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# In the order of the help text.
for _subject in (
    roles, settings, files, network, pull, purge, service, jobs, corrections, models, alerts, access, audit,
):  # fmt: skip
    _subject.add_to(app)


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


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit
