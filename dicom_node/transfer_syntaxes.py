"""The Transfer Syntaxes that CT archives hold: which are taken, which are lossy, what decodes each. One table for all.

Imported by the negotiation, the decoder and the conformance statement; knows no library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"


class Coding(StrEnum):
    """How the pixels of one frame are written down; the value is for people."""

    NATIVE = "uncompressed"
    RLE = "RLE"
    JPEG = "JPEG"
    JPEG_LS = "JPEG-LS"
    JPEG_2000 = "JPEG 2000"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSyntax:
    """One row of the table.

    lossy: "maybe" where the syntax has reversible and irreversible forms, and the codestream has to be asked.
    plugin: the decoder's name among pydicom's plugins, the fastest that gives the right values (bench/decode);
        "" where no plugin is needed.
    method: what LossyImageCompressionMethod (PS3.3 C.7.6.1.1.5.1) calls it; "" for a lossless one.
    """

    uid: str
    name: str
    coding: Coding
    lossy: Literal["no", "maybe", "yes"] = "no"
    plugin: str = ""
    method: str = ""


def _row(
    suffix: str, name: str, coding: Coding, lossy: Literal["no", "maybe", "yes"], plugin: str, method: str = ""
) -> TransferSyntax:
    return TransferSyntax(
        uid=f"1.2.840.10008.1.2.{suffix}", name=name, coding=coding, lossy=lossy, plugin=plugin, method=method
    )


# In order of preference, for peers that offer several in one context: what needs no decoder first, then
# lossless, then lossy. Nothing is decoded on the way in, so every syntax that CT archives hold is welcome.
ACCEPTED: tuple[TransferSyntax, ...] = (
    TransferSyntax(uid=EXPLICIT_LITTLE, name="Explicit VR Little Endian", coding=Coding.NATIVE),
    TransferSyntax(uid=IMPLICIT_LITTLE, name="Implicit VR Little Endian", coding=Coding.NATIVE),
    TransferSyntax(uid=EXPLICIT_BIG, name="Explicit VR Big Endian", coding=Coding.NATIVE),
    TransferSyntax(uid=DEFLATED, name="Deflated Explicit VR Little Endian", coding=Coding.NATIVE),
    _row("4.80", "JPEG-LS Lossless", Coding.JPEG_LS, "no", "pyjpegls"),
    _row("4.90", "JPEG 2000 (Lossless Only)", Coding.JPEG_2000, "no", "pylibjpeg"),
    _row("5", "RLE Lossless", Coding.RLE, "no", "pylibjpeg"),
    _row("4.70", "JPEG Lossless, First-Order Prediction", Coding.JPEG, "no", "gdcm"),
    _row("4.57", "JPEG Lossless", Coding.JPEG, "no", "gdcm"),
    _row("4.201", "HTJ2K (Lossless Only)", Coding.JPEG_2000, "no", "pylibjpeg"),
    _row("4.202", "HTJ2K with RPCL Options (Lossless Only)", Coding.JPEG_2000, "no", "pylibjpeg"),
    _row("4.203", "HTJ2K", Coding.JPEG_2000, "maybe", "pylibjpeg", "ISO_15444_15"),
    _row("4.91", "JPEG 2000", Coding.JPEG_2000, "maybe", "pylibjpeg", "ISO_15444_1"),
    _row("4.81", "JPEG-LS Near-Lossless", Coding.JPEG_LS, "yes", "pyjpegls", "ISO_14495_1"),
    # Eight bits by the plugin; twelve, which no plugin of pydicom decodes, by GDCM itself (series/decode.py).
    _row("4.51", "JPEG Extended", Coding.JPEG, "yes", "pillow", "ISO_10918_1"),
    _row("4.50", "JPEG Baseline", Coding.JPEG, "yes", "pillow", "ISO_10918_1"),
)

BY_UID: Mapping[str, TransferSyntax] = MappingProxyType({syntax.uid: syntax for syntax in ACCEPTED})
