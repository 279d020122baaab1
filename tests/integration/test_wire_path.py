"""The raw C-STORE path beside pynetdicom's own: the same bytes get the same answers, the same end, the same files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, MRImageStorage
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity

from dicom_node.db import Database
from dicom_node.dimse.contexts import supported_contexts
from dicom_node.dimse.intake import Intake, StoreRequest
from dicom_node.storage import Storage
from tests.conftest import RunningReceiver
from tests.fakes.instances import FakeInstance, fake_instance
from tests.raw import ABORT, RELEASE_RQ, RawPeer, associate_rq, command, echo_command, p_data, pdu, pdv, store_fields

Start = Callable[..., RunningReceiver]
FUZZ = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class Stock:
    """pynetdicom's own SCP, whose handler gives the data set as it came to the same intake."""

    def __init__(self, folder: Path) -> None:
        self.storage = Storage(folder)
        self.database = Database(f"sqlite:///{folder / 'node.sqlite'}")
        self.database.migrate()
        self._intake = Intake(self.storage, self.database)
        ae = ApplicationEntity("DICOMNODE")
        ae.maximum_pdu_size = 131072
        ae.network_timeout = ae.acse_timeout = ae.dimse_timeout = 5
        ae.supported_contexts = supported_contexts(["images"])
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        assert self._server is not None
        self.port = int(self._server.server_address[1])

    def _store(self, event: Any) -> Dataset:
        answer = self._intake.store(
            StoreRequest(
                sop_class_uid=str(event.request.AffectedSOPClassUID),
                sop_instance_uid=str(event.request.AffectedSOPInstanceUID),
                abstract_syntax=str(event.context.abstract_syntax),
                transfer_syntax_uid=str(event.context.transfer_syntax),
                data_set=event.request.DataSet.getvalue(),
                source_ae=event.assoc.requestor.ae_title,
                source_ip=event.assoc.requestor.address,
            )
        )
        status = Dataset()
        status.Status = answer.status
        return status

    def close(self) -> None:
        assert self._server is not None
        self._server.shutdown()
        self.database.close()


class Both:
    """The same bytes to both; what each answered."""

    def __init__(self, ours: RunningReceiver, stock: Stock) -> None:
        self.ours, self.stock = ours, stock

    def answers(self, *requests: list[bytes]) -> tuple[list[str], list[str]]:
        """Each request is sent when the one before was answered, up to the Association's end."""
        return self._answers(self.ours.port, requests), self._answers(self.stock.port, requests)

    @staticmethod
    def _answers(port: int, requests: tuple[list[bytes], ...]) -> list[str]:
        found: list[str] = []
        with RawPeer(port).established() as peer:
            for pdus in requests:
                peer.send(*pdus)
                found.append(peer.answer())
                if found[-1] in ("abort", "closed"):
                    break
        return found

    def files(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        return _files(self.ours.storage.root), _files(self.stock.storage.root)


def _files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in (root / "incoming").rglob("*") if p.is_file()}


