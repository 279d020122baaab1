"""How long a reply is waited for."""

from __future__ import annotations

import queue
from typing import Any

from dicom_node.dimse.requestor import Requested


class Line:
    """An Association whose peer takes one PDU for each look, and the clock that its waiter sees."""

    def __init__(self, pdus: int, *, taking: int | None = None, alive: bool = True) -> None:
        self.now = 0.0
        self._looks_left = taking if taking is not None else pdus
        self.to_provider_queue: queue.Queue[int] = queue.Queue()
        for n in range(pdus):
            self.to_provider_queue.put(n)
        self._alive = alive
        self.dul, self.dimse, self.msg_queue = self, self, self
        self.accepted_contexts: list[Any] = []

    def is_alive(self) -> bool:
        return self._alive

    def get(self, timeout: float) -> tuple[int, str]:
        self.now += 1.0
        if self._looks_left:
            self._looks_left -= 1
            self.to_provider_queue.get()
        elif self.to_provider_queue.empty():
            return 1, "reply"
        raise queue.Empty

    def clock(self) -> float:
        return self.now


def reply_on(line: Line) -> Any:
    return Requested(line, 10.0, line.clock)._reply()  # type: ignore[arg-type]


def test_a_large_object_over_a_slow_line_is_waited_for() -> None:
    line = Line(pdus=500)
    assert reply_on(line) == "reply"
    assert line.now > 500


def test_a_peer_that_takes_no_data_any_more_is_given_up_after_the_time_out() -> None:
    line = Line(pdus=500, taking=20)
    assert reply_on(line) is None
    assert 29 <= line.now <= 32


def test_an_association_that_ended_is_not_waited_for() -> None:
    line = Line(pdus=500, taking=0, alive=False)
    assert reply_on(line) is None
    assert line.now == 1.0
