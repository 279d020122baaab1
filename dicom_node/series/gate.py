"""The geometry gate: headers of one series -> CTSeries, or SeriesRejected with a reason. In doubt, refuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage

from dicom_node.config import GateConfig
from dicom_node.domain import CTImage, CTSeries
from dicom_node.errors import Reason, SeriesRejected
from dicom_node.series import lossy
from dicom_node.series.headers import InstanceFile, read_headers
from dicom_node.series.multiframe import MULTIFRAME, Image, split
from dicom_node.series.shown import HIDDEN, differing, is_term, shown
from dicom_node.series.values import integer, numbers, text, upper, values

_COSINE_TOLERANCE = 1e-3
_DRIFT_TOLERANCE_MM = 0.1
_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_FARTHEST_MM = 1e5
_FINEST_MM = 1e-3
# 4 GB of HU; a scan of 1024 x 1024 has 2048 slices then. A header of a few bytes may ask for more.
_MOST_VOXELS = 2**31
_LARGEST_MATRIX = 4096
_DERIVED = "derived frame"


def read_series(paths: Sequence[str | Path], limits: GateConfig | None = None) -> CTSeries:
    """Headers and gate in one. Raises UnreadableInstance or SeriesRejected."""
    return check_series(read_headers(paths), limits or GateConfig())


def check_series(files: Sequence[InstanceFile], limits: GateConfig) -> CTSeries:
    """The geometry gate. Raises SeriesRejected with the first reason found, from the plainest to the subtlest."""
    _check_identity(files, limits)
    axial, left_out = _axial_images(files, limits)
    _check_agreement(axial, limits)
    orientation = _check_orientation(axial)
    images = _sorted(axial, orientation)
    _check_positions(images, orientation, limits)
    return CTSeries(
        images=images,
        affine=_affine(images, orientation),
        rows=integer(images[0].header, "Rows", -1),
        columns=integer(images[0].header, "Columns", -1),
        left_out=left_out,
        lossy=lossy.describe(axial),
    )


def _check_identity(files: Sequence[InstanceFile], limits: GateConfig) -> None:
    if not files:
        raise SeriesRejected(Reason.TOO_FEW_SLICES, "no files")
    if len(files) > limits.max_instances:
        raise SeriesRejected(Reason.TOO_LARGE, f"{len(files)} instances, gate.max_instances is {limits.max_instances}")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        missing = sum(len(values(file.header.get(keyword))) != 1 for file in files)
        if missing:
            raise SeriesRejected(Reason.MISSING_UID, f"{keyword} is missing in {missing} of {len(files)} instances")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        if len({str(file.header[keyword].value) for file in files}) > 1:
            raise SeriesRejected(Reason.MIXED_SERIES, f"more than one {keyword}")
    uids = Counter(str(file.header.SOPInstanceUID) for file in files)
    if len(uids) < len(files):
        raise SeriesRejected(Reason.DUPLICATE_POSITION, "two files hold the same SOP Instance UID")


def _axial_images(files: Sequence[InstanceFile], limits: GateConfig) -> tuple[list[Image], dict[str, str]]:
    """The images that make the volume, and why each other image is left out of it."""
    images = split(files)
    if len(images) > limits.max_instances:
        raise SeriesRejected(Reason.TOO_LARGE, f"{len(images)} images, gate.max_instances is {limits.max_instances}")
    axial: list[Image] = []
    left_out: dict[str, str] = {}
    for image in images:
        why = _why_left_out(image.header)
        if why is None:
            axial.append(image)
        else:
            left_out[image.name] = why
    if not axial:
        whys = "; ".join(sorted(set(left_out.values())))
        if any(why.startswith(_DERIVED) for why in left_out.values()):
            raise SeriesRejected(Reason.MULTIFRAME_UNSUPPORTED, f"{whys}: send the plain frames")
        if not any(file.header.SOPClassUID in (CTImageStorage, *MULTIFRAME) for file in files):
            raise SeriesRejected(Reason.NOT_CT, "no CT Image Storage instance")
        raise SeriesRejected(Reason.NO_AXIAL_IMAGES, whys)
    return axial, left_out


def _why_left_out(header: Dataset) -> str | None:
    if header.SOPClassUID not in (CTImageStorage, *MULTIFRAME):
        return f"{getattr(header.SOPClassUID, 'name', 'an unknown SOP Class')} is no CT image"
    image_type = upper(header.get("ImageType"))
    if "LOCALIZER" in image_type:
        return "localizer"
    has_geometry = all(header.get(k) for k in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
    if not has_geometry and "SECONDARY" in image_type:
        return "secondary image without geometry"
    return _why_derived(header) if header.SOPClassUID in MULTIFRAME else None


def _why_derived(header: Dataset) -> str | None:
    """Frames that show something other than a slice of the body in grey (PS3.3 C.8.16.2)."""
    for keyword, plain in (
        ("VolumeBasedCalculationTechnique", "NONE"),
        ("VolumetricProperties", "VOLUME"),
        ("PixelPresentation", "MONOCHROME"),
    ):
        told = upper(header.get(keyword))
        if told and told != [plain]:
            return f"{_DERIVED}, {keyword} is {shown(keyword, told[:1])}"
    return None


def _check_agreement(axial: Sequence[Image], limits: GateConfig) -> None:
    """What all images of one volume must share."""
    for image in axial:
        _check_attributes(image.header)
    for keywords, reason in (
        (("FrameOfReferenceUID",), Reason.MIXED_FRAME_OF_REFERENCE),
        (("Rows", "Columns", "PixelSpacing", "PixelRepresentation", "BitsAllocated"), Reason.MIXED_MATRIX),
        (("ConvolutionKernel",), Reason.MIXED_KERNEL),
    ):
        for keyword in keywords:
            seen = {text(found): values(found) for image in axial for found in (image.header.get(keyword),)}
            if len(seen) > 1:
                told = differing(keyword, seen.values())
                raise SeriesRejected(reason, f"{len(seen)} values of {keyword}: {told}")
    rows, columns = (integer(axial[0].header, keyword, -1) for keyword in ("Rows", "Columns"))
    if max(rows, columns) > _LARGEST_MATRIX:
        size = f"{shown('Rows', [rows])} x {shown('Columns', [columns])}"
        raise SeriesRejected(Reason.TOO_LARGE, f"a matrix of {size}, larger than {_LARGEST_MATRIX}")
    voxels = rows * columns * len(axial)
    if voxels > _MOST_VOXELS:
        raise SeriesRejected(Reason.TOO_LARGE, f"{voxels} voxels, more than {_MOST_VOXELS}")
    compressed = lossy.describe(axial)
    if limits.lossy == "refuse" and compressed is not None:
        raise SeriesRejected(Reason.LOSSY, f"{compressed}; gate.lossy is refuse")


def _quoted(value: str) -> str:
    return repr(value) if not value or is_term(value) else HIDDEN


def _check_attributes(header: Dataset) -> None:
    modality = str(header.get("Modality") or "")
    if modality != "CT":
        raise SeriesRejected(Reason.NOT_CT, f"Modality is {_quoted(modality)}, not 'CT'")
    for keyword, count in (
        ("FrameOfReferenceUID", 1),
        ("ImagePositionPatient", 3),
        ("ImageOrientationPatient", 6),
        ("PixelSpacing", 2),
        ("Rows", 1),
        ("Columns", 1),
    ):
        found = values(header.get(keyword))
        if len(found) != count or any(value in (None, "") for value in found):
            raise SeriesRejected(Reason.MISSING_GEOMETRY, f"{keyword} is missing or incomplete")
    geometry = np.array([n for k in _GEOMETRY for n in numbers(header, k)])
    # No body is farther from the scanner's isocentre; NaN is not below it either.
    if not (np.abs(geometry) < _FARTHEST_MM).all() or min(numbers(header, "PixelSpacing")) < _FINEST_MM:
        raise SeriesRejected(Reason.MISSING_GEOMETRY, "geometry holds values that cannot be")
    if not all(number >= 1 for keyword in ("Rows", "Columns") for number in numbers(header, keyword)):
        raise SeriesRejected(Reason.MISSING_GEOMETRY, "Rows or Columns is zero")
    if any(value not in (None, 1) for k in ("SamplesPerPixel", "NumberOfFrames") for value in values(header.get(k))):
        raise SeriesRejected(Reason.NOT_CT, "images are coloured or hold several frames")
    _check_units(header)
    _check_rescale(header)


def _check_units(header: Dataset) -> None:
    """That rescaled values are Hounsfield units: maps of iodine or electron density are CT Images too.

    PS3.3 C.11.1.1.2: "US" is unspecified. In a CT Image (C.8.2.1) an absent type means HU, and converters write US
    into legacy frames where the source said nothing; an Enhanced CT image has to say HU itself (C.8.15.3.10).
    """
    unit = text(header.get("RescaleType")).strip().upper()
    # Workstations write the name out, not always as Sir Godfrey did.
    if unit in ("HU", "HOUNSFIELD", "HOUNSFIELD UNIT", "HOUNSFIELD UNITS", "HOUNDSFIELD UNIT", "HOUNDSFIELD UNITS"):
        return
    if header.SOPClassUID == EnhancedCTImageStorage or unit not in ("", "US"):
        raise SeriesRejected(Reason.NOT_HU, f"RescaleType is {_quoted(unit)}, not 'HU'")


def _check_rescale(header: Dataset) -> None:
    """Type 1 in a CT Image (PS3.3 C.8.2.1): without them the scale of the values would be a guess."""
    missing = [keyword for keyword in ("RescaleSlope", "RescaleIntercept") if not values(header.get(keyword))]
    if missing or "ModalityLUTSequence" in header:
        raise SeriesRejected(Reason.NOT_HU, f"{' and '.join(missing)} absent" if missing else "a Modality LUT is given")


def _check_orientation(axial: Sequence[Image]) -> NDArray[np.float64]:
    """The one orientation of all images, shape (2, 3): direction of a row, of a column."""
    orientations = np.array([numbers(file.header, "ImageOrientationPatient") for file in axial]).reshape(-1, 2, 3)
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
        tilt = text(axial[0].header.get("GantryDetectorTilt"))
        if tilt not in ("", "0", "0.0", "0.00") and degrees > 0.1:
            raise SeriesRejected(Reason.GANTRY_TILT, f"the gantry was tilted: slices are {degrees:.1f} degrees oblique")
        raise SeriesRejected(Reason.NOT_AXIAL, f"slices are oblique: {degrees:.1f} degrees, or turned in their plane")
    found: NDArray[np.float64] = first
    return found


def _sorted(axial: Sequence[Image], orientation: NDArray[np.float64]) -> tuple[CTImage, ...]:
    """By projection on the normal, feet to head; never by InstanceNumber or file name."""
    normal = _normal(orientation)
    images = [
        CTImage(
            path=image.path,
            sop_instance_uid=str(image.header.SOPInstanceUID),
            frame=image.frame,
            header=image.header,
            position_mm=_point(image.header),
            projection_mm=float(np.dot(_point(image.header), normal)),
        )
        for image in axial
    ]
    return tuple(sorted(images, key=lambda image: (image.projection_mm, image.sop_instance_uid, image.frame or 0)))


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
    told = [number for image in images for number in numbers(image.header, "SliceThickness")]
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
        what = f"gap of {gaps[widest]:.2f} mm after slice {widest + 1} of {len(at)}, elsewhere {spacing:.2f} mm"
        # One or two holes are missing slices; many are another kind of acquisition.
        many = int((gaps > 1.5 * spacing).sum()) > max(2, len(gaps) // 10)
        raise SeriesRejected(Reason.UNEVEN_SPACING if many else Reason.SLICE_GAP, what)
    regular = np.linspace(at[0], at[-1], len(at))
    off = float(np.abs(at - regular).max())
    if off > 0.25 * spacing or float(np.abs(gaps - spacing).max()) > max(0.02, 0.15 * spacing):
        raise SeriesRejected(Reason.UNEVEN_SPACING, f"spacing varies from {gaps.min():.2f} to {gaps.max():.2f} mm")


def _affine(images: Sequence[CTImage], orientation: NDArray[np.float64]) -> NDArray[np.float64]:
    """PS3.3 C.7.6.2.1.1: PixelSpacing is (between rows, between columns)."""
    between_rows, between_columns = numbers(images[0].header, "PixelSpacing")
    affine = np.eye(4)
    affine[:3, 0] = (np.array(images[-1].position_mm) - images[0].position_mm) / (len(images) - 1)
    affine[:3, 1] = orientation[1] * between_rows
    affine[:3, 2] = orientation[0] * between_columns
    affine[:3, 3] = images[0].position_mm
    return affine


def images_of(files: Sequence[InstanceFile]) -> list[Image]:
    """The axial images of a series whose gate may have failed; all of them where none is axial."""
    try:
        images = split(files)
    except SeriesRejected:
        images = [Image(path=file.path, header=file.header) for file in files]
    return [i for i in images if i.header.get("SOPClassUID") and _why_left_out(i.header) is None] or images


def consensus(images: Sequence[Image], keyword: str) -> list[str | float]:
    """The values of an attribute that most of `images` share."""
    seen = Counter(tuple(_plain(v) for v in values(image.header.get(keyword))) for image in images)
    return list(seen.most_common(1)[0][0]) if seen else []


def _plain(value: Any) -> str | float:
    return float(value) if isinstance(value, (int, float)) else str(value)


def _normal(orientation: NDArray[np.float64]) -> NDArray[np.float64]:
    """The slices' normal, turned to point to the head."""
    normal = np.cross(orientation[0], orientation[1])
    return normal if normal[2] > 0 else -normal


def _point(header: Dataset) -> tuple[float, float, float]:
    x, y, z = numbers(header, "ImagePositionPatient")
    return x, y, z
