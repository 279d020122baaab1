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
from dicom_node.audit import NoAudit, User
from dicom_node.audit.events import os_user
from dicom_node.dimse.archive import Archive
from dicom_node.dimse.scu import send
from dicom_node.errors import BundleError
from dicom_node.model.bundle import load_bundle
from dicom_node.peers import PeerConfig
from dicom_node.promote import promote
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


def job_of(folder: Path, files: list[Path], number: int, node: Node) -> str:
    """Make a new series on the sender's disk; the job that it will be."""
    series_uid, uids = new_series(folder / f"series{number}", files, number)
    return node.job_of(uids, series_uid)


def sent(node: Node, folder: Path, number: int) -> None:
    peer = PeerConfig(ae_title="DICOMNODE", host="127.0.0.1", port=node.port, response_timeout_s=20)
    outcomes = send(sorted((folder / f"series{number}").iterdir()), peer, "SENDER")
    assert all(outcome.kind == "stored" for outcome in outcomes)


def seen(node: Node, job_id: str, second_look: str = "complete") -> tuple[dict[str, Any], Any]:
    """The job, delivered, and what came of its shadow."""
    job = node.wait_ended(job_id)
    node.wait(lambda: (node.database.shadow(job_id) or {}).get("state") == second_look, "the second look")
    return job, node.database.shadow(job_id)


def segmentation(archive: Archive, job: dict[str, Any]) -> tuple[bytes, list[str]]:
    """The voxels that arrived of a job, as bytes, and what was found."""
    uids = {row["sop_instance_uid"] for row in job["deliveries"]}
    arrived = [pydicom.dcmread(path) for path in archive.folder.glob("*.dcm")]
    [seg] = [ds for ds in arrived if ds.SOPInstanceUID in uids and ds.Modality == "SEG"]
    found = [{key: value for key, value in one.items() if key != "tracking_uid"} for one in job["findings"]]
    return seg.PixelData, [json.dumps(one, sort_keys=True) for one in found]


def told(node: Node, action: str) -> list[str]:
    """The lines of the audit trail on that action."""
    files = sorted(node.config.audit_folder().glob("*.jsonl"))
    return [line for path in files for line in path.read_text().splitlines() if action in line]


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
    sha256 = {name: load_bundle(folder).sha256 for name, folder in bundles.items()}
    first_id, second_id, third_id = (job_of(tmp_path, tiny_files, number, node) for number in (1, 2, 3))
    node.start("receive", "work", "deliver")

    # A second look that fails keeps no job from its end; asked for again, it sees what the first saw.
    in_the_way = node.storage.path(f"results/{first_id}/shadow")
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    sent(node, tmp_path, 1)
    first, _ = seen(node, first_id, "failed")
    in_the_way.unlink()
    assert first_id in command(node, "shadows", "list", "--json")
    assert "daring looks again" in command(node, "shadows", "retry", "--all")
    assert node.database.failed_shadows() == []
    _, shadow = seen(node, first_id)
    assert (first["model"]["bundle_sha256"], shadow["model"]["bundle_sha256"]) == (sha256["steady"], sha256["daring"])
    [pair] = agreement_of(node.database)["pairs"]
    assert (pair["first"]["bundle_sha256"], pair["second"]["bundle_sha256"]) == (sha256["steady"], sha256["daring"])
    whole = pair["overall"]
    assert whole["both"] + whole["first_only"] == len(first["findings"]) > 0
    assert whole["both"] + whole["second_only"] == len(node.database.shadow_findings(first["job_id"]))

    # Promoted without a restart: the next job is the second's, and the older one keeps its name.
    assert "daring works on all (was steady)" in command(node, "promote", "daring")
    sent(node, tmp_path, 2)
    node.wait(lambda: (node.database.job(second_id) or {}).get("state") == "running", "the second job")

    # Taken back while it runs: it ends as it began, and what is decided from then on is the first one's again.
    assert command(node, "rollback") == "all: steady works (was daring)\n"
    sent(node, tmp_path, 3)
    second, shadow = seen(node, second_id)
    assert (second["model"]["bundle_sha256"], second["promoted_over"]) == (sha256["daring"], "steady")
    assert shadow["model"]["bundle_sha256"] == sha256["steady"]
    assert node.database.job(first["job_id"])["model"]["bundle_sha256"] == sha256["steady"]  # type: ignore[index]
    third, shadow = seen(node, third_id)
    assert (third["model"]["bundle_sha256"], shadow["model"]["bundle_sha256"]) == (sha256["steady"], sha256["daring"])
    assert segmentation(archive, third) == segmentation(archive, first) != segmentation(archive, second)

    assert node.config_path.read_bytes() == settings
    node.stop()
    for action in ("model promote", "model rollback", "shadow retry"):
        [line] = told(node, action)
        assert f'"{os_user()}"' in line.replace("\\", ""), action

    # One that is damaged, or not there any more, is refused whatever is said, and what works is not touched.
    broken = bundles["daring"] / "weights.safetensors"
    for break_it in (lambda: broken.write_bytes(broken.read_bytes()[:-1]), broken.unlink):
        break_it()
        with pytest.raises(BundleError, match=str(bundles["daring"])):
            promote(node.config, node.database, "daring", route=None, force=True, by=User(name="ann"), audit=NoAudit())
        assert node.database.promotions() == {}

    # What arrived is what the ledgers of the two jobs name, each of the model that worked for its job.
    made = {row["sop_instance_uid"] for job in (first, second, third) for row in job["deliveries"]}
    assert {one.sop_instance_uid for one in archive.received()} == made
    assert len(made) == 6
    worked_on = {job["series"]["series_instance_uid"]: job["model"] for job in (first, second, third)}
    for path in archive.folder.glob("*.dcm"):
        text = pydicom.dcmread(path).to_json()
        [worked] = [model["bundle_sha256"] for uid, model in worked_on.items() if uid in text]
        assert [other for other in sha256.values() if other in text] == [worked]
        assert ("promoted_over" in text) == (worked == sha256["daring"] and is_sr(path))


def is_sr(path: Path) -> bool:
    return str(pydicom.dcmread(path, stop_before_pixels=True).Modality) == "SR"
