"""Settings, promotions, bundles and rows -> each model: where it works, its card; how far two of them agree; second
looks that failed.

A bundle is read as text: nothing of the model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.agreements import agreement_of
from dicom_node.config import ModelConfig
from dicom_node.db import Database
from dicom_node.errors import ConfigError
from dicom_node.promotion import Pair, pair_of
from dicom_node.shadows import WITHOUT_RESULT
from dicom_node.web.answers.form import Form, moment
from dicom_node.web.answers.statements import rows_of
from dicom_node.web.node import Node

COUNTED_DAYS = 7
_DAY_S = 86400.0
_MOST_CHARACTERS = 200_000


class Fact(Form):
    """A line of what a bundle says of itself."""

    name: str
    value: str


class Model(Form):
    """bundle: as the settings name it; bundle_name, version, facts: what its bundle.json says. card: MODEL_CARD.md.
    problem: why the bundle cannot be read; the four of it are empty then.

    routes: where it works. promoted_routes: of those, where the settings name another. shadow_routes: where it looks
    at the same input, and nothing of it is delivered. jobs: of the last seven days on its routes, by route and state.
    """

    name: str
    bundle: str
    bundle_name: str
    version: str
    facts: list[Fact]
    card: str
    problem: str | None
    routes: list[str]
    promoted_routes: list[str]
    shadow_routes: list[str]
    jobs: dict[str, dict[str, int]]


class FailedLook(Form):
    """A second look that came to no result. state: failed, or given up: its workers died over it. problem: why.

    may_retry: false once the job was purged: its images are gone.
    """

    job_id: str
    route: str
    model: str
    state: str
    problem: str | None
    ended_at: datetime
    may_retry: bool


class Agreement(Form):
    """How far the second model of a route agrees with the first, per pair of bundles; the latest pair first.

    rule: when two findings are one. pairs: of each the bundles (`first`, `second`), `routes`, figures `overall` and by
    `periods` of `period_days`, and `points` of diameters in mm (mean, second minus first). states: second looks by
    route, model and state.
    """

    rule: str
    period_days: float
    pairs: list[dict[str, Any]]
    states: list[dict[str, Any]]
    notice: str


def models(node: Node) -> list[Model]:
    promotions = node.database.promotions()
    pairs = {route.name: pair_of(node.config, route, promotions) for route in node.config.routes}
    since = node.now() - COUNTED_DAYS * _DAY_S
    counts = {route: route_counts(node.database, route, since) for route in pairs}
    return [_model(name, model, pairs, counts) for name, model in node.config.models.items()]


def agreement(node: Node, *, route: str | None = None, days: float | None = None, most: int | None = None) -> Agreement:
    """days, most: only series of so many last days, and so many of them, the newest."""
    since = 0.0 if days is None else node.now() - days * _DAY_S
    return Agreement(**agreement_of(node.database, route=route, since=since, most=most))


def failed_looks(database: Database, limit: int) -> list[FailedLook]:
    """Second looks without a result, the newest first."""
    s, j = schema.shadow.c, schema.job.c
    query = (
        sa.select(schema.shadow, j.job_id.is_not(None).label("there"))
        # Not another job of that id, which came after a purge.
        .join(schema.job, sa.and_(j.job_id == s.job_id, j.created_at == s.job_created_at), isouter=True)
        .where(s.state.in_(WITHOUT_RESULT))
        .order_by(s.finished_at.desc(), s.job_id)
    )
    return [
        FailedLook(
            **{name: row[name] for name in ("job_id", "route", "state", "problem")},
            model=row["model_name"],
            ended_at=moment(row["finished_at"]),
            may_retry=bool(row["there"]),
        )
        for row in rows_of(database, query.limit(limit))
    ]


def route_counts(database: Database, route: str, since: float) -> dict[str, int]:
    """Jobs of one route since `since`, by state."""
    j = schema.job.c
    query = (
        sa.select(j.state, sa.func.count().label("count"))
        .where(j.route == route, j.created_at >= since)
        .group_by(j.state)
        .order_by(j.state)
    )
    return {row["state"]: int(row["count"]) for row in rows_of(database, query)}


def _model(name: str, model: ModelConfig, pairs: Mapping[str, Pair], counts: Mapping[str, dict[str, int]]) -> Model:
    routes = [route for route, pair in pairs.items() if pair.model == name]
    return Model(
        name=name,
        bundle=model.bundle,
        **_bundle(model),
        routes=routes,
        promoted_routes=[route for route in routes if pairs[route].promoted_over],
        shadow_routes=[route for route, pair in pairs.items() if pair.shadow == name],
        jobs={route: counts[route] for route in routes},
    )


def _bundle(model: ModelConfig) -> dict[str, Any]:
    try:
        folder = model.folder()
        form = json.loads(_text(folder / "bundle.json"))
        return {
            "bundle_name": str(form["name"]),
            "version": str(form["version"]),
            "facts": list(_facts(form)),
            "card": _text(folder / "MODEL_CARD.md"),
            "problem": None,
        }
    except ConfigError as err:
        problem = str(err)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        problem = "The bundle cannot be read."
    return {"bundle_name": "", "version": "", "facts": [], "card": "", "problem": problem}


def _text(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.read(_MOST_CHARACTERS)


def _facts(form: dict[str, Any]) -> Iterator[Fact]:
    known = {
        "Operating point": form.get("thresholds", {}).get("operating_point"),
        "Licence": form.get("licence"),
        "Weights, SHA-256": form.get("weights_sha256"),
        "Network": form.get("network", {}).get("backbone"),
        "Working spacing": f"{form['preprocessing']['spacing_mm']:g} mm",
    }
    return (Fact(name=name, value=str(value)) for name, value in known.items() if value is not None)
