"""Findings -> their masks in one small file that any reader of NumPy's format opens. No DICOM object.

shape, affine: of the volume, axes and directions as in domain.Volume. For finding n, from 1: corner_n (slice, row,
column), shape_n of its box, and bits_n, the box's voxels as bits (numpy.packbits of the flattened mask).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Finding, Volume


def packed(findings: Sequence[Finding], volume: Volume) -> bytes:
    """The same findings give the same bytes."""
    arrays: dict[str, NDArray[Any]] = {
        "shape": np.array(volume.hu.shape, dtype=np.int32),
        "affine": volume.affine,
    }
    for number, finding in enumerate(findings, start=1):
        arrays[f"corner_{number}"] = np.array(finding.corner, dtype=np.int32)
        arrays[f"shape_{number}"] = np.array(finding.mask.shape, dtype=np.int32)
        arrays[f"bits_{number}"] = np.packbits(finding.mask)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
