"""Figures and ScanResults -> figures.json and report.html, one file that needs nothing else to be read.

Scans are numbered in the order of their UIDs; the report names none but those that were left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dicom_node.domain import RESEARCH_USE
from training.cases import DataProblem
from training.evaluation import plots
from training.evaluation.figures import Point
from training.evaluation.marks import ScanResult
from training.prepare import write_whole

FIGURES, REPORT = "figures.json", "report.html"
TEMPLATE = "report.html.j2"
HEADLINES = (
    "operating_point", "recall", "false_positives_per_scan", "cpm", "box_map", "box_mar", "mask_map", "mask_mar",
    "dice",
)  # fmt: skip


def write_report(figures: Mapping[str, Any], results: Sequence[ScanResult], out: Path) -> Path:
    """Both files into `out`; the report's path."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / FIGURES, json.dumps(figures, indent=1) + "\n")
    write_whole(out / REPORT, render(figures, results))
    return out / REPORT


def read_figures(path: Path) -> dict[str, Any]:
    """figures.json. Raises DataProblem."""
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
        if not {"bundle", "operating_point", "figures", "claims"} <= raw.keys():
            raise ValueError("bundle, operating_point, figures or claims are missing")
    except (OSError, ValueError, AttributeError) as err:
        raise DataProblem(f"{path} holds no figures that can be read ({err}): give what evaluate wrote") from err
    return raw


def headlines(figures: Mapping[str, Any]) -> list[str]:
    """What a terminal shows of an evaluation: on what, at which point, and the figures that are asked for first."""
    rows = {row["key"]: row for row in figures["figures"]}
    lines = [f"on {rows['operating_point']['data']}", f"operating point: {figures['operating_point']['rule']}"]
    for row in (rows[key] for key in HEADLINES if key in rows):
        span = f"  ({interval(row)})" if row["low"] is not None else ""
        lines.append(f"{row['name']:24}{number(row):>8}{span}")
    return [*lines, RESEARCH_USE]


def render(figures: Mapping[str, Any], results: Sequence[ScanResult]) -> str:
    """The report's HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("training.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "interval": interval, "spread": spread}
    rows = {row["key"]: row for row in figures["figures"]}
    point = Point(**figures["operating_point"])
    return environment.get_template(TEMPLATE).render(
        **figures,
        rows=rows,
        listed=[row for row in figures["figures"] if not row["key"].startswith("seconds_")],
        pictures=_pictures(figures, rows),
        misses=_montage(plots.misses(results, point)),
        false_marks=_montage(plots.false_marks(results, point)),
    )


def _pictures(figures: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    stages = {key.removeprefix("seconds_"): row["value"] for key, row in rows.items() if key.startswith("seconds_")}
    made = {"stages": plots.stage_plot(stages)}
    if "froc" in figures:
        made["froc"] = plots.froc_plot(figures["froc"])
        made["sizes"] = plots.size_plot(figures["sizes"])
    for kind, curves in figures.get("precision_recall", {}).items():
        made[f"{kind}_precision_recall"] = plots.pr_plot(curves, f"3D, {kind}")
    return made


def _montage(scenes: Sequence[plots.Scene]) -> str | None:
    return plots.montage(scenes) if scenes else None


def number(row: Mapping[str, Any], key: str = "value") -> str:
    """With its unit; as many digits as there is something to see."""
    if row[key] is None:
        return ""
    digits = 3 if not row["unit"] else 2 if row["unit"] != "%" else 1
    return f"{row[key]:.{digits}f}" + (f" {row['unit']}" if row["unit"] else "")


def interval(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None else f"{number(row, 'low')} to {number(row, 'high')}"


def spread(row: Mapping[str, Any], key: str = "spread") -> str:
    """Mean, median and the middle 90 %."""
    if row[key] is None:
        return ""
    mean, median, low, high = (number({**row, **row[key]}, name) for name in ("mean", "median", "p5", "p95"))
    return f"mean {mean}, median {median}, 5-95 %: {low} to {high}"
