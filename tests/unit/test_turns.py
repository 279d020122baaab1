"""What a role looks at beside its work is looked at until it is stopped, whatever a look meets."""

from __future__ import annotations

import logging
import threading

import pytest

from dicom_node.errors import StorageError
from dicom_node.turns import Turns


def test_a_turn_that_fails_is_told_and_the_next_one_comes(caplog: pytest.LogCaptureFixture) -> None:
    went_on, ended = threading.Event(), threading.Event()
    errors: list[Exception] = [StorageError("the disk is away"), ValueError("Kanarie")]

    def turn() -> None:
        if errors:
            raise errors.pop(0)
        went_on.set()

    turns = Turns("look", waits="looks wait", failed="looks failed")
    turns.add(turn, "looks", every_s=0.001, at_end=ended.set, pull="pacs")
    turns.start()
    assert went_on.wait(10)
    assert not ended.is_set()
    turns.stop(10)
    assert ended.is_set()
    told = [(r.levelno, r.message, r.__dict__["action"], r.__dict__["pull"]) for r in caplog.records]
    assert told == [(logging.WARNING, "looks wait", "look", "pacs"), (logging.ERROR, "looks failed", "look", "pacs")]
    assert "Kanarie" not in str([record.__dict__ for record in caplog.records])


@pytest.mark.parametrize("at_once", [True, False])
def test_the_first_turn_comes_at_once_or_after_a_pause_and_none_after_the_stop(at_once: bool) -> None:
    taken, first = [], threading.Event()

    def turn() -> None:
        taken.append(1)
        first.set()

    turns = Turns("look", waits="", failed="")
    turns.add(turn, "looks", every_s=3600, at_once=at_once)
    turns.start()
    assert first.wait(10 if at_once else 0.05) == at_once
    turns.stop(10)
    assert len(taken) == at_once


def test_a_stop_waits_for_all_turns_together_and_no_longer_than_it_may() -> None:
    held, begun = threading.Event(), threading.Semaphore(0)
    turns = Turns("look", waits="", failed="")
    for number in range(3):
        turns.add(lambda: (begun.release(), held.wait(10)), f"looks {number}", every_s=1)
    turns.start()
    for _ in range(3):
        assert begun.acquire(timeout=10)
    stopper = threading.Thread(target=turns.stop, args=(0.1,))
    stopper.start()
    stopper.join(5)
    assert not stopper.is_alive()
    held.set()
