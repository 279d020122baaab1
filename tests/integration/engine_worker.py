"""A worker process for the engine's tests: toy workflows that write what they do to a journal file.

Usage: engine_worker.py URL EXECUTOR JOURNAL; lines of the journal are "<executor> <event> <argument>".
Files beside the journal tell a step what to do: hold-<job> waits, fail-<job> raises, away-<job> finds no database;
grows-<series> makes `assemble` look again after the seconds it holds.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from dicom_node import engine
from dicom_node.engine import Engine, Run
from dicom_node.errors import DatabaseUnavailable


def main() -> None:
    url, executor, journal = sys.argv[1:4]

    def note(event: str, argument: str) -> None:
        with Path(journal).open("a") as file:
            file.write(f"{executor} {event} {argument}\n")

    def first(job: str) -> str:
        note("first", job)
        return job

    def second(job: str) -> str:
        note("second", job)
        gate = Path(journal).with_name(f"hold-{job}")
        if job.startswith("poison"):
            os.kill(os.getpid(), signal.SIGKILL)
        while gate.exists():
            time.sleep(0.02)
        if Path(journal).with_name(f"fail-{job}").exists():
            raise ValueError("told to fail by Canary^Secret")
        if Path(journal).with_name(f"away-{job}").exists():
            raise DatabaseUnavailable("the database does not answer: OperationalError")
        note("second-done", job)
        return job

    def analyse(run: Run, job: str) -> None:
        run.step("first", first, job)
        run.step("second", second, job)
        run.enqueue("deliver", f"deliver-{job}", job, "pacs", priority="routine", partition="pacs")

    def shadow(run: Run, job: str) -> None:
        run.step("second", second, job)

    def deliver(run: Run, job: str, destination: str) -> None:
        run.step("send", lambda: note("deliver", job))
        while Path(journal).with_name(f"down-{destination}").exists():
            run.sleep(0.3)
        if Path(journal).with_name(f"full-{destination}-{job}").exists():
            again = f"deliver-{job}:again"
            run.enqueue(
                "deliver", again, f"{job}:again", destination, priority="high", partition=destination, delay_s=3
            )

    def look(series: str) -> float:
        note("assemble", series)
        while Path(journal).with_name(f"hold-{series}").exists():
            time.sleep(0.02)
        grows = Path(journal).with_name(f"grows-{series}")
        return float(grows.read_text()) if grows.exists() else 0.0

    def assemble(run: Run, series: str) -> None:
        if more_s := run.step("assemble", look, series):
            run.bounce("assemble", series, more_s, series, longest_s=60)

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    worker = Engine(
        url,
        executor,
        {"analyse": analyse, "shadow": shadow, "deliver": deliver, "assemble": assemble},
        ["analyse", "deliver", "assemble"],
        name_wait_s=float(os.environ.get("NAME_WAIT_S", "30")),
    )
    worker.on_poison(lambda workflow_id, _name: note("poison", workflow_id))
    engine.migrate(url)
    note("starts", "-")
    worker.start()
    note("ready", "-")
    stop.wait()
    worker.stop(float(os.environ.get("DRAIN_S", "5")))
    note("stopped", "-")
    os._exit(0)


if __name__ == "__main__":
    main()
