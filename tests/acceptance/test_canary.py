"""A patient of canary words goes through the whole node: none of them is in a log, row, file name or command's output.

Allowed are DICOM files, their bytes in the journal, and the audit trail, which must name the patient.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from dicom_node.audit.trail import Trail
from dicom_node.dimse.archive import Archive
from dicom_node.dimse.scu import send
from dicom_node.peers import PeerConfig
from tests.node import Node
from tests.peers import free_port

# Each attribute its own word, so that a finding says where it came from. Dates and numbers of no other meaning.
CANARIES = {
    "PatientName": "KANARIENVOGEL^ZYBELLE",
    "PatientID": "KNRPID77431",
    "PatientBirthDate": "19330917",
    "AccessionNumber": "KNRACC99182",
    "ReferringPhysicianName": "KNRREFDOC^QUILP",
    "InstitutionName": "KNRHOSPITAL",
    "StudyDescription": "KNRSTUDYDESC",
    "SeriesDescription": "KNRSERIESDESC",
    "PatientComments": "KNRCOMMENT",
    "StudyID": "KNRSTUDYID",
    "PatientAddress": "KNRSTREET 5",
}
WORDS = re.compile(
    b"|".join(word.encode() for value in CANARIES.values() for word in re.split(r"[\^ ]", value) if len(word) > 3)
)


def canary(ds: Dataset, series_uid: str) -> Dataset:
    for keyword, value in CANARIES.items():
        setattr(ds, keyword, value)
    ds.SeriesInstanceUID, ds.SOPInstanceUID = series_uid, generate_uid()
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def written(
    folder: Path, files: list[Path], change: Callable[[int, Dataset], None] = lambda number, ds: None
) -> list[Path]:
    """The small scan as another series, whose patient is the canary."""
    folder.mkdir()
    series_uid, paths = generate_uid(), []
    for number, source in enumerate(files):
        ds = canary(pydicom.dcmread(source), series_uid)
        change(number, ds)
        paths.append(folder / f"{number:04}.dcm")
        ds.save_as(paths[-1])
    return paths


def hostile(number: int, ds: Dataset) -> None:
    """Values that no parser takes, with canaries in them: errors quote what they meet."""
    for keyword, value in (("SliceThickness", "KNRPID77431"), ("SeriesNumber", "KNRACC99182")):
        ds.add_new(keyword, "LO", value)


def with_gap(number: int, ds: Dataset) -> None:
    if number > 20:
        ds.ImagePositionPatient = [*ds.ImagePositionPatient[:2], float(ds.ImagePositionPatient[2]) + 50]


def command(node: Node, *words: str) -> bytes:
    done = subprocess.run(
        [sys.executable, "-m", "dicom_node", *words, "--config", str(node.config_path)],
        capture_output=True,
        timeout=120,
    )
    return done.stdout + done.stderr


def suspects(node: Node) -> list[tuple[str, bytes]]:
    """All that the node wrote but for DICOM files, the journal and the audit trail; and every name of a file."""
    root = node.storage.root
    found = []
    for path in sorted(node.folder.rglob("*")):
        found.append((f"the name {path}", os.fsencode(str(path.relative_to(node.folder)))))
        inside = path.relative_to(root).parts[0] if path.is_relative_to(root) and path != root else ""
        if (
            path.is_file()
            and inside not in ("audit", "journal")
            and path.suffix != ".dcm"
            and "bundle" not in path.parts
        ):
            found.append((str(path), path.read_bytes()))
    return found


def rows(node: Node) -> bytes:
    """Both databases as text: what is freed in their pages is no row, but is looked at as bytes of the file, too."""
    dumps = []
    for path in node.storage.root.glob("*.sqlite"):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            dumps.append("\n".join(connection.iterdump()))
    return "\n".join(dumps).encode()


@pytest.mark.slow
def test_a_canary_patient_shows_nowhere_but_in_dicom_files_and_the_audit_trail(
    make_node: Callable[..., Node], archive: Archive, tiny_files: list[Path], tmp_path: Path
) -> None:
    good = written(tmp_path / "good", tiny_files)
    bad = written(tmp_path / "gap", tiny_files, with_gap)
    odd = written(tmp_path / "odd", tiny_files, hostile)
    port = archive.port  # type: ignore[attr-defined]
    peers = {
        "pacs": {"ae_title": "TESTPACS", "host": "127.0.0.1", "port": port},
        "dead": {"ae_title": "DEAD", "host": "127.0.0.1", "port": free_port()},
    }
    node = make_node(peers=peers, log={"format": "json", "level": "debug"})
    node.start("receive", "work", "deliver")
    target = PeerConfig(ae_title="DICOMNODE", host="127.0.0.1", port=node.port, response_timeout_s=20)
    for paths in (good, bad, odd):
        list(send(paths, target, "SENDER"))
    # A data set that is none, and one whose UIDs hold a canary.
    broken = tmp_path / "broken.dcm"
    ds = pydicom.dcmread(good[0])
    ds.StudyInstanceUID = "KNRPID77431"
    ds.save_as(broken)
    list(send([broken], target, "SENDER"))

    series = {
        path: str(pydicom.dcmread(path[0], stop_before_pixels=True).SeriesInstanceUID)
        for path in map(tuple, (good, bad, odd))
    }

    def decided() -> bool:
        jobs = {job["series_uid"]: job for job in node.jobs()}
        return all(uid in jobs and jobs[uid]["state"] in ("complete", "rejected", "failed") for uid in series.values())

    node.wait(decided, "the end of each job", 180)
    job = next(job for job in node.jobs() if job["series_uid"] == series[tuple(good)])
    node.wait(
        lambda: {r["state"] for r in node.database.deliveries(job["job_id"], "pacs")} == {"stored"}, "the delivery"
    )
    node.wait(lambda: "delivery waiting" in node.log("deliver"), "a failed delivery")
    said = [
        command(node, "check"),
        command(node, "route", str(tmp_path / "gap")),
        command(node, "purge", "--older-than-days", "0", "--dry-run"),
        *(command(node, "jobs", "show", one["job_id"], "--json") for one in node.jobs()),
        command(node, "jobs", "cancel", job["job_id"]),
        command(node, "audit", "verify"),
    ]
    assert said[-1].endswith(b"unbroken\n")
    node.stop()

    places = [*suspects(node), ("rows", rows(node)), *((f"output {n}", text) for n, text in enumerate(said))]
    found = {name: sorted(set(WORDS.findall(text))) for name, text in places if WORDS.search(text)}
    assert found == {}

    # The log pages' files were among what was looked at: each role wrote some.
    kept = {path.name.split(".")[1] for path in (node.storage.root / "logs").glob("*/*.jsonl")}
    assert kept == {"receive", "work", "deliver"}

    trail = Trail(node.storage.root / "audit")
    assert trail.verify() > 8
    messages = [entry.message for entry in trail.entries()]
    named = [message for message in messages if 'ParticipantObjectID="KNRPID77431"' in message]
    for code in ("110102", "110104"):
        assert any(f'csd-code="{code}"' in message for message in named), f"no {code} with the patient"
    assert any("job cancel" in message for message in messages)

    short = {
        role: {json.loads(line).get("series") for line in node.log(role).splitlines() if line.startswith("{")}
        for role in ("receive", "work", "deliver")
    }
    common = short["receive"] & short["work"] & short["deliver"] - {None}
    assert common, "one id a series over all roles"
    assert all(re.fullmatch("[0-9a-f]{12}", one) for one in common)
