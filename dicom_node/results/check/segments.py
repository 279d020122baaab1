"""A Segmentation's own pixels and geometry -> the voxels that a reader of it will see, and whether they are right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from dicom_node.results.check.conditions import LABEL_MAP_STORAGE, SEGMENTATIONS
from dicom_node.results.reading import Reading

Integers = NDArray[np.int64]
Voxels = Integers  # (n, 3): slice, row, column of the source Volume

_NEAR = 1e-2  # of a voxel: how exactly a position read from decimal strings must meet the grid
_SHARED_ONLY = ("PixelMeasuresSequence", "PlaneOrientationSequence")
_IN_EACH_FRAME = ("FrameContentSequence", "PlanePositionSequence", "DerivationImageSequence")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What a reader sees of one segment. volume_mm3: a voxel counts by how much of it is occupied."""

    number: int
    tracking_uid: str
    voxels: Voxels
    volume_mm3: float


class Unreadable(Exception):
    """A Segmentation that no reader can make sense of; the text says why."""


def read_segments(seg: Dataset, reading: Reading) -> dict[int, Segment]:
    """The segments as decoded, without the background of a label map. Raises Unreadable."""
    frames, pixels, values = _set_pixels(seg)
    numbers = values if seg.SOPClassUID == LABEL_MAP_STORAGE else _segment_of_frames(seg)[frames]
    whole = float(seg.MaximumFractionalValue) if seg.SegmentationType == "FRACTIONAL" else 1.0
    occupied = values / whole if seg.SOPClassUID != LABEL_MAP_STORAGE else np.ones(len(values))
    voxels = _voxels(seg, reading, frames, pixels)
    voxel_mm3 = _voxel_mm3(seg)
    segments = {}
    for item in seg.SegmentSequence:
        number = int(item.SegmentNumber)
        if seg.SOPClassUID == LABEL_MAP_STORAGE and number == int(seg.get("PixelPaddingValue") or 0):
            continue
        of = numbers == number
        segments[number] = Segment(
            number=number,
            tracking_uid=str(item.get("TrackingUID") or ""),
            voxels=voxels[of],
            volume_mm3=float(occupied[of].sum()) * voxel_mm3,
        )
    if len(numbers) > sum(len(segment.voxels) for segment in segments.values()):
        raise Unreadable("has pixels of segments without a description")
    return segments


def image_faults(seg: Dataset, reading: Reading) -> Iterator[str]:
    """Each frame names the image that lies where it lies."""
    images = reading.series.images
    apart_mm = float(seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices)
    if abs(apart_mm - reading.volume.spacing_mm[0]) > _NEAR * apart_mm:
        yield f"SpacingBetweenSlices is {apart_mm:.3f} mm, in the source {reading.volume.spacing_mm[0]:.3f} mm"
    places, _ = _places(seg, reading)
    for number, (frame, place) in enumerate(zip(seg.PerFrameFunctionalGroupsSequence, places, strict=True), start=1):
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        index = round(float(place[0]))
        if np.abs(place - (index, 0, 0)).max() > _NEAR or not 0 <= index < len(images):
            yield f"frame {number} lies where no image of the source lies"
            return
        named = str(source.get("ReferencedSOPInstanceUID")), source.get("ReferencedFrameNumber")
        if named != (images[index].sop_instance_uid, images[index].frame):
            yield f"frame {number} names another image than the one that lies there"
            return


