"""A text with marks -> Markdown: numbered tables, values and a table of contents put where the marks stand."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

_TABLE_MARK = re.compile(r"^\{table: (\w+)\}$")
_VALUE_MARK = re.compile(r"\{(\w+)\}")
_HEADING = re.compile(r"^(#{2,6}) (\S+) (.+)$")
_CONTENTS_MARK = "{contents}"
_CONTENTS_DEPTH = 3
_WIDTH = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table of the statement. `name` is the mark at which it stands."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not self.rows or any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.name}: each row needs {len(self.columns)} cells, and there must be rows")


def fill(text: str, tables: Iterable[Table], values: Mapping[str, str]) -> tuple[str, list[tuple[str, Table]]]:
    """Markdown, and the tables with their numbers in the order in which they stand.

    A mark without its table or value, and a table or value without its mark, raise ValueError: what the code says
    of itself must not get lost on its way into the document.
    """
    waiting = {table.name: table for table in tables}
    unused = set(values)
    lines: list[str] = []
    numbered: list[tuple[str, Table]] = []
    chapter = ""
    for line in text.splitlines():
        if (heading := _HEADING.match(line)) and heading[1] == "##":
            chapter, count = heading[2], 0
        if mark := _TABLE_MARK.match(line):
            if mark[1] not in waiting:
                raise ValueError(f"there is no table {mark[1]}, or it stands twice")
            count += 1
            numbered.append((f"{chapter}-{count}", waiting.pop(mark[1])))
            lines += _markdown(*numbered[-1])
        elif line == _CONTENTS_MARK:
            lines += _contents(text)
        else:
            unused -= set(_VALUE_MARK.findall(line))
            lines.append(_VALUE_MARK.sub(lambda found: _value(values, found[1]), line))
    if waiting or unused:
        raise ValueError(f"nowhere in the statement: {sorted([*waiting, *unused])}")
    return "\n".join(_wrapped(lines)), numbered


def _wrapped(lines: Iterable[str]) -> Iterator[str]:
    """Paragraphs at one width, whatever their values made of them; headings, tables, lists and figures as they are."""
    paragraph: list[str] = []
    figure = False
    for line in [*lines, ""]:
        fence = line.startswith("```")
        if not (figure or fence) and re.match(r"[^\s#|*-]|\*\*(?!Table)", line):
            paragraph.append(line)
            continue
        yield from textwrap.wrap(" ".join(paragraph), _WIDTH, break_long_words=False, break_on_hyphens=False)
        paragraph.clear()
        figure ^= fence
        yield line


def _value(values: Mapping[str, str], name: str) -> str:
    if name not in values:
        raise ValueError(f"there is no value {name}")
    return values[name]


def _markdown(number: str, table: Table) -> list[str]:
    return [
        f"**Table {number}. {table.title}**",
        "",
        _row(table.columns),
        "|" + "---|" * len(table.columns),
        *map(_row, table.rows),
    ]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _contents(text: str) -> list[str]:
    """Links to the headings, the ids of which are made as the usual viewers of Markdown make them."""
    links = []
    for line in text.splitlines():
        heading = _HEADING.match(line)
        if heading and len(heading[1]) <= _CONTENTS_DEPTH:
            name = f"{heading[2]} {heading[3]}"
            anchor = re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-")
            links.append(f"{'  ' * (len(heading[1]) - 2)}- [{name}](#{anchor})")
    return links
