"""DICOM CT series and the Segmentations that refer to them -> Scans. A segment is a nodule, unless it says otherwise.

A hospital's own cases: what the node received, and a radiologist's corrected SEG of it. Series pass the node's own
geometry gate and are decoded by its code, so that training sees the very HU that the node will see.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Volume
from dicom_node.errors import SeriesRejected, UnreadableInstance
from dicom_node.nodules import MOST_MM3, marks
from training.cases import Case, DataProblem, Ignored, Nodule, Scan
from training.readers import Listing, OnProblem, Problems
from training.readers.masks import nodule_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from dicom_node.series import InstanceFile

Unlabelled = Literal["skip", "negative"]
Several = Literal["newest", "refuse"]

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"
OFF_GRID = 0.1  # parts of a voxel
NOTE_FILE = "case.json"  # beside a case that the node exported: what is neither nodule nor background


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labels:
    """A Segmentation by its header. made: ContentDate and ContentTime; newer ones sort higher."""

    path: Path
    sop_instance_uid: str
    series_uid: str
    made: str


def list_dicom_seg(
    folder: Path,
    *,
    unlabelled: Unlabelled = "skip",
    several: Several = "newest",
    on_problem: OnProblem = "refuse",
) -> Listing:
    """Every CT series below `folder`, whatever the files are called.

    unlabelled: a series without Segmentation is left out, or is a scan without nodules.
    several: of two Segmentations of a series the newest counts (a correction follows what it corrects), or they
        are a problem.
    Raises DataProblem.
    """
    problems = Problems(on_problem=on_problem)
    series, labels, others = _sorted_out(folder, problems)
    notes = _notes(folder)
    scans = []
    noted: dict[str, str] = {}
    for uid, files in sorted(series.items()):
        refused = _refusal(files)
        if refused:
            problems.note(uid, refused)
            continue
        of_series = sorted((s for s in labels if s.series_uid == uid), key=lambda s: (s.made, s.sop_instance_uid))
        note = notes.get(uid)
        if not of_series and unlabelled == "skip" and note is None:
            noted[uid] = "no Segmentation refers to it"
            continue
        if len(of_series) > 1 and several == "refuse":
            problems.note(uid, f"{len(of_series)} Segmentations refer to it: keep one")
            continue
        noted |= {s.sop_instance_uid: "an older Segmentation of its series" for s in of_series[:-1]}
        scans.append(_scan(uid, files, of_series[-1].path if of_series else None, note))
    for orphan in (s for s in labels if s.series_uid not in series):
        problems.note(orphan.sop_instance_uid, f"{orphan.path} refers to a series that is not here: add its images")
    if not series:
        raise DataProblem(f"{folder} holds no DICOM CT series")
    summary = [f"{len(scans)} scans of {len({s.patient for s in scans})} patients, of {len(series)} CT series", others]
    return Listing(scans=scans, left_out={**noted, **problems.left_out}, summary=summary)


def read_case(files: Sequence[Path], labels: Path | None, uid: str, ignored: tuple[Ignored, ...] = ()) -> Case:
    """Raises DataProblem."""
    from dicom_node.series import read_series, to_volume

    try:
        volume = to_volume(read_series(files))
    except (SeriesRejected, UnreadableInstance) as err:
        raise DataProblem(f"{uid}: {err}") from err
    nodules = () if labels is None else read_segments(labels, volume, uid)
    return Case(volume=volume, nodules=nodules, ignored=ignored)


def read_segments(path: Path, volume: Volume, uid: str) -> tuple[Nodule, ...]:
    """One nodule a segment; what else there is, is left aside by the node's own rule (`nodules.marks`).

    Raises DataProblem where a frame is not on the volume's grid.
    """
    import pydicom

    try:
        seg = pydicom.dcmread(path)
        frames = seg.pixel_array.reshape(-1, int(seg.Rows), int(seg.Columns))
        # 0 is the background of a label map, which may be described like a segment.
        kinds = {int(s.SegmentNumber): marks(s) for s in seg.SegmentSequence if int(s.SegmentNumber) > 0}
        numbers = [number for number, kind in kinds.items() if kind != "other"]
        masks: dict[int, NDArray[np.bool_]] = {}
        for frame, number, pixels in _marked(seg, frames, numbers):
            mask = masks.setdefault(number, np.zeros(volume.hu.shape, dtype=np.bool_))
            _paint(mask, pixels, _frame_affine(seg, frame), volume, path)
    except (AttributeError, KeyError, IndexError, ValueError, NotImplementedError, RuntimeError) as err:
        # What pydicom raises for an object that lacks what a Segmentation must have; its text may quote the object.
        raise DataProblem(f"{path} is no readable Segmentation ({type(err).__name__}): export it again") from err
    return tuple(
        nodule_of(mask, (0, 0, 0), volume, f"{uid}/{number}")
        for number, mask in sorted(masks.items())
        if not (kinds[number] == "vague" and mask.sum() * volume.voxel_mm3 > MOST_MM3)
    )


def _sorted_out(folder: Path, problems: Problems) -> tuple[dict[str, list[InstanceFile]], list[_Labels], str]:
    """Files below a folder -> CT instances by series, Segmentations, and how much there is of neither."""
    from dicom_node.series import read_headers

    series: dict[str, list[InstanceFile]] = {}
    labels: list[_Labels] = []
    strangers = others = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if not _has_preamble(path) and path.suffix.lower() not in (".dcm", ".ima"):
            strangers += 1
            continue
        try:
            (file,) = read_headers([path])
        except UnreadableInstance:
            problems.note(str(path), "no readable DICOM: fetch it again, or remove it")
            continue
        kind = str(file.header.get("SOPClassUID") or "")
        is_ct = kind == CT_IMAGE or str(file.header.get("Modality") or "") == "CT"
        if not kind or (is_ct and not file.header.get("SeriesInstanceUID")):
            problems.note(
                str(path), "no readable DICOM: it ends before it says what it is; fetch it again, or remove it"
            )
        elif kind in (SEGMENTATION, LABEL_MAP_SEGMENTATION):
            uid = _referenced_series(file.header)
            if uid is None:
                problems.note(str(path), "the Segmentation does not say which series it belongs to: export it again")
            else:
                labels.append(_labels(path, file.header, uid))
        elif is_ct:
            series.setdefault(str(file.header.SeriesInstanceUID), []).append(file)
        else:
            others += 1
    unseen = f"{strangers} files that are no DICOM, {others} DICOM objects of other kinds: not looked at"
    return series, labels, unseen


def _has_preamble(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _referenced_series(header: Dataset) -> str | None:
    references = header.get("ReferencedSeriesSequence") or ()
    uids = {str(item.SeriesInstanceUID) for item in references if item.get("SeriesInstanceUID")}
    return uids.pop() if len(uids) == 1 else None


def _labels(path: Path, header: Dataset, series_uid: str) -> _Labels:
    made = f"{header.get('ContentDate') or '':>8} {header.get('ContentTime') or ''}"
    return _Labels(path=path, sop_instance_uid=str(header.SOPInstanceUID), series_uid=series_uid, made=made)


def _refusal(files: Sequence[InstanceFile]) -> str | None:
    """Why the node's gate does not let a series pass; None where it does."""
    from dicom_node.config import GateConfig
    from dicom_node.series import check_series

    try:
        check_series(files, GateConfig())
    except SeriesRejected as err:
        return str(err)
    return None


