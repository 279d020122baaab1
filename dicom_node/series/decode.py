"""CTSeries -> Volume: each frame decoded by the plugin that the table names, then scaled to Hounsfield units."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

from dicom_node.domain import CTImage, CTSeries, Volume
from dicom_node.errors import Reason, SeriesRejected, UnreadableInstance
from dicom_node.series import values
from dicom_node.series.frames import Layout, UnusableFrames, open_frames
from dicom_node.transfer_syntaxes import JPEG_EXTENDED, Coding

_LARGEST_RESCALE = 1e9


def to_volume(series: CTSeries) -> Volume:
    """Decode the images of `series` to Hounsfield units. Raises SeriesRejected when an image can't be decoded.

    In one thread: no decoder lets go of the interpreter, so several would only wait for each other (bench/decode).
    """
    hu = np.empty((len(series.images), series.rows, series.columns), np.int16)
    indices_of: dict[str, list[int]] = defaultdict(list)
    for index, image in enumerate(series.images):
        indices_of[image.path].append(index)
    for indices in indices_of.values():
        _decode_file(series, indices, hu)
    return Volume(hu=hu, affine=series.affine)


def _decode_file(series: CTSeries, indices: list[int], hu: NDArray[np.int16]) -> None:
    """The images of one file, one frame after the other: a multi-frame file never lies in memory whole."""
    index = indices[0]
    try:
        with open_frames(series.images[index].path) as frames:
            shape = (frames.layout.rows, frames.layout.columns)
            if shape != (series.rows, series.columns):
                raise UnusableFrames(f"it decodes to {shape}, not {(series.rows, series.columns)}")
            for index in indices:
                image = series.images[index]
                stored = decode_frame(frames.read(image.frame or 1), frames.layout)
                hu[index] = to_hu(stored, image.header)
    except SeriesRejected:
        raise
    except Exception as err:  # decoders raise whatever they like; none of it may end the worker
        raise SeriesRejected(Reason.PIXELS_UNDECODABLE, _why(series.images[index], index, err)) from err


def _why(image: CTImage, index: int, err: Exception) -> str:
    syntax = getattr(getattr(image.header, "file_meta", None), "TransferSyntaxUID", None)
    name = getattr(syntax, "name", "unknown transfer syntax")
    why = str(err) if isinstance(err, (UnusableFrames, UnreadableInstance)) else type(err).__name__
    return f"slice {index + 1} ({name}) can't be decoded: {why}"


def decode_frame(data: bytes, layout: Layout) -> NDArray[Any]:
    """Stored values of one frame, shape (rows, columns). Raises what the decoder raises."""
    shape = (layout.rows, layout.columns)
    if layout.syntax.coding is Coding.NATIVE:
        kind = f"{'>' if layout.big_endian else '<'}{'i' if layout.signed else 'u'}{layout.bits_allocated // 8}"
        return _without_unused_bits(np.frombuffer(data, kind).reshape(shape), layout)
    if layout.syntax.uid == JPEG_EXTENDED and layout.bits_stored > 8:
        return _without_unused_bits(_jpeg_of_twelve_bits(data, layout), layout)
    options: Any = {
        "rows": layout.rows,
        "columns": layout.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": layout.bits_allocated,
        "bits_stored": layout.bits_stored,
        "pixel_representation": int(layout.signed),
        "pixel_keyword": "PixelData",
    }
    stored, _ = get_decoder(layout.syntax.uid).as_array(
        encapsulate([data], has_bot=False), index=0, raw=True, decoding_plugin=layout.syntax.plugin, **options
    )
    if stored.shape != shape:
        raise UnusableFrames(f"it decodes to {stored.shape}, not {shape}")
    return stored


def _without_unused_bits(stored: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """PS3.5 8.1.1: bits above the stored ones mean nothing, and the sign is the highest stored one.

    Of what is encapsulated pydicom sees to it.
    """
    unused = layout.bits_allocated - layout.bits_stored
    if not unused:
        return stored
    found: NDArray[Any] = stored.astype(stored.dtype.newbyteorder("=")) << unused >> unused
    return found


def _jpeg_of_twelve_bits(data: bytes, layout: Layout) -> NDArray[Any]:
    """By GDCM itself: pydicom's plugin for it refuses twelve bits, which GDCM's own libjpeg decodes."""
    import gdcm  # half a second, for images that are rare

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(data)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((layout.columns, layout.rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, layout.bits_stored, layout.bits_stored - 1, int(layout.signed)))
    # GDCM gives bytes as text, which pydicom's plugin turns back in the same way.
    pixels = image.GetBuffer().encode("utf-8", "surrogateescape")
    return np.frombuffer(pixels, "<i2" if layout.signed else "<u2").reshape(layout.rows, layout.columns)


def to_hu(stored: NDArray[Any], header: Dataset) -> NDArray[np.int16]:
    """Stored values -> Hounsfield units, rounded to integers and held within int16 (PS3.3 C.11.1.1.2)."""
    slope, intercept = _rescale(header, "RescaleSlope", 1.0), _rescale(header, "RescaleIntercept", 0.0)
    if not (abs(slope) < _LARGEST_RESCALE and abs(intercept) < _LARGEST_RESCALE and slope != 0):
        raise SeriesRejected(Reason.PIXELS_UNDECODABLE, "RescaleSlope or RescaleIntercept is no usable number")
    if slope == 1.0 and intercept.is_integer():
        return _shifted(stored, int(intercept))
    hu: NDArray[np.int16] = np.clip(np.rint(stored.astype(np.float64) * slope + intercept), -32768, 32767).astype(
        np.int16
    )
    return hu


def _shifted(stored: NDArray[Any], intercept: int) -> NDArray[np.int16]:
    """stored + intercept within int16. Where nothing is cut off, 16 bits that wrap give the same sum, far faster."""
    lowest, highest = int(stored.min()) + intercept, int(stored.max()) + intercept
    if stored.dtype.itemsize <= 2 and lowest >= -32768 and highest <= 32767:
        wrapped = (intercept + 32768) % 65536 - 32768
        return stored.astype(np.int16) + np.int16(wrapped)
    return np.clip(stored.astype(np.int64) + intercept, -32768, 32767).astype(np.int16)


def _rescale(header: Dataset, keyword: str, default: float) -> float:
    numbers = values.numbers(header, keyword)
    return numbers[0] if len(numbers) == 1 else default if not numbers else float("nan")
