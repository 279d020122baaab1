"""Growth of series is told to the engine seldom, and never lost."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from dicom_node.dimse.announce import Announcer


class Engine:
    """Records bounces; fails as often as told."""

    def __init__(self) -> None:
        self.bounced: list[tuple[str, float]] = []
        self.failures = 0
        self.called = threading.Event()

    def bounce(self, series_uid: str, quiet_time_s: float) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the engine's database is away")
        self.bounced.append((series_uid, quiet_time_s))
        self.called.set()


class Looking(Engine):
    """Notes the time of each look, too."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock, self.looks = clock, list[tuple[str, float]]()

    def look(self, series_uid: str) -> None:
        self.looks.append((series_uid, round(self._clock(), 3)))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def quiet_time_s(source_ae: str) -> float:
    return 5.0 if source_ae == "FAST" else 20.0


def near(seconds: float) -> Any:
    return pytest.approx(seconds, abs=0.05)


def made() -> tuple[Announcer, Engine, Clock]:
    engine, clock = Engine(), Clock()
    return Announcer(engine.bounce, quiet_time_s, clock=clock), engine, clock


def test_an_association_of_four_hundred_slices_in_a_second_is_one_bounce() -> None:
    announcer, engine, clock = made()
    for _ in range(400):
        announcer.grew("1.2", "PACS")
        clock.now += 0.002
        announcer.step()
    announcer.ended(["1.2"], "PACS")
    announcer.step()
    assert engine.bounced == [("1.2", 20.0)]


def test_a_series_that_goes_on_growing_is_bounced_each_second() -> None:
    announcer, engine, clock = made()
    for _ in range(1000):
        announcer.grew("1.2", "PACS")
        clock.now += 0.01
        announcer.step()
    assert 8 <= len(engine.bounced) <= 10


def test_the_end_of_the_association_is_bounced_at_once_with_its_source_s_quiet_time() -> None:
    announcer, engine, _ = made()
    announcer.grew("1.2", "FAST")
    announcer.ended(["1.2", "1.3"], "FAST")
    announcer.step()
    assert engine.bounced == [("1.2", 5.0), ("1.3", 5.0)]


def test_a_bounce_that_fails_is_tried_again_until_it_succeeds() -> None:
    announcer, engine, clock = made()
    engine.failures = 3
    announcer.ended(["1.2"], "PACS")
    for _ in range(20):
        announcer.step()
        clock.now += 1.0
    assert engine.bounced == [("1.2", 20.0)]


def test_growth_during_a_bounce_is_announced_again() -> None:
    engine, clock = Engine(), Clock()

    def bounce(series_uid: str, quiet_time_s: float) -> None:
        engine.bounce(series_uid, quiet_time_s)
        if len(engine.bounced) == 1:
            announcer.grew(series_uid, "PACS")

    announcer = Announcer(bounce, quiet_time_s, clock=clock)
    announcer.ended(["1.2"], "PACS")
    announcer.step()
    clock.now += 1.0
    announcer.step()
    assert len(engine.bounced) == 2


def test_flush_bounces_what_is_not_due_yet() -> None:
    announcer, engine, _ = made()
    announcer.grew("1.2", "PACS")
    announcer.flush()
    assert engine.bounced == [("1.2", 20.0)]


# -- early looks ---------------------------------------------------------------------------------------


def looking(proven_quiet_time_s: float = 1.0) -> tuple[Announcer, Looking, Clock]:
    clock = Clock()
    engine = Looking(clock)
    announcer = Announcer(
        engine.bounce, quiet_time_s, look=engine.look, proven_quiet_time_s=proven_quiet_time_s, clock=clock
    )
    return announcer, engine, clock


def pass_time(announcer: Announcer, clock: Clock, seconds: float) -> None:
    until = clock.now + seconds
    while clock.now < until:
        clock.now += 0.01
        announcer.step()


def test_a_pause_after_the_association_brings_a_look_at_once() -> None:
    announcer, engine, clock = looking()
    announcer.grew("1.2", "PACS")
    announcer.ended(["1.2"], "PACS")
    pass_time(announcer, clock, 30)
    [(series_uid, at)] = engine.looks
    assert (series_uid, at) == ("1.2", near(100.3))


def test_a_longer_proven_quiet_time_puts_the_look_off() -> None:
    announcer, engine, clock = looking(proven_quiet_time_s=4)
    announcer.ended(["1.2"], "PACS")
    pass_time(announcer, clock, 30)
    assert engine.looks == [("1.2", near(103))]


def test_a_series_that_grows_is_not_looked_at() -> None:
    announcer, engine, clock = looking()
    for _ in range(100):
        announcer.grew("1.2", "PACS")
        pass_time(announcer, clock, 0.1)
    assert engine.looks == []


def test_a_sender_that_pauses_between_images_is_soon_given_more_time() -> None:
    """An Association an image, one each half second: not 100 looks, each of which reads more headers."""
    announcer, engine, clock = looking()
    for _ in range(100):
        announcer.grew("1.2", "PACS")
        announcer.ended(["1.2"], "PACS")
        pass_time(announcer, clock, 0.5)
    assert len(engine.looks) == 1
    last = clock.now - 0.5
    pass_time(announcer, clock, 30)
    assert engine.looks[1:] == [("1.2", near(last + 0.6))]


def test_a_series_that_grows_after_its_quiet_time_begins_anew() -> None:
    announcer, engine, clock = looking()
    for _ in range(3):
        announcer.ended(["1.2"], "FAST")
        pass_time(announcer, clock, 6)
        announcer.ended(["1.3"], "FAST")
    first, second, third = (at for uid, at in engine.looks if uid == "1.2")
    assert (second - first, third - second) == (near(6), near(6))


def test_a_look_that_fails_leaves_the_bounce() -> None:
    clock = Clock()
    engine = Engine()

    def look(_series_uid: str) -> None:
        raise ConnectionError("the engine's database is away")

    announcer = Announcer(engine.bounce, quiet_time_s, look=look, clock=clock)
    announcer.ended(["1.2"], "PACS")
    pass_time(announcer, clock, 30)
    assert engine.bounced == [("1.2", 20.0)]


def test_its_thread_bounces_without_being_driven() -> None:
    engine = Engine()
    announcer = Announcer(engine.bounce, quiet_time_s)
    announcer.start()
    announcer.ended(["1.2"], "PACS")
    assert engine.called.wait(10)
    announcer.close()
    assert engine.bounced == [("1.2", 20.0)]


def test_close_bounces_what_waits() -> None:
    engine = Engine()
    announcer = Announcer(engine.bounce, quiet_time_s, interval_s=3600)
    announcer.start()
    announcer.grew("1.2", "PACS")
    announcer.close()
    assert engine.bounced == [("1.2", 20.0)]
