"""A real node for acceptance tests: its roles as processes of their own, as systemd would start them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from safetensors.numpy import load_file, save_file

from dicom_node.config import Config, bundle_folder, load_config
from dicom_node.db import Database, Row
from dicom_node.manifest import manifest_sha256
from dicom_node.storage import Storage
from dicom_node.summary import job_summary
from tests.peers import free_port

TINY = Path(__file__).parent / "data" / "tiny_chest_64"
READY = '"action": "ready"'
SETTLED = ("stored", "committed", "parked")
ENDED = ("complete", "rejected", "failed", "parked", "cancelled")


def fast_bundle(folder: Path) -> Path:
    """The shipped weights on a coarse grid, told to report whatever they see, at most one thing a slice.

    For tests of the path, not of the model: seconds instead of a minute, and always some finding.
    """
    shutil.copytree(bundle_folder("builtin:lung_nodule_small"), folder)
    form = json.loads((folder / "bundle.json").read_text())
    form["network"] |= {"detections_per_slice": 1, "rpn_post_nms": 20}
    form["preprocessing"] |= {"spacing_mm": 3.0, "slice_step": 4, "upsampling": 1}
    form["thresholds"] |= {"operating_point": 0.0, "proposal_score": 0.0}
    form["merging"] |= {"least_slices": 1, "elongation": [50.0, 100.0]}
    # A cube of the second stage would be three times as large on this grid: no bundle may say so.
    form["refinement"] = None
    weights = load_file(folder / "weights.safetensors")
    save_file(
        {name: value for name, value in weights.items() if not name.startswith("refinement.")},
        folder / "weights.safetensors",
    )
    form["weights_sha256"] = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(form))
    return folder


class Node:
    """Settings in `folder`, roles started and killed at will. `peers`: further entries of the peers section."""

    def __init__(self, folder: Path, *, peers: dict[str, Any], **sections: Any) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        settings: dict[str, Any] = {
            "storage": {"root": str(folder / "root"), "min_free_gb": 0},
            "receive": {"host": "127.0.0.1", "port": self.port, "unknown_peers": "accept", "journal_mb": 16},
            # Longer than any pause of a sender on a busy machine: else a part of the series is a job of its own.
            "assemble": {"quiet_time_s": 4},
            "gate": {"max_slice_spacing_mm": 4.5, "max_slice_thickness_mm": 4.5},
            "peers": peers,
            "models": {"fast": {"bundle": str(fast_bundle(folder / "bundle"))}},
            "routes": [{"name": "all", "model": "fast", "destinations": list(peers)}],
            "work": {"drain_s": 5},
            "web": {"port": 0},
            "log": {"format": "json"},
            "deliver": {"first_wait_s": 0.3, "longest_wait_s": 1},
            **sections,
        }
        self.config_path = folder / "config.yaml"
        self.config_path.write_text(yaml.safe_dump(settings))
        self.config: Config = load_config(self.config_path)
        self.storage = Storage(self.config.storage.root)
        self.database = Database(self.config.database_url())
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *roles: str) -> None:
        """Start roles and wait until each says that it is ready. "work:name" is a worker of that name."""
        before = {role: self.log(role).count(READY) for role in roles}
        for role in roles:
            word, _, name = role.partition(":")
            command = [sys.executable, "-m", "dicom_node", word, "--config", str(self.config_path)]
            command += ["--name", name] if name else []
            with self._log_path(role).open("ab") as log:
                self.processes[role] = subprocess.Popen(command, stdout=log, stderr=log)
        for role in roles:
            self.wait(lambda role=role: self.log(role).count(READY) > before[role], role)

    def kill(self, role: str) -> None:
        """kill -9: nothing of the role gets to say goodbye."""
        process = self.processes.pop(role)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for role, process in self.processes.items():
            code = process.wait(60)
            assert code == 0, f"{role} ended with {code}: {self.log(role)[-3000:]}"
        self.processes.clear()

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.database.close()

    def _log_path(self, role: str) -> Path:
        return self.folder / f"{role}.log"

    def log(self, role: str) -> str:
        path = self._log_path(role)
        return path.read_text() if path.exists() else ""

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 120) -> None:
        """Poll: what happens does so in other processes, which only the database and their logs tell of."""
        deadline = time.monotonic() + seconds
        while not condition():
            for role, process in self.processes.items():
                assert process.poll() is None, f"{role} died: {self.log(role)[-3000:]}"
            logs = "\n".join(self.log(role)[-2000:] for role in self.processes)
            assert time.monotonic() < deadline, f"waited in vain for {what}\n{logs}"
            time.sleep(0.05)

    def job_of(self, sop_instance_uids: list[str], series_uid: str) -> str:
        return f"{series_uid}-{manifest_sha256(sop_instance_uids)[:16]}"

    def jobs(self) -> list[Row]:
        return self.database.jobs()

    def wait_ended(self, job_id: str, *, delivered: bool = True, seconds: float = 180) -> dict[str, Any]:
        """Wait until a job has ended and its objects are delivered; what is known of it."""

        def ended() -> bool:
            job = self.database.job(job_id)
            if job is None or job["state"] not in ENDED:
                return False
            rows = self.database.deliveries(job_id)
            return not delivered or (bool(rows) and all(row["state"] in SETTLED for row in rows))

        self.wait(ended, f"the end of job {job_id}", seconds)
        return job_summary(self.database, self.storage, job_id)


def environment(**more: str) -> dict[str, str]:
    """For third-party DICOM tools: DCMTK leaves Nagle's algorithm on unless told."""
    return {**os.environ, "TCP_NODELAY": "1", **more}
