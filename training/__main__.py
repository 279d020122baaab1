"""python -m training fit | export | evaluate."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from pathlib import Path

import torch

from dicom_node.model.network import SMALL
from dicom_node.model.spec import PreprocessSpec
from training.train import FitSettings, fit

# Neighbours 2 mm away tell a vessel, which goes on, from a nodule, which ends.
PREP = PreprocessSpec(slice_offsets=(-2, 0, 2))


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
        epilog="example:\n  python -m training fit --data shared/data --cache /tmp/cache --out runs/small --minutes 90",
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
    return parser


def _fit(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    settings = FitSettings(steps=options.steps, minutes=options.minutes, seed=options.seed)
    fit(options.data, options.cache, options.out, SMALL, PREP, settings)


if __name__ == "__main__":
    sys.exit(main())
