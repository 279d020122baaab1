"""Templates -> HTML. Everything that is put into one is escaped."""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2

from dicom_node.domain import RESEARCH_USE


def render(name: str, **values: Any) -> str:
    return environment().get_template(name).render(values)


@cache
def environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("dicom_node.web"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.globals["research_use"] = RESEARCH_USE
    return made
