"""What each bundle is and where it works; putting another in its place, and taking that back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dicom_node.audit import Audit, User, user_change
from dicom_node.config import Config, RouteConfig
from dicom_node.db import Database
from dicom_node.domain import Volume
from dicom_node.errors import BundleError, ConfigError, DicomNodeError
from dicom_node.forms import did_you_mean
from dicom_node.locks import exclusive
from dicom_node.model.bundle import Bundle, load_bundle
from dicom_node.model.detector import Detector
from dicom_node.promotion import Pair, pair_of
from dicom_node.rows import Row

# What a bundle says whose makers have not said.
_NO_LICENCE = ("", "none", "unknown", "unstated", "not stated")
_LOCK = "promotion"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What was done, route by route. routes: those on which another model works now; empty where none had to change."""

    routes: tuple[str, ...]
    text: str


def models(config: Config, database: Database) -> list[dict[str, Any]]:
    """Each of models:, as JSON: its bundle, or what is wrong with it, and the routes it works on or shadows."""
    promotions = database.promotions()
    pairs = {route.name: pair_of(config, route, promotions) for route in config.routes}
    return [
        {
            "model": name,
            **_described(config, name),
            "works_on": [route for route, pair in pairs.items() if pair.model == name],
            "promoted_on": [r for r, pair in pairs.items() if pair.model == name and pair.promoted_over is not None],
            "shadow_on": [route for route, pair in pairs.items() if pair.shadow == name],
        }
        for name in config.models
    ]


def _described(config: Config, name: str) -> dict[str, Any]:
    try:
        bundle = load_bundle(config.models[name].folder())
    except DicomNodeError as err:
        return {"problem": str(err)}
    identity, form = bundle.identity, bundle.form
    return {
        "problem": None,
        "name": identity.name,
        "version": identity.version,
        "bundle_sha256": identity.bundle_sha256,
        "operating_point": identity.operating_point,
        "licence": form.licence,
    }


def promote(
    config: Config, database: Database, name: str, *, route: str | None, force: bool, by: User, audit: Audit
) -> Change:
    """Put `name` first on a route, or on all that have it in the shadow, for jobs that are decided from now on.

    A second time changes nothing and is no event of the audit trail. force: also where it never ran in the shadow;
    nothing makes a broken bundle work.
    Raises ConfigError (no such model or route), BundleError (its own check), DicomNodeError (never ran there).
    """
    if name not in config.models:
        raise ConfigError(f"models: has no {name!r}" + did_you_mean(name, config.models))
    with exclusive(database.url, _LOCK):
        pairs = _pairs(config, database.promotions(), route)
        there = [each for each, pair in pairs.items() if pair.model == name]
        due = [each for each, pair in pairs.items() if pair.model != name and (route or pair.shadow == name)]
        if not due and not there:
            raise DicomNodeError(f"no route has {name} in the shadow; --route ROUTE --force puts it first all the same")
        if not due:
            return Change(routes=(), text=f"{name} works on {', '.join(there)} already")
        bundle = checked_bundle(config, name)
        never = [each for each in due if not database.shadowed(each, bundle.sha256)]
        if never and not force:
            raise DicomNodeError(
                f"{name} {bundle.form.version} never ran in the shadow on {', '.join(never)}; --force promotes it"
            )
        in_file = [(each, config.route(each).model) for each in due]
        database.promote(in_file, model=name, bundle_sha256=bundle.sha256, forced=bool(never), by=by.name)
    for each in due:
        audit.write(user_change(by, "model promote", f"{name} on {each}", kind="software_configuration"))
    over = ", ".join(f"{each} (was {pairs[each].model})" for each in due)
    return Change(routes=tuple(due), text=f"{name} works on {over}, for jobs that are decided from now on")


def roll_back(config: Config, database: Database, *, route: str | None, by: User, audit: Audit) -> Change:
    """Take back the latest promotion of a route, or of all: what worked before it works again.

    Raises DicomNodeError where there is none.
    """
    with exclusive(database.url, _LOCK):
        promotions = database.promotions()
        due = {name: row for name, row in promotions.items() if route in (None, name)}
        if not due:
            raise DicomNodeError(f"nothing to roll back: no model was promoted{f' on {route}' if route else ''}")
        database.roll_back([row["promotion_id"] for row in due.values()], by=by.name)
        left = database.promotions()
    for name, row in due.items():
        audit.write(user_change(by, "model rollback", f"{row['model']} on {name}", kind="software_configuration"))
    known = {each.name: each for each in config.routes}
    now = [
        f"{name}: {pair_of(config, known[name], left).model} works (was {row['model']})"
        if name in known
        else f"{name}: no such route any more"
        for name, row in due.items()
    ]
    return Change(routes=tuple(due), text="; ".join(now))


def checked_bundle(config: Config, name: str) -> Bundle:
    """The bundle, whole, with a licence, and fit to look at a Volume. Raises BundleError."""
    bundle = load_bundle(config.models[name].folder())
    if bundle.form.licence.strip().lower().rstrip(".") in _NO_LICENCE:
        raise BundleError(f"model bundle {bundle.folder}: bundle.json states no licence")
    air = Volume(hu=np.full((8, 64, 64), bundle.form.preprocessing.air_hu, dtype=np.int16), affine=np.eye(4))
    try:
        Detector(bundle).look(air, lambda _part: None)
    except (RuntimeError, ValueError) as err:
        raise BundleError(f"model bundle {bundle.folder}: its network does not take its own input: {err}") from err
    return bundle


def _pairs(config: Config, promotions: Mapping[str, Row], only: str | None) -> dict[str, Pair]:
    routes: tuple[RouteConfig, ...] = config.routes
    if only is not None:
        names = [route.name for route in routes]
        if only not in names:
            raise ConfigError(f"routes: has no {only!r}" + did_you_mean(only, names))
        routes = (config.route(only),)
    return {route.name: pair_of(config, route, promotions) for route in routes}
