"""Series a day -> how many receivers and workers: the arithmetic of docs/scaling.md, from what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One machine's figures, and what a site is assumed to be like.

    worker_s: seconds of a worker a series on two cores without a GPU; beside_network_s: those that a GPU does not take
    over. receiver_images_s: images a second of a receiver for longer than its journal lasts. busiest_hour: the part of
    a day's series that comes in it. most_busy: how busy a part may be at most, so that a queue empties.
    """

    worker_s: float = 38.4
    beside_network_s: float = 5.8
    images: int = 300
    series_mb: float = 157.5
    receiver_images_s: float = 200.0
    busiest_hour: float = 0.12
    most_busy: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What so many series a day need, without a spare. gpu_workers: at least, with a network that costs nothing."""

    busiest_hour: int
    images_s: int
    receivers: int
    workers: int
    gpu_workers: int
    files_gb: float


def need(series_a_day: int, measured: Measured) -> Need:
    hour = series_a_day * measured.busiest_hour
    images_s = hour * measured.images / 3600

    def several(busy: float) -> int:
        # Rounded first: 8 workers that are busy for exactly 0.8 of an hour are 8, whatever the last bit says.
        return max(1, math.ceil(round(busy / measured.most_busy, 6)))

    return Need(
        busiest_hour=round(hour),
        images_s=round(images_s),
        receivers=several(images_s / measured.receiver_images_s),
        workers=several(hour * measured.worker_s / 3600),
        gpu_workers=several(hour * measured.beside_network_s / 3600),
        files_gb=series_a_day * measured.series_mb / 1000,
    )
