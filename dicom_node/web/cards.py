"""A model bundle's folder -> what its page shows. Read as text: nothing of the model is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup

from dicom_node.config import Config
from dicom_node.errors import ConfigError

_MOST_BYTES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One model of the settings. facts: name and value of what its bundle.json says. problem: why it cannot be read."""

    name: str
    bundle: str
    routes: tuple[str, ...]
    title: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    html: Markup = Markup()
    problem: str | None = None


def cards(config: Config) -> list[Card]:
    return [_card(config, name) for name in config.models]


def _card(config: Config, name: str) -> Card:
    model = config.models[name]
    routes = tuple(route.name for route in config.routes if route.model == name)
    card = Card(name=name, bundle=model.bundle, routes=routes)
    try:
        folder = model.folder()
        form = json.loads(_text(folder / "bundle.json"))
        html = markdown(_text(folder / "MODEL_CARD.md"))
        title, facts = f"{form['name']} {form['version']}", tuple(_facts(form))
    except ConfigError as err:
        return Card(name=name, bundle=model.bundle, routes=routes, problem=str(err))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Card(name=name, bundle=model.bundle, routes=routes, problem="The bundle cannot be read.")
    return Card(name=card.name, bundle=card.bundle, routes=routes, title=title, facts=facts, html=html)


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
