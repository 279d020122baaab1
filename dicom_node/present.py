"""Jobs and results as text for a terminal; a pipe's 80 columns are enough."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dicom_node.domain import RESEARCH_USE
from dicom_node.profiles import COLUMNS, ResultProfile, in_words

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

    from dicom_node.log_lines import Lines
    from dicom_node.retention import Purged


def print_jobs(out: Console, rows: Sequence[RowMapping], objects: Mapping[str, Mapping[str, int]]) -> None:
    """One line a job. Its short id, the hash of its set of instances, is enough for `show`, `retry`, `cancel`.

    objects: of each job how many deliveries are in which state.
    """
    table = Table("job", "received", "images", "state", "objects", "route", "reason", box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        done = f" {row['progress']:.0%}" if row["state"] == "running" else ""
        table.add_row(
            str(row["job_id"]).rpartition("-")[2],
            _local(row["created_at"]),
            str(row["instance_count"]),
            row["state"] + done,
            _objects(objects.get(row["job_id"], {})),
            row["route"] or "-",
            row["reason"] or "",
        )
    out.print(table)


def _objects(counts: Mapping[str, int]) -> str:
    """How far all of a job's deliveries are, or how many of them arrived."""
    total = sum(counts.values())
    if len(counts) == 1:
        return f"{total} {next(iter(counts))}"
    arrived = counts.get("stored", 0) + counts.get("committed", 0)
    return f"{arrived}/{total} stored" if total else "-"


def print_job(out: Console, shown: Mapping[str, Any]) -> None:
    """All that `jobs show` knows."""
    series = shown["series"]
    lines = [
        f"job {shown['job_id']}",
        f"{shown['status']}, {shown['progress']:.0%}, priority {shown['priority']}",
        f"{series['instances']} images from {series['source_ae']}",
        f"study {series['study_instance_uid']}",
        f"series {series['series_instance_uid']}",
        f"evidence ({shown['evidence']['rung']}): {shown['evidence']['text']}",
        *(f"route {line}" for line in shown["explanation"]),
    ]
    if shown["model"]:
        lines.append(f"model {shown['model']['name']} {shown['model']['version']}")
    if compared := shown["comparison"]:
        lines.append(f"earlier CT in {compared['archive']} ({compared['outcome']}): {compared['text']}")
    for line in lines:
        out.print(line, markup=False, highlight=False)
    print_summary(out, dict(shown))
    for delivery in shown["deliveries"]:
        attempts = f"{delivery['attempts']} attempt{'' if delivery['attempts'] == 1 else 's'}"
        text = f"{delivery['name']} to {delivery['destination']}: {delivery['state']}, {attempts}"
        out.print(text + (f" ({delivery['message']})" if delivery["message"] else ""), markup=False, highlight=False)
    for asked in shown["commitments"]:
        text = f"Storage Commitment asked of {asked['destination']} at {asked['asked_at']}: {asked['state']}"
        out.print(text + (f" ({asked['message']})" if asked["message"] else ""), markup=False, highlight=False)
    for correction in shown["corrections"]:
        print_correction(out, correction)
    for event in shown["events"]:
        details = "".join(f" {k}={v}" for k, v in event.items() if k not in ("at", "action"))
        out.print(f"{event['at']} {event['action']}{details}", markup=False, highlight=False)


def print_log(out: Console, found: Lines) -> None:
    """A job's log lines, oldest first; a line each, for grep."""
    if found.earlier:
        out.print(f"{found.earlier} earlier lines left out", markup=False, highlight=False)
    for line in found.lines:
        at = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(line.at))}.{int(line.at % 1 * 1000):03}"
        values = "".join(f" {name}={value}" for name, value in line.values.items() if name != "action")
        error = f" ({line.error})" if line.error else ""
        text = f"{at} {line.level} {line.role} {line.host} {line.message}{values}{error}"
        out.print(text, markup=False, highlight=False, soft_wrap=True)
    if not found.lines:
        out.print("no role has said anything of it", markup=False)


def print_corrections(out: Console, shown: Sequence[Mapping[str, Any]]) -> None:
    """One line a correction; the end of its UID is enough for `show`."""
    table = Table("correction", "received", "kind", "state", "job", "findings", box=None, pad_edge=False)
    for column in table.columns[:-1]:
        column.no_wrap = True
    for each in shown:
        counts = ", ".join(f"{n} {name}" for name, n in each["counts"].items() if n)
        table.add_row(
            f"..{each['sop_instance_uid'][-8:]}",
            _local(each["received_at"]),
            each["kind"],
            each["state"],
            str(each["job_id"] or "-").rpartition("-")[2][:8],
            counts or "-",
        )
    out.print(table)


