"""LUNA16 on disk -> the table of the four claims. Every stage goes on where it was stopped, or is there already.

<out>/cache                     prepared scans of all subsets
<out>/foldK/run                 the network of fold K: trained on eight subsets, watched on one
<out>/foldK/first, mined, refined   the bundle without a second stage, its false candidates, the second stage
<out>/foldK/bundle              the bundle of both, its operating point chosen on the validation subset
<out>/foldK/validation, test    evaluations; subset K is looked at here for the first time
<out>/all                       all folds' tests together, where all ten were asked for
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dicom_node.domain import RESEARCH_USE
from dicom_node.errors import ConfigError
from training.budget import estimate
from training.evaluation.claims import Fold as Seen
from training.evaluation.evaluate import judge, run_evaluate, run_pooled
from training.export import export
from training.folds import SUBSETS, Fold, fold
from training.mine import mine, spread
from training.prepare import Progress, prepare
from training.prepared import open_prepared
from training.provenance import fold_of, record
from training.readers import Listing, OnProblem
from training.readers.luna16 import list_luna16
from training.recipe import Recipe
from training.refine import refine
from training.team import Team
from training.train import Job, train

Say = Callable[[str], None]
FALSE_POSITIVES_PER_SCAN = 1.0  # at the operating point, on the validation subset
MINED_SCANS = 150  # enough candidates for the second stage; all would take as long as an evaluation of all
EVERYTHING = tuple(range(SUBSETS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """What was asked for. command: as typed. complete: all ten subsets must be there, as for a figure on LUNA16."""

    luna16: Path
    out: Path
    recipe: Recipe
    folds: Sequence[int]
    device: str
    workers: int
    command: str
    on_problem: OnProblem = "refuse"
    complete: bool = True


def reproduce(asked: Reproduction, team: Team, say: Say = print, *, only_plan: bool = False) -> list[dict[str, Any]]:
    """The claims' rows, empty where only the plan was asked for. Raises DataProblem, ConfigError, DicomNodeError."""
    if team.size > 1:
        raise ConfigError(
            "reproduce runs as one process: train a fold with torchrun by its own command, then go on here"
        )
    listing = list_luna16(asked.luna16, on_problem=asked.on_problem)
    for line in listing.summary:
        say(line)
    budget = estimate(listing.scans, asked.recipe, asked.out, len(asked.folds), asked.device, asked.workers)
    for line in budget.told():
        say(line)
    if only_plan:
        return []
    if not (asked.out / "cache").exists():
        budget.check()
    _prepare(asked, listing, say)
    figures, seen = [], []
    for number in asked.folds:
        made, who = _fold(asked, listing, number, team, say)
        figures.append(made)
        seen.append(who)
    if tuple(asked.folds) == EVERYTHING:
        tests = [asked.out / f"fold{number}" / "test" for number in asked.folds]
        bundle = asked.out / "fold0" / "bundle"
        folds = None if None in seen else [who for who in seen if who is not None]
        figures = [run_pooled(bundle, tests, asked.out / "all", command=asked.command, folds=folds, say=say)]
    return [row for made in figures for row in made["claims"]]


def _prepare(asked: Reproduction, listing: Listing, say: Say) -> None:
    def told(progress: Progress) -> None:
        if progress.problem or progress.seconds:
            say(f"prepared {progress.done}/{progress.of}  {progress.uid}  {progress.problem or ''}".rstrip())

    prepare(
        listing.scans, asked.out / "cache", asked.recipe.preprocessing, workers=asked.workers,
        on_problem=asked.on_problem, report=told, left_out=listing.left_out,
    )  # fmt: skip


def _fold(
    asked: Reproduction, listing: Listing, number: int, team: Team, say: Say
) -> tuple[dict[str, Any], Seen | None]:
    """One fold's figures on its test subset, and who was seen in training."""
    folder, recipe = asked.out / f"fold{number}", asked.recipe
    scans = open_prepared(asked.out / "cache", recipe.preprocessing)
    parts = fold(scans, number, complete=asked.complete)
    say(f"fold {number}: {len(parts.train)} scans to train on, {len(parts.validation)} to validate, "
        f"{len(parts.test)} to test, {len(parts.guarded)} left out for their patients' sake")  # fmt: skip
    run = folder / "run"
    record(
        run, recipe, parts.train, parts.validation, command=asked.command, device=asked.device,
        left_out=len(listing.left_out),
    )  # fmt: skip
    job = Job(recipe=recipe, scans=parts.train, validation=parts.validation, hard_mm={}, run=run, workers=asked.workers)
    train(job, team)
    refinement = _refine(asked, run, folder, parts, say) if recipe.refinement else None
    bundle = export(run, folder / "bundle", refinement=refinement)
    before = (number + SUBSETS - 1) % SUBSETS
    judge(
        bundle, _subset(listing, before).scans, folder / "validation", device=asked.device,
        on_problem=asked.on_problem, say=say,
    )  # fmt: skip
    tested = _subset(listing, number)
    who = fold_of(run, tested.scans, refinement)
    figures = run_evaluate(
        bundle.folder, tested, folder / "test", command=asked.command, device=asked.device,
        on_problem=asked.on_problem, point_from=folder / "validation",
        false_positives_per_scan=FALSE_POSITIVES_PER_SCAN, folds=None if who is None else [who], say=say,
    )  # fmt: skip
    export(run, folder / "bundle", refinement=refinement, figures=[figures])
    return figures, who


def _refine(asked: Reproduction, run: Path, folder: Path, parts: Fold, say: Say) -> Path:
    """Mines training and validation scans with the first stage alone, and fits the second; returns its folder."""
    recipe = asked.recipe
    assert recipe.refinement is not None  # noqa: S101  # for the type checker: the caller asked
    first = export(run, folder / "first")
    mined = [*spread(parts.train, MINED_SCANS), *parts.validation]
    mine(first, mined, folder / "mined", device=asked.device, say=say)
    refined = folder / "refined"
    network, learning = recipe.refinement.network, recipe.refinement.learning
    refine(
        parts.train, folder / "mined", refined, recipe.preprocessing, network, learning,
        validation=parts.validation, device=asked.device, say=say,
    )  # fmt: skip
    return refined


def _subset(listing: Listing, number: int) -> Listing:
    return replace(listing, scans=[scan for scan in listing.scans if scan.subset == number])


def told(rows: Sequence[dict[str, Any]]) -> str:
    """The claims as a table for people."""
    lines = [f"{'':10}{'claimed':>9}{'measured':>10}{'95 %':>16}{'reader':>9}  data"]
    for row in rows:
        span = "" if row["low"] is None else f"{row['low']:.3f} - {row['high']:.3f}"
        human = "" if row["human"] is None else f"{row['human']:.3f}"
        lines.append(f"{row['name']:10}{row['claimed']:9.2f}{row['value']:10.3f}{span:>16}{human:>9}  {row['data']}")
    return "\n".join([*lines, RESEARCH_USE])
