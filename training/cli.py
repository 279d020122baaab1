"""`python -m training`: parse, call the library, print. Exit code 0, 1 (it failed, and why) or 2 (called wrongly)."""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dicom_node.domain import RESEARCH_USE
from dicom_node.errors import ConfigError, DicomNodeError

if TYPE_CHECKING:
    from training.prepared import PreparedScan
    from training.readers import Listing, OnProblem

REFERENCE_RECIPE = Path(__file__).with_name("luna16.yaml")

app = typer.Typer(
    help=f"Train, judge and package a nodule model. {RESEARCH_USE}.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Layout(StrEnum):
    """How a folder of training data is laid out."""

    LUNA16 = "luna16"
    DICOM = "dicom"
    NIFTI = "nifti"
    NIFTI_CROPS = "nifti-crops"


class Part(StrEnum):
    """Which composites."""

    TRAIN = "train"
    TEST = "test"


class Trouble(StrEnum):
    """What to do with a scan that can't be used."""

    REFUSE = "refuse"
    SKIP = "skip"


CacheOption = Annotated[Path, typer.Option("--cache", help="Folder that `prepare` wrote.")]
SourceOption = Annotated[Path, typer.Option("--source", help="Folder of the data.")]
LayoutOption = Annotated[
    Layout,
    typer.Option(
        "--layout",
        help="luna16: as downloaded, or composites; dicom: CT series with Segmentations; nifti: images and labels, "
        "-crops: of nodules, not of whole chests.",
    ),
]
UnlabelledOption = Annotated[
    bool, typer.Option("--unlabelled-negative", help="dicom: a series without Segmentation holds no nodule.")
]
RecipeOption = Annotated[Path, typer.Option("--recipe", help="YAML: training/small.yaml, training/luna16.yaml.")]
FoldOption = Annotated[
    int | None,
    typer.Option("--fold", min=0, max=9, help="LUNA16 subset kept for the test; the one before it validates."),
]
BundleOption = Annotated[Path, typer.Option("--bundle", help="Folder of a model bundle.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda:N.")]
TroubleOption = Annotated[
    Trouble, typer.Option("--on-problem", help="A broken or missing file: refuse to go on, or skip it and list it.")
]


class EventFormatter(logging.Formatter):
    """The event and its numbers on one line."""

    def format(self, record: logging.LogRecord) -> str:
        known = logging.makeLogRecord({}).__dict__
        extra = {k: v for k, v in record.__dict__.items() if k not in known and k not in ("message", "asctime")}
        extra.pop("action", None)
        numbers = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in extra.items())
        return " ".join([self.formatTime(record, "%H:%M:%S"), record.getMessage(), *numbers])


def main() -> NoReturn:
    """Entry point of `python -m training`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EventFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        app()
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except DicomNodeError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def typed_command() -> str:
    """This very command, for a run's record. Of a path only its end: the rest tells of a machine, or of a patient."""
    words = (re.sub(r"[^=]*/(?=.)", "", word.rstrip("/")) for word in sys.argv[1:])
    return shlex.join(["python", "-m", "training", *words])


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


# -- data ------------------------------------------------------------------------------------------


@app.command()
def prepare(
    source: SourceOption,
    layout: LayoutOption,
    cache: CacheOption,
    recipe: RecipeOption,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 2,
    on_problem: TroubleOption = Trouble.REFUSE,
    unlabelled_negative: UnlabelledOption = False,
) -> None:
    """Resample scans to the grid the network sees, crop them to the lungs, and keep them with their labels.

    Example: python -m training prepare --source LUNA16 --layout luna16 --cache cache --recipe training/luna16.yaml
    """
    from training.prepare import prepare as write_cache
    from training.recipe import load_recipe

    prep = load_recipe(recipe).preprocessing
    listing = _list(source, layout, on_problem.value, unlabelled_negative)
    for line in listing.summary:
        print(line)
    index = write_cache(
        listing.scans, cache, prep, workers=workers, on_problem=on_problem.value, left_out=listing.left_out,
        report=lambda p: print(
            f"{p.done}/{p.of}  {p.uid}  " + (p.problem or f"{p.size_mb:.0f} MB  {p.seconds:.0f} s"), flush=True
        ),
    )  # fmt: skip
    for name, why in index.left_out.items():
        print(f"left out: {name}: {why}")
    print(f"{len(index.keys)} scans in {cache}, {len(index.left_out)} left out")


