"""Headers and wavelet of an image -> whether its pixels were compressed with loss, and how, in words."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset

from dicom_node.series import values
from dicom_node.series.codestream import Wavelet
from dicom_node.series.multiframe import Image
from dicom_node.series.shown import is_term
from dicom_node.transfer_syntaxes import BY_UID, TransferSyntax


def is_lossy(header: Dataset, wavelet: Wavelet | None) -> bool:
    """Whether an image says it, its transfer syntax means it, or its wavelet can't be undone.

    PS3.3 C.7.6.1.1.5: once lossy, always lossy, so a declaration counts whatever syntax the image has now. Where
    the syntax leaves it open (.91, .203) and nothing is declared, only the reversible wavelet passes.
    """
    syntax = _syntax(header)
    declared = values.text(header.get("LossyImageCompression"))
    if declared == "01" or (syntax is not None and syntax.lossy == "yes"):
        return True
    if syntax is None or syntax.lossy == "no":
        return False
    told_ratio = bool(values.values(header.get("LossyImageCompressionRatio")))
    return wavelet == "9-7" or told_ratio or (wavelet is None and declared != "00")


def describe(images: Sequence[Image]) -> str | None:
    """One line on the lossy ones among `images`; None where there is none."""
    lossy = [image.header for image in images if is_lossy(image.header, image.wavelet)]
    if not lossy:
        return None
    methods = sorted({method for header in lossy for method in _methods(header)}) or ["method not told"]
    ratios = [number for header in lossy for number in values.numbers(header, "LossyImageCompressionRatio")]
    told = [ratio for ratio in ratios if 0 < ratio < 1e6]
    ratio = (
        "ratio not told"
        if not told
        else f"ratio {min(told):.3g}" + ("" if min(told) == max(told) else f" to {max(told):.3g}")
    )
    return f"{len(lossy)} of {len(images)} images were compressed with loss: {', '.join(methods)}, {ratio}"


def _methods(header: Dataset) -> list[str]:
    """As the image tells, else as its transfer syntax is called."""
    told = [method for method in values.upper(header.get("LossyImageCompressionMethod")) if is_term(method)][:4]
    syntax = _syntax(header)
    return told or ([syntax.method] if syntax is not None and syntax.method else [])


def _syntax(header: Dataset) -> TransferSyntax | None:
    return BY_UID.get(values.transfer_syntax(header))