def print_figures(out: Console, figures: Sequence[Mapping[str, Any]]) -> None:
    """A line a month and model; what readers said of findings, not how good the model is."""
    table = Table("month", "model", box=None, pad_edge=False)
    for name in ("series", "confirmed", "changed", "removed", "rejected", "added", "unreviewed"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in figures:
        numbers = [str(each[name]) for name in ("series", "confirmed", "changed", "removed")]
        rejected = "-" if each["rejected_percent"] is None else f"{each['rejected_percent']:.1f} %"
        table.add_row(each["month"], each["model"], *numbers, rejected, str(each["added"]), str(each["unreviewed"]))
    out.print(table)
    out.print(RESEARCH_USE, markup=False)


def print_correction(out: Console, shown: Mapping[str, Any]) -> None:
    """One correction, a line a finding."""
    what = {"seg": "Segmentation", "sr": "report", "rtstruct": "Structure Set"}[shown["kind"]]
    lines = [f"correction by {shown['source_ae']} ({what} {shown['sop_instance_uid']}): {shown['state']}"]
    if shown["text"]:
        lines[0] += f" ({shown['text']})"
    lines += [f"  {verdict_in_words(each)}" for each in shown["verdicts"]]
    for line in lines:
        out.print(line, markup=False, highlight=False)


def _plain(value: float, digits: int) -> float:
    """Rounded, and never minus nothing."""
    return round(value, digits) + 0.0


def verdict_in_words(verdict: Mapping[str, Any]) -> str:
    """Like "Nodule 2: changed, Dice 0.81, volume +12 %, long axis +0.7 mm"."""
    parts = [str(verdict["verdict"])]
    if verdict["dice"] is not None:
        where = " on its slice" if verdict["extent"] == "plane" else ""
        parts.append(f"Dice {verdict['dice']:.2f}{where}")
    if verdict["volume_change_percent"] is not None:
        parts.append(f"volume {_plain(verdict['volume_change_percent'], 0):+.0f} %")
    if verdict["long_axis_change_mm"] is not None:
        parts.append(f"long axis {_plain(verdict['long_axis_change_mm'], 1):+.1f} mm")
    elif verdict["long_axis_mm"] is not None:
        parts.append(f"long axis {verdict['long_axis_mm']:.1f} mm")
    if verdict["note"]:
        parts.append(verdict["note"])
    name = verdict["drawn"] if verdict["number"] is None else f"Nodule {verdict['number']}"
    return f"{name}: {', '.join(parts)}"


def print_profiles(out: Console, profiles: Mapping[str, ResultProfile]) -> None:
    """One line a profile, a column for each thing that it may send."""
    table = Table("profile", *COLUMNS, box=None, pad_edge=False)
    for name, profile in profiles.items():
        table.add_row(name, *in_words(profile))
    out.print(table)


def print_purged(out: Console, gone: Purged, *, dry_run: bool) -> None:
    """How much went, or would go, and of which states."""
    verb = "would remove" if dry_run else "removed"
    states = ", ".join(f"{count} {state}" for state, count in gone.states.items())
    out.print(
        f"{verb} {gone.series} series, {gone.jobs} jobs, {gone.bytes / 1e6:.1f} MB" + (f": {states}" * bool(states))
    )


def print_held(out: Console, held: Sequence[tuple[str, Mapping[str, int]]]) -> None:
    """Series that a purge leaves alone, with what holds each back."""
    for series_uid, why in held:
        reasons = ", ".join(f"{what} ({count})" for what, count in why.items())
        out.print(f"held back: series {series_uid}: {reasons}", markup=False, highlight=False)


def print_alerts(out: Console, rows: Sequence[RowMapping], told: Mapping[tuple[str, str], str]) -> None:
    """One line an alert. told: by kind and subject, which channels know of it."""
    if not rows:
        out.print("no alerts")
        return
    table = Table("since", "kind", "what", "told", box=None, pad_edge=False)
    for row in rows:
        text = row["text"] if row["ended_at"] is None else f"over since {_local(row['ended_at'])}: {row['text']}"
        job = f" (job {str(row['job_id']).rpartition('-')[2]})" if row["job_id"] else ""
        known = told.get((row["kind"], row["subject"]), "nobody")
        table.add_row(_local(row["since"]), row["kind"], Text(text + job), known)
    out.print(table)


def _local(at: float) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.localtime(at))


def print_summary(out: Console, result: dict[str, Any]) -> None:
    """Findings, files and timings: the end of `infer` and `demo`."""
    if result["reason"]:
        out.print(f"{result['status']}: {result['reason']}", markup=False, highlight=False)
    elif not result["findings"]:
        out.print(f"{result['status']}: " + ("no finding" if result["status"] == "complete" else "no result yet"))
    else:
        out.print(findings_table(result["findings"]))
    for path in result["files"]:
        out.print(path, markup=False, highlight=False)
    if result["timings_s"]:
        out.print("  ".join(f"{name} {seconds:.1f} s" for name, seconds in result["timings_s"].items()))
    out.print(result["notice"], style="bold")


def print_look(out: Console, result: Mapping[str, Any]) -> None:
    """What `render` wrote."""
    for line in (result["conclusion"], *result["notes"], *result["files"]):
        if line:
            out.print(line, markup=False, highlight=False)
    out.print(result["notice"], style="bold")


def findings_table(findings: list[dict[str, Any]]) -> Table:
    # Fits 80 columns, which is what a pipe gets.
    table = Table("no.", "center x y z (mm)", "side", "axes (mm)", "mm3", "HU", "score")
    for number, found in enumerate(findings, start=1):
        table.add_row(
            str(number),
            " ".join(f"{value:.1f}" for value in found["center_mm"]),
            found["side"] or "?",
            f"{found['long_axis_mm']:.1f} x {found['short_axis_mm']:.1f}",
            f"{found['volume_mm3']:.0f}",
            f"{found['mean_hu']:.0f}",
            f"{found['score']:.2f}",
        )
    return table
