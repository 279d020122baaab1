"""Two real bundles on a real node: the second sees what the first saw, is never delivered, and is promoted and back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest

from dicom_node.dimse.archive import Archive
from dicom_node.dimse.scu import send
from dicom_node.peers import PeerConfig
from tests.node import Node, fast_bundle


def another_bundle(folder: Path) -> Path:
    """The same network told to report at most a part of what the other reports: other findings, another bundle."""
    fast_bundle(folder)
    form = json.loads((folder / "bundle.json").read_text())
    form["version"] = "9.0.0"
    form["thresholds"]["operating_point"] = 0.02
    form["merging"]["mask_threshold"] = 0.3
    (folder / "bundle.json").write_text(json.dumps(form))
    return folder


def command(node: Node, *args: str) -> str:
    whole = [sys.executable, "-m", "dicom_node", "model", *args, "--config", str(node.config_path)]
    done = subprocess.run(whole, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def new_series(folder: Path, files: list[Path], number: int) -> tuple[str, list[str]]:
    """The same images as a series of their own: its UID and those of its Instances."""
    folder.mkdir()
    uids = []
    for path in files:
        ds = pydicom.dcmread(path)
        ds.SeriesInstanceUID += f".{number}"
        ds.SOPInstanceUID += f".{number}"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.save_as(folder / path.name)
        uids.append(str(ds.SOPInstanceUID))
    return str(ds.SeriesInstanceUID), uids


def analysed(node: Node, folder: Path, files: list[Path], number: int) -> tuple[dict[str, Any], Any]:
    """A new series through the node: its job, delivered, and what came of its shadow."""
    series_uid, uids = new_series(folder / f"series{number}", files, number)
    peer = PeerConfig(ae_title="DICOMNODE", host="127.0.0.1", port=node.port, response_timeout_s=20)
    sent = send(sorted((folder / f"series{number}").iterdir()), peer, "SENDER")
    assert all(outcome.kind == "stored" for outcome in sent)
    job = node.wait_ended(node.job_of(uids, series_uid))
    job_id = job["job_id"]
    node.wait(lambda: (node.database.shadow(job_id) or {}).get("state") == "complete", "the second look")
    return job, node.database.shadow(job_id)


@pytest.mark.slow
def test_the_second_model_is_compared_promoted_and_rolled_back_and_only_the_first_is_ever_delivered(
    make_node: Callable[..., Node], archive: Archive, tiny_files: list[Path], tmp_path: Path
) -> None:
    bundles = {"steady": fast_bundle(tmp_path / "steady"), "daring": another_bundle(tmp_path / "daring")}
    port = archive.port  # type: ignore[attr-defined]
    node = make_node(
        peers={"pacs": {"ae_title": "TESTPACS", "host": "127.0.0.1", "port": port}},
        models={name: {"bundle": str(folder)} for name, folder in bundles.items()},
        routes=[{"name": "all", "model": "steady", "shadow": "daring", "destinations": ["pacs"]}],
        assemble={"quiet_time_s": 2},
    )
    settings = node.config_path.read_bytes()
    node.start("receive", "work", "deliver")
    listed = {row["model"]: row for row in json.loads(command(node, "list", "--json"))["models"]}
    sha256 = {name: row["bundle_sha256"] for name, row in listed.items()}

    # The first works, the second sees the same.
    first, shadow = analysed(node, tmp_path, tiny_files, 1)
    assert (first["model"]["bundle_sha256"], shadow["model"]["bundle_sha256"]) == (sha256["steady"], sha256["daring"])
    [pair] = json.loads(command(node, "agreement", "--json"))["pairs"]
    assert (pair["first"]["bundle_sha256"], pair["second"]["bundle_sha256"]) == (sha256["steady"], sha256["daring"])
    whole = pair["overall"]
    assert whole["both"] + whole["first_only"] == len(first["findings"]) > 0
    assert whole["both"] + whole["second_only"] == len(node.database.shadow_findings(first["job_id"]))

    # Promoted without a restart: the next job is the second's, and the older one keeps its name.
    assert "daring works on all (was steady)" in command(node, "promote", "daring")
    second, shadow = analysed(node, tmp_path, tiny_files, 2)
    assert (second["model"]["bundle_sha256"], second["promoted_over"]) == (sha256["daring"], "steady")
    assert shadow["model"]["bundle_sha256"] == sha256["steady"]
    assert node.database.job(first["job_id"])["model"]["bundle_sha256"] == sha256["steady"]  # type: ignore[index]

    command(node, "rollback")
    third, _ = analysed(node, tmp_path, tiny_files, 3)
    assert (third["model"]["bundle_sha256"], third["promoted_over"]) == (sha256["steady"], None)
    assert node.config_path.read_bytes() == settings
    node.stop()

    # What arrived is what the ledgers of the three jobs name, each of the model that worked for its job.
    made = {row["sop_instance_uid"] for job in (first, second, third) for row in job["deliveries"]}
    assert {one.sop_instance_uid for one in archive.received()} == made
    assert len(made) == 6
    of_job = {"1": "steady", "2": "daring", "3": "steady"}
    for path in archive.folder.glob("*.dcm"):
        text = pydicom.dcmread(path).to_json()
        [worked] = {name for name in sha256 if sha256[name] in text}
        series_uid = next(uid for uid in (f".{n}" for n in of_job) if uid_in(text, tiny_files, uid))
        assert worked == of_job[series_uid[1:]]
        assert ("promoted_over" in text) == (worked == "daring" and is_sr(path))


def uid_in(text: str, files: list[Path], ending: str) -> bool:
    return f'"{pydicom.dcmread(files[0], stop_before_pixels=True).SeriesInstanceUID}{ending}"' in text


def is_sr(path: Path) -> bool:
    return str(pydicom.dcmread(path, stop_before_pixels=True).Modality) == "SR"
