"""The commands that say what the settings mean: check, profiles, route; and conformance, what this version can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dicom_node import logs, present
from dicom_node.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, out, print_json
from dicom_node.config import Config, load_config
from dicom_node.config.masked import resolved
from dicom_node.profiles import BUILT_IN_PROFILES


def add_to(app: typer.Typer) -> None:
    for command in (check, profiles, route, conformance):
        app.command()(command)


def check(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Validate the settings, print them resolved, and try all that the node needs.

    Example: dicom-node check --config config.yaml
    """
    from dicom_node.check import check as run_check

    settings = load_config(config)
    logs.configure("error", "text", "check")
    items = list(run_check(settings))
    if as_json:
        print_json(
            {"config": resolved(settings), "items": [{"name": i.name, "ok": i.ok, "text": i.text} for i in items]}
        )
    else:
        _print_resolved(settings)
        for item in items:
            mark = "[green]ok  [/green]" if item.ok else "[red]FAIL[/red]"
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


def conformance(as_json: JsonOption = False) -> None:
    """Print the DICOM conformance statement of this version, or with --json its tables alone.

    Example: dicom-node conformance --json
    """
    from dicom_node import conformance as statement

    if as_json:
        print_json(statement.tables())
    else:
        print(statement.statement(), end="")
