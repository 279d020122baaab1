"""The prepared cache, read side: one folder a scan, arrays memory-mapped, so that any process opens it at no cost.

    <cache>/<key>/hu.npy        int16 (D, H, W), HU on the 1 mm LPS grid, cropped round the lungs
                  labels.npy    uint8 (D, H, W), 0 or the number (1...) of the nodule a voxel belongs to
                  distance.npy  int8 (D, H, W), mm to the lungs, negative inside, clipped to +-100
                  case.json     PreparedForm
    <cache>/index.json          Index: which scans, which key; what was left out and why

The key is a hash of the scan's bytes, its truth, the preprocessing numbers and the version of this layout.
Nothing here needs SimpleITK or pydicom: a training machine with torch alone reads it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.model.spec import PreprocessSpec
from training.cases import DataProblem

LAYOUT = 1
FORM_FILE, INDEX_FILE = "case.json", "index.json"
ARRAYS = {"hu": np.int16, "labels": np.uint8, "distance": np.int8}


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedNodule:
    """number: its value in labels.npy. center_mm, diameter_mm: as listed. voxels: of its label on the 1 mm grid."""

    number: int
    name: str
    center_mm: tuple[float, float, float]
    diameter_mm: float
    mask_from: str
    readers: int | None
    voxels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedForm:
    """case.json. origin_mm: LPS of voxel (0, 0, 0)'s centre; axes run along z, y, x.

    ignored: (x, y, z, radius) in LPS mm.
    """

    layout: int
    key: str
    uid: str
    patient: str
    subset: int | None
    composite: bool
    whole_chest: bool
    preprocessing: dict[str, Any]
    origin_mm: tuple[float, float, float]
    spacing_mm: float
    shape: tuple[int, int, int]
    nodules: tuple[PreparedNodule, ...]
    ignored: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """keys: scan uid -> key. left_out: scan uid or file -> why."""

    layout: int = LAYOUT
    preprocessing: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedScan:
    """One scan of the cache. Arrays are read-only memory maps, opened at each call."""

    folder: Path
    form: PreparedForm

    def hu(self) -> NDArray[np.int16]:
        return self._array("hu")

    def labels(self) -> NDArray[np.uint8]:
        return self._array("labels")

    def distance(self) -> NDArray[np.int8]:
        return self._array("distance")

    def to_index(self, point_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 3) LPS mm -> (..., 3) fractional (slice, row, column)."""
        return (np.asarray(point_mm, dtype=np.float64) - self.form.origin_mm)[..., ::-1] / self.form.spacing_mm

    def to_mm(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 3) (slice, row, column) -> (..., 3) LPS mm."""
        return np.asarray(index, dtype=np.float64)[..., ::-1] * self.form.spacing_mm + self.form.origin_mm

    def _array(self, name: str) -> NDArray[Any]:
        try:
            array: NDArray[Any] = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as err:
            raise DataProblem(f"{self.folder / name}.npy can't be read ({err}): run prepare again") from err
        if array.shape != self.form.shape or array.dtype != ARRAYS[name]:
            raise DataProblem(f"{self.folder / name}.npy is not what case.json describes: run prepare again")
        return array


def read_index(cache: Path) -> Index:
    """Raises DataProblem where `prepare` has not run to its end, or another version made the cache."""
    raw = _read_json(cache / INDEX_FILE, f"{cache} holds no prepared data: run `python -m training prepare` first")
    if raw.get("layout") != LAYOUT:
        raise DataProblem(f"{cache}: layout {raw.get('layout')!r}, this version reads {LAYOUT}: run prepare again")
    return Index(**raw)


def open_prepared(cache: Path, prep: PreprocessSpec) -> list[PreparedScan]:
    """All scans of the cache, sorted by uid. Raises DataProblem where it was made with other preprocessing numbers."""
    index = read_index(cache)
    wanted = grid_numbers(prep)
    if index.preprocessing != wanted:
        raise DataProblem(f"{cache} was prepared with {index.preprocessing}, this needs {wanted}: run prepare again")
    return [open_scan(cache / key) for _, key in sorted(index.keys.items())]


def open_scan(folder: Path) -> PreparedScan:
    raw = _read_json(folder / FORM_FILE, f"{folder} holds no prepared scan: run prepare again")
    nodules = tuple(PreparedNodule(**{**n, "center_mm": tuple(n["center_mm"])}) for n in raw["nodules"])
    tuples = {k: tuple(raw[k]) for k in ("origin_mm", "shape")}
    ignored = tuple(tuple(ball) for ball in raw["ignored"])
    return PreparedScan(folder=folder, form=PreparedForm(**{**raw, **tuples, "nodules": nodules, "ignored": ignored}))


def grid_numbers(prep: PreprocessSpec) -> dict[str, Any]:
    """The preprocessing numbers that shape the cache; the others (window, channels, upsampling) act later."""
    return prep.model_dump(mode="json", include={"spacing_mm", "air_hu"})


def to_json(form: PreparedForm | Index) -> str:
    return json.dumps(asdict(form), indent=1, sort_keys=True) + "\n"


def _read_json(path: Path, missing: str) -> dict[str, Any]:
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as err:
        raise DataProblem(missing) from err
    except ValueError as err:
        raise DataProblem(f"{path} is not JSON ({err}): run prepare again") from err
    return raw
