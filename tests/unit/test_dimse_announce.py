"""Growth of series is told to the engine seldom, and never lost."""

from __future__ import annotations

import threading

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


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def quiet_time_s(source_ae: str) -> float:
    return 5.0 if source_ae == "FAST" else 20.0


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
