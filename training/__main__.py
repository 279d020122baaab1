"""python -m training fit | export | evaluate."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from pathlib import Path

import torch

from dicom_node.model.bundle import default_bundle
from dicom_node.model.network import SMALL
from dicom_node.model.spec import MergeSpec, PreprocessSpec
from training.evaluate import evaluate, write
from training.export import export, read_json
from training.train import FitSettings, fit

# Neighbours 2 mm away tell a vessel, which goes on, from a nodule, which ends.
# Every second slice is enough for 4 mm and halves the time on a CPU.
PREP = PreprocessSpec(slice_offsets=(-2, 0, 2), slice_step=2)
MERGING = MergeSpec()

EXAMPLES = """examples:
  python -m training fit --data shared/data --cache cache --out runs/small --minutes 90
  python -m training export --run runs/small --out bundle --facts facts.json
  python -m training evaluate --bundle bundle --data shared/data --cache cache --out figures.json
  python -m training export --run runs/small --out bundle --facts facts.json --figures figures.json
"""


class EventFormatter(logging.Formatter):
    """The event and its numbers on one line."""

    def format(self, record: logging.LogRecord) -> str:
        known = logging.makeLogRecord({}).__dict__
        extra = {k: v for k, v in record.__dict__.items() if k not in known and k not in ("message", "asctime")}
        extra.pop("action", None)
        numbers = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in extra.items())
        return " ".join([self.formatTime(record, "%H:%M:%S"), record.getMessage(), *numbers])


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EventFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    return int(options.run(options) or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train, package and judge a nodule model. Research use, not for diagnosis.",
        epilog=EXAMPLES,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("fit", help="train on composites; goes on from a checkpoint in --out")
    one.add_argument("--data", type=Path, required=True, help="folder with nodule_voi, chest_ct and luna16")
    one.add_argument("--cache", type=Path, required=True, help="folder for prepared data")
    one.add_argument("--out", type=Path, required=True, help="folder for checkpoints")
    one.add_argument("--steps", type=int, default=FitSettings().steps)
    one.add_argument("--minutes", type=float, default=math.inf, help="end after this long at the latest")
    one.add_argument("--seed", type=int, default=FitSettings().seed)
    one.add_argument("--threads", type=int, default=1)
    one.set_defaults(run=_fit)
    one = commands.add_parser("export", help="write the bundle of a run's last checkpoint")
    one.add_argument("--run", dest="run_folder", type=Path, required=True, help="folder of the checkpoint")
    one.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    one.add_argument("--model-version", default="0.1.0")
    one.add_argument("--operating-point", type=float, default=0.5, help="where there are no --figures")
    one.add_argument("--figures", type=Path, help="what evaluate wrote for this checkpoint")
    one.add_argument("--facts", type=Path, required=True, help="JSON: positives, commands, history, machine")
    one.set_defaults(run=_export)
    one = commands.add_parser("evaluate", help="judge a bundle on composites and real scans")
    one.add_argument("--bundle", type=Path, default=default_bundle())
    one.add_argument("--data", type=Path, required=True, help="folder with nodule_voi, chest_ct and luna16")
    one.add_argument("--cache", type=Path, required=True, help="folder for prepared data")
    one.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    one.add_argument("--composites", type=int, default=4)
    one.add_argument("--threads", type=int, default=1)
    one.set_defaults(run=_evaluate)
    return parser


def _fit(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    settings = FitSettings(steps=options.steps, minutes=options.minutes, seed=options.seed)
    fit(options.data, options.cache, options.out, SMALL, PREP, settings)


def _export(options: argparse.Namespace) -> None:
    figures = read_json(options.figures) if options.figures else None
    bundle = export(
        options.run_folder,
        options.out,
        PREP,
        MERGING,
        version=options.model_version,
        operating_point=figures["operating_point"] if figures else options.operating_point,
        figures=figures,
        facts=read_json(options.facts),
    )
    print(f"{bundle.folder}  {bundle.form.name} {bundle.form.version}  {bundle.sha256}")


def _evaluate(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    figures = evaluate(options.bundle, options.data, options.cache, scans=options.composites)
    write(figures, options.out)
    print(options.out.read_text(), end="")


if __name__ == "__main__":
    sys.exit(main())
