"""The commands `alert test` and `alert list`: do messages arrive, and what is wrong just now."""

from __future__ import annotations

import typer

from dicom_node import logs, present
from dicom_node.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, out, print_json
from dicom_node.cli.state import rows
from dicom_node.config import load_config
from dicom_node.errors import ConfigError

alert_app = typer.Typer(help="Try the channels of alerts, list what is wrong.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    app.add_typer(alert_app, name="alert")


@alert_app.command("test")
def alert_test(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Send a test message through each channel of the settings, and say what became of it.

    Example: dicom-node alert test --config config.yaml
    """
    from dicom_node.alerts.schedule import try_channels

    settings = load_config(config)
    logs.configure("error", "text", "alert")
    told = try_channels(settings)
    if not told:
        raise ConfigError(f"{config}: alerts: has neither email nor webhook, so nobody is told")
    if as_json:
        print_json([{"channel": name, "ok": ok, "text": text} for name, ok, text in told])
    else:
        for name, ok, text in told:
            out.print("[green]ok  [/green]" if ok else "[red]FAIL[/red]", end=" ")
            out.print(f"{name}: {text}", markup=False, highlight=False)
    if not all(ok for _, ok, _ in told):
        raise typer.Exit(1)


@alert_app.command("list")
def alert_list(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """What is wrong, and what was until a short time ago; since when, and which channels were told.

    Example: dicom-node alert list --json
    """
    with rows(config, called="alert") as (_, database):
        known = database.alerts()
        told: dict[tuple[str, str], list[str]] = {}
        for row in database.alert_notices():
            told.setdefault((row["kind"], row["subject"]), []).append(row["channel"])
        failing = [row for row in database.alert_channels() if row["failures"]]
    if as_json:
        print_json(
            {
                "alerts": [{**row, "told": told.get((row["kind"], row["subject"]), [])} for row in known],
                "failing": [dict(row) for row in failing],
            }
        )
        return
    present.print_alerts(out, known, {key: ", ".join(channels) for key, channels in told.items()})
    for row in failing:
        out.print(f"{row['channel']} does not take messages: {row['error']}", markup=False, highlight=False)
