"""A route and the promotions in force -> which model works on it and which runs in its shadow.

config.yaml is the administrator's: a promotion is a row that stands over one line of it, for as long as that line
still says what it said. docs/architecture.md says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dicom_node.config import Config, RouteConfig
from dicom_node.rows import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Names in models:. shadow: None where nothing runs there. promoted_over: the model that the settings name, where
    a promotion stands over it."""

    model: str
    shadow: str | None
    promoted_over: str | None = None


def pair_of(config: Config, route: RouteConfig, promotions: Mapping[str, Row]) -> Pair:
    """promotions: as the database has them, by route. Once promoted, the two models of a route change places."""
    promotion = promotions.get(route.name)
    if promotion is None or without_effect(config, promotion) is not None:
        return Pair(model=route.model, shadow=route.shadow)
    model = str(promotion["model"])
    return Pair(
        model=model,
        shadow=route.model if route.shadow == model else route.shadow,
        promoted_over=None if model == route.model else route.model,
    )


def without_effect(config: Config, promotion: Row) -> str | None:
    """Why a promotion has none any more; None where it has."""
    route = next((route for route in config.routes if route.name == promotion["route"]), None)
    if route is None:
        return f"routes: has no {promotion['route']} any more"
    if route.model != promotion["in_file"]:
        return f"the route names model {route.model} now, no longer {promotion['in_file']}"
    if promotion["model"] not in config.models:
        return f"models: has no {promotion['model']} any more"
    return None


def promotion_lines(config: Config, promotions: Mapping[str, Row]) -> Iterator[tuple[str, bool, str]]:
    """(route, has an effect, words) of each promotion that was not rolled back."""
    for route, row in sorted(promotions.items()):
        problem = without_effect(config, row)
        said = f"{row['model']} was promoted over {row['in_file']} by {row['promoted_by']}"
        if problem is None:
            said += ", and works there instead of what config.yaml names"
        else:
            said += f", without effect: {problem}; dicom-node model rollback --route {route} removes it"
        yield route, problem is None, said
