"""A job's files -> its slices as pictures, and the outlines over them. Each is decoded when asked for, kept within
bounds.

No pixel is decoded to learn where the outlines lie: headers, SEG and SR tell it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from dicom_node.db import Database
from dicom_node.domain import CTSeries
from dicom_node.quicklook.page import scene_data, webp
from dicom_node.quicklook.scene import Scene
from dicom_node.render import job_files, outlined
from dicom_node.series import to_volume
from dicom_node.storage import Storage

MOST_SCENES = 4
MOST_BYTES = 48_000_000
_EDGE_PX = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What one job shows: data is what quicklook's script works with."""

    series: CTSeries
    scene: Scene
    data: dict[str, Any]


class Slices:
    """Shared by all requests."""

    def __init__(self, database: Database, storage: Storage) -> None:
        self._database, self._storage = database, storage
        self._stacks: OrderedDict[str, Stack] = OrderedDict()
        self._pictures: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0
        # Whoever scrolls asks for many at once: one decodes, the others wait for the interpreter anyhow.
        self._lock = threading.Lock()

    def stack(self, job_id: str) -> Stack:
        """Raises ConfigError where the files are gone, SeriesRejected where the images form no volume."""
        with self._lock:
            if job_id not in self._stacks:
                series, scene = outlined(job_files(self._database, self._storage, job_id))
                urls = [f"/jobs/{quote(job_id)}/slices/{number}.webp" for number in range(len(series.images))]
                self._stacks[job_id] = Stack(series=series, scene=scene, data=scene_data(scene, urls))
                while len(self._stacks) > MOST_SCENES:
                    self._stacks.popitem(last=False)
            self._stacks.move_to_end(job_id)
            return self._stacks[job_id]

    def picture(self, job_id: str, number: int) -> bytes:
        """Slice `number` from the feet, from 0, as WebP. Raises IndexError, and what `stack` raises."""
        key = (job_id, number)
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return self._pictures[key]
        series = self.stack(job_id).series
        if not 0 <= number < len(series.images):
            raise IndexError(number)
        with self._lock:
            made = webp(to_volume(replace(series, images=(series.images[number],))).hu[0], _EDGE_PX)
            self._bytes += len(made) - len(self._pictures.pop(key, b""))
            self._pictures[key] = made
            while self._bytes > MOST_BYTES:
                self._bytes -= len(self._pictures.popitem(last=False)[1])
        return made
