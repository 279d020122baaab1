"""The errors this project raises across its own borders. Each says what, which, and what to do about it."""

from __future__ import annotations

from enum import StrEnum


class DicomNodeError(Exception):
    """Root of every error that a caller may catch. `retry_helps` says whether trying again can work."""

    retry_helps = False


class ConfigError(DicomNodeError):
    """config.yaml or a command's arguments can't be used. The text names the place and the mend."""


class StorageError(DicomNodeError):
    """A file could not be made durable."""

    retry_helps = True


class OutOfSpace(StorageError):
    """The storage root is below its watermark: nothing more is accepted until space is freed."""


class FileGone(StorageError):
    """A file that was here is not any more: a purge took it meanwhile."""


class DatabaseUnavailable(StorageError):
    """The database does not answer, or is locked for too long."""


class InvalidUID(DicomNodeError):
    """A UID that is not one (PS3.5 9.1): it must never become a path."""


class UnreadableInstance(DicomNodeError):
    """Bytes that are not a DICOM data set, or lack what every Instance must have."""


class StaleState(DicomNodeError):
    """A row was not in the state that the caller expected: somebody else owns it now."""


class BundleError(DicomNodeError):
    """A model bundle is incomplete, altered or of an unknown form."""


class JobCancelled(DicomNodeError):
    """An operator cancelled the job while it ran."""


class DeliveryError(DicomNodeError):
    """An object could not be sent."""


class AlertNotSent(DicomNodeError):
    """A channel did not take an alert. The text holds no secret and nothing of the message."""

    retry_helps = True


class ResultError(DicomNodeError):
    """A result object failed its own checks and must not leave the node."""


class PriorUnusable(DicomNodeError):
    """An earlier report or its segmentation can't be compared with: not ours, incomplete, or at odds with itself."""


class CorrectionUnusable(DicomNodeError):
    """A corrected object that can't be compared with our findings. Its text quotes numbers alone."""


class CaseRefused(DicomNodeError):
    """A corrected series that must not become a training case, or can't."""


class Reason(StrEnum):
    """Why a series is not analysed. The codes are stored, shown, and sent in the SR: never rename one."""

    meaning: str

    def __new__(cls, code: str, meaning: str = "") -> Reason:
        reason = str.__new__(cls, code)
        reason._value_ = code
        reason.meaning = meaning
        return reason

    NOT_CT = "NOT_CT", "no CT image, or Modality is not CT"
    MISSING_UID = "MISSING_UID", "a Study, Series or SOP UID is absent"
    MIXED_SERIES = "MIXED_SERIES", "more than one study or series in one"
    NO_AXIAL_IMAGES = "NO_AXIAL_IMAGES", "only localizers, screens and the like"
    MISSING_GEOMETRY = "MISSING_GEOMETRY", "position, orientation or spacing is absent or no number"
    ORIENTATION_MIXED = "ORIENTATION_MIXED", "images of more than one orientation"
    NOT_AXIAL = "NOT_AXIAL", "coronal, sagittal, oblique, or turned in the plane"
    GANTRY_TILT = "GANTRY_TILT", "the gantry was tilted, or slices shift in their plane"
    DUPLICATE_POSITION = "DUPLICATE_POSITION", "two slices at one place"
    SLICE_GAP = "SLICE_GAP", "slices are missing"
    UNEVEN_SPACING = "UNEVEN_SPACING", "the distance between slices varies"
    TOO_FEW_SLICES = "TOO_FEW_SLICES", "fewer than `gate.min_slices`"
    TOO_SHORT = "TOO_SHORT", "less of the body than `gate.min_length_mm`"
    TOO_THICK = "TOO_THICK", "slices thicker or further apart than the gate allows"
    TOO_LARGE = "TOO_LARGE", "more images than `gate.max_instances`, a matrix over 4096, or more than 2^31 voxels"
    MIXED_FRAME_OF_REFERENCE = "MIXED_FRAME_OF_REFERENCE", "more than one frame of reference"
    MIXED_MATRIX = "MIXED_MATRIX", "more than one matrix size or pixel spacing"
    MIXED_KERNEL = "MIXED_KERNEL", "more than one reconstruction kernel"
    MULTIFRAME_UNSUPPORTED = (
        "MULTIFRAME_UNSUPPORTED",
        "multi-frame CT whose frames are projections, colour maps or resampled along a curve",
    )
    FRAMES_MISSING = (
        "FRAMES_MISSING",
        "multi-frame CT without the frames it claims, or without a part of its concatenation",
    )
    NOT_HU = (
        "NOT_HU",
        "pixel values of another unit than Hounsfield (RescaleType): iodine, electron density; or no rescale is given",
    )
    UNREADABLE = "UNREADABLE", "the header of an instance can't be parsed"
    PIXELS_UNDECODABLE = (
        "PIXELS_UNDECODABLE",
        "an image can't be decoded; the text names the slice, its transfer syntax and the cause",
    )
    LOSSY = "LOSSY", "compressed with loss, and `gate.lossy` is refuse"
    NO_LUNG = "NO_LUNG", "no lung was found in the volume"
    NO_ROUTE = "NO_ROUTE", "no route matches"


class SeriesRejected(DicomNodeError):
    """No model may see this series. `reason` is the stable code, the text is for people.

    The text holds UIDs, positions and numbers only, never a patient's data.
    """

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason = reason
        self.text = text
