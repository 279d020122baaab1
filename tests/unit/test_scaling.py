"""docs/scaling.md says what its own arithmetic gives, and bench/scale tells medians of rounds."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from bench.scale import Seen, share, summary, table
from bench.sizing import Measured, Need, need

DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"


def _row(series: int, needs: Need) -> str:
    gb = needs.files_gb
    files = f"{gb / 1000:.1f} TB" if gb >= 1000 else f"{float(f'{gb:.2g}'):.0f} GB"
    numbers = f"{needs.receivers} + 1 | {needs.workers} + 1 | {needs.gpu_workers} + 1"
    return f"| {series:,} | {needs.busiest_hour:,} | {needs.images_s} | {numbers} | {files} |"


@pytest.mark.parametrize("series", [500, 5_000, 50_000])
def test_the_table_of_machines_is_what_the_measured_figures_give(series: int) -> None:
    assert _row(series, need(series, Measured())) in DOCUMENT.read_text()


def test_the_measured_figures_are_those_of_the_document() -> None:
    text, measured = DOCUMENT.read_text(), Measured()
    for name, value in (
        ("`n`", f"{measured.images} of 512 x 512, {measured.series_mb} MB"),
        ("`t`", f"{measured.worker_s} on two cores without a GPU; {measured.beside_network_s} of them"),
        ("`i`", f"{measured.receiver_images_s:.0f} "),
        ("`p`", f"{measured.busiest_hour:.0%}".replace("%", " %")),
    ):
        assert re.search(rf"\| {name} \|[^\n]*{re.escape(value)}", text), name


def test_twice_as_fast_a_model_needs_half_the_workers_and_no_receiver_less() -> None:
    slow, fast = (need(50_000, Measured(worker_s=seconds)) for seconds in (40.0, 20.0))
    assert slow.workers == 2 * fast.workers
    assert slow.receivers == fast.receivers


def _seen(rate: float) -> Seen:
    return Seen(series_per_hour=rate, busy=0.5, cpu_s={"work": 0.6, "receive": 0.1, "deliver": 0.1}, idle=0.02)


def test_efficiency_is_the_median_of_the_rounds_own_and_not_of_their_rates() -> None:
    """A round in which the machine had other work to do is slow with any number of workers."""
    rounds = [{1: _seen(100.0), 2: _seen(190.0)}, {1: _seen(50.0), 2: _seen(95.0)}, {1: _seen(100.0), 2: _seen(100.0)}]
    report = summary(rounds, argparse.Namespace(workers=[1, 2], cost_s=2.0))
    assert report["workers"][2]["efficiency"] == 0.95
    assert report["workers"][1]["efficiency"] == 1.0
    assert "0.95" in table(report)


def test_busy_is_the_part_of_all_cores_time_that_was_used() -> None:
    assert share((100, 1000), (250, 1200)) == 0.75
