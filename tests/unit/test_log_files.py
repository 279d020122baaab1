"""Log lines about a series as files: who writes them never waits or fails, who reads them gets a bounded list."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dicom_node import logs
from dicom_node.log_files import LineFiles, folder_of
from dicom_node.log_lines import Lines, lines_of_job

UID = "1.2.840.113619.2.55.3.604688119"
JOB = f"{UID}-0123456789abcdef"
Make = Callable[..., LineFiles]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "node"
    folder.mkdir()
    return folder


@pytest.fixture
def make(root: Path) -> Iterator[Make]:
    made: list[LineFiles] = []

    def build(role: str = "work", **options: Any) -> LineFiles:
        handler = LineFiles(root, role, **{"gather_s": 0.0, "host": "ct1", "process": 7, **options})
        handler.addFilter(logs.name_series)
        made.append(handler)
        return handler

    yield build
    for handler in made:
        handler.close()


def say(handler: LineFiles, message: str = "done", level: str = "INFO", at: float | None = None, **values: Any) -> None:
    record = logging.LogRecord("dicom_node.x", getattr(logging, level), "", 0, message, None, None)
    if at is not None:
        record.created = at
    record.__dict__.update(values)
    handler.handle(record)


def messages(lines: Lines) -> list[str]:
    return [line.message for line in lines.lines]


def test_lines_of_all_roles_and_hosts_are_merged_by_time(root: Path, make: Make) -> None:
    receive, work, deliver = make("receive"), make("work", host="gpu1"), make("deliver", host="ct2.example")
    say(deliver, "sent", at=30.0, job=JOB, attempt=2)
    say(receive, "came", at=10.0, series=UID)
    say(work, "slow", "WARNING", at=20.5, workflow=f"{JOB}:1")
    with logs.about(JOB):
        say(work, "found", at=20.0)
    for handler in (receive, work, deliver):
        handler.flush()
    found = lines_of_job(root, JOB)
    assert messages(found) == ["came", "found", "slow", "sent"]
    assert [(line.role, line.host, line.process) for line in found.lines] == [
        ("receive", "ct1", 7),
        ("work", "gpu1", 7),
        ("work", "gpu1", 7),
        ("deliver", "ct2-example", 7),
    ]
    assert dict(found.lines[-1].values) == {"job": JOB, "attempt": "2"}
    assert found.roles == ("deliver", "receive", "work")
    assert messages(lines_of_job(root, JOB, level="warning")) == ["slow"]
    assert messages(lines_of_job(root, JOB, role="work")) == ["found", "slow"]
    last = lines_of_job(root, JOB, most=1)
    assert (messages(last), last.earlier) == (["sent"], 3)


def test_lines_about_another_job_of_the_series_are_left_out(root: Path, make: Make) -> None:
    handler = make()
    other = f"{UID}-ffffffffffffffff"
    say(handler, "this", job=JOB)
    say(handler, "that", workflow=f"{other}:pacs")
    say(handler, "both", series=UID)
    handler.flush()
    assert messages(lines_of_job(root, JOB)) == ["this", "both"]
    assert messages(lines_of_job(root, other)) == ["that", "both"]


def test_lines_about_no_series_and_those_of_its_purge_make_no_file(root: Path, make: Make) -> None:
    handler = make()
    say(handler, "ready")
    say(handler, "series deleted", series=UID, action="purge")
    say(handler, "too long", series="1." + "2" * 70)
    handler.flush()
    assert list(root.iterdir()) == []


def test_files_are_not_for_everybody(root: Path, make: Make) -> None:
    handler = make()
    say(handler, series=UID)
    handler.flush()
    [path] = folder_of(root, UID).iterdir()
    assert path.name == "ct1.work.7.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) & 0o027 == 0
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o027 == 0


def test_an_exception_is_told_without_its_text(root: Path, make: Make) -> None:
    handler = make()
    try:
        raise ValueError("Canary^Secret")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", None, sys.exc_info())
    record.__dict__["series"] = UID
    handler.handle(record)
    handler.flush()
    [line] = lines_of_job(root, JOB).lines
    assert line.error is not None
    assert line.error.startswith("ValueError at tests.unit.test_log_files:")
    assert "Canary" not in folder_of(root, UID).joinpath("ct1.work.7.jsonl").read_text()


def test_of_many_lines_the_last_stay_within_two_files_of_the_bound(root: Path, make: Make) -> None:
    handler = make(most_bytes=20_000)
    for number in range(2000):
        say(handler, f"line {number}", series=UID, text="x" * 100)
        if number % 50 == 0:
            handler.flush()
    handler.flush()
    files = sorted(folder_of(root, UID).iterdir())
    assert [path.name for path in files] == ["ct1.work.7.jsonl", "ct1.work.7.jsonl.1"]
    assert all(path.stat().st_size <= 20_000 for path in files)
    found = messages(lines_of_job(root, JOB))
    assert found[-1] == "line 1999"
    assert 100 < len(found) < 2000


def test_a_long_line_is_cut(root: Path, make: Make) -> None:
    handler = make()
    say(handler, "m" * 10_000, series=UID, **{f"v{number}": "y" * 10_000 for number in range(40)})
    handler.flush()
    [path] = folder_of(root, UID).iterdir()
    assert path.stat().st_size <= 4096
    assert len(lines_of_job(root, JOB).lines) == 1


def test_a_storage_root_that_is_away_fails_nobody_and_what_was_lost_is_told_later(root: Path, make: Make) -> None:
    handler = make()
    away = root.rename(root.with_name("elsewhere"))
    for number in range(3):
        say(handler, f"lost {number}", series=UID)
    handler.flush()
    assert not root.exists(), "nothing is made in its place"
    away.rename(root)
    say(handler, "kept", series=UID)
    handler.flush()
    told, kept = lines_of_job(root, JOB).lines
    assert (told.level, told.values["lines"], kept.message) == ("warning", "3", "kept")


def test_a_full_disk_leaves_no_half_line(root: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    handler, write = make(), os.write
    say(handler, "before", series=UID)
    handler.flush()
    with monkeypatch.context() as full:
        full.setattr("dicom_node.log_files.os.write", lambda fd, data: write(fd, data[:10]))
        say(handler, "no room", series=UID)
        handler.flush()
    say(handler, "after", series=UID)
    handler.flush()
    assert [m for m in messages(lines_of_job(root, JOB)) if not m.startswith("lines")] == ["before", "after"]
    [path] = folder_of(root, UID).iterdir()
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_who_logs_does_not_wait_for_a_disk_that_hangs(root: Path, make: Make) -> None:
    # A FIFO without a reader: to open it for writing waits, as a file of a server that is away does.
    handler = make(most_waiting=5)
    folder_of(root, UID).mkdir(parents=True)
    fifo = folder_of(root, UID) / "ct1.work.7.jsonl"
    os.mkfifo(fifo)
    for number in range(100):
        say(handler, f"line {number}", series=UID)
    reader = os.open(fifo, os.O_RDONLY)
    handler.flush()
    said = [json.loads(line) for line in os.read(reader, 1 << 20).splitlines()]
    os.close(reader)
    assert 5 <= len(said) <= 12
    assert sum(event["values"].get("lines", 1) for event in said) <= 100


def test_a_torn_line_and_foreign_files_are_passed_over(root: Path, make: Make) -> None:
    handler = make()
    say(handler, "whole", series=UID)
    handler.flush()
    folder = folder_of(root, UID)
    with (folder / "ct1.work.7.jsonl").open("ab") as file:
        file.write(b'{"at": 1, "level": "info", "mess')
    (folder / "ct1.work.8.jsonl").write_bytes(
        b'\0\0\0\n[1]\n{"at": null}\n{"at":1,"level":3,"message":"","values":[]}\n'
    )
    (folder / "notes.txt").write_text('{"at": 1, "level": "info", "message": "foreign", "values": {}}\n')
    assert messages(lines_of_job(root, JOB)) == ["whole"]


def test_what_would_move_a_terminals_cursor_is_a_question_mark(root: Path, make: Make) -> None:
    handler = make()
    say(handler, "said \x1b[2J", series=UID, peer="A\nB")
    handler.flush()
    [line] = lines_of_job(root, JOB).lines
    assert (line.message, line.values["peer"]) == ("said ?[2J", "A?B")


def test_a_job_without_lines_has_none(root: Path) -> None:
    assert lines_of_job(root, JOB) == Lines(lines=(), earlier=0, roles=())


def test_a_process_that_ends_has_written_its_last_line(root: Path) -> None:
    code = (
        "import logging, os, sys\nfrom pathlib import Path\nfrom dicom_node import logs\n"
        "from dicom_node.log_files import LineFiles\n"
        f"logs.configure('info', 'text', 'work', LineFiles(Path(sys.argv[1]), 'work'))\n"
        f"logging.getLogger('x').info('last words', extra={{'series': '{UID}'}})\n"
        "logging.getLogger('x').debug('too low', extra={'series': '1.2'})\n"
        "logging.shutdown()\nos._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    assert messages(lines_of_job(root, JOB)) == ["last words"]
    assert f"series={logs.series_id(UID)}" in done.stderr
    assert "_about" not in done.stderr
