"""Scans -> the prepared cache (its layout: training/prepared.py), by the node's own lungs and resampling.

A scan's entry appears under its key complete, or not at all: it is written beside it, synced and renamed. So a
stopped run goes on where it was, and two at once do no harm. The index is of the last run's scans.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Volume
from dicom_node.errors import SeriesRejected
from dicom_node.grids import extent_mm, resample, simple_itk, to_image, trilinear
from dicom_node.lungs import Lungs, find_lungs
from dicom_node.model.spec import PreprocessSpec
from training.cases import Case, DataProblem, Nodule, Scan
from training.prepared import (
    ARRAYS,
    FORM_FILE,
    INDEX_FILE,
    LAYOUT,
    Index,
    PreparedForm,
    PreparedNodule,
    grid_numbers,
    to_json,
)
from training.readers import OnProblem, Problems

CROP_MARGIN_MM = 24.0
FAR_MM, INSIDE_MM = 100, -100  # distance.npy is held within these; a crop that is all lung is INSIDE_MM throughout
MOST_NODULES = 255  # labels.npy is uint8
STALE_S = 3600.0  # no scan takes an hour: a half-written entry of that age has lost its writer
HASHES_FILE = "hashes.json"

Extent = NDArray[np.float64]  # (2, 3): lowest and highest x, y, z in mm


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What `report` is told after each scan. size_mb: of its entry; seconds: it took, 0 where it was there already.

    problem: why there is no entry; None where there is one.
    """

    uid: str
    done: int
    of: int
    size_mb: float
    seconds: float
    problem: str | None = None


def silent(progress: Progress) -> None:
    """For callers that show nothing."""


def prepare(
    scans: Sequence[Scan],
    cache: Path,
    prep: PreprocessSpec,
    *,
    workers: int = 1,
    on_problem: OnProblem = "refuse",
    report: Callable[[Progress], None] = silent,
    left_out: dict[str, str] | None = None,
) -> Index:
    """An entry for each scan, then the index. left_out: what the reader left out already, for the index.

    Raises DataProblem where problems are refused; entries written until then stay, and count next time.
    """
    twice = len(scans) - len({scan.uid for scan in scans})
    if twice:
        raise DataProblem(f"{twice} scans have a UID that another scan has: prepare each source in a cache of its own")
    cache.mkdir(parents=True, exist_ok=True)
    _sweep(cache)
    problems = Problems(on_problem=on_problem, left_out=dict(left_out or {}))
    hashes = _Hashes(cache / HASHES_FILE)
    keys: dict[str, str] = {}
    with closing(_each(scans, cache, prep, workers, hashes)) as results:
        for number, (scan, made) in enumerate(results, start=1):
            hashes.add(made.digests)
            if made.problem is None:
                keys[scan.uid] = made.key
            else:
                problems.note(scan.uid, made.problem)
            report(
                Progress(
                    uid=scan.uid,
                    done=number,
                    of=len(scans),
                    size_mb=_size_mb(cache / made.key) if made.problem is None else 0.0,
                    seconds=made.seconds,
                    problem=made.problem,
                )
            )
    index = Index(preprocessing=grid_numbers(prep), keys=keys, left_out=problems.left_out)
    write_whole(cache / INDEX_FILE, to_json(index))
    return index


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """One scan's outcome. digests: of its files, by their signature."""

    key: str
    seconds: float
    digests: dict[str, str]
    problem: str | None = None


def _each(
    scans: Sequence[Scan], cache: Path, prep: PreprocessSpec, workers: int, hashes: _Hashes
) -> Generator[tuple[Scan, _Made], None, None]:
    """The scans as they get done; in this process where one worker is asked for."""
    if workers <= 1 or len(scans) <= 1:
        for scan in scans:
            yield scan, _make(scan, cache, prep, hashes.known(scan.files))
        return
    # Not forked: SimpleITK's and torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        waiting: dict[Future[_Made], Scan] = {
            pool.submit(_make, scan, cache, prep, hashes.known(scan.files)): scan for scan in scans
        }
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool as err:
            raise DataProblem("a worker was killed, perhaps for memory: run again with fewer --workers") from err
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    simple_itk().ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _make(scan: Scan, cache: Path, prep: PreprocessSpec, known: dict[str, str]) -> _Made:
    """The entry of one scan, unless it is there."""
    started = time.monotonic()
    digests: dict[str, str] = {}
    try:
        digests = {_signature(path): known.get(_signature(path)) or _digest(path) for path in scan.files}
        key = entry_key(scan, list(digests.values()), prep)
        if (cache / key / FORM_FILE).exists():
            return _Made(key=key, seconds=0.0, digests=digests)
        form, arrays = prepare_case(scan, scan.read(), key, prep)
        _store(cache, form, arrays)
    except DataProblem as err:
        return _Made(key="", seconds=time.monotonic() - started, digests=digests, problem=str(err))
    return _Made(key=key, seconds=time.monotonic() - started, digests=digests)