def _list(source: Path, layout: Layout, on_problem: OnProblem, unlabelled: bool) -> Listing:
    if layout is Layout.LUNA16:
        from training.readers.luna16 import list_luna16

        return list_luna16(source, on_problem=on_problem)
    if layout is Layout.DICOM:
        from training.readers.dicom_seg import list_dicom_seg

        return list_dicom_seg(source, on_problem=on_problem, unlabelled="negative" if unlabelled else "skip")
    from training.readers.nifti import list_nifti

    return list_nifti(source, on_problem=on_problem, whole_chest=layout is not Layout.NIFTI_CROPS)


@app.command()
def compose(
    data: Annotated[Path, typer.Option("--data", help="Folder with nodule_voi, chest_ct and luna16.")],
    out: Annotated[Path, typer.Option("--out", help="New folder, in LUNA16's own layout.")],
    part: Annotated[Part, typer.Option("--part", help="train: subsets 0 to 7; test: subset 8 in a lung never seen.")],
    scans: Annotated[int, typer.Option("--scans", min=1, help="How many.")] = 4,
    nodules: Annotated[int, typer.Option("--nodules", min=1, help="In each scan, at most.")] = 24,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed, the same bytes.")] = 1,
    montage: Annotated[Path | None, typer.Option("--montage", help="PNG file of some of them, with outlines.")] = None,
) -> None:
    """Write composites: real nodules blended into real lungs, with true masks. No scan of a person.

    Example: python -m training compose --data shared/data --out composites/test --part test --scans 4 --seed 8
    """
    from training.composites.write import compose_part

    made = compose_part(data, out, part.value, scans=scans, nodules_per_scan=nodules, seed=seed)
    print(
        f"composites in {out}: {made.scans} scans, {made.nodules} nodules, {made.excluded} excluded findings, "
        f"{made.traces} unlisted traces; no place for {made.left_over} nodules"
    )
    if montage is not None:
        from training.composites.montage import write_montage

        write_montage(out, montage)


@app.command()
def truth(
    lists: Annotated[Path, typer.Option("--lists", help="Folder of annotations.csv and its companions.")],
    as_json: JsonOption = False,
) -> None:
    """Count LUNA16's lists, and how many nodules have readers' outlines in LIDC-IDRI. Needs no volume.

    Example: python -m training truth --lists LUNA16
    """
    from training.readers.truth import truth_report

    report = truth_report(lists)
    if as_json:
        _print_json(asdict(report))
        return
    for line in report.lines():
        print(line)


# -- train -----------------------------------------------------------------------------------------


@app.command()
def train(
    recipe: RecipeOption,
    cache: CacheOption,
    # Not --run: torchrun takes it for the beginning of an option of its own.
    out: Annotated[Path, typer.Option("--out", help="Folder of checkpoints and curves; a run there goes on.")],
    fold: Annotated[
        int | None, typer.Option("--fold", min=0, max=9, help="LUNA16 subset to keep for the test.")
    ] = None,
    hard: Annotated[
        Path | None, typer.Option("--hard", help="Folder that `mine` wrote: known false candidates.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda; torchrun gives each process its own.")] = "cpu",
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that read beside each training one.")] = 0,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of each process.")] = None,
    stop_after: Annotated[
        float | None, typer.Option("--stop-after", help="Minutes; end with a checkpoint, go on later.")
    ] = None,
) -> None:
    """Train a recipe's network on prepared scans; the same command goes on where a stopped run ended.

    Without --fold every scan of the cache is learned from.

    Example: python -m training train --recipe training/small.yaml --cache cache --out runs/small
    Example: torchrun --nproc-per-node 4 -m training train --recipe training/luna16.yaml --cache cache --out runs/f0
    --fold 0 --device cuda --workers 4
    """
    import torch

    from training.prepared import open_prepared, read_index
    from training.provenance import record
    from training.recipe import load_recipe
    from training.team import join_team
    from training.train import Job, stop_when
    from training.train import train as run_training

    if threads is not None:
        torch.set_num_threads(threads)
    numbers = load_recipe(recipe)
    learn, validation = _parts(open_prepared(cache, numbers.preprocessing), fold)
    job = Job(
        recipe=numbers, scans=learn, validation=validation, hard_mm=_hard(hard), run=out, workers=workers
    )  # fmt: skip
    with join_team(device) as team:
        if team.leads:
            left_out = len(read_index(cache).left_out)
            record(out, numbers, learn, validation, command=typed_command(), device=device, left_out=left_out)
        done = run_training(job, team, stop_when(stop_after))
    if team.leads:
        print(f"{done} of {numbers.optimisation.steps} steps in {out}")


def _parts(scans: list[PreparedScan], number: int | None) -> tuple[list[PreparedScan], list[PreparedScan]]:
    if number is None:
        return scans, []
    from training.folds import fold

    parts = fold(scans, number)
    return list(parts.train), list(parts.validation)


