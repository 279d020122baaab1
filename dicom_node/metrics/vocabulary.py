"""Free text of a header -> a label that is one of few words. A text that holds a patient's name comes out as "other".

Nothing of Manufacturer, ManufacturerModelName and ConvolutionKernel is taken over as it stands: a label is put
together of the words below, or is a kernel's name of a maker's known form, or was allowed by the settings.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from dicom_node.metrics.catalogue import OTHER

_MAKERS = {
    "siemens": "Siemens",
    "ge": "GE",
    "philips": "Philips",
    "toshiba": "Canon",
    "canon": "Canon",
    "hitachi": "Fujifilm",
    "fujifilm": "Fujifilm",
    "neusoft": "Neusoft",
    "uih": "United Imaging",
    "united": "United Imaging",
    "neurologica": "NeuroLogica",
    "minfound": "MinFound",
    "anke": "Anke",
}
_WORDS = frozenset(
    # Of Siemens; GE; Philips; Canon (once Toshiba), Fujifilm (once Hitachi) and others.
    """
    somatom definition as as+ flash edge force drive sensation emotion duo perspective scope confidence go.now go.up
    go.all go.top go.sim go.open pro x.cite x.ceed naeotom alpha alpha.peak alpha.pro alpha.prime volume zoom plus
    spirit smart biograph mct vision horizon quadra

    lightspeed vct xt xte pro16 pro32 ultra qx/i rt rt16 discovery st ste rx iq mi ct750 ct690 hd revolution ct evo
    apex es frontier maxima ascend optima ct520 ct540 ct580 ct660 ct670 brightspeed hispeed elite select advantage

    brilliance ict sp ingenuity core core128 flex iqon spectral incisive mx8000 idt mx16 gemini tf access big bore
    vereos precedence

    aquilion one prime prime/sp genesis lightning precision exceed lb cx start serve vision/edition edition
    activion alexion asteion scenaria supria eclos neuviz uct umi expert bodytom ceretom clearview
    """.split()  # noqa: SIM905  a word a line would be a page
)
_DIGITS = re.compile(r"\d{1,3}")
_KERNEL = re.compile(
    r"[ABHTUIDQ][rlfvpuse]?\d{2}[fshpu]?(\\[1-5])?"  # Siemens: B30f, Br40d, I70f\3
    r"|B[rlvp]\d{2}[dfshu]?(\\[1-5])?"
    r"|FC\d{2}(-H)?"  # Canon: FC51
    r"|Y[ABCD]|[A-FL]|UB|EB|EC|IMR[12]"  # Philips
    r"|STANDARD|STND|LUNG|BONE|BONEPLUS|DETAIL|EDGE|SOFT|CHEST|ULTRA"  # GE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquisition:
    """Manufacturer, ManufacturerModelName and ConvolutionKernel of a series, as its header has them."""

    manufacturer: str = ""
    model: str = ""
    kernel: str = ""


def scanner_label(made_on: Acquisition, allowed: Collection[str] = ()) -> str:
    """ "Siemens SOMATOM DEFINITION AS+": the maker and the model, where all its words are known; else "other"."""
    whole = f"{made_on.manufacturer} {made_on.model}".strip()
    if whole in allowed:
        return whole
    maker, model = maker_label(made_on.manufacturer), model_label(made_on.model)
    return OTHER if maker == OTHER else f"{maker} {model}"


def maker_label(text: str) -> str:
    words = text.lower().split()
    return _MAKERS.get(words[0], OTHER) if words else OTHER


def model_label(text: str) -> str:
    words = text.lower().replace("_", " ").split()
    known = words and all(word in _WORDS or _DIGITS.fullmatch(word) for word in words)
    return " ".join(words[:5]) if known else OTHER


def kernel_label(made_on: Acquisition, allowed: Collection[str] = ()) -> str:
    """The kernel's name where it has a known form; else "other"."""
    known = made_on.kernel in allowed or _KERNEL.fullmatch(made_on.kernel.strip()) is not None
    return made_on.kernel.strip() if known else OTHER
