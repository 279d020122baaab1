"""The commands that need no running node: infer on a folder, render what was found, and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicom_node import logs, present
from dicom_node.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, err, out, print_json, progress_bar
from dicom_node.cli.state import rows_and_files
from dicom_node.config import GateConfig, load_config
from dicom_node.errors import ConfigError
from dicom_node.forms import did_you_mean
from dicom_node.profiles import BUILT_IN_PROFILES, DEFAULT_PROFILE, ResultProfile


def add_to(app: typer.Typer) -> None:
    for command in (infer, render, demo):
        app.command()(command)


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


def _profile(name: str, config: Path) -> ResultProfile:
    if name in BUILT_IN_PROFILES:
        return BUILT_IN_PROFILES[name]
    known = load_config(config).profiles
    if name not in known:
        raise ConfigError(f"no profile is named {name!r}" + did_you_mean(name, (*BUILT_IN_PROFILES, *known)))
    return known[name]


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
        with rows_and_files(config) as (storage, database):
            files = look.job_files(database, storage, database.find_job(what))
    result = look.render(files, out_dir, series)
    if as_json:
        print_json(result)
    else:
        present.print_look(out, result)


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
