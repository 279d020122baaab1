"""The command line: what it prints, and its exit code: 0, 1 (it failed, and why) or 2 (called wrongly)."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from pydicom.data import get_testdata_file

import dicom_node
from dicom_node import cli, engine
from dicom_node.alert_rows import Problem
from dicom_node.audit.trail import Trail
from dicom_node.config import load_config
from dicom_node.db import Database, ReceivedInstance, ResultObject
from dicom_node.engine import EngineClient
from dicom_node.errors import DicomNodeError
from dicom_node.metrics.files import merged
from dicom_node.storage import Storage
from tests.dashboard import say
from tests.fakes.ct import make_ct_series
from tests.fakes.instances import fake_instance
from tests.fakes.web import Asked, Said, serving
from tests.peers import free_port
from tests.unit.test_flow import FakeDetector

TINY_CHEST = Path(__file__).parents[1] / "data" / "tiny_chest_64"
SERIES, STUDY = "1.2.3", "1.2"
JOB = f"{SERIES}-0123456789abcdef"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ended]]:
    """`run("jobs", "list")`: the command in this process, as its entry point runs it."""
    root = logging.getLogger()
    before = root.level, root.handlers[:]

    def call(*args: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["dicom-node", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return Ended(code=int(caught.value.code or 0), out=said.out, err=said.err)

    yield call
    logging.captureWarnings(False)
    root.setLevel(before[0])
    root.handlers[:] = before[1]


@pytest.fixture(scope="session")
def empty_databases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both databases of a node that has done nothing yet."""
    folder = tmp_path_factory.mktemp("empty")
    url = f"sqlite:///{folder / 'node.sqlite'}"
    database = Database(url)
    database.migrate()
    database.close()
    engine.migrate(url)
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedNode:
    """A node's settings and state. `config` is what --config takes."""

    config: Path
    storage: Storage
    database: Database
    client: EngineClient

    def job(self, job_id: str = JOB, state: Any = "queued", **more: Any) -> None:
        values: dict[str, Any] = {
            "series_uid": job_id.partition("-")[0],
            "study_uid": STUDY,
            "manifest_sha256": "ab" * 32,
            "instance_count": 1,
            "source_ae": "CT1",
            "priority": "routine",
            "route": "chest",
            "evidence": {"rung": "archive", "partial": False, "text": "1 of 1 instances by ORTHANC", "instances": 1},
            "explanation": ["chest: matches"],
        }
        self.database.create_job(job_id, state=state, **{**values, **more})

    def complete(self) -> None:
        """A series, its analysed job with one finding and one report to deliver."""
        stored = self.storage.write_instance(STUDY, SERIES, "1.2.3.4", b"pixels")
        instance = ReceivedInstance(
            sop_instance_uid="1.2.3.4",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            study_uid=STUDY,
            series_uid=SERIES,
            path=stored.path,
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
        )
        self.database.record_instance(instance, source_ae="CT1", source_ip="192.0.2.1")
        seen = self.database.series(SERIES)
        assert seen is not None
        self.database.series_assembled(SERIES, "ab", seen["last_at"])
        self.job()
        self.database.start_job(JOB, "w1")
        report = self.storage.write_result(JOB, "sr.dcm", b"report")
        made = ResultObject(
            sop_instance_uid="2.25.1",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
            kind="sr",
            path=report.path,
            sha256=report.sha256,
            size_bytes=report.size_bytes,
            destinations=frozenset({"pacs"}),
        )
        found = {"number": 1, "center_mm": [1.0, 2.0, 3.0], "side": "left", "long_axis_mm": 8.25, "score": 0.91}
        found |= {"short_axis_mm": 6.0, "volume_mm3": 200.0, "mean_hu": -20.0}
        self.database.finish_job(JOB, state="complete", objects=[made], findings=[found], timings_s={"read": 1.0})

    def move(self, state: str) -> None:
        self.database.move_delivery("2.25.1", "pacs", ("waiting", "parked"), state, status=0xA700, message="full")

    def state(self, job_id: str = JOB) -> str:
        row = self.database.job(job_id)
        assert row is not None
        return str(row["state"])


