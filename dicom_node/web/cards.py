"""A model bundle's folder -> what its page shows. Read as text: nothing of the model is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup

from dicom_node.config import Config
from dicom_node.errors import ConfigError
from dicom_node.promotion import Pair, pair_of
from dicom_node.rows import Row

_MOST_BYTES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One model of the settings. routes: where it works, promotions considered; promoted: of those, where the settings
    name another; shadows: where it looks at the same input and nothing of it is delivered.
    facts: name and value of what its bundle.json says. problem: why it cannot be read."""

    name: str
    bundle: str
    routes: tuple[str, ...]
    promoted: tuple[str, ...] = ()
    shadows: tuple[str, ...] = ()
    title: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    html: Markup = field(default_factory=Markup)
    problem: str | None = None


def cards(config: Config, promotions: Mapping[str, Row]) -> list[Card]:
    pairs = {route.name: pair_of(config, route, promotions) for route in config.routes}
    return [_card(config, name, pairs) for name in config.models]


def _card(config: Config, name: str, pairs: Mapping[str, Pair]) -> Card:
    model = config.models[name]
    card = Card(
        name=name,
        bundle=model.bundle,
        routes=tuple(route for route, pair in pairs.items() if pair.model == name),
        promoted=tuple(route for route, pair in pairs.items() if pair.model == name and pair.promoted_over),
        shadows=tuple(route for route, pair in pairs.items() if pair.shadow == name),
    )
    try:
        folder = model.folder()
        form = json.loads(_text(folder / "bundle.json"))
        html = markdown(_text(folder / "MODEL_CARD.md"))
        title, facts = f"{form['name']} {form['version']}", tuple(_facts(form))
    except ConfigError as err:
        return replace(card, problem=str(err))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return replace(card, problem="The bundle cannot be read.")
    return replace(card, title=title, facts=facts, html=html)


def _text(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.read(_MOST_BYTES)


def _facts(form: dict[str, Any]) -> list[tuple[str, str]]:
    operating = form.get("thresholds", {}).get("operating_point")
    known = {
        "Operating point": operating,
        "Licence": form.get("licence"),
        "Weights, SHA-256": form.get("weights_sha256"),
        "Network": form.get("network", {}).get("backbone"),
        "Working spacing": f"{form['preprocessing']['spacing_mm']:g} mm",
    }
    return [(key, str(value)) for key, value in known.items() if value is not None]


def markdown(text: str) -> Markup:
    """CommonMark with tables. HTML in it is shown as text, links lead to http, https and mailto only, no picture is
    loaded; headings begin below those of the page."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
    return Markup(parser.renderer.render(tokens, parser.options, {}))  # noqa: S704  html is off in the parser