def entry_key(scan: Scan, digests: Sequence[str], prep: PreprocessSpec) -> str:
    """The name of a scan's entry: another one when its bytes, its truth, the grid or the layout changes."""
    parts = [LAYOUT, CROP_MARGIN_MM, scan.uid, scan.patient, scan.subset, scan.composite, scan.whole_chest, scan.truth]
    text = json.dumps([*parts, list(digests), grid_numbers(prep)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def prepare_case(
    scan: Scan, case: Case, key: str, prep: PreprocessSpec
) -> tuple[PreparedForm, dict[str, NDArray[Any]]]:
    """What an entry holds. Raises DataProblem."""
    if len(case.nodules) > MOST_NODULES:
        raise DataProblem(f"{scan.uid} has {len(case.nodules)} nodules, at most {MOST_NODULES} fit: is its mask noise?")
    lungs = _lungs(scan, case.volume, prep)
    grid = resample(case.volume, prep.spacing_mm, prep.air_hu, _crop_mm(case, lungs))
    labels = _labels(scan, case, grid)
    counts = np.bincount(labels.ravel(), minlength=len(case.nodules) + 1)
    x, y, z = (float(v) for v in grid.affine[:3, 3])
    form = PreparedForm(
        layout=LAYOUT,
        key=key,
        uid=scan.uid,
        patient=scan.patient,
        subset=scan.subset,
        composite=scan.composite,
        whole_chest=scan.whole_chest,
        preprocessing=grid_numbers(prep),
        origin_mm=(x, y, z),
        spacing_mm=prep.spacing_mm,
        shape=(grid.hu.shape[0], grid.hu.shape[1], grid.hu.shape[2]),
        nodules=tuple(_describe(n, i, int(counts[i])) for i, n in enumerate(case.nodules, start=1)),
        ignored=tuple((*ball.center_mm, ball.radius_mm) for ball in case.ignored),
    )
    return form, {"hu": grid.hu, "labels": labels, "distance": _distance(lungs, grid)}


def _lungs(scan: Scan, volume: Volume, prep: PreprocessSpec) -> Lungs | None:
    """None for a crop."""
    if not scan.whole_chest:
        return None
    try:
        return find_lungs(volume, prep.air_hu)
    except SeriesRejected as err:
        raise DataProblem(f"{scan.uid}: {err.text}; give crops to their reader as crops") from err


def _crop_mm(case: Case, lungs: Lungs | None) -> Extent:
    """Round the lungs and each nodule, so that none is lost where lungs were found badly; within the volume."""
    covered = extent_mm(case.volume)
    if lungs is None:
        return covered
    low, high = lungs.box_mm(CROP_MARGIN_MM)
    for nodule in case.nodules:
        box = _box_mm(case.volume, nodule)
        low, high = np.minimum(low, box[0] - 1.0), np.maximum(high, box[1] + 1.0)
    return np.stack([np.maximum(low, covered[0]), np.minimum(high, covered[1])])


def _box_mm(volume: Volume, nodule: Nodule) -> Extent:
    """The voxel centres of its mask."""
    ends = [(start, start + n - 1) for start, n in zip(nodule.corner, nodule.mask.shape, strict=True)]
    corners = volume.to_mm(np.array(np.meshgrid(*ends), dtype=np.float64).reshape(3, -1).T)
    return np.stack([corners.min(axis=0), corners.max(axis=0)])


def _labels(scan: Scan, case: Case, grid: Volume) -> NDArray[np.uint8]:
    """Each nodule's number where its mask, resampled like the image, is at least half. Where two meet, the smaller's.

    One that the grid's voxels miss gets the voxel nearest to its centroid.
    """
    labels = np.zeros(grid.hu.shape, dtype=np.uint8)
    numbered = list(enumerate(case.nodules, start=1))
    for number, nodule in sorted(numbered, key=lambda each: -int(each[1].mask.sum())):
        inside, window = on_grid(case.volume, nodule, grid)
        labels[window][inside] = number
    for number, nodule in numbered:
        if not (labels == number).any():
            centroid = np.argwhere(nodule.mask).mean(axis=0) + nodule.corner
            nearest = np.rint(grid.to_index(case.volume.to_mm(centroid))).astype(np.int64)
            labels[tuple(nearest.clip(0, np.array(labels.shape) - 1))] = number
    for number, nodule in numbered:
        if not (labels == number).any():
            raise DataProblem(f"{scan.uid}: nodule {nodule.name} lies wholly under others on the grid: check its mask")
    return labels


def on_grid(volume: Volume, nodule: Nodule, grid: Volume) -> tuple[NDArray[np.bool_], tuple[slice, slice, slice]]:
    """The nodule's mask on the part of the grid that it can reach, and which part that is."""
    box = _box_mm(volume, nodule)
    ends = grid.to_index(box) + np.array([[-1.0], [1.0]]) * max(volume.spacing_mm) / min(grid.spacing_mm)
    low = np.floor(ends.min(axis=0)).astype(np.int64).clip(0, grid.hu.shape)
    high = (np.ceil(ends.max(axis=0)).astype(np.int64) + 1).clip(0, grid.hu.shape)
    ranges = [np.arange(a, b) for a, b in zip(low, high, strict=True)]
    index = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).astype(np.float64)
    # A frame of zeros: beyond its own voxels a mask is empty, not cut off.
    padded = np.pad(nodule.mask, 1).astype(np.float32)
    within = volume.to_index(grid.to_mm(index)) - np.array(nodule.corner) + 1
    k, r, c = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return trilinear(padded, within, 0.0) >= 0.5, (k, r, c)


def _distance(lungs: Lungs | None, grid: Volume) -> NDArray[np.int8]:
    if lungs is None:
        return np.full(grid.hu.shape, INSIDE_MM, dtype=np.int8)
    sitk = simple_itk()
    source = to_image(lungs.distance_mm, lungs.grid.affine)
    reference = to_image(grid.hu, grid.affine)
    image = sitk.Resample(source, reference, sitk.Transform(), sitk.sitkLinear, float(FAR_MM), sitk.sitkFloat32)
    distance: NDArray[np.float32] = sitk.GetArrayFromImage(image)
    rounded: NDArray[np.int8] = np.rint(distance.clip(INSIDE_MM, FAR_MM)).astype(np.int8)
    return rounded


def _describe(nodule: Nodule, number: int, voxels: int) -> PreparedNodule:
    return PreparedNodule(
        number=number,
        name=nodule.name,
        center_mm=nodule.center_mm,
        diameter_mm=nodule.diameter_mm,
        mask_from=nodule.mask_from,
        readers=nodule.readers,
        voxels=voxels,
    )


def _store(cache: Path, form: PreparedForm, arrays: dict[str, NDArray[Any]]) -> None:
    """Write beside, sync, rename. Where another process was first, its entry is the same: ours goes."""
    folder = Path(tempfile.mkdtemp(prefix=f".{form.key}.", dir=cache))
    folder.chmod(0o755)  # mkdtemp's is for one user, a cache may be for several
    try:
        for name, dtype in ARRAYS.items():
            with (folder / f"{name}.npy").open("wb") as file:
                np.save(file, arrays[name].astype(dtype, copy=False), allow_pickle=False)
                _sync(file.fileno())
        with (folder / FORM_FILE).open("w") as file:
            file.write(to_json(form))
            file.flush()
            _sync(file.fileno())
        _sync_folder(folder)
        folder.rename(cache / form.key)
        _sync_folder(cache)
    except OSError as err:
        if not (cache / form.key / FORM_FILE).exists():
            raise DataProblem(f"{cache} can't be written ({err.strerror}): make room, or choose another place") from err
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """A file that is there complete, or as it was."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            _sync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
        _sync_folder(path.parent)
    finally:
        Path(name).unlink(missing_ok=True)


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(cache: Path) -> None:
    """What a killed run left half-written; what another one may still be writing stays."""
    for left in cache.glob(".*"):
        try:
            stale = time.time() - left.stat().st_mtime > STALE_S
        except FileNotFoundError:  # its writer has just renamed it
            continue
        if stale:
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


class _Hashes:
    """Digests of files by path, size and time of change, so that 120 GB are not read again to find nothing to do."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._by_signature: dict[str, str] = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):  # only a shortcut: without it the files are read
            self._by_signature = {}

    def known(self, files: Sequence[Path]) -> dict[str, str]:
        signatures = [_signature(path) for path in files if path.exists()]
        return {s: self._by_signature[s] for s in signatures if s in self._by_signature}

    def add(self, digests: dict[str, str]) -> None:
        if digests.items() <= self._by_signature.items():
            return
        self._by_signature |= digests
        write_whole(self._path, json.dumps(self._by_signature, indent=0, sort_keys=True))


def _signature(path: Path) -> str:
    """Raises DataProblem where the file has gone."""
    try:
        status = path.stat()
    except OSError as err:
        raise DataProblem(f"{path} can't be read ({err.strerror}): is its disk still there?") from err
    return f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        raise DataProblem(f"{path} can't be read ({err.strerror}): is its disk still there?") from err


def _size_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6
