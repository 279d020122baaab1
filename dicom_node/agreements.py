"""Rows of second looks -> the agreement of each pair of bundles, as JSON: what the command and the models page show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from dicom_node.agreement import RULE, WEEK_S, agreement, compare, nodule, over_time
from dicom_node.domain import RESEARCH_USE
from dicom_node.shadows import ShadowRun, Shadows

_MOST_POINTS = 500  # a plot of more is a cloud, and a page of it slow


def agreement_of(
    database: Shadows,
    *,
    route: str | None = None,
    since: float = 0.0,
    most: int | None = None,
    period_s: float = WEEK_S,
) -> dict[str, Any]:
    """Each pair of bundles that saw the same series, the latest first. Nothing in it is a patient's.

    most: look at no more than so many series, the newest.
    pairs: of each `first` and `second` (name, version, bundle_sha256, and `model`: its name in the settings), the
    figures of agreement.Agreement in `overall`, `periods` with their `begin` (a UTC date), oldest first, and `points`:
    of the latest findings of both the mean of the two diameters and the second's minus the first's, in mm.
    """
    pairs: dict[tuple[str, str], list[ShadowRun]] = {}
    for run in database.shadow_runs(route=route, since=since, most=most):
        key = (run.row["first"]["bundle_sha256"], run.row["model"]["bundle_sha256"])
        pairs.setdefault(key, []).append(run)
    newest_first = sorted(pairs.values(), key=lambda runs: runs[-1].row["finished_at"], reverse=True)
    return {
        "rule": RULE,
        "period_days": period_s / 86400,
        "pairs": [_pair(runs, period_s) for runs in newest_first],
        "states": [dict(row) for row in database.shadow_counts() if route in (None, row["route"])],
        "notice": RESEARCH_USE,
    }


def _pair(runs: Sequence[ShadowRun], period_s: float) -> dict[str, Any]:
    compared = [
        (run.row["finished_at"], compare([nodule(f) for f in run.first], [nodule(f) for f in run.second]))
        for run in runs
    ]
    last = runs[-1].row
    return {
        "first": {**last["first"], "model": last["first_name"]},
        "second": {**last["model"], "model": last["model_name"]},
        "routes": sorted({run.row["route"] for run in runs}),
        "points": [
            [round((a.diameter_mm + b.diameter_mm) / 2, 3), round(b.diameter_mm - a.diameter_mm, 3)]
            for _, one in compared
            for a, b in one.pairs
        ][-_MOST_POINTS:],
        "overall": asdict(agreement([one for _, one in compared])),
        "periods": [
            {"begin": datetime.fromtimestamp(begin, UTC).date().isoformat(), **asdict(each)}
            for begin, each in over_time(compared, period_s)
        ],
    }
