"""The `work` role with a detector of fixed cost: it waits so many seconds, and always finds one ball.

Usage: stub_worker.py CONFIG COST_S [NAME]. For tests and benchmarks of what is around a model. While the file that
STUB_HOLD names is there, an analysis that began does not end.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from dicom_node import logs, roles
from dicom_node.config import load_config
from dicom_node.domain import Detection, ModelIdentity, Volume
from dicom_node.log_files import LineFiles
from tests.fakes.findings import MODEL, ball, detection_of

_PARTS = 10


class StubDetector:
    """An `analysis.Detector`. It costs `cost_s` of time and next to no processor, as if the work were a GPU's."""

    identity: ModelIdentity = MODEL

    def __init__(self, cost_s: float, hold: Path | None = None) -> None:
        self._cost_s, self._hold = cost_s, hold

    def detect(self, volume: Volume, *, progress: Callable[[float], None] | None = None) -> Detection:
        for part in range(_PARTS):
            time.sleep(self._cost_s / _PARTS)
            if progress is not None:
                progress((part + 1) / _PARTS)
        while self._hold is not None and self._hold.exists():
            time.sleep(0.05)
        slices, rows, columns = volume.hu.shape
        return detection_of(ball(volume, (slices // 2, rows // 2, columns // 2), 6.0), analysed=(0, slices))


def main() -> None:
    config, cost_s, name = load_config(Path(sys.argv[1])), float(sys.argv[2]), (sys.argv[3:] or [None])[0]
    logs.quiet_pydicom()
    logs.configure(config.log.level, config.log.format, "work", LineFiles(config.storage.root, "work"))
    hold = os.environ.get("STUB_HOLD")
    detector = StubDetector(cost_s, None if hold is None else Path(hold))
    with mock.patch.object(roles, "_detectors", return_value=lambda _name: detector):
        roles.work(config, roles.Stop().on_signals(), name)


if __name__ == "__main__":
    main()
