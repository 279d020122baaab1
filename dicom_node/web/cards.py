"""A model's card, as text -> HTML that is safe on a page."""

from __future__ import annotations

from markdown_it import MarkdownIt
from markupsafe import Markup


def markdown(text: str) -> Markup:
    """CommonMark with tables. HTML in it is shown as text, links lead to http, https and mailto only, no picture is
    loaded; headings begin below those of the page."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
    return Markup(parser.renderer.render(tokens, parser.options, {}))  # noqa: S704  html is off in the parser
