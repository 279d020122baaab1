"""What a peer says about an object of ours -> the same without what the object says of its patient.

A comment goes into the ledger, and is read by operators who need not know whose image it is about.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node.logs import describe

if TYPE_CHECKING:
    from pydicom.dataelem import DataElement

log = logging.getLogger(__name__)

# Beside the patient group: what tells one person's examination from another's (PS3.15 Table E.1-1).
_TELLING = frozenset(
    """
    AccessionNumber StudyID ReferringPhysicianName ReferringPhysicianAddress InstitutionName InstitutionAddress
    InstitutionalDepartmentName StationName PhysiciansOfRecord PerformingPhysicianName OperatorsName
    NameOfPhysiciansReadingStudy StudyDescription RequestingPhysician RequestedProcedureDescription
    """.split()  # noqa: SIM905  a word a line would be half a page
)
_PATIENT_GROUP = 0x0010
# A shorter word than this is in too many others to be told from them.
_LEAST_LETTERS = 3
_LONGEST_COMMENT = 500


def without_identity(text: str, path: Path) -> str:
    """What a peer said about an object, with the name of the attribute in the place of each value that it quotes.

    path: the object's file. One that cannot be read leaves nothing of the text but that there was one.
    """
    from pydicom import dcmread

    if not text:
        return text
    text = "".join(c for c in text[:_LONGEST_COMMENT] if c.isprintable())
    try:
        header = dcmread(path, stop_before_pixels=True)
        telling = [(e.keyword or "patient", str(e.value)) for e in header if e.value and _tells(e)]
    except Exception as err:  # noqa: BLE001  the parser meets whatever there is, and raises whatever it likes
        log.warning("a comment is not kept", extra={"action": "comment", "error": describe(err)})
        return "a comment that is not kept: its object cannot be read"
    known = {part.lower(): keyword for keyword, value in telling for part in _parts(value)}
    if not known:
        return text
    longest_first = sorted(known, key=len, reverse=True)
    quoted = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)
    return quoted.sub(lambda found: f"[{known.get(found[0].lower(), 'patient')}]", text)


def _tells(element: DataElement) -> bool:
    return element.VR != "SQ" and (element.tag.group == _PATIENT_GROUP or element.keyword in _TELLING)


def _parts(value: str) -> Iterator[str]:
    """A value, and each word of it: a peer may quote a family name alone, or write it another way."""
    for part in {value, *re.split(r"[\s^=,\\\\]+", value)}:
        if len(part) >= _LEAST_LETTERS:
            yield part