def form_faults(seg: Dataset) -> Iterator[str]:
    """The encoding that PS3.3 C.8.20.2 ties to the Segmentation Type, and functional groups where they belong."""
    if seg.SOPClassUID not in SEGMENTATIONS:
        return
    kind = seg.get("SegmentationType")
    is_label_map = seg.SOPClassUID == LABEL_MAP_STORAGE
    if (kind == "LABELMAP") != is_label_map or (kind != "LABELMAP") != (seg.SOPClassUID == SegmentationStorage):
        yield "SegmentationType is not that of its SOP Class"
    bits = int(seg.get("BitsAllocated") or 0)
    if bits not in {"BINARY": (1,), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}.get(str(kind), ()):
        yield f"BitsAllocated is {bits}"
    if (seg.get("BitsStored"), seg.get("HighBit"), seg.get("PixelRepresentation")) != (bits, bits - 1, 0):
        yield "BitsStored, HighBit or PixelRepresentation do not fit BitsAllocated"
    if seg.get("PhotometricInterpretation") != "MONOCHROME2":
        yield "PhotometricInterpretation is not MONOCHROME2"
    if is_label_map and seg.get("SegmentsOverlap") not in (None, "NO"):
        yield "is a label map whose segments overlap"
    if len({int(item.get("SegmentNumber", -1)) for item in seg.SegmentSequence}) < len(seg.SegmentSequence):
        yield "two segments have one number"
    shared = seg.SharedFunctionalGroupsSequence[0]
    for keyword in (*_SHARED_ONLY, *_IN_EACH_FRAME, *(() if is_label_map else ("SegmentIdentificationSequence",))):
        within = sum(keyword in frame for frame in seg.PerFrameFunctionalGroupsSequence)
        if within != (0 if keyword in shared else len(seg.PerFrameFunctionalGroupsSequence)):
            yield f"{keyword} is not in the shared or else in each frame's functional groups"
            return
    if not all(
        frame.DerivationImageSequence and frame.DerivationImageSequence[0].get("SourceImageSequence")
        for frame in seg.PerFrameFunctionalGroupsSequence
    ):
        yield "a frame names no image that it was drawn on"
    positions = [_order(item) for item in seg.PerFrameFunctionalGroupsSequence]
    if positions != sorted(positions) or len(set(positions)) < len(positions):
        yield "frames do not ascend by segment and position"


def _order(frame: Dataset) -> tuple[int, ...]:
    values = frame.FrameContentSequence[0].DimensionIndexValues
    return tuple(int(v) for v in values) if hasattr(values, "__iter__") else (int(values),)


def segment_faults(segments: Mapping[int, Segment], seg: Dataset, reading: Reading) -> Iterator[str]:
    """Segment n is finding n: its voxels, its name, near the lungs; SegmentsOverlap says what is."""
    if sorted(segments) != list(range(1, len(reading.findings) + 1)):
        yield f"has {len(segments)} segments for {len(reading.findings)} findings"
        return
    uids = [segment.tracking_uid for segment in segments.values()]
    if len(set(uids)) < len(uids):
        yield "two segments have one Tracking UID"
    elif uids != [tracking.uid for tracking in reading.tracking]:
        yield "its Tracking UIDs are not those of the findings"
    shape = np.array(reading.volume.hu.shape)
    for segment in segments.values():
        if not len(segment.voxels):
            yield f"segment {segment.number} is empty"
        elif (segment.voxels < 0).any() or (segment.voxels >= shape).any():
            yield f"segment {segment.number} lies outside the image"
        else:
            yield from _place_faults(segment, reading)
    flat = np.concatenate([_flat(segment.voxels, shape) for segment in segments.values()])
    if (seg.get("SegmentsOverlap") == "YES") != (len(np.unique(flat)) < len(flat)):
        yield "SegmentsOverlap does not say what its pixels do"


def _place_faults(segment: Segment, reading: Reading) -> Iterator[str]:
    shape = np.array(reading.volume.hu.shape)
    finding = reading.findings[segment.number - 1]
    meant = np.sort(_flat(np.argwhere(finding.mask) + finding.corner, shape))
    seen = np.sort(_flat(segment.voxels, shape))
    if not np.array_equal(seen, meant):
        alike = len(np.intersect1d(seen, meant))
        yield (
            f"segment {segment.number} has {len(seen)} voxels, of which {alike} are among the "
            f"{len(meant)} of its finding"
        )
    lungs = reading.detection.lungs
    if lungs is None:
        return
    places = reading.volume.to_mm(segment.voxels.astype(np.float64))
    # As the detector has it: the centre lies within the margin of the lungs, or a ball of that size touches them.
    radius = (3 * segment.volume_mm3 / (4 * np.pi)) ** (1 / 3)
    far = float(lungs.at(places.mean(axis=0)))
    if far > max(lungs.margin_mm, radius) + lungs.step_mm:
        yield f"segment {segment.number} lies {far:.0f} mm from the lungs"