def _notes(folder: Path) -> dict[str, tuple[Ignored, ...]]:
    """Series UID -> what a case's note says is neither nodule nor background. Such a case is reviewed, so that one
    without a Segmentation has no nodule. Raises DataProblem."""
    notes = {}
    for path in sorted(folder.rglob(NOTE_FILE)):
        try:
            raw = json.loads(path.read_text())
            balls = [(each["center_mm"], float(each["diameter_mm"])) for each in raw["ignored"]]
            notes[str(raw["series_instance_uid"])] = tuple(
                Ignored(center_mm=(float(x), float(y), float(z)), diameter_mm=diameter) for (x, y, z), diameter in balls
            )
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise DataProblem(f"{path} is no note of an exported case ({type(err).__name__}): export it again") from err
    return notes


def _scan(
    uid: str, files: Sequence[InstanceFile], labels: Path | None, ignored: tuple[Ignored, ...] | None = None
) -> Scan:
    paths = tuple(Path(file.path) for file in files)
    return Scan(
        uid=uid,
        patient=_pseudonym(files[0].header),
        subset=None,
        composite=False,
        files=paths if labels is None else (*paths, labels),
        truth=("dicom_seg 2" if labels else "dicom_seg 2 negative") + (f" {ignored}" if ignored else ""),
        read=partial(read_case, paths, labels, uid, ignored or ()),
    )