@pytest.fixture
def both(start_receiver: Start, tmp_path: Path) -> Iterator[Both]:
    stock = Stock(tmp_path / "stock")
    pair = Both(start_receiver(receive={"idle_timeout_s": 5}), stock)
    yield pair
    stock.close()
    deadline = time.monotonic() + 30
    while any("AcceptorThread" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ours, theirs = pair.files()
    assert ours == theirs


def stored(fake: FakeInstance, message_id: int = 1, *, data: bytes | None = None, **fields: bytes) -> list[bytes]:
    """A C-STORE in two P-DATA-TF. `fields`: other values of its command, by names like "e1000"; b"" leaves one out."""
    changed = {int(name[1:], 16): value for name, value in fields.items()}
    kept = {number: v for number, v in {**store_fields(fake, message_id), **changed}.items() if v != b""}
    body = fake.data_set if data is None else data
    return [p_data(0x03, command(kept)), p_data(0x02, body)]


FAKE = fake_instance(1)
IMPLICIT = fake_instance(1, transfer_syntax=ImplicitVRLittleEndian)
ANSWERED = {
    "whole": (stored(FAKE), "0x0000"),
    "with another priority": (stored(FAKE, e0700=b"\x02\0"), "0x0000"),
    "the highest message id": (stored(FAKE, 65535), "0x0000"),
    "cut": (stored(FAKE, data=FAKE.data_set[:90]), "0xc000"),
    "no DICOM": (stored(FAKE, data=b"no DICOM" * 10), "0xc000"),
    "another syntax": (stored(FAKE, data=IMPLICIT.data_set), "0xc000"),
    "another instance": (stored(FAKE, e1000=b"1.2.3"), "0xa900"),
    "another class within": (stored(fake_instance(1, SOPClassUID=MRImageStorage)), "0xa900"),
    "no study": (stored(fake_instance(1, StudyInstanceUID=None)), "0xa900"),
    "a path for a UID": (stored(fake_instance(1, SeriesInstanceUID="../../x")), "0xa900"),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_both_give_the_same_status(both: Both, name: str) -> None:
    pdus, status = ANSWERED[name]
    ours, stock = both.answers(pdus, stored(fake_instance(2), 2), [RELEASE_RQ])
    assert ours == stock
    assert [answer.split()[0] for answer in ours] == [status, "0x0000", "release"]


ENDED = {
    "data before its command": [p_data(0x02, b"data")],
    "a context that was not offered": [p_data(0x03, command(store_fields(FAKE)), 9), p_data(0x02, FAKE.data_set, 9)],
    "a second request": [associate_rq()],
    "an accept": [pdu(0x02, associate_rq()[6:])],
    "a release response": [pdu(0x06, bytes(4))],
    "an abort": [ABORT],
    "an unknown kind": [pdu(0x0B, b"")],
    "an abort within a data set": [*stored(FAKE)[:1], p_data(0x00, FAKE.data_set[:50]), ABORT],
}


@pytest.mark.parametrize("name", ENDED)
def test_both_end_the_association(both: Both, name: str) -> None:
    ours, stock = both.answers(stored(fake_instance(2), 2), ENDED[name])
    assert ours[0] == stock[0] == f"0x0000 {fake_instance(2).sop_instance_uid}"
    assert ours[1] == stock[1]
    assert ours[1] in ("abort", "closed")


@FUZZ
@given(
    command_cuts=st.sets(st.integers(1, 120), max_size=3),
    data_cuts=st.sets(st.integers(1, len(FAKE.data_set) - 1), max_size=6),
    packed=st.booleans(),
    echo=st.booleans(),
)
def test_however_it_is_cut_both_store_it(
    both: Both, command_cuts: set[int], data_cuts: set[int], packed: bool, echo: bool
) -> None:
    pdvs = []
    for bit, data, cuts in ((0x01, command(store_fields(FAKE)), command_cuts), (0x00, FAKE.data_set, data_cuts)):
        for start, end in pairwise([0, *sorted(cuts), len(data)]):
            pdvs.append(pdv(bit | (0x02 if end == len(data) else 0), data[start:end]))
    pdus = [pdu(0x04, b"".join(pdvs))] if packed else [pdu(0x04, part) for part in pdvs]
    between = [[p_data(0x03, echo_command(7), 3)]] if echo else []
    ours, stock = both.answers(pdus, *between, [RELEASE_RQ])
    assert ours == stock
    assert ours[0] == f"0x0000 {FAKE.sop_instance_uid}"


@FUZZ
@given(place=st.integers(0, len(FAKE.data_set)), length=st.integers(0, 40), value=st.binary(max_size=40))
def test_a_spoiled_data_set_gets_the_same_status_from_both(both: Both, place: int, length: int, value: bytes) -> None:
    data = FAKE.data_set[:place] + value + FAKE.data_set[place + length :]
    ours, stock = both.answers(stored(FAKE, data=data), [RELEASE_RQ])
    assert ours == stock
