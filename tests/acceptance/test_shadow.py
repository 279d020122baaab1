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
from pydicom.uid import generate_uid

from dicom_node.agreements import agreement_of
from dicom_node.dimse.archive import Archive
from dicom_node.dimse.scu import send
from dicom_node.model.bundle import load_bundle
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


def renamed(uid: str, number: int) -> str:
    return str(generate_uid(entropy_srcs=[uid, str(number)]))


def new_series(folder: Path, files: list[Path], number: int) -> tuple[str, list[str]]:
    """The same images as a series of their own: its UID and those of its Instances."""
    folder.mkdir()
    uids = []
    for path in files:
        ds = pydicom.dcmread(path)
        ds.SeriesInstanceUID = renamed(ds.SeriesInstanceUID, number)
        ds.SOPInstanceUID = renamed(ds.SOPInstanceUID, number)
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
    sha256 = {name: load_bundle(folder).sha256 for name, folder in bundles.items()}

    # The first works, the second sees the same.
    first, shadow = analysed(node, tmp_path, tiny_files, 1)
    assert (first["model"]["bundle_sha256"], shadow["model"]["bundle_sha256"]) == (sha256["steady"], sha256["daring"])
    [pair] = agreement_of(node.database)["pairs"]
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

    assert command(node, "rollback") == "all: steady works (was daring)\n"
    assert node.config_path.read_bytes() == settings
    node.stop()

    # What arrived is what the ledgers of the two jobs name, each of the model that worked for its job.
    made = {row["sop_instance_uid"] for job in (first, second) for row in job["deliveries"]}
    assert {one.sop_instance_uid for one in archive.received()} == made
    assert len(made) == 4
    worked_on = {job["series"]["series_instance_uid"]: job["model"] for job in (first, second)}
    for path in archive.folder.glob("*.dcm"):
        text = pydicom.dcmread(path).to_json()
        [worked] = [model["bundle_sha256"] for uid, model in worked_on.items() if uid in text]
        assert [other for other in sha256.values() if other in text] == [worked]
        assert ("promoted_over" in text) == (worked == sha256["daring"] and is_sr(path))


def is_sr(path: Path) -> bool:
    return str(pydicom.dcmread(path, stop_before_pixels=True).Modality) == "SR"