def _pseudonym(header: Dataset) -> str:
    """Tells patients apart without naming them: it ends up in caches, logs and reports."""
    identity = "\\".join(str(header.get(k) or "") for k in ("IssuerOfPatientID", "PatientID"))
    if not header.get("PatientID"):
        identity = str(header.StudyInstanceUID)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _marked(seg: Dataset, frames: NDArray[Any], numbers: Sequence[int]) -> list[tuple[Dataset, int, NDArray[np.bool_]]]:
    """(its functional groups, segment number, mask) of each frame that holds something of a wanted segment."""
    kind = str(seg.SegmentationType)
    least = 0.5 * float(seg.MaximumFractionalValue) if kind == "FRACTIONAL" else 1
    marked = []
    for groups, pixels in zip(seg.PerFrameFunctionalGroupsSequence, frames, strict=True):
        if kind == "LABELMAP":
            present = set(np.unique(pixels).tolist()) & set(numbers)
            marked += [(groups, number, pixels == number) for number in sorted(present)]
            continue
        number = int(_group(seg, groups, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        if number in numbers and (mask := pixels >= least).any():
            marked.append((groups, number, mask))
    return marked


def _group(seg: Dataset, frame: Dataset, name: str) -> Dataset:
    """A functional group of a frame, or the one that all frames share. Raises KeyError."""
    for place in (frame, *seg.get("SharedFunctionalGroupsSequence", ())):
        if name in place:
            group: Dataset = place[name].value[0]
            return group
    raise KeyError(name)


def _frame_affine(seg: Dataset, frame: Dataset) -> NDArray[np.float64]:
    """(row, column, 1) -> LPS mm of a frame, shape (3, 3). PS3.3 C.7.6.2.1.1."""
    position = _group(seg, frame, "PlanePositionSequence").ImagePositionPatient
    row, column = np.array(_group(seg, frame, "PlaneOrientationSequence").ImageOrientationPatient).reshape(2, 3)
    between_rows, between_columns = _group(seg, frame, "PixelMeasuresSequence").PixelSpacing
    columns = [column * float(between_rows), row * float(between_columns), np.array(position)]
    return np.stack(columns, axis=1).astype(np.float64)


def _paint(
    mask: NDArray[np.bool_], pixels: NDArray[np.bool_], affine: NDArray[np.float64], volume: Volume, path: Path
) -> None:
    marked = np.argwhere(pixels).astype(np.float64)
    at = volume.to_index(np.column_stack([marked, np.ones(len(marked))]) @ affine.T)
    index = np.rint(at).astype(np.int64)
    if np.abs(at - index).max() > OFF_GRID or (index < 0).any() or (index >= mask.shape).any():
        raise DataProblem(f"{path} is not on its CT's grid: export it in the geometry of the CT series")
    mask[tuple(index.T)] = True
