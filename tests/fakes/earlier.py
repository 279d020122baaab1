"""An earlier exam of the phantom patient: a CT series, what this node made of it then, and an archive that has it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, CTImageStorage, SegmentationStorage
from pynetdicom import AE, evt

from dicom_node.config import GateConfig
from dicom_node.dimse import retrieve
from dicom_node.results import build_results, to_bytes
from dicom_node.series import read_series, to_volume
from tests.fakes.ct import make_ct_series
from tests.fakes.findings import JOB, ball, detection_of
from tests.peers import free_port

PRIOR_STUDY, PRIOR_SERIES = "1.2.826.0.1.3680043.8.498.2001", "1.2.826.0.1.3680043.8.498.2002"
PRIOR: dict[str, Any] = {
    "StudyInstanceUID": PRIOR_STUDY,
    "SeriesInstanceUID": PRIOR_SERIES,
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.2003",
    "StudyDate": "20250102",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """Files of one exam. results: SEG and SR, empty where nobody looked at the CT."""

    images: list[Path]
    results: list[Path]

    @property
    def files(self) -> list[Path]:
        return [*self.images, *self.results]


def earlier_exam(folder: Path, *, header: Mapping[str, Any] | None = None, found: bool = True) -> Earlier:
    """Eight slices with one nodule, or with none; the report is this node's own."""
    images = make_ct_series(folder / "images", shape=(8, 32, 32), header={**PRIOR, **(header or {})})
    series = read_series(images, GateConfig(min_slices=5, min_length_mm=0))
    volume = to_volume(series)
    findings = (ball(volume, (4.0, 16.0, 16.0), 4.0),) if found else ()
    made = build_results(series, volume, detection_of(*findings, analysed=(0, 8)), **JOB)
    results = []
    for each in made.objects:
        results.append(folder / f"{each.kind}.dcm")
        results[-1].write_bytes(to_bytes(each.ds))
    return Earlier(images=images, results=results)


class Archive:
    """An archive of the test's own, which may say one thing and send another.

    says: over what it answers to a query. sends: what becomes of a data set before it is sent; None: it is not.
    """

    def __init__(self, exam: Earlier) -> None:
        self.data_sets = [pydicom.dcmread(path) for path in exam.files]
        self.says: dict[str, Any] = {}
        self.sends: Callable[[Dataset], Dataset | None] = lambda data_set: data_set
        self.after: Callable[[Dataset], None] = lambda _: None
        self.port = free_port()
        self.asked: list[str] = []
        self.receiver_port = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        ae = AE("ORTHANC")
        ae.add_supported_context("1.2.840.10008.5.1.4.1.2.2.1")
        ae.add_supported_context(retrieve.GET[0])
        ae.add_supported_context(retrieve.MOVE[0])
        for uid in (CTImageStorage, SegmentationStorage, Comprehensive3DSRStorage):
            ae.add_supported_context(uid, scu_role=True, scp_role=True)
            ae.add_requested_context(uid)
        handlers = [(evt.EVT_C_FIND, self._find), (evt.EVT_C_GET, self._get), (evt.EVT_C_MOVE, self._move)]
        server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        try:
            yield
        finally:
            server.shutdown()

    def _matching(self, identifier: Dataset) -> list[Dataset]:
        self.asked.append(str(identifier.get("SeriesInstanceUID", "")))
        return [one for one in self.data_sets if one.SeriesInstanceUID == identifier.SeriesInstanceUID]

    def _find(self, event: Any) -> Iterator[tuple[int, Dataset]]:
        level = str(event.identifier.QueryRetrieveLevel)
        key = "StudyInstanceUID" if level == "STUDY" else "SeriesInstanceUID"
        for uid in dict.fromkeys(str(one[key].value) for one in self.data_sets):
            members = [one for one in self.data_sets if one[key].value == uid]
            answer = Dataset()
            answer.QueryRetrieveLevel = level
            for element in event.identifier:
                known = {"NumberOfSeriesRelatedInstances": len(members), **self.says}
                value = known.get(element.keyword, members[0].get(element.keyword))
                if element.keyword != "QueryRetrieveLevel" and value is not None:
                    setattr(answer, element.keyword, value)
            yield 0xFF00, answer

    def _get(self, event: Any) -> Iterator[Any]:
        yield from self._sent(event)

    def _move(self, event: Any) -> Iterator[Any]:
        yield "127.0.0.1", self.receiver_port
        yield from self._sent(event)

    def _sent(self, event: Any) -> Iterator[Any]:
        sent = [made for one in self._matching(event.identifier) if (made := self.sends(one)) is not None]
        yield len(sent)
        for one in sent:
            yield 0xFF00, one
            self.after(one)
