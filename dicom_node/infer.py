"""The node's job on a folder, without a network: `infer` and `route`."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydicom.uid import MediaStorageDirectoryStorage

from dicom_node import analysis, routing
from dicom_node.config import Config, GateConfig, bundle_folder
from dicom_node.errors import ConfigError, Reason, SeriesRejected, StorageError, UnreadableInstance
from dicom_node.manifest import manifest_sha256
from dicom_node.profiles import KINDS, ResultProfile
from dicom_node.series import InstanceFile, check_series, read_headers
from dicom_node.summary import Summary, summary

_RESULT = re.compile(rf"({'|'.join(KINDS)})(_[a-z0-9_]+)?")


def dicom_files(folder: Path) -> list[Path]:
    """All DICOM Part 10 files below `folder`, by their magic word. Raises ConfigError when there are none."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_part10(path)]
    if not files:
        raise ConfigError(f"{folder} holds no DICOM files")
    return files


def _is_part10(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM"


def series_in(folder: Path) -> dict[str, list[InstanceFile]]:
    """Series Instance UID -> its files; what can't be read is an error, not left out. A DICOMDIR is no instance."""
    found: dict[str, list[InstanceFile]] = defaultdict(list)
    for file in read_headers(dicom_files(folder)):
        if file.header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
            continue
        found[str(file.header.get("SeriesInstanceUID") or "")].append(file)
    if not found:
        raise ConfigError(f"{folder} holds a DICOMDIR and none of its images")
    return dict(found)


def infer(
    folder: Path,
    out_dir: Path,
    series_uid: str | None,
    *,
    model: str,
    device: str,
    limits: GateConfig,
    profile: ResultProfile,
    progress: Callable[[float], None],
) -> Summary:
    """Analyse one series; the profile's objects and montages go to `out_dir`. A rejected series gets its report."""
    from dicom_node.model.detector import Detector

    files = _choose(series_in(folder), series_uid, folder)
    paths = [file.path for file in files]
    header = files[0].header
    uids = [str(file.header.get("SOPInstanceUID") or "") for file in files]
    origin = analysis.Origin(
        manifest_sha256=manifest_sha256(uids),
        made_at=datetime.fromtimestamp(int(time.time()), UTC),
        evidence=f"{len(files)} files of one folder",
        complete=True,
    )
    detector = Detector.load(bundle_folder(model), device)
    series = {
        "study_instance_uid": str(header.get("StudyInstanceUID") or ""),
        "series_instance_uid": str(header.get("SeriesInstanceUID") or ""),
        "instances": len(files),
    }
    _clear(out_dir)
    try:
        made = analysis.analyse(paths, detector, limits, origin, {"": profile}, progress=progress)
    except SeriesRejected as err:
        written = []
        if err.reason is not Reason.MISSING_UID:
            refused = analysis.rejection([file.header for file in files], err, origin, {"": profile})
            written = [write_into(out_dir, f"{made.name}.dcm", made.data) for made in refused]
        return summary(series=series, status="rejected", reason=str(err), findings=[], files=written, timings_s={})
    written = [write_into(out_dir, f"{file.name}.dcm", file.data) for file in made.objects]
    written += [write_into(out_dir, name, data) for name, data in made.pictures.items()]
    return summary(
        series=series, status="complete", reason=None, findings=made.findings, files=written, timings_s=made.timings_s
    )


def _clear(out_dir: Path) -> None:
    """A former run's results must not lie beside this one's."""
    for path in (*out_dir.glob("*.dcm"), *out_dir.glob("finding_*.png")):
        if path.suffix == ".dcm" and not _RESULT.fullmatch(path.stem):
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError as err:
            raise StorageError(f"{path} cannot be written: {err.strerror}") from err


def write_into(out_dir: Path, name: str, data: bytes) -> str:
    """The path of a file of a result. Raises StorageError."""
    path = out_dir / name
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as err:
        raise StorageError(f"{path} cannot be written: {err.strerror}") from err
    return str(path)


def _choose(found: dict[str, list[InstanceFile]], series_uid: str | None, folder: Path) -> list[InstanceFile]:
    if series_uid is not None:
        if series_uid not in found:
            raise ConfigError(f"{folder} holds no series {series_uid}; it holds {', '.join(found)}")
        return found[series_uid]
    if len(found) > 1:
        listed = "\n".join(f"  --series {uid}  ({len(files)} files)" for uid, files in found.items())
        raise ConfigError(f"{folder} holds {len(found)} series; choose one:\n{listed}")
    return next(iter(found.values()))


def explain_routes(folder: Path, config: Config, source_ae: str) -> list[dict[str, Any]]:
    """For each series below `folder`: the gate's verdict, each route's, and what the node would do.

    It quotes the headers, so it may be shown to whoever has the files, and kept nowhere.
    """
    return [_explain(uid, files, config, source_ae) for uid, files in series_in(folder).items()]


def _explain(uid: str, files: Sequence[InstanceFile], config: Config, source_ae: str) -> dict[str, Any]:
    series, rejected = None, None
    try:
        series = check_series(files, config.gate)
    except (SeriesRejected, UnreadableInstance) as err:
        rejected = err
    choice = routing.choose(config.routes, routing.facts_of(files, series, source_ae), tell=routing.in_full)
    if choice.route is None:
        decision = "not analysed: no route matches"
    elif rejected is not None:
        decision = f"not analysed: {rejected}"
    else:
        targets = ", ".join(choice.route.destinations) or "nowhere"
        decision = f"model {choice.route.model}, results to {targets}, priority {choice.route.priority}"
    return {
        "series_instance_uid": uid,
        "files": len(files),
        "slices": None if series is None else len(series.images),
        "reason": None if rejected is None else str(rejected),
        "route": None if choice.route is None else choice.route.name,
        "explanation": choice.explain(),
        "decision": decision,
    }
