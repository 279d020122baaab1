"""Paths -> InstanceFiles: the header of each, without its pixels. What can't be parsed is an error here, not later."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset

from dicom_node.errors import UnreadableInstance
from dicom_node.series import codestream, values
from dicom_node.series.stream import opened
from dicom_node.transfer_syntaxes import BY_UID

# The main header of a JPEG 2000 codestream lies within the first bytes, behind an offset table of 4 bytes a frame.
_CODESTREAM_WITHIN = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFile:
    """A readable file and its data set without PixelData.

    wavelet: of the first frame, where the transfer syntax may be lossy or not (JPEG 2000); else None.
    """

    path: str
    header: Dataset
    wavelet: codestream.Wavelet | None = None


def read_headers(paths: Sequence[str | Path]) -> list[InstanceFile]:
    """The headers of `paths`, in order. Raises UnreadableInstance for the first file that is no DICOM data set."""
    files = []
    for number, path in enumerate(paths, start=1):
        try:
            files.append(_read(path))
        except Exception as err:  # the parser meets whatever a peer sent, and raises whatever it likes
            why = str(err) if isinstance(err, UnreadableInstance) else type(err).__name__
            raise UnreadableInstance(
                f"file {number} of {len(paths)} ({Path(path).name}) is no readable DICOM: {why}"
            ) from err
    return files


def readable_headers(paths: Sequence[str | Path]) -> tuple[list[InstanceFile], int]:
    """The headers of those `paths` that can be read, and how many can't."""
    files: list[InstanceFile] = []
    for path in paths:
        with contextlib.suppress(UnreadableInstance):
            files += read_headers([path])
    return files, len(paths) - len(files)


def _read(path: str | Path) -> InstanceFile:
    with opened(path) as (header, stream):
        wavelet = _wavelet(header, stream)
    # Sequences are parsed on first touch; a broken one must show here, not in the middle of a result.
    for _ in header.iterall():
        pass
    return InstanceFile(path=str(path), header=header, wavelet=wavelet)


def _wavelet(header: Dataset, stream: BinaryIO) -> codestream.Wavelet | None:
    syntax = BY_UID.get(values.transfer_syntax(header))
    if syntax is None or syntax.lossy != "maybe":
        return None
    return codestream.wavelet(stream.read(_CODESTREAM_WITHIN))
