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


class ResultError(DicomNodeError):
    """A result object failed its own checks and must not leave the node."""


class Reason(StrEnum):
    """Why a series is not analysed. The codes are stored, shown, and sent in the SR: never rename one."""

    NOT_CT = "NOT_CT"
    MISSING_UID = "MISSING_UID"
    MIXED_SERIES = "MIXED_SERIES"
    NO_AXIAL_IMAGES = "NO_AXIAL_IMAGES"
    MISSING_GEOMETRY = "MISSING_GEOMETRY"
    ORIENTATION_MIXED = "ORIENTATION_MIXED"
    NOT_AXIAL = "NOT_AXIAL"
    GANTRY_TILT = "GANTRY_TILT"
    DUPLICATE_POSITION = "DUPLICATE_POSITION"
    SLICE_GAP = "SLICE_GAP"
    UNEVEN_SPACING = "UNEVEN_SPACING"
    TOO_FEW_SLICES = "TOO_FEW_SLICES"
    TOO_SHORT = "TOO_SHORT"
    TOO_THICK = "TOO_THICK"
    TOO_LARGE = "TOO_LARGE"
    MIXED_FRAME_OF_REFERENCE = "MIXED_FRAME_OF_REFERENCE"
    MIXED_MATRIX = "MIXED_MATRIX"
    MIXED_KERNEL = "MIXED_KERNEL"
    MULTIFRAME_UNSUPPORTED = "MULTIFRAME_UNSUPPORTED"
    FRAMES_MISSING = "FRAMES_MISSING"
    NOT_HU = "NOT_HU"
    UNREADABLE = "UNREADABLE"
    PIXELS_UNDECODABLE = "PIXELS_UNDECODABLE"
    LOSSY = "LOSSY"
    NO_LUNG = "NO_LUNG"
    NO_ROUTE = "NO_ROUTE"


class SeriesRejected(DicomNodeError):
    """No model may see this series. `reason` is the stable code, the text is for people.

    The text holds UIDs, positions and numbers only, never a patient's data.
    """

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason = reason
        self.text = text
