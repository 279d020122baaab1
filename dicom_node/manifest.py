"""The set of Instances that a job is made for: its hash, which names the job, and its file, which nothing changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from dicom_node.storage import Storage

_FILE = "manifest.json"


def manifest_sha256(sop_instance_uids: Iterable[str]) -> str:
    """Hash of a set of SOP Instance UIDs: order and repetition do not matter."""
    return hashlib.sha256("\n".join(sorted(set(sop_instance_uids))).encode()).hexdigest()


def write_manifest(storage: Storage, job_id: str, files: Mapping[str, str]) -> None:
    """files: SOP Instance UID -> path, relative to the storage root."""
    storage.write_result(job_id, _FILE, json.dumps(dict(files), indent=0).encode())


def manifest_paths(storage: Storage, job_id: str) -> list[Path]:
    """The files of the very set of Instances that the job was made for. Raises OSError, where they are purged."""
    return [storage.path(path) for path in json.loads(manifest_file(storage, job_id).read_text()).values()]


def manifest_file(storage: Storage, job_id: str) -> Path:
    return storage.path(f"results/{job_id}/{_FILE}")
