"""Models and their agreement as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from dicom_node.rows import Row

_SIZES = (
    ("diameter_mm", "longest diameter, mm", "+.2f"),
    ("volume_mm3", "volume, mm3", "+.1f"),
    ("volume_percent", "volume, % of the mean", "+.1f"),
    ("score", "score", "+.3f"),
)


def print_models(out: Console, models: Sequence[Mapping[str, Any]], promotions: Sequence[str]) -> None:
    """One line a model, then what was promoted."""
    table = Table("model", "bundle", "sha256", "works on", "in the shadow on", box=None, pad_edge=False)
    for each in models:
        promoted = [f"{route} (promoted)" if route in each["promoted_on"] else route for route in each["works_on"]]
        bundle = each["problem"] or f"{each['name']} {each['version']}"
        sha256 = "" if each["problem"] else each["bundle_sha256"][:12]
        table.add_row(each["model"], bundle, sha256, ", ".join(promoted) or "-", ", ".join(each["shadow_on"]) or "-")
    out.print(table)
    for line in promotions:
        out.print(line, markup=False, highlight=False)


def print_agreement(out: Console, shown: Mapping[str, Any]) -> None:
    """Each pair of bundles: counts, differences, then a line a period."""
    if not shown["pairs"]:
        out.print("no series has been seen by two models yet: give a route a shadow:")
    for pair in shown["pairs"]:
        out.print(f"first:  {named(pair['first'])}", markup=False, highlight=False)
        out.print(f"second: {named(pair['second'])}", markup=False, highlight=False)
        whole = pair["overall"]
        lines = [
            f"on {', '.join(pair['routes'])}: {whole['series']} series, {whole['series_alike']} alike",
            f"{whole['both']} findings of both, {whole['first_only']} of the first only, "
            f"{whole['second_only']} of the second only: agreement {whole['agreement']:.0%}",
            *(
                f"{words}, second minus first: {differences(whole[key], form)}"
                for key, words, form in _SIZES
                if whole[key]["pairs"]
            ),
        ]
        for line in lines:
            out.print(f"  {line}", markup=False, highlight=False)
        table = Table("from", "series", "both", "first only", "second only", "agreement", box=None, pad_edge=False)
        for each in pair["periods"]:
            counts = [str(each[key]) for key in ("series", "both", "first_only", "second_only")]
            table.add_row(each["begin"], *counts, f"{each['agreement']:.0%}")
        out.print(table)
    unended = [f"{row['number']} {row['state']}" for row in shown["states"] if row["state"] != "complete"]
    if unended:
        out.print(f"second looks without a result: {', '.join(unended)}", markup=False, highlight=False)
    out.print(f"{shown['rule']}. {shown['notice']}.", markup=False, highlight=False)


def print_failed_shadows(out: Console, rows: Sequence[Row]) -> None:
    """One line each. The problem is the node's own text, which quotes no patient."""
    table = Table("job", "route", "model", "state", "why", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["job_id"], row["route"], row["model_name"], row["state"], row["problem"] or "")
    out.print(table if rows else "no second look failed")


def named(bundle: Mapping[str, Any]) -> str:
    return f"{bundle['model']}: {bundle['name']} {bundle['version']}, sha256 {bundle['bundle_sha256'][:12]}"


def differences(spread: Mapping[str, Any], form: str) -> str:
    """A bias and its limits of agreement in words."""
    if spread["bias"] is None:
        return "no pairs"
    bias = format(spread["bias"], form)
    if spread["low"] is None:
        return f"{bias} (one pair)"
    return f"bias {bias}, limits of agreement {format(spread['low'], form)} to {format(spread['high'], form)}"
