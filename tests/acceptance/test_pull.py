"""Pulls as an administrator makes them: the command, a node of real processes, Orthanc as the archive."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest

from tests.fakes.ct import make_ct_series
from tests.node import Node, environment
from tests.peers import Orthanc

pytestmark = pytest.mark.peers

STUDY, SERIES = "1.2.826.0.1.3680043.8.498.1001", "1.2.826.0.1.3680043.8.498.1002"


def archive_of(orthanc: Orthanc, **more: Any) -> dict[str, Any]:
    may = {"may_send": True, "may_be_queried": True}
    return {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": orthanc.dicom_port, **may, **more}


def command(node: Node, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "dicom_node", *arguments, "--config", str(node.config_path)]


def run(node: Node, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(node, *arguments), capture_output=True, text=True, check=False, env=environment(), timeout=200
    )


def pull(node: Node, *arguments: str) -> tuple[int, Any]:
    ended = run(node, "pull", "--from", "pacs", "--json", *arguments)
    assert ended.stdout, ended.stderr
    return ended.returncode, json.loads(ended.stdout)


def test_a_study_is_shown_then_fetched_then_known_to_be_here(
    orthanc: Orthanc, make_node: Callable[..., Node], tmp_path: Path
) -> None:
    for path in make_ct_series(tmp_path / "scan", shape=(5, 16, 16)):
        orthanc.upload(path.read_bytes())
    node = make_node(peers={"pacs": archive_of(orthanc)})
    orthanc.set_modality("puller", "DICOMNODE", node.port)
    node.start("receive")

    code, said = pull(node, "--study", STUDY, "--dry-run")
    assert code == 0
    assert [(s["series_uid"], s["there"], s["here"], s["state"]) for s in said["series"]] == [
        (SERIES, 5, 0, "would be fetched")
    ]
    assert node.database.instances(SERIES) == []

    code, said = pull(node, "--study", STUDY)
    assert (code, said["series"][0]["state"], said["problems"]) == (0, "fetched", [])
    assert len(node.database.instances(SERIES)) == 5

    shown = run(node, "pull", "--from", f"ORTHANC@127.0.0.1:{orthanc.dicom_port}", "--patient", "PHANTOM-1")
    assert shown.returncode == 0, "an address that is configured is the configured peer"
    assert "already here" in shown.stdout
    assert "0 of 0 series fetched" in shown.stdout
    assert "Phantom" not in shown.stdout + shown.stderr
    node.stop()


def test_what_cannot_be_done_is_told_with_its_exit_code(orthanc: Orthanc, make_node: Callable[..., Node]) -> None:
    node = make_node(
        peers={
            "pacs": archive_of(orthanc, retrieve_by="c_get"),
            "closed": archive_of(orthanc, may_be_queried=False, may_receive=False, ae_title="OTHER"),
        },
        routes=[],
    )
    for arguments, code, words in [
        (["--from", "closed", "--since", "1d"], 2, "peers.closed.may_be_queried: true"),
        (["--from", "nobody", "--since", "1d"], 2, "no peer 'nobody'"),
        (["--from", "pacs"], 2, "say what to pull"),
        (["--from", "pacs", "--since", "soon"], 2, "12h or 2d"),
        (["--from", "pacs", "--since", "1d", "--route", "none"], 2, "no route 'none' in"),
        (["--from", "pacs", "--study", "1.2.3"], 1, "pacs has no study that matches"),
        (["--from", "pacs", "--since", "1d"], 0, ""),
    ]:
        ended = run(node, "pull", *arguments)
        assert (ended.returncode, words in ended.stderr) == (code, True), (arguments, ended.stderr)
    folder = node.folder / "files"
    make_ct_series(folder, shape=(2, 16, 16))
    ended = run(node, "send", str(folder), "--to", "closed")
    assert ended.returncode == 2
    assert "peers.closed.may_receive: true" in ended.stderr


def test_peers_are_listed_with_what_they_may_do(orthanc: Orthanc, make_node: Callable[..., Node]) -> None:
    node = make_node(peers={"pacs": archive_of(orthanc)})
    ended = run(node, "peers", "--json")
    assert ended.returncode == 0
    [row] = json.loads(ended.stdout)
    assert (row["name"], row["may"], row["answers"]) == ("pacs", ["send", "receive", "be queried"], True)
    assert "pacs" in run(node, "peers").stdout


@pytest.mark.slow
@pytest.mark.parametrize("by", ["c_move", "c_get"])
def test_a_pull_that_was_killed_midway_is_completed_by_the_next(
    orthanc: Orthanc, make_node: Callable[..., Node], tmp_path: Path, by: str
) -> None:
    """kill -9 of what stores: the receiver of a C-MOVE, the command itself by C-GET, with no receiver at all."""
    files = make_ct_series(tmp_path / "scan", shape=(300, 64, 64))
    for path in files:
        orthanc.upload(path.read_bytes())
    node = make_node(peers={"pacs": archive_of(orthanc, retrieve_by=by)})
    orthanc.set_modality("puller", "DICOMNODE", node.port)
    node.database.migrate()
    if by == "c_move":
        node.start("receive")
    arguments = command(node, "pull", "--from", "pacs", "--study", STUDY, "--json")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as running:
        node.wait(lambda: node.database.instance_count(SERIES) >= 20, "the first instances")
        if by == "c_move":
            node.kill("receive")
        else:
            running.kill()
        said, _ = running.communicate(timeout=120)
    came = node.database.instance_count(SERIES)
    assert 20 <= came < 300, "it was midway"
    if by == "c_move":
        assert running.returncode == 1
        [problem] = json.loads(said)["problems"]
        assert SERIES in problem
        assert "of 300 instances are here" in problem
        node.start("receive")

    code, again = pull(node, "--study", STUDY)
    assert (code, again["problems"], again["series"][0]["here"]) == (0, [], 300)
    for row in node.database.instances(SERIES):
        assert node.storage.path(row["path"]).stat().st_size == row["size_bytes"]
    if by == "c_move":
        node.stop()


@pytest.mark.slow
def test_a_scheduled_pull_finds_a_new_study_and_its_result_goes_back(
    orthanc: Orthanc, make_node: Callable[..., Node], tiny_files: list[Path], tiny_uids: tuple[str, list[str]]
) -> None:
    """The archive that cannot route: nothing is sent to the node, it looks for itself."""
    node = make_node(
        peers={"pacs": archive_of(orthanc, retrieve_by="c_get")},
        pulls=[{"name": "new", "from": "pacs", "every_min": 0.02, "since_h": 48, "route": "pulled"}],
        routes=[
            {"name": "all", "model": "fast"},
            {"name": "pulled", "model": "fast", "destinations": ["pacs"], "when": {"Modality": {"equals": "PT"}}},
        ],
    )
    node.start("work", "deliver")
    node.wait(lambda: node.database.pull_round("new"), "the first round, which finds nothing")
    for path in tiny_files:
        image = pydicom.dcmread(path)
        image.StudyDate, image.StudyTime = f"{datetime.now():%Y%m%d}", "000000"
        buffer = BytesIO()
        image.save_as(buffer, enforce_file_format=True)
        orthanc.upload(buffer.getvalue())
    series_uid, uids = tiny_uids
    ended = node.wait_ended(node.job_of(uids, series_uid))
    assert ended["status"] == "complete"
    assert ended["route"] == "pulled", "the pull names the route, its conditions are not asked"
    assert ended["explanation"] == ["pulled: named by a pull from pacs"]
    node.stop()
    modalities = {orthanc.get(f"/series/{one}")["MainDicomTags"]["Modality"] for one in orthanc.find("Series")}
    assert modalities == {"CT", "SEG", "SR"}
    assert len(node.jobs()) == 1, "what came back is not pulled"
