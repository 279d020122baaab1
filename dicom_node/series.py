"""Files of one series -> headers -> the geometry gate -> CTSeries -> Volume. Nothing is inferred: in doubt, refuse."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    JPEG2000MC,
    CTImageStorage,
    EnhancedCTImageStorage,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    LegacyConvertedEnhancedCTImageStorage,
)

from dicom_node.config import GateConfig
from dicom_node.domain import CTImage, CTSeries, Volume
from dicom_node.errors import Reason, SeriesRejected, UnreadableInstance

_LOSSY_SYNTAXES = {JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, JPEG2000MC}
_MULTIFRAME = {EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
_COSINE_TOLERANCE = 1e-3
_DRIFT_TOLERANCE_MM = 0.1
_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_FARTHEST_MM = 1e5
_FINEST_MM = 1e-3
_LARGEST_RESCALE = 1e9
# 4 GB of HU; a scan of 1024 x 1024 has 2048 slices then. A header of a few bytes may ask for more.
_MOST_VOXELS = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFile:
    """A readable file and its data set without PixelData."""

    path: str
    header: Dataset


def read_headers(paths: Sequence[str | Path]) -> list[InstanceFile]:
    """The headers of `paths`, in order. Raises UnreadableInstance for the first file that is no DICOM data set."""
    files = []
    for number, path in enumerate(paths, start=1):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
            # Sequences are parsed on first touch; a broken one must show here, not in the middle of a result.
            for _ in header.iterall():
                pass
        except Exception as err:  # the parser meets whatever a peer sent, and raises whatever it likes
            raise UnreadableInstance(
                f"file {number} of {len(paths)} ({Path(path).name}) is no readable DICOM: {type(err).__name__}"
            ) from err
        files.append(InstanceFile(path=str(path), header=header))
    return files


def readable_headers(paths: Sequence[str | Path]) -> tuple[list[InstanceFile], int]:
    """The headers of those `paths` that can be read, and how many can't."""
    files: list[InstanceFile] = []
    for path in paths:
        with contextlib.suppress(UnreadableInstance):
            files += read_headers([path])
    return files, len(paths) - len(files)


def read_series(paths: Sequence[str | Path], limits: GateConfig | None = None) -> CTSeries:
    """Headers and gate in one. Raises UnreadableInstance or SeriesRejected."""
    return check_series(read_headers(paths), limits or GateConfig())


def check_series(files: Sequence[InstanceFile], limits: GateConfig) -> CTSeries:
    """The geometry gate. Raises SeriesRejected with the first reason found, from the plainest to the subtlest."""
    _check_identity(files, limits)
    axial, left_out = _axial_images(files)
    _check_agreement(axial, limits)
    orientation = _check_orientation(axial)
    images = _sorted(axial, orientation)
    _check_positions(images, orientation, limits)
    return CTSeries(
        images=images,
        affine=_affine(images, orientation),
        rows=int(images[0].header.Rows),
        columns=int(images[0].header.Columns),
        left_out=left_out,
    )


def _check_identity(files: Sequence[InstanceFile], limits: GateConfig) -> None:
    if not files:
        raise SeriesRejected(Reason.TOO_FEW_SLICES, "no files")
    if len(files) > limits.max_instances:
        raise SeriesRejected(Reason.TOO_LARGE, f"{len(files)} instances, gate.max_instances is {limits.max_instances}")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        missing = sum(len(_values(file.header.get(keyword))) != 1 for file in files)
        if missing:
            raise SeriesRejected(Reason.MISSING_UID, f"{keyword} is missing in {missing} of {len(files)} instances")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        if len({str(file.header[keyword].value) for file in files}) > 1:
            raise SeriesRejected(Reason.MIXED_SERIES, f"more than one {keyword}")
    uids = Counter(str(file.header.SOPInstanceUID) for file in files)
    if len(uids) < len(files):
        raise SeriesRejected(Reason.DUPLICATE_POSITION, "two files hold the same SOP Instance UID")


def _axial_images(files: Sequence[InstanceFile]) -> tuple[list[InstanceFile], dict[str, str]]:
    """The images that make the volume, and why each other instance is left out of it."""
    axial: list[InstanceFile] = []
    left_out: dict[str, str] = {}
    for file in files:
        why = _why_left_out(file.header)
        if why is None:
            axial.append(file)
        else:
            left_out[str(file.header.SOPInstanceUID)] = why
    if not axial:
        if any(f.header.SOPClassUID in _MULTIFRAME for f in files):
            raise SeriesRejected(Reason.MULTIFRAME_UNSUPPORTED, "multi-frame CT is not read yet; send single frames")
        if not any(f.header.SOPClassUID == CTImageStorage for f in files):
            raise SeriesRejected(Reason.NOT_CT, "no CT Image Storage instance")
        raise SeriesRejected(Reason.NO_AXIAL_IMAGES, "; ".join(sorted(set(left_out.values()))))
    return axial, left_out


