"""A job of the node, or a folder of DICOM files -> montages and one HTML page: `render`. Nothing is analysed here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from dicom_node.config import GateConfig
from dicom_node.db import Database
from dicom_node.domain import RESEARCH_USE, CTSeries, Volume
from dicom_node.errors import ConfigError, SeriesRejected
from dicom_node.infer import dicom_files, write_into
from dicom_node.manifest import manifest_file, manifest_paths
from dicom_node.quicklook.page import write_page
from dicom_node.quicklook.report import is_report, read_report
from dicom_node.quicklook.scene import Scene, compose
from dicom_node.results.measure import measure
from dicom_node.results.montage import render_finding, to_png
from dicom_node.series import InstanceFile, check_series, read_headers, to_volume
from dicom_node.series.multiframe import MULTIFRAME
from dicom_node.storage import Storage

PAGE = "quicklook.html"
_SEG_CLASSES = (str(SegmentationStorage), "1.2.840.10008.5.1.4.1.1.66.7")
_IMAGE_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", *MULTIFRAME)
# A look is no analysis: whatever forms a volume is shown.
_ANY_VOLUME = GateConfig(
    min_slices=2, min_length_mm=0, max_slice_spacing_mm=1000, max_slice_thickness_mm=1000, lossy="accept"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What lies there. images: Series Instance UID -> its files. reports, segmentations: the newest last."""

    images: Mapping[str, Sequence[InstanceFile]]
    reports: Sequence[InstanceFile]
    segmentations: Sequence[InstanceFile]


def job_files(database: Database, storage: Storage, job_id: str) -> list[Path]:
    """The images that a job analysed and the objects that it made. Raises ConfigError where they are gone."""
    if not manifest_file(storage, job_id).exists():
        raise ConfigError(f"the files of job {job_id} are not here any more")
    files = [*manifest_paths(storage, job_id), *(storage.path(row["path"]) for row in database.results(job_id))]
    missing = sum(not path.exists() for path in files)
    if missing:
        raise ConfigError(f"{missing} of {len(files)} files of job {job_id} are not here any more")
    return files


def folder_files(folder: Path) -> list[Path]:
    """All DICOM files below a folder. Raises ConfigError when there are none."""
    return dicom_files(folder)


def render(paths: Sequence[Path], out_dir: Path, series_uid: str | None = None) -> dict[str, Any]:
    """Write the page and a montage a finding to `out_dir`; returns what stands in them.

    Raises ConfigError where it is not clear which series is meant.
    """
    found = _sorted_out(read_headers(paths))
    report, uid = _choose(found, series_uid)
    sr = None if report is None else pydicom.dcmread(report.path)
    scene = _scene(found, uid, sr)
    written = [write_into(out_dir, name, data) for name, data in _pictures(scene).items()]
    page = write_page(scene).encode()
    return {
        "series_instance_uid": uid,
        "slices": None if scene.volume is None else len(scene.volume.hu),
        "conclusion": None if scene.report is None else scene.report.conclusion,
        "findings": [
            {"number": each.number, "label": each.label, "values": each.reported.values if each.reported else {}}
            for each in scene.shown
        ],
        "notes": list(scene.notes),
        "files": [write_into(out_dir, PAGE, page), *written],
        "notice": RESEARCH_USE,
    }


def outlined(paths: Sequence[Path]) -> tuple[CTSeries, Scene]:
    """What `render` would show, with no pixel decoded: the Volume holds zeros, and no memory.

    Raises ConfigError as `render` does, and SeriesRejected where the images form no volume.
    """
    found = _sorted_out(read_headers(paths))
    report, uid = _choose(found, None)
    sr = None if report is None else pydicom.dcmread(report.path)
    series = check_series(found.images[uid], _ANY_VOLUME)
    nothing = np.broadcast_to(np.int16(0), (len(series.images), series.rows, series.columns))
    return series, compose(series, Volume(hu=nothing, affine=series.affine), sr, _segmentation(found, uid, sr))


def _sorted_out(files: Sequence[InstanceFile]) -> Found:
    images: dict[str, list[InstanceFile]] = defaultdict(list)
    reports, segmentations = [], []
    for file in files:
        sop_class = str(file.header.get("SOPClassUID") or "")
        if sop_class in _IMAGE_CLASSES:
            images[str(file.header.get("SeriesInstanceUID") or "")].append(file)
        elif sop_class in _SEG_CLASSES:
            segmentations.append(file)
        elif is_report(file.header):
            reports.append(file)
    return Found(images=images, reports=sorted(reports, key=_age), segmentations=sorted(segmentations, key=_age))


def _age(file: InstanceFile) -> tuple[str, str, str]:
    header = file.header
    return str(header.get("ContentDate")), str(header.get("ContentTime")), str(header.get("SOPInstanceUID"))


def _choose(found: Found, series_uid: str | None) -> tuple[InstanceFile | None, str]:
    """The newest report on a series whose images are here, and that series; else the one series that is here."""
    wanted = (
        found.images if series_uid is None else {uid: found.images[uid] for uid in (series_uid,) if uid in found.images}
    )
    if not wanted:
        text = "there is no CT image" if series_uid is None else f"there is no CT image of series {series_uid}"
        raise ConfigError(text + "; give images and results in one folder")
    reported = {uid: report for report in found.reports for uid in wanted if uid in _cited(report.header)}
    if len(wanted) > 1 and len(reported) != 1:
        listed = "\n".join(f"  --series {uid}  ({len(files)} files)" for uid, files in wanted.items())
        raise ConfigError(f"there are {len(wanted)} CT series; choose one:\n{listed}")
    uid = next(iter(reported)) if reported else next(iter(wanted))
    return reported.get(uid), uid


def _cited(header: Dataset) -> set[str]:
    """Series Instance UIDs of a report's evidence."""
    studies = header.get("CurrentRequestedProcedureEvidenceSequence", ())
    return {str(series.SeriesInstanceUID) for study in studies for series in study.get("ReferencedSeriesSequence", ())}


def _scene(found: Found, uid: str, sr: Dataset | None) -> Scene:
    try:
        series = check_series(found.images[uid], _ANY_VOLUME)
        volume = to_volume(series)
    except SeriesRejected as err:
        report = None if sr is None else read_report(sr)
        note = f"The images form no volume that could be shown. {err}"
        return Scene(series_uid=uid, volume=None, report=report, shown=(), notes=(note,))
    return compose(series, volume, sr, _segmentation(found, uid, sr))


def _segmentation(found: Found, uid: str, sr: Dataset | None) -> Dataset | None:
    """The one that the report refers to; without a report the newest on the series."""
    if sr is not None:
        named = read_report(sr).segmentation_uid
        files = [file for file in found.segmentations if file.header.SOPInstanceUID == named]
    else:
        files = [
            file
            for file in found.segmentations
            if any(each.SeriesInstanceUID == uid for each in file.header.get("ReferencedSeriesSequence", ()))
        ]
    return pydicom.dcmread(files[-1].path) if files else None


def _pictures(scene: Scene) -> dict[str, bytes]:
    """Montages of what a segmentation marks. They measure the marked voxels anew, as the page's table does not."""
    made = {}
    for each in scene.shown:
        if each.mark is not None and scene.volume is not None:
            measured = measure(each.mark, scene.volume)
            made[f"finding_{each.number}.png"] = to_png(render_finding(scene.volume, each.mark, measured, each.number))
    return made