def _flat(voxels: Voxels, shape: NDArray[np.int64]) -> Voxels:
    return np.asarray(voxels @ np.array([shape[1] * shape[2], shape[2], 1]))


def _voxel_mm3(seg: Dataset) -> float:
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    row_mm, column_mm = (float(value) for value in measures.PixelSpacing)
    return row_mm * column_mm * float(measures.SpacingBetweenSlices)


def _set_pixels(seg: Dataset) -> tuple[Integers, Integers, Integers]:
    """Of each pixel that is not 0: index of its frame, index within it, value. Raises Unreadable."""
    frames, size, bits = int(seg.NumberOfFrames), int(seg.Rows) * int(seg.Columns), int(seg.BitsAllocated)
    if frames != len(seg.PerFrameFunctionalGroupsSequence):
        raise Unreadable(f"has {frames} frames, but {len(seg.PerFrameFunctionalGroupsSequence)} items for them")
    needed = (frames * size * bits + 7) // 8
    if len(seg.PixelData) != needed + needed % 2:
        raise Unreadable(f"has {len(seg.PixelData)} bytes of pixels, not {needed + needed % 2}")
    data = np.frombuffer(seg.PixelData, "<u2" if bits == 16 else "u1")
    at = _nonzero(data)
    if bits > 1:
        values = data[at].astype(np.int64)
    else:
        # Frames of one bit a pixel follow each other without padding, the first pixel in the lowest bit (PS3.5 8.1.1).
        byte, bit = np.nonzero(np.unpackbits(data[at, None], axis=1, bitorder="little"))
        at = at[byte] * 8 + bit
        values = np.ones(len(at), np.int64)
    return at // size, at % size, values


def _nonzero(data: NDArray[Any]) -> Integers:
    """np.flatnonzero, eight bytes at a time where almost all are 0."""
    words = np.frombuffer(data, np.uint64, count=data.nbytes // 8)
    per_word = 8 // data.itemsize
    blocks = np.flatnonzero(words)
    near = (blocks[:, None] * per_word + np.arange(per_word)).ravel()
    near = np.concatenate([near, np.arange(len(words) * per_word, len(data))])
    kept: Integers = near[data[near] != 0]
    return kept


def _segment_of_frames(seg: Dataset) -> Integers:
    shared = seg.SharedFunctionalGroupsSequence[0]
    # highdicom keeps the segment of a SEG of one segment in the shared groups.
    items = [
        frame if "SegmentIdentificationSequence" in frame else shared for frame in seg.PerFrameFunctionalGroupsSequence
    ]
    return np.array([int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber) for item in items])


def _places(seg: Dataset, reading: Reading) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(frame, 3): where each frame's first pixel lies, and (2, 3): a step down a row and along a column; all as
    (slice, row, column) of the Volume, with fractions."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    orientation = np.array([float(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient])
    row_mm, column_mm = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    positions = [
        [float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient]
        for frame in seg.PerFrameFunctionalGroupsSequence
    ]
    # PS3.3 C.7.6.2.1.1: the first three are the direction of a row, along which the column counts up.
    steps_mm = np.array([orientation[3:] * row_mm, orientation[:3] * column_mm])
    return reading.volume.to_index(np.array(positions)), steps_mm @ np.linalg.inv(reading.volume.affine[:3, :3]).T


def _voxels(seg: Dataset, reading: Reading, frames: Integers, pixels: Integers) -> Voxels:
    """(n, 3) indices of the Volume's voxels where the pixels lie. Raises Unreadable where they lie between them."""
    places, steps = _places(seg, reading)
    rows, columns = np.divmod(pixels, int(seg.Columns))
    exact = places[frames] + rows[:, None] * steps[0] + columns[:, None] * steps[1]
    voxels = exact.round().astype(np.int64)
    if len(exact) and np.abs(exact - voxels).max() > _NEAR * 10:
        raise Unreadable("has pixels that lie between the voxels of the source")
    return np.asarray(voxels)
