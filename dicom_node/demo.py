"""The whole product on one machine: a node and a small test PACS on loopback, a real CT, results to look at."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from dicom_node.config import Config, load_config
from dicom_node.db import Database, Row
from dicom_node.dimse.archive import Archive
from dicom_node.dimse.scu import echo, send
from dicom_node.errors import ConfigError, DeliveryError, DicomNodeError
from dicom_node.infer import series_in
from dicom_node.manifest import manifest_sha256
from dicom_node.peers import PeerConfig
from dicom_node.render import PAGE, render
from dicom_node.storage import Storage
from dicom_node.summary import Summary, job_summary

SHIPPED_SCAN = Path(__file__).parent / "data" / "lidc_idri_0001"
_START_S = 60.0
_ANALYSE_S = 900.0
_POLL_S = 0.2
_FINISHED = ("complete", "rejected", "failed", "parked", "cancelled")


def run_demo(
    out_dir: Path, data: Path | None, *, say: Callable[[str], None], progress: Callable[[float], None]
) -> Summary:
    """Everything goes to `out_dir`, which a former demo may have filled. Errors name the node's log."""
    started = time.perf_counter()
    folder = data or SHIPPED_SCAN
    found = series_in(folder)
    if len(found) != 1:
        raise DicomNodeError(f"{folder} holds {len(found)} series; the demo wants one")
    [(series_uid, files)] = found.items()
    job_id = f"{series_uid}-{manifest_sha256(str(f.header.SOPInstanceUID) for f in files)[:16]}"
    out_dir = out_dir.absolute()
    _make_room(out_dir)
    archive = Archive(out_dir / "pacs", "TESTPACS")
    archive_port = archive.start()
    try:
        say(f"test PACS listens on port {archive_port}")
        config_path = _write_config(out_dir, archive_port)
        with _node(config_path, out_dir / "node.log") as node:
            config = load_config(config_path)
            _wait_for_echo(config, node, out_dir)
            say(f"node listens on port {config.receive.port}, sending {len(files)} images")
            _send(files, config)
            say("images received, analysing (research use, not for diagnosis)")
            result = _follow(config, job_id, node, out_dir, progress)
    finally:
        archive.stop()
    result["timings_s"]["total"] = round(time.perf_counter() - started, 3)
    _collect(result, out_dir, [Path(file.path) for file in files])
    page = out_dir / "results" / PAGE
    if page.exists():
        say(f"the series with its findings, to scroll through in a browser: {page}")
    return result


def _make_room(out_dir: Path) -> None:
    """Only what a former demo made is removed, and only where it left its mark."""
    mark = out_dir / ".dicom-node-demo"
    out_dir.mkdir(parents=True, exist_ok=True)
    if not mark.exists() and any(out_dir.iterdir()):
        raise ConfigError(f"{out_dir} holds something that no demo made; give --out another folder")
    mark.touch()
    for name in ("node", "pacs", "results"):
        shutil.rmtree(out_dir / name, ignore_errors=True)


def _write_config(out_dir: Path, archive_port: int) -> Path:
    settings = {
        "storage": {"root": str(out_dir / "node"), "min_free_gb": 0.5},
        "receive": {"host": "127.0.0.1", "port": _free_port(), "ae_title": "DICOMNODE"},
        "assemble": {"quiet_time_s": 1},
        "gate": {"max_slice_spacing_mm": 5.0, "max_slice_thickness_mm": 5.0},
        "peers": {
            "test_pacs": {"ae_title": "TESTPACS", "host": "127.0.0.1", "port": archive_port, "may_send": True},
        },
        "models": {"lung_nodule": {"bundle": "builtin:lung_nodule_small"}},
        "routes": [{"name": "demo", "model": "lung_nodule", "destinations": ["test_pacs"]}],
        "work": {"drain_s": 5},
        "web": {"port": 0},
        "deliver": {"first_wait_s": 1, "longest_wait_s": 5},
    }
    path = out_dir / "config.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _node(config_path: Path, log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`dicom-node serve` as a child; stopped as an operator would stop it."""
    command = [sys.executable, "-m", "dicom_node", "serve", "--config", str(config_path)]
    with log_path.open("wb") as log:
        node = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ))
        try:
            yield node
        finally:
            if node.poll() is None:
                node.send_signal(signal.SIGTERM)
            try:
                node.wait(60)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()


def _test_pacs(config: Config) -> str:
    return config.peers["test_pacs"].ae_title


def _self(config: Config) -> PeerConfig:
    return PeerConfig(ae_title=config.receive.ae_title, host=config.receive.host, port=config.receive.port)


def _wait_for_echo(config: Config, node: subprocess.Popen[bytes], out_dir: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        _still_runs(node, out_dir)
        with contextlib.suppress(DeliveryError):
            echo(_self(config), _test_pacs(config))
            return
        time.sleep(_POLL_S)
    raise DicomNodeError(f"the node did not answer within {_START_S:.0f} s; see {out_dir / 'node.log'}")


def _still_runs(node: subprocess.Popen[bytes], out_dir: Path) -> None:
    if node.poll() is not None:
        raise DicomNodeError(f"the node ended with code {node.returncode}; see {out_dir / 'node.log'}")


def _send(files: list[Any], config: Config) -> None:
    outcomes = send([Path(file.path) for file in files], _self(config), _test_pacs(config))
    refused = [outcome for outcome in list(outcomes) if outcome.kind != "stored"]
    if refused:
        raise DicomNodeError(f"{len(refused)} of {len(files)} images were not stored: {refused[0].message}")


def _follow(
    config: Config,
    job_id: str,
    node: subprocess.Popen[bytes],
    out_dir: Path,
    progress: Callable[[float], None],
) -> Summary:
    """Until the job has ended and each object is in the test PACS (or can't get there)."""
    storage = Storage(config.storage.root)
    database = Database(config.database_url())
    try:
        deadline = time.monotonic() + _ANALYSE_S
        while time.monotonic() < deadline:
            _still_runs(node, out_dir)
            job = database.job(job_id)
            if job is not None:
                progress(float(job["progress"]))
                deliveries = database.deliveries(job_id)
                if job["state"] in _FINISHED and _settled(job, deliveries):
                    result = job_summary(database, storage, job_id)
                    result["delivered"] = bool(deliveries) and all(d["state"] == "stored" for d in deliveries)
                    return result
            time.sleep(_POLL_S)
    finally:
        database.close()
    raise DicomNodeError(f"no result within {_ANALYSE_S:.0f} s; see {out_dir / 'node.log'}")


def _settled(job: Row, deliveries: list[Row]) -> bool:
    if job["state"] in ("failed", "parked", "cancelled"):
        return True
    reported = job["state"] == "complete" or bool(deliveries)
    return not reported or (bool(deliveries) and all(d["state"] in ("stored", "parked") for d in deliveries))


def _collect(result: Summary, out_dir: Path, images: Sequence[Path]) -> None:
    """Names in `files`: the objects as the PACS has them, and a page and pictures that are made of these alone."""
    target = out_dir / "results"
    target.mkdir()
    files = []
    for delivery in result["deliveries"]:
        received = out_dir / "pacs" / f"{delivery['sop_instance_uid']}.dcm"
        if received.exists():
            shutil.copyfile(received, target / f"{delivery['name']}.dcm")
            files.append(target / f"{delivery['name']}.dcm")
    # Where nothing came back, as of what is no CT, there is nothing to look at.
    result["files"] = [*map(str, files), *(render([*images, *files], target)["files"] if files else [])]