def _hard(folder: Path | None) -> dict[str, Any]:
    import numpy as np

    if folder is None:
        return {}
    from training.mine import read_candidates

    mined = read_candidates(folder)
    return {uid: np.array([c.center_mm for c in found if c.kind == "false"]) for uid, found in mined.items()}


@app.command()
def mine(
    bundle: BundleOption,
    cache: CacheOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for what the bundle takes for nodules.")],
    scans: Annotated[int | None, typer.Option("--scans", min=1, help="So many, spread over the cache.")] = None,
    fold: FoldOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Collect a bundle's candidates on prepared scans: the false ones are what the next model learns from.

    Example: python -m training mine --bundle bundle --cache cache --out mined
    """
    from dicom_node.model.bundle import load_bundle
    from training.mine import mine as mine_scans
    from training.mine import spread
    from training.prepared import open_prepared

    model = load_bundle(bundle)
    learn, validation = _parts(open_prepared(cache, model.form.preprocessing), fold)
    found = mine_scans(model, [*spread(learn, scans), *validation], out, device=device)
    print(", ".join(f"{number} {kind}" for kind, number in sorted(found.items())))


@app.command()
def refine(
    recipe: RecipeOption,
    cache: CacheOption,
    mined: Annotated[Path, typer.Option("--mined", help="Folder that `mine` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the second stage; a run there goes on.")],
    fold: FoldOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Train the 3D stage that looks again at each candidate, as the recipe's `refinement` says.

    Example: python -m training refine --recipe training/small.yaml --cache cache --mined mined --out runs/refined
    """
    from training.prepared import open_prepared
    from training.recipe import load_recipe
    from training.refine import refine as refine_candidates
    from training.refine import told

    numbers = load_recipe(recipe)
    if numbers.refinement is None:
        raise ConfigError(f"{recipe} has no `refinement`: its bundle has one stage only")
    learn, validation = _parts(open_prepared(cache, numbers.preprocessing), fold)
    network, learning = numbers.refinement.network, numbers.refinement.learning
    summary = refine_candidates(
        learn, mined, out, numbers.preprocessing, network, learning, validation=validation, device=device,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    if as_json:
        _print_json(summary)
        return
    for line in told(summary):
        print(line)


# -- judge and package -----------------------------------------------------------------------------


@app.command()
def export(
    run: Annotated[Path, typer.Option("--run", help="Folder that `train` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the bundle.")],
    refinement: Annotated[Path | None, typer.Option("--refinement", help="Folder that `refine` wrote.")] = None,
    figures: Annotated[
        list[Path] | None, typer.Option("--figures", help="figures.json of an evaluation; may be repeated.")
    ] = None,
    version: Annotated[str | None, typer.Option("--model-version", help="Default: the recipe's.")] = None,
    operating_point: Annotated[
        float | None, typer.Option("--operating-point", min=0, max=1, help="Default: that of the figures.")
    ] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Of the weights, such as Apache-2.0.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Store weights as float16: half the size.")] = False,
) -> None:
    """Write a bundle that the node serves: weights, numbers, figures, and a card written from them.

    Example: python -m training export --run runs/small --refinement runs/refined --out bundle --half
    """
    from training.export import UNSTATED, run_export

    bundle = run_export(
        run, out, figures=figures or (), refinement=refinement, version=version, operating_point=operating_point,
        licence=licence or UNSTATED, half=half,
    )  # fmt: skip
    print(f"{bundle.folder}  {bundle.form.name} {bundle.form.version}  {bundle.sha256}")


@app.command()
def card(
    bundle: BundleOption,
    write: Annotated[bool, typer.Option("--write", help="Replace the bundle's MODEL_CARD.md.")] = False,
) -> None:
    """Print a bundle's model card as its files make it.

    Example: python -m training card --bundle dicom_node/data/models/lung_nodule_small
    """
    from training.card import run_card

    print(run_card(bundle, write=write), end="")


@app.command()
def evaluate(
    bundle: BundleOption,
    source: SourceOption,
    layout: LayoutOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for results, figures.json and report.html.")],
    subset: Annotated[
        list[int] | None, typer.Option("--subset", min=0, max=9, help="luna16: only this one; may be repeated.")
    ] = None,
    point_from: Annotated[
        Path | None, typer.Option("--point-from", help="--out of an evaluation on other scans: chooses the point.")
    ] = None,
    false_positives: Annotated[
        float | None, typer.Option("--false-positives", min=0, help="A scan, at the point to be chosen.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="That the bundle came from: says who was seen in training.")
    ] = None,
    refinement: Annotated[
        Path | None, typer.Option("--refinement", help="That the bundle's second stage came from.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    device: DeviceOption = "cpu",
    on_problem: TroubleOption = Trouble.REFUSE,
    unlabelled_negative: UnlabelledOption = False,
) -> None:
    """Judge a bundle on scans with truth, through the detector that the node serves, and write the report.

    Example: python -m training evaluate --bundle bundle --source composites/test --layout luna16 --out report
    """
    from dicom_node.model.bundle import load_bundle
    from training.evaluation.evaluate import run_evaluate
    from training.evaluation.report import headlines
    from training.export import check_origin
    from training.provenance import fold_of, seen_in_training

    listing = _list(source, layout, on_problem.value, unlabelled_negative)
    if subset:
        listing = replace(listing, scans=[scan for scan in listing.scans if scan.subset in subset])
        if not listing.scans:
            raise ConfigError(f"no scan in {source} is of subset {', '.join(map(str, subset))}")
    for line in (*listing.summary, *(f"left out: {name}: {why}" for name, why in listing.left_out.items())):
        print(line)
    if run is not None:
        check_origin(load_bundle(bundle), run, refinement)
    who = None if run is None else fold_of(run, listing.scans, refinement)
    made = run_evaluate(
        bundle, listing, out, command=typed_command(), device=device, workers=workers, on_problem=on_problem.value,
        point_from=point_from, false_positives_per_scan=false_positives, folds=None if who is None else [who],
        seen=None if run is None else seen_in_training(run, listing.scans),
    )  # fmt: skip
    for line in headlines(made):
        print(line)


@app.command()
def froc(
    submission: Annotated[Path, typer.Option("--submission", help="seriesuid,coordX,coordY,coordZ,probability")],
    annotations: Annotated[Path, typer.Option("--annotations", help="LUNA16's annotations.csv")],
    excluded: Annotated[Path, typer.Option("--excluded", help="LUNA16's annotations_excluded.csv")],
    seriesuids: Annotated[Path, typer.Option("--seriesuids", help="The scans, one a line.")],
    bootstrap: Annotated[int, typer.Option("--bootstrap", min=0, help="Samples for 95 % intervals; 0: none.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Judge a submission as LUNA16's official script does: sensitivity at 1/8 to 8 false positives a scan, and CPM.

    Files may be gzipped.

    Example: python -m training froc --submission marks.csv --annotations annotations.csv
    --excluded annotations_excluded.csv --seriesuids seriesuids.csv --bootstrap 1000 --json
    """
    from training.evaluation.froc import run_froc

    print(run_froc(submission, annotations, excluded, seriesuids, bootstrap, as_json))


@app.command()
def ceiling(
    out: Annotated[Path | None, typer.Option("--out", help="JSON file; default: the one of this package.")] = None,
) -> None:
    """Measure what one of LIDC-IDRI's readers reaches against the others: the human ceiling beside each figure.

    Example: python -m training ceiling
    """
    from training.evaluation.ceiling import SHIPPED, run_ceiling

    print(run_ceiling(out or SHIPPED))


@app.command()
def reproduce(
    luna16: Annotated[Path, typer.Option("--luna16", help="LUNA16 as downloaded and unpacked.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for everything; goes on where it was stopped.")] = Path(
        "reproduction"
    ),
    recipe: RecipeOption = REFERENCE_RECIPE,
    fold: Annotated[int | None, typer.Option("--fold", min=0, max=9, help="Only this one; default: all ten.")] = None,
    device: DeviceOption = "cpu",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that prepare and read.")] = 2,
    on_problem: TroubleOption = Trouble.REFUSE,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it needs, and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """From LUNA16 on disk to the table of the four claims. Says first what disk, time and memory it needs.

    Example: python -m training reproduce --luna16 LUNA16 --out reproduction --fold 0 --device cuda
    """
    from training.recipe import load_recipe
    from training.reproduce import EVERYTHING, Reproduction, told
    from training.reproduce import reproduce as run_all
    from training.team import join_team

    asked = Reproduction(
        luna16=luna16, out=out, recipe=load_recipe(recipe), folds=EVERYTHING if fold is None else (fold,),
        device=device, workers=workers, command=typed_command(), on_problem=on_problem.value,
    )  # fmt: skip
    with join_team(device) as team:
        rows = run_all(asked, team, say=lambda line: print(line, file=sys.stderr, flush=True), only_plan=plan)
    if as_json:
        _print_json(rows)
    elif rows:
        print(told(rows))