def _why_left_out(header: Dataset) -> str | None:
    if header.SOPClassUID != CTImageStorage:
        return f"{getattr(header.SOPClassUID, 'name', 'an unknown SOP Class')} is no CT image"
    image_type = [str(value).upper() for value in _values(header.get("ImageType"))]
    if "LOCALIZER" in image_type:
        return "localizer"
    has_geometry = all(header.get(k) for k in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
    if not has_geometry and "SECONDARY" in image_type:
        return "secondary image without geometry"
    return None


def _check_agreement(axial: Sequence[InstanceFile], limits: GateConfig) -> None:
    """What all images of one volume must share."""
    for file in axial:
        _check_attributes(file.header)
    for keywords, reason in (
        (("FrameOfReferenceUID",), Reason.MIXED_FRAME_OF_REFERENCE),
        (("Rows", "Columns", "PixelSpacing", "PixelRepresentation", "BitsAllocated"), Reason.MIXED_MATRIX),
        (("ConvolutionKernel",), Reason.MIXED_KERNEL),
    ):
        for keyword in keywords:
            seen = {_text(file.header.get(keyword)) for file in axial}
            if len(seen) > 1:
                values = "".join(c for c in ", ".join(sorted(seen))[:120] if c.isprintable())
                raise SeriesRejected(reason, f"{len(seen)} values of {keyword}: {values}")
    voxels = int(axial[0].header.Rows) * int(axial[0].header.Columns) * len(axial)
    if voxels > _MOST_VOXELS:
        raise SeriesRejected(Reason.TOO_LARGE, f"{voxels} voxels, more than {_MOST_VOXELS}")
    if limits.lossy == "refuse":
        lossy = sum(_is_lossy(file.header) for file in axial)
        if lossy:
            raise SeriesRejected(Reason.LOSSY, f"{lossy} of {len(axial)} images are lossy compressed")


def _check_attributes(header: Dataset) -> None:
    modality = str(header.get("Modality") or "")
    if modality != "CT":
        raise SeriesRejected(Reason.NOT_CT, f"Modality is {modality[:16]!r}, not 'CT'")
    for keyword, count in (
        ("FrameOfReferenceUID", 1),
        ("ImagePositionPatient", 3),
        ("ImageOrientationPatient", 6),
        ("PixelSpacing", 2),
        ("Rows", 1),
        ("Columns", 1),
    ):
        values = _values(header.get(keyword))
        if len(values) != count or any(value in (None, "") for value in values):
            raise SeriesRejected(Reason.MISSING_GEOMETRY, f"{keyword} is missing or incomplete")
    numbers = np.array([n for k in _GEOMETRY for n in _numbers(header, k)])
    # No body is farther from the scanner's isocentre; NaN is not below it either.
    if not (np.abs(numbers) < _FARTHEST_MM).all() or min(_numbers(header, "PixelSpacing")) < _FINEST_MM:
        raise SeriesRejected(Reason.MISSING_GEOMETRY, "geometry holds values that cannot be")
    if not all(number >= 1 for keyword in ("Rows", "Columns") for number in _numbers(header, keyword)):
        raise SeriesRejected(Reason.MISSING_GEOMETRY, "Rows or Columns is zero")
    if any(value not in (None, 1) for k in ("SamplesPerPixel", "NumberOfFrames") for value in _values(header.get(k))):
        raise SeriesRejected(Reason.NOT_CT, "images are coloured or hold several frames")


def _check_orientation(axial: Sequence[InstanceFile]) -> NDArray[np.float64]:
    """The one orientation of all images, shape (2, 3): direction of a row, of a column."""
    orientations = np.array([_numbers(file.header, "ImageOrientationPatient") for file in axial]).reshape(-1, 2, 3)
    first = orientations[0]
    if np.abs(first @ first.T - np.eye(2)).max() > _COSINE_TOLERANCE:
        raise SeriesRejected(Reason.MISSING_GEOMETRY, "ImageOrientationPatient is not orthonormal")
    if np.abs(orientations - first).max() > _COSINE_TOLERANCE:
        raise SeriesRejected(Reason.ORIENTATION_MIXED, "images have more than one orientation")
    normal = np.cross(first[0], first[1])
    degrees = float(np.degrees(np.arccos(min(1.0, abs(float(normal[2]))))))
    if degrees > 45:
        raise SeriesRejected(Reason.NOT_AXIAL, f"the slices' normal is {degrees:.0f} degrees off the body's axis")
    off_axis = max(float(np.hypot(normal[0], normal[1])), abs(float(first[0][1])), abs(float(first[1][0])))
    if off_axis > _COSINE_TOLERANCE:
        tilt = _text(axial[0].header.get("GantryDetectorTilt"))
        if tilt not in ("", "0", "0.0", "0.00") and degrees > 0.1:
            raise SeriesRejected(Reason.GANTRY_TILT, f"the gantry was tilted: slices are {degrees:.1f} degrees oblique")
        raise SeriesRejected(Reason.NOT_AXIAL, f"slices are oblique: {degrees:.1f} degrees, or turned in their plane")
    found: NDArray[np.float64] = first
    return found


def _sorted(axial: Sequence[InstanceFile], orientation: NDArray[np.float64]) -> tuple[CTImage, ...]:
    """By projection on the normal, feet to head; never by InstanceNumber or file name."""
    normal = _normal(orientation)
    images = [
        CTImage(
            path=file.path,
            sop_instance_uid=str(file.header.SOPInstanceUID),
            header=file.header,
            position_mm=_point(file.header),
            projection_mm=float(np.dot(_point(file.header), normal)),
        )
        for file in axial
    ]
    return tuple(sorted(images, key=lambda image: (image.projection_mm, image.sop_instance_uid)))


def _check_positions(images: Sequence[CTImage], orientation: NDArray[np.float64], limits: GateConfig) -> None:
    at = np.array([image.projection_mm for image in images])
    gaps = np.diff(at)
    spacing = float(np.median(gaps)) if len(gaps) else 0.0
    close = np.flatnonzero(gaps < max(0.01, 0.1 * spacing))
    if len(close):
        raise SeriesRejected(
            Reason.DUPLICATE_POSITION, f"{len(close)} slices lie where another does, first at {at[close[0]]:.1f} mm"
        )
    if len(images) < limits.min_slices:
        raise SeriesRejected(
            Reason.TOO_FEW_SLICES, f"{len(images)} axial slices, gate.min_slices is {limits.min_slices}"
        )
    _check_shear(images, orientation)
    _check_gaps(at, gaps, spacing)
    thickness = _thickness_mm(images)
    if spacing > limits.max_slice_spacing_mm + 1e-3:
        limit = f"gate.max_slice_spacing_mm is {limits.max_slice_spacing_mm}"
        raise SeriesRejected(Reason.TOO_THICK, f"slices are {spacing:.2f} mm apart, {limit}")
    if thickness > limits.max_slice_thickness_mm + 1e-3:
        limit = f"gate.max_slice_thickness_mm is {limits.max_slice_thickness_mm}"
        raise SeriesRejected(Reason.TOO_THICK, f"slices are {thickness:.2f} mm thick, {limit}")
    length = float(at[-1] - at[0] + spacing)
    if length < limits.min_length_mm:
        raise SeriesRejected(
            Reason.TOO_SHORT, f"{length:.0f} mm of the body, gate.min_length_mm is {limits.min_length_mm:.0f}"
        )


def _thickness_mm(images: Sequence[CTImage]) -> float:
    """The thickest slice; 0 where no header tells."""
    told = [number for image in images for number in _numbers(image.header, "SliceThickness")]
    if not all(0 <= number < _FARTHEST_MM for number in told):
        raise SeriesRejected(Reason.MISSING_GEOMETRY, "SliceThickness holds values that cannot be")
    return max(told, default=0.0)


def _check_shear(images: Sequence[CTImage], orientation: NDArray[np.float64]) -> None:
    """Slices that shift within their plane: a tilted gantry whose orientation was straightened in the header."""
    positions = np.array([image.position_mm for image in images])
    in_plane = (positions - positions[0]) @ orientation.T
    drift = float(np.abs(in_plane).max())
    if drift > _DRIFT_TOLERANCE_MM:
        raise SeriesRejected(Reason.GANTRY_TILT, f"slices shift by {drift:.1f} mm within their plane")


def _check_gaps(at: NDArray[np.float64], gaps: NDArray[np.float64], spacing: float) -> None:
    widest = int(np.argmax(gaps))
    if gaps[widest] > 1.5 * spacing:
        text = f"gap of {gaps[widest]:.2f} mm after slice {widest + 1} of {len(at)}, elsewhere {spacing:.2f} mm"
        # One or two holes are missing slices; many are another kind of acquisition.
        many = int((gaps > 1.5 * spacing).sum()) > max(2, len(gaps) // 10)
        raise SeriesRejected(Reason.UNEVEN_SPACING if many else Reason.SLICE_GAP, text)
    regular = np.linspace(at[0], at[-1], len(at))
    off = float(np.abs(at - regular).max())
    if off > 0.25 * spacing or float(np.abs(gaps - spacing).max()) > max(0.02, 0.15 * spacing):
        raise SeriesRejected(Reason.UNEVEN_SPACING, f"spacing varies from {gaps.min():.2f} to {gaps.max():.2f} mm")


def _affine(images: Sequence[CTImage], orientation: NDArray[np.float64]) -> NDArray[np.float64]:
    """PS3.3 C.7.6.2.1.1: PixelSpacing is (between rows, between columns)."""
    between_rows, between_columns = _numbers(images[0].header, "PixelSpacing")
    affine = np.eye(4)
    affine[:3, 0] = (np.array(images[-1].position_mm) - images[0].position_mm) / (len(images) - 1)
    affine[:3, 1] = orientation[1] * between_rows
    affine[:3, 2] = orientation[0] * between_columns
    affine[:3, 3] = images[0].position_mm
    return affine


def to_volume(series: CTSeries, *, threads: int | None = None) -> Volume:
    """Decode the images of `series` to Hounsfield units. Raises SeriesRejected when an image can't be decoded."""
    hu = np.empty((len(series.images), series.rows, series.columns), np.int16)

    def decode(index: int) -> None:
        hu[index] = _decode(series.images[index], index, (series.rows, series.columns))

    with ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode, range(len(series.images))):
            pass
    return Volume(hu=hu, affine=series.affine)


def _decode(image: CTImage, index: int, shape: tuple[int, int]) -> NDArray[np.int16]:
    try:
        dataset = pydicom.dcmread(image.path)
        stored = dataset.pixel_array
    except Exception as err:  # decoders raise whatever they like; none of it may end the worker
        syntax = getattr(getattr(image.header, "file_meta", None), "TransferSyntaxUID", None)
        name = getattr(syntax, "name", "unknown transfer syntax")
        text = f"slice {index + 1} ({name}) can't be decoded: {type(err).__name__}"
        raise SeriesRejected(Reason.PIXELS_UNDECODABLE, text) from err
    if stored.shape != shape:
        raise SeriesRejected(Reason.PIXELS_UNDECODABLE, f"slice {index + 1} decodes to {stored.shape}, not {shape}")
    return to_hu(stored, image.header)


def to_hu(stored: NDArray[Any], header: Dataset) -> NDArray[np.int16]:
    """Stored values -> Hounsfield units, rounded to integers and held within int16 (PS3.3 C.11.1.1.2)."""
    slope, intercept = _rescale(header, "RescaleSlope", 1.0), _rescale(header, "RescaleIntercept", 0.0)
    if not (abs(slope) < _LARGEST_RESCALE and abs(intercept) < _LARGEST_RESCALE and slope != 0):
        raise SeriesRejected(Reason.PIXELS_UNDECODABLE, "RescaleSlope or RescaleIntercept is no usable number")
    if slope == 1.0 and intercept.is_integer():
        exact = stored.astype(np.int64) + int(intercept)
        return np.clip(exact, -32768, 32767).astype(np.int16)
    hu: NDArray[np.int16] = np.clip(np.rint(stored.astype(np.float64) * slope + intercept), -32768, 32767).astype(
        np.int16
    )
    return hu


def _rescale(header: Dataset, keyword: str, default: float) -> float:
    numbers = _numbers(header, keyword)
    return numbers[0] if len(numbers) == 1 else default if not numbers else float("nan")


def consensus(files: Sequence[InstanceFile], keyword: str) -> list[str | float]:
    """The values of an attribute that most of the axial images share; of all files where none is axial."""
    axial = [f for f in files if f.header.get("SOPClassUID") and _why_left_out(f.header) is None] or list(files)
    seen = Counter(tuple(_plain(v) for v in _values(f.header.get(keyword))) for f in axial)
    return list(seen.most_common(1)[0][0]) if seen else []


def _plain(value: Any) -> str | float:
    return float(value) if isinstance(value, (int, float)) else str(value)


def _is_lossy(header: Dataset) -> bool:
    syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
    declared = str(header.get("LossyImageCompression") or "")
    # JPEG 2000 (.91) may be either: its header decides.
    if syntax == JPEG2000 and declared != "01":
        return bool(header.get("LossyImageCompressionRatio"))
    return declared == "01" or syntax in _LOSSY_SYNTAXES


def _normal(orientation: NDArray[np.float64]) -> NDArray[np.float64]:
    """The slices' normal, turned to point to the head."""
    normal = np.cross(orientation[0], orientation[1])
    return normal if normal[2] > 0 else -normal


def _point(header: Dataset) -> tuple[float, float, float]:
    x, y, z = _numbers(header, "ImagePositionPatient")
    return x, y, z


def _numbers(header: Dataset, keyword: str) -> list[float]:
    return [_float(value) for value in _values(header.get(keyword))]


def _float(value: Any) -> float:
    """NaN for what is no number: an element may come with any VR."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _values(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (list, tuple, pydicom.multival.MultiValue)) else [value]


def _text(value: Any) -> str:
    return "\\".join(str(v) for v in _values(value))