@pytest.fixture
def node(tmp_path: Path, empty_databases: Path) -> Iterator[PreparedNode]:
    root = tmp_path / "node"
    shutil.copytree(empty_databases, root)
    settings = {
        "storage": {"root": str(root), "min_free_gb": 0},
        "gate": {"min_slices": 2},
        "peers": {"pacs": {"ae_title": "PACS", "host": "127.0.0.1", "port": 104}},
        "models": {"nodules": {"bundle": "builtin:lung_nodule_small"}},
        "routes": [
            {"name": "heads", "model": "nodules", "when": {"BodyPartExamined": {"equals": "HEAD"}}},
            {"name": "chest", "model": "nodules", "when": {"Modality": {"equals": "CT"}}, "destinations": ["pacs"]},
        ],
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    url = f"sqlite:///{root / 'node.sqlite'}"
    made = PreparedNode(config=config, storage=Storage(root), database=Database(url), client=EngineClient(url))
    yield made
    made.client.close()
    made.database.close()


# -- help ----------------------------------------------------------------------------------------------


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from _commands(inner, (*path, name))


COMMANDS = dict(_commands(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_that_it_accepts(
    path: tuple[str, ...], run: Callable[..., Ended]
) -> None:
    ended = run(*path, "--help")
    assert ended.code == 0
    [example] = [line.strip() for line in ended.out.splitlines() if line.strip().startswith("Example: ")]
    words = shlex.split(example.removeprefix("Example: "))
    assert words[: len(path) + 1] == ["dicom-node", *path]
    # Raises what the command line would refuse.
    COMMANDS[path].make_context(" ".join(path), words[len(path) + 1 :])


def test_the_version_is_printed() -> None:
    done = subprocess.run([sys.executable, "-m", "dicom_node", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, dicom_node.__version__, "")


def test_the_command_line_itself_loads_neither_dicom_nor_databases() -> None:
    """A role's start and every look at a job wait for it."""
    heavy = ("pydicom", "highdicom", "sqlalchemy", "dbos", "torch", "fastapi", "requests")
    code = f"import sys, dicom_node.cli; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["jobs", "nonsense"],
        ["jobs", "show"],
        ["purge", "--older-than-days", "-1"],
        ["alert"],
        ["infer"],
        ["route", "--no-such-option", "x"],
    ],
)
def test_a_wrong_call_ends_with_code_2(args: list[str], run: Callable[..., Ended]) -> None:
    ended = run(*args)
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err


@pytest.mark.parametrize("command", [["check"], ["jobs", "list"], ["serve"], ["route", "."], ["receive"]])
def test_missing_settings_end_with_code_2_and_what_to_do(
    command: list[str], run: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = run(*command, "--config", tmp_path / "none.yaml")
    assert ended.code == 2
    assert "no such file; give --config FILE" in ended.err


# -- jobs ----------------------------------------------------------------------------------------------


def test_no_jobs_are_an_empty_list(node: PreparedNode, run: Callable[..., Ended]) -> None:
    assert run("jobs", "list", "-c", node.config, "--json").json == []
    assert run("jobs", "list", "-c", node.config).code == 0


def test_jobs_are_listed_newest_first_and_by_state(node: PreparedNode, run: Callable[..., Ended]) -> None:
    node.job("1.2.3-a")
    node.job("1.2.4-b")
    node.database.fail_job("1.2.3-a", "why")
    assert [row["job_id"] for row in run("jobs", "list", "-c", node.config, "--json").json] == ["1.2.4-b", "1.2.3-a"]
    listed = run("jobs", "list", "-c", node.config, "--state", "failed", "--json")
    assert [row["job_id"] for row in listed.json] == ["1.2.3-a"]
    assert len(run("jobs", "list", "-c", node.config, "--limit", "1", "--json").json) == 1
    table = run("jobs", "list", "-c", node.config).out
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["b", "a"], "short ids"
    assert run("jobs", "show", "2.3-a", "-c", node.config, "--json").json["job_id"] == "1.2.3-a"
    assert "more than one job" in run("jobs", "show", "1.2", "-c", node.config).err
    assert "FAILED" in table


def test_an_unknown_state_is_a_wrong_call(node: PreparedNode, run: Callable[..., Ended]) -> None:
    ended = run("jobs", "list", "-c", node.config, "--state", "lost")
    assert ended.code == 2
    assert "none of queued, running" in ended.err


def test_a_job_is_shown_with_all_that_is_known(node: PreparedNode, run: Callable[..., Ended]) -> None:
    node.complete()
    shown = run("jobs", "show", JOB, "-c", node.config, "--json").json
    assert (shown["status"], shown["reason"], shown["route"]) == ("complete", None, "chest")
    assert shown["findings"][0]["score"] == 0.91
    assert [Path(path).name for path in shown["files"]] == ["sr.dcm"]
    assert shown["deliveries"][0]["state"] == "waiting"
    assert [event["action"] for event in shown["events"]] == ["job queued", "job running", "job complete"]
    assert shown["notice"] == "Research use, not for diagnosis"
    assert (shown["evidence"]["rung"], shown["evidence"]["partial"]) == ("archive", False)
    text = run("jobs", "show", JOB, "-c", node.config).out
    assert "evidence (archive): 1 of 1 instances by ORTHANC" in text
    for part in ("8.2 x 6.0", "0.91", "sr to pacs: waiting, 0 attempts", "job complete", "Research use"):
        assert part in text


def test_the_log_lines_of_a_job_are_shown_one_a_line(node: PreparedNode, run: Callable[..., Ended]) -> None:
    node.complete()
    assert "no role has said anything" in run("jobs", "show", JOB, "-c", node.config, "--log").out
    say(node.storage, JOB, "deliver", [(0.0, "WARNING", "object waiting", {"why": "long " * 40})], at=1.25)
    say(node.storage, JOB, "work", [(0.5, "INFO", "job complete", {"objects": 2})], at=1.0)
    shown = run("jobs", "show", JOB, "-c", node.config, "--log").out.splitlines()
    assert [line.split(" ", 2)[2][:38] for line in shown] == [
        f"warning deliver ct-node object waiting job={JOB}"[:38],
        "info work ct-node job complete job=1.2.3"[:38],
    ]
    assert [line["at"] for line in run("jobs", "show", JOB, "-c", node.config, "--log", "--json").json] == [1.25, 1.5]


@pytest.mark.parametrize("command", [["list"], ["show", JOB], ["retry", JOB], ["cancel", JOB]])
def test_no_node_is_made_where_there_is_none(run: Callable[..., Ended], tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "config.yaml").write_text("storage: {root: typo}")
    ended = run("jobs", *command, "-c", tmp_path / "config.yaml")
    assert ended.code == 2
    assert f"storage.root {tmp_path / 'typo'} is not there" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("command", ["show", "retry", "cancel"])
def test_an_unknown_job_is_an_error_that_says_where_to_look(
    node: PreparedNode, run: Callable[..., Ended], command: str
) -> None:
    ended = run("jobs", command, "1.2-none", "-c", node.config)
    assert (ended.code, ended.out) == (1, "")
    assert "no job 1.2-none; dicom-node jobs list" in ended.err


def test_a_failed_job_is_queued_again(node: PreparedNode, run: Callable[..., Ended]) -> None:
    node.job()
    node.database.fail_job(JOB, "why")
    ended = run("jobs", "retry", JOB, "-c", node.config)
    assert (ended.code, ended.out.strip(), node.state()) == (0, "queued for analysis", "queued")
    state = node.client.state(JOB)
    assert state is not None
    assert (state.name, state.status) == ("analyse", "ENQUEUED")
    # Again: it is queued already, and stays so.
    assert run("jobs", "retry", JOB, "-c", node.config).code == 0


def test_a_parked_object_is_sent_again(node: PreparedNode, run: Callable[..., Ended]) -> None:
    node.complete()
    node.move("parked")
    assert run("jobs", "retry", JOB, "-c", node.config).out.strip() == "queued for delivery to pacs"
    assert node.database.deliveries(JOB)[0]["state"] == "waiting"
    state = node.client.state(f"{JOB}:pacs")
    assert state is not None
    assert state.status == "ENQUEUED"


@pytest.mark.parametrize(
    ("ready", "said"), [("running", "is running; nothing to retry"), ("done", "is complete and all its objects are")]
)
def test_what_needs_no_retry_says_so(node: PreparedNode, run: Callable[..., Ended], ready: str, said: str) -> None:
    if ready == "running":
        node.job()
        node.client.enqueue("analyse", JOB, JOB, priority="routine")
        node.database.start_job(JOB, "w1")
    else:
        node.complete()
        node.move("stored")
    ended = run("jobs", "retry", JOB, "-c", node.config)
    assert ended.code == 1
    assert said in ended.err


def test_a_queued_job_is_cancelled_and_comes_back_by_a_retry(node: PreparedNode, run: Callable[..., Ended]) -> None:
    node.job()
    node.client.enqueue("analyse", JOB, JOB, priority="routine")
    assert run("jobs", "cancel", JOB, "-c", node.config).out.strip() == "cancelled"
    state = node.client.state(JOB)
    assert state is not None
    assert (node.state(), state.status) == ("cancelled", "CANCELLED")
    counted = [sample for metric in merged(load_config(node.config).metrics_folder()) for sample in metric.samples]
    assert {"outcome": "cancelled", "reason": ""} in [sample.labels for sample in counted], "as what roles do"
    assert run("jobs", "retry", JOB, "-c", node.config).code == 0
    state = node.client.state(JOB)
    assert state is not None
    assert (node.state(), state.status) == ("queued", "ENQUEUED")


def test_another_user_than_the_service_leaves_no_counts_that_the_roles_could_not_read(
    node: PreparedNode, run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    node.job()
    node.client.enqueue("analyse", JOB, JOB, priority="routine")
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    assert run("jobs", "cancel", JOB, "-c", node.config).out.strip() == "cancelled"
    assert not load_config(node.config).metrics_folder().exists()


def test_unsent_objects_of_a_complete_job_are_cancelled_once(node: PreparedNode, run: Callable[..., Ended]) -> None:
    node.complete()
    assert run("jobs", "cancel", JOB, "-c", node.config).out.strip() == "1 unsent objects cancelled"
    ended = run("jobs", "cancel", JOB, "-c", node.config)
    assert ended.code == 1
    assert "nothing left to cancel" in ended.err


# -- purge ---------------------------------------------------------------------------------------------


def test_a_purge_says_what_would_go_then_removes_it(node: PreparedNode, run: Callable[..., Ended]) -> None:
    node.complete()
    node.client.enqueue("analyse", JOB, JOB, priority="routine")
    node.client.cancel(JOB)
    node.move("stored")
    files = [node.storage.path(f"incoming/{STUDY}/{SERIES}/1.2.3.4.dcm"), node.storage.path(f"results/{JOB}/sr.dcm")]
    wanted = {"series": 1, "jobs": 1, "bytes": 12}
    dry = run("purge", "--older-than-days", "0", "--dry-run", "-c", node.config, "--json")
    assert dry.json == {**wanted, "dry_run": True, "held": [], "states": {"stored": 1}}
    assert all(path.exists() for path in files)
    told = run("purge", "--older-than-days", "0", "-c", node.config, "--json").json
    assert told == {**wanted, "dry_run": False, "states": {"stored": 1}}
    assert not any(path.exists() or path.parent.exists() for path in files)
    assert (node.database.series(SERIES), node.database.job(JOB)) == (None, None)
    # The same series may come again: its job's id is free.
    assert node.client.state(JOB) is None
    assert run("purge", "--older-than-days", "0", "-c", node.config).out.startswith("removed 0 series, 0 jobs")


def test_a_purge_says_what_it_holds_back_and_why(node: PreparedNode, run: Callable[..., Ended]) -> None:
    settings = yaml.safe_load(node.config.read_text())
    settings["peers"]["pacs"]["may_commit"] = True
    node.config.write_text(yaml.safe_dump(settings))
    node.complete()
    node.move("stored")
    dry = run("purge", "--older-than-days", "0", "--dry-run", "-c", node.config, "--json").json
    assert dry["series"] == 0
    assert dry["held"] == [{"series_instance_uid": SERIES, "why": {"stored, not committed at pacs": 1}}]
    text = run("purge", "--older-than-days", "0", "--dry-run", "-c", node.config).out
    assert f"held back: series {SERIES}: stored, not committed at pacs (1)" in text
    assert run("purge", "--older-than-days", "0", "-c", node.config, "--json").json["series"] == 0
    settings["retention"] = {"uncommitted_after_days": 0}
    node.config.write_text(yaml.safe_dump(settings))
    assert run("purge", "--older-than-days", "0", "-c", node.config, "--json").json["series"] == 1


def test_a_route_or_peer_that_is_not_there_is_told_with_those_that_are(
    node: PreparedNode, run: Callable[..., Ended]
) -> None:
    settings = yaml.safe_load(node.config.read_text())
    settings["peers"]["pacs"] |= {"may_be_queried": True, "may_send": True}
    node.config.write_text(yaml.safe_dump(settings))
    ended = run("pull", "--from", "pacs", "--study", "1.2", "--route", "chst", "-c", node.config)
    assert (ended.code, "no route 'chst'" in ended.err, "did you mean 'chest'?" in ended.err) == (2, True, True)
    ended = run("echo", "zzz", "-c", node.config)
    assert (ended.code, ended.err.count("known: pacs")) == (2, 1)


def test_peers_tells_whether_a_service_without_a_port_answers(node: PreparedNode, run: Callable[..., Ended]) -> None:
    with serving(lambda _: Said(204)) as url:
        settings = yaml.safe_load(node.config.read_text())
        web = {"ae_title": "WEB", "host": "127.0.0.1", "deliver_by": "stow_rs", "dicomweb": {"url": url}}
        settings["peers"] = {"web": web, "silent": {"ae_title": "CT", "host": "127.0.0.1", "may_send": True}}
        settings["routes"] = []
        node.config.write_text(yaml.safe_dump(settings))
        rows = run("peers", "-c", node.config, "--json").json
    assert {row["name"]: row["answers"] for row in rows} == {"web": True, "silent": None}


def test_how_far_the_objects_of_a_job_are_is_listed_and_shown(node: PreparedNode, run: Callable[..., Ended]) -> None:
    node.complete()
    node.move("stored")
    assert run("jobs", "list", "-c", node.config, "--json").json[0]["objects"] == {"stored": 1}
    node.database.begin_commitment("2.25.9", "pacs", ["2.25.1"], next_s=60.0)
    node.database.commitment_refused("2.25.9", "PACS refused Storage Commitment", taken=False, next_s=60.0)
    shown = run("jobs", "show", JOB, "-c", node.config).out
    assert "Storage Commitment asked of pacs" in shown
    assert "refused (PACS refused Storage Commitment)" in shown
    reasons = {("1.2.840.10008.5.1.4.1.1.88.34", "2.25.1"): 0}
    node.database.settle_commitment("2.25.9", ["pacs"], reasons)
    assert "1 committed" in run("jobs", "list", "-c", node.config).out
    assert "sr to pacs: committed" in run("jobs", "show", JOB, "-c", node.config).out


def test_a_purge_keeps_what_is_recent_or_undelivered(node: PreparedNode, run: Callable[..., Ended]) -> None:
    node.complete()
    assert run("purge", "--older-than-days", "0", "-c", node.config, "--json").json["series"] == 0
    node.move("stored")
    assert run("purge", "--older-than-days", "1", "-c", node.config, "--json").json["series"] == 0
    assert node.database.job(JOB) is not None


def test_a_purge_without_an_age_goes_by_the_settings_and_with_a_state_by_that_alone(
    node: PreparedNode, run: Callable[..., Ended]
) -> None:
    node.complete()
    assert run("purge", "-c", node.config, "--json").json["series"] == 0
    settings = yaml.safe_load(node.config.read_text())
    settings["retention"] = {"undelivered_after_days": 0, "failed_after_days": 0}
    node.config.write_text(yaml.safe_dump(settings))
    assert run("purge", "--state", "failed", "-c", node.config, "--json").json["series"] == 0
    dry = run("purge", "--dry-run", "-c", node.config).out
    assert "would remove 1 series, 1 jobs, 0.0 MB: 1 undelivered" in dry
    assert run("purge", "--older-than-days", "0", "-c", node.config, "--json").json["series"] == 0
    told = run("purge", "--older-than-days", "0", "--state", "undelivered", "-c", node.config, "--json").json
    assert told["states"] == {"undelivered": 1}
    ended = run("purge", "--state", "delivered", "-c", node.config)
    assert (ended.code, "--state delivered is none of undelivered, parked" in ended.err) == (2, True)


# -- alerts --------------------------------------------------------------------------------------------


def test_a_test_alert_goes_through_each_channel_and_says_what_became_of_it(
    node: PreparedNode, run: Callable[..., Ended]
) -> None:
    ended = run("alert", "test", "-c", node.config)
    assert (ended.code, "has neither email nor webhook" in ended.err) == (2, True)
    got: list[Asked] = []
    with serving(lambda asked: (got.append(asked), Said(200))[1]) as url:
        settings = yaml.safe_load(node.config.read_text())
        mail = {"host": "127.0.0.1", "port": free_port(), "from": "a@b.example", "to": ["c@d.example"], "timeout_s": 5}
        settings["alerts"] = {"email": mail, "webhook": {"url": url}}
        node.config.write_text(yaml.safe_dump(settings))
        ended = run("alert", "test", "-c", node.config, "--json")
    assert ended.code == 1
    email, webhook = ended.json
    assert (email["channel"], email["ok"]) == ("email", False)
    assert "no connection" in email["text"]
    assert webhook == {"channel": "webhook", "ok": True, "text": "HTTP 200"}
    assert json.loads(got[0].body)["kind"] == "test"


def test_alerts_are_listed_with_those_who_know(node: PreparedNode, run: Callable[..., Ended]) -> None:
    assert run("alert", "list", "-c", node.config).out == "no alerts\n"
    text = "pacs: nothing arrived for more than 30 min, though objects wait"
    node.database.alerts_seen([Problem(kind="destination_dead", subject="pacs", text=text)], over_after_s=0.0)
    assert "nobody" in run("alert", "list", "-c", node.config).out
    node.database.alerts_told("webhook", "destination_dead", raised=["pacs"], over=[])
    node.database.alert_failed("email", "destination_dead", "mail:587: no answer in time")
    [row] = (listed := run("alert", "list", "-c", node.config, "--json").json)["alerts"]
    assert (row["kind"], row["text"], row["told"]) == ("destination_dead", text, ["webhook"])
    assert listed["failing"][0]["error"] == "mail:587: no answer in time"
    assert "email does not take messages: mail:587: no answer in time" in run("alert", "list", "-c", node.config).out


# -- check, route --------------------------------------------------------------------------------------


def test_check_prints_settings_and_items_and_never_a_password(
    node: PreparedNode, run: Callable[..., Ended], tmp_path: Path
) -> None:
    given = {"receive": {"port": free_port()}, "peers": {}, "routes": [], "web": {"port": free_port()}}
    settings = yaml.safe_load(node.config.read_text()) | given
    node.config.write_text(yaml.safe_dump(settings))
    ended = run("check", "-c", node.config, "--json")
    assert ended.code == 1  # there are no routes
    assert {i["name"]: i["ok"] for i in ended.json["items"]} == {
        "storage": True,
        "storage file system": True,
        "database": True,
        "port": True,
        "device": True,
        "model nodules": True,
        "routes": False,
        "web": True,
        "web users": True,
    }
    assert ended.json["config"]["gate"]["min_slices"] == 2
    settings["database"] = {"url": "postgresql+psycopg://u:hunter2@127.0.0.1:1/d"}
    node.config.write_text(yaml.safe_dump(settings))
    for form in ([], ["--json"]):
        ended = run("check", "-c", node.config, *form)
        assert ended.code == 1
        assert "hunter2" not in ended.out + ended.err
        assert "u:***@127.0.0.1" in ended.out


def test_route_explains_why_a_real_series_is_not_analysed(node: PreparedNode, run: Callable[..., Ended]) -> None:
    [found] = run("route", TINY_CHEST, "-c", node.config, "--json").json
    assert (found["files"], found["slices"], found["route"]) == (79, None, "chest")
    assert found["reason"].startswith("TOO_THICK: ")
    assert found["decision"] == f"not analysed: {found['reason']}"
    assert found["explanation"][-1] == "chest: matches"
    assert found["explanation"][0].startswith("heads: BodyPartExamined is ")


def test_route_says_the_value_that_a_rule_is_to_be_written_for_and_neither_log_nor_rows_have_it(
    node: PreparedNode, run: Callable[..., Ended], tmp_path: Path
) -> None:
    make_ct_series(tmp_path / "ct", shape=(3, 64, 64), header={"BodyPartExamined": "OBERKOERPER"})
    for words in ((), ("--json",)):
        ended = run("route", tmp_path / "ct", "-c", node.config, *words)
        assert "heads: BodyPartExamined is OBERKOERPER, not HEAD" in ended.out
        assert "OBERKOERPER" not in ended.err
    kept = [path for path in node.config.parent.rglob("*") if path.is_file() and b"OBERKOERPER" in path.read_bytes()]
    assert [path for path in kept if not path.is_relative_to(tmp_path / "ct")] == []


def test_cases_for_a_place_that_takes_no_folder_are_refused_in_words(
    node: PreparedNode, run: Callable[..., Ended], tmp_path: Path
) -> None:
    (tmp_path / "taken").touch()
    ended = run("cases", "export", "--deidentify", "--out", tmp_path / "taken", "-c", node.config)
    assert (ended.code, ended.err.strip()) == (1, f"{tmp_path / 'taken'} cannot be written: File exists")


def test_an_export_of_cases_that_is_cut_off_is_in_the_audit_trail(
    node: PreparedNode, run: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: Any, **__: Any) -> None:
        raise DicomNodeError("cut off")

    monkeypatch.setattr("dicom_node.cases.export_cases", cut_off)
    assert run("cases", "export", "--identified", "--out", tmp_path / "cases", "-c", node.config).code == 1
    [told] = [entry.message for entry in Trail(load_config(node.config).audit_folder()).entries()]
    assert "cases export" in told
    assert str(tmp_path / "cases") in told


def test_route_tells_model_destinations_and_priority_of_what_passes(
    node: PreparedNode, run: Callable[..., Ended]
) -> None:
    settings = yaml.safe_load(node.config.read_text())
    settings["gate"] = {"max_slice_spacing_mm": 5, "max_slice_thickness_mm": 10}
    node.config.write_text(yaml.safe_dump(settings))
    text = run("route", TINY_CHEST, "-c", node.config).out
    assert "gate: passed, 79 slices" in text
    assert "-> model nodules, results to pacs, priority routine" in text
    settings["routes"] = []
    node.config.write_text(yaml.safe_dump(settings))
    assert run("route", TINY_CHEST, "-c", node.config, "--json").json[0]["decision"] == "not analysed: no route matches"


@pytest.mark.parametrize("make", [lambda _p: None, lambda p: p.mkdir(), lambda p: p.touch()])
def test_a_folder_without_dicom_is_a_wrong_call(
    node: PreparedNode, run: Callable[..., Ended], tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "x")
    ended = run("route", tmp_path / "x", "-c", node.config)
    assert ended.code == 2
    assert str(tmp_path / "x") in ended.err


def test_a_dicomdir_beside_the_images_is_no_series_of_its_own(
    node: PreparedNode, run: Callable[..., Ended], tmp_path: Path
) -> None:
    make_ct_series(tmp_path / "cd", shape=(3, 8, 8))
    shutil.copy(str(get_testdata_file("DICOMDIR", download=False)), tmp_path / "cd" / "DICOMDIR")
    assert len(run("route", tmp_path / "cd", "-c", node.config, "--json").json) == 1
    shutil.rmtree(tmp_path / "cd")
    (tmp_path / "cd").mkdir()
    shutil.copy(str(get_testdata_file("DICOMDIR", download=False)), tmp_path / "cd" / "DICOMDIR")
    assert run("route", tmp_path / "cd", "-c", node.config).code == 2


# -- infer ---------------------------------------------------------------------------------------------


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch) -> FakeDetector:
    """The one thing that is too slow here: the network."""
    from dicom_node.model.detector import Detector

    fake = FakeDetector()
    monkeypatch.setattr(Detector, "load", lambda *_args, **_more: fake)
    return fake


def test_infer_writes_seg_sr_and_pictures(fake_model: FakeDetector, run: Callable[..., Ended], tmp_path: Path) -> None:
    make_ct_series(tmp_path / "ct")
    ended = run("infer", tmp_path / "ct", "--out", tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["status"], len(ended.json["findings"])) == ("complete", 1)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"seg.dcm", "sr.dcm", "finding_1.png"}
    assert "nodule" not in ended.err
    assert "Research use" in run("infer", tmp_path / "ct", "--out", tmp_path / "out").out


def test_infer_of_what_is_refused_ends_with_code_1_and_a_report(
    fake_model: FakeDetector, run: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = run("infer", TINY_CHEST, "--out", tmp_path / "out")
    assert ended.code == 1
    assert "rejected: TOO_THICK" in ended.out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sr.dcm"]
    assert fake_model.calls == 0
    wider = run("infer", TINY_CHEST, "--out", tmp_path / "out", "--max-slice-spacing-mm", "10", "--json")
    assert (wider.code, fake_model.calls) == (0, 1)


def test_infer_wants_one_series(fake_model: FakeDetector, run: Callable[..., Ended], tmp_path: Path) -> None:
    for number in (1, 2):
        make_ct_series(tmp_path / "ct" / str(number), header={"SeriesInstanceUID": f"1.2.{number}"})
    ended = run("infer", tmp_path / "ct", "--out", tmp_path / "out")
    assert ended.code == 2
    assert "--series 1.2.1  (44 files)" in ended.err
    assert run("infer", tmp_path / "ct", "--out", tmp_path / "out", "--series", "1.2.3").code == 2
    chosen = run("infer", tmp_path / "ct", "--out", tmp_path / "out", "--series", "1.2.2", "--json")
    assert chosen.json["series"]["series_instance_uid"] == "1.2.2"


def test_a_former_runs_results_do_not_lie_beside_the_new_ones(
    fake_model: FakeDetector, run: Callable[..., Ended], tmp_path: Path
) -> None:
    make_ct_series(tmp_path / "ct")
    assert run("infer", tmp_path / "ct", "--out", tmp_path / "out").code == 0
    (tmp_path / "out" / "notes.txt").touch()
    fake_model.radius_mm = None
    assert run("infer", tmp_path / "ct", "--out", tmp_path / "out").code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"sr.dcm", "notes.txt"}


def test_infer_says_where_it_cannot_write(fake_model: FakeDetector, run: Callable[..., Ended], tmp_path: Path) -> None:
    make_ct_series(tmp_path / "ct")
    (tmp_path / "file").touch()
    ended = run("infer", tmp_path / "ct", "--out", tmp_path / "file")
    assert ended.code == 1
    assert "cannot be written" in ended.err


def test_infer_with_an_unknown_model_is_a_wrong_call(run: Callable[..., Ended], tmp_path: Path) -> None:
    ended = run("infer", TINY_CHEST, "--out", tmp_path / "out", "--model", "builtin:none")
    assert ended.code == 2
    assert "no built-in model 'none'" in ended.err


# -- echo, send ----------------------------------------------------------------------------------------


def test_echo_and_send_reach_a_peer_without_any_settings(
    start_receiver: Callable[..., Any], run: Callable[..., Ended], tmp_path: Path
) -> None:
    running = start_receiver()
    peer = f"DICOMNODE@127.0.0.1:{running.port}"
    none = tmp_path / "none.yaml"
    assert run("echo", peer, "-c", none).out.strip() == f"DICOMNODE at 127.0.0.1:{running.port} answers"
    assert run("echo", peer, "-c", none, "--json").json["ok"] is True
    make_ct_series(tmp_path / "ct", shape=(3, 8, 8))
    sent = run("send", tmp_path / "ct", "--to", peer, "-c", none, "--json")
    assert sent.json == {"files": 3, "stored": 3, "problems": []}
    assert run("send", tmp_path / "ct", "--to", peer, "-c", none).out.strip() == "3 of 3 files stored"
    assert len(running.files()) == 3


def test_a_peer_that_is_down_ends_with_code_1_and_why(run: Callable[..., Ended], tmp_path: Path) -> None:
    peer = f"AWAY@127.0.0.1:{free_port()}"
    none = tmp_path / "none.yaml"
    ended = run("echo", peer, "-c", none)
    assert (ended.code, ended.out) == (1, "")
    assert "is the peer running, and is its port right?" in ended.err
    told = run("echo", peer, "-c", none, "--json")
    assert (told.code, told.json["ok"]) == (1, False)
    make_ct_series(tmp_path / "ct", shape=(2, 8, 8))
    sent = run("send", tmp_path / "ct", "--to", peer, "-c", none, "--json")
    assert (sent.code, sent.json["stored"], len(sent.json["problems"])) == (1, 0, 1)


def test_an_unknown_peer_is_a_wrong_call_that_names_the_known(node: PreparedNode, run: Callable[..., Ended]) -> None:
    ended = run("echo", "elsewhere", "-c", node.config)
    assert ended.code == 2
    assert "known: pacs; or give AE@HOST:PORT" in ended.err


def test_send_speaks_stow_rs_to_a_peer_that_says_so(
    node: PreparedNode, run: Callable[..., Ended], tmp_path: Path
) -> None:
    for number in (1, 2):
        fake_instance(number).write(tmp_path / "ct")
    asked: list[Asked] = []
    with serving(lambda request: asked.append(request) or Said(200)) as url:
        settings = yaml.safe_load(node.config.read_text())
        settings["peers"]["web"] = {
            "ae_title": "WEB",
            "host": "127.0.0.1",
            "deliver_by": "stow_rs",
            "dicomweb": {"url": url},
        }
        node.config.write_text(yaml.safe_dump(settings))
        assert run("send", tmp_path / "ct", "--to", "web", "-c", node.config, "--json").json["stored"] == 2
    assert [request.path for request in asked] == ["/dicom-web/studies"]
    ended = run("send", tmp_path / "ct", "--to", "web", "-c", node.config)
    assert ended.code == 1
    assert "is the peer running" in ended.err


# -- profiles and render -------------------------------------------------------------------------------


def test_infer_writes_the_objects_of_a_profile_and_clears_those_of_another(
    fake_model: FakeDetector, run: Callable[..., Ended], tmp_path: Path
) -> None:
    make_ct_series(tmp_path / "ct")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.dcm").touch()
    run("infer", tmp_path / "ct", "--out", tmp_path / "out")
    assert run("infer", tmp_path / "ct", "--out", tmp_path / "out", "--profile", "legacy").code == 0
    left = {path.name for path in (tmp_path / "out").glob("*.dcm")}
    assert left == {"mine.dcm", "sr_text.dcm", "capture_01.dcm", "capture_02.dcm"}


def test_infer_knows_the_profiles_of_the_settings(
    fake_model: FakeDetector, run: Callable[..., Ended], tmp_path: Path
) -> None:
    make_ct_series(tmp_path / "ct")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"storage: {{root: {tmp_path}/node}}\nprofiles: {{paper: {{like: ohif, reports: [], pdf: true}}}}"
    )
    words = ("infer", tmp_path / "ct", "--out", tmp_path / "out", "--config", config)
    assert run(*words, "--profile", "paper").code == 0
    assert {path.name for path in (tmp_path / "out").glob("*.dcm")} == {"seg.dcm", "pdf.dcm"}
    ended = run(*words, "--profile", "papr")
    assert (ended.code, "did you mean 'paper'" in ended.err) == (2, True)
    shown = run("profiles", "--config", config, "--json").json
    assert shown["paper"]["pdf"] is True
    assert shown.keys() > {"ohif", "weasis", "slicer", "legacy", "air"}
    assert "paper (like ohif)" in run("profiles", "--config", config).out


def test_render_shows_what_infer_wrote(fake_model: FakeDetector, run: Callable[..., Ended], tmp_path: Path) -> None:
    make_ct_series(tmp_path / "ct")
    assert run("infer", tmp_path / "ct", "--out", tmp_path / "ct" / "results").code == 0
    shown = run("render", tmp_path / "ct", "--out", tmp_path / "look", "--json").json
    assert [Path(path).name for path in shown["files"]] == ["quicklook.html", "finding_1.png"]
    assert shown["findings"][0]["label"] == "Nodule 1"
    assert "Research use" in run("render", tmp_path / "ct", "--out", tmp_path / "look").out


def test_render_of_a_job_that_is_not_there_says_so(
    node: PreparedNode, run: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = run("render", "0123", "--out", tmp_path / "look", "--config", node.config)
    assert (ended.code, "no job 0123" in ended.err) == (1, True)
