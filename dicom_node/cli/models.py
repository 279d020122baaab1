"""The commands `model list | promote | rollback | agreement`: which model works where, and how two of them agree."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from dicom_node import present_models
from dicom_node.cli.audit import trail_and_user
from dicom_node.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, out, print_json
from dicom_node.cli.state import rows

model_app = typer.Typer(help="List, compare, promote and roll back models.", no_args_is_help=True)

RouteOption = Annotated[str | None, typer.Option("--route", help="Only this route.")]


def add_to(app: typer.Typer) -> None:
    app.add_typer(model_app, name="model")


@model_app.command("list")
def model_list(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Each bundle of the settings, where it works, and where in the shadow; promotions that are in force.

    Example: dicom-node model list
    """
    from dicom_node.promote import models
    from dicom_node.promotion import promotion_lines

    with rows(config, called="model") as (settings, database):
        known = models(settings, database)
        promotions = database.promotions()
        history = database.promotion_history()
    lines = list(promotion_lines(settings, promotions))
    if as_json:
        print_json({"models": known, "promotions": [dict(row) for row in history]})
    else:
        present_models.print_models(out, known, [f"{route}: {text}" for route, _, text in lines])


@model_app.command("promote")
def model_promote(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A name in models:.")],
    route: RouteOption = None,
    force: Annotated[bool, typer.Option("--force", help="Also where it never ran in the shadow.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Let a model work where it ran in the shadow; the one that worked there runs in the shadow then.

    For jobs that are decided from now on; no role needs a restart. The settings stay as they are.

    Example: dicom-node model promote candidate --route chest-ct
    """
    from dicom_node.promote import promote

    with rows(config, called="model") as (settings, database):
        audit, by = trail_and_user(settings)
        change = promote(settings, database, name, route=route, force=force, by=by, audit=audit)
    out.print(change.text, markup=False, highlight=False)


@model_app.command("rollback")
def model_rollback(route: RouteOption = None, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Take back the latest promotion, of one route or of each.

    Example: dicom-node model rollback --route chest-ct
    """
    from dicom_node.promote import roll_back

    with rows(config, called="model") as (settings, database):
        audit, by = trail_and_user(settings)
        change = roll_back(settings, database, route=route, by=by, audit=audit)
    out.print(change.text, markup=False, highlight=False)


@model_app.command("agreement")
def model_agreement(
    route: RouteOption = None,
    days: Annotated[float | None, typer.Option(min=0, help="Only series of so many last days.")] = None,
    period_days: Annotated[float, typer.Option(min=1, help="How long a period of the figures over time is.")] = 7.0,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """How far the second model agrees with the first, on series that both have seen.

    Example: dicom-node model agreement --route chest-ct --json
    """
    from dicom_node.agreements import agreement_of

    since = 0.0 if days is None else time.time() - days * 86400
    with rows(config, called="model") as (_, database):
        shown = agreement_of(database, route=route, since=since, period_s=period_days * 86400)
    if as_json:
        print_json(shown)
    else:
        present_models.print_agreement(out, shown)
