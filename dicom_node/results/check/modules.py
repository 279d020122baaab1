"""One data set -> what PS3.3 asks of its SOP Class and it has not, and values that PS3.5 does not allow.

In process and in milliseconds what dciodvfy does for the attributes of our SOP Classes; a test holds it against that.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dicom_node.results.check import conditions, standard, values
from dicom_node.results.check.standard import Rules
from dicom_node.results.headers import PATIENT_AND_STUDY

_NONE = Rules(required=(), conditional=(), filled=frozenset(), items={})


def faults(ds: Dataset) -> Iterator[str]:
    """One sentence a fault, without any value."""
    if not ds.get("SOPClassUID") or not standard.is_known(str(ds.SOPClassUID)):
        yield "SOPClassUID is none that this node knows"
        return
    also = frozenset(key for key, holds in conditions.MODULES.items() if holds(ds, ds))
    yield from _Walk(ds).level(ds, standard.rules(str(ds.SOPClassUID), also), ())


class _Walk:
    """One walk over a data set; items that stand in several places are looked at once."""

    def __init__(self, root: Dataset) -> None:
        self._root = root
        charset = root.get("SpecificCharacterSet") or ""
        self._charset = charset if isinstance(charset, str) else ""
        self._seen: set[int] = set()

    def level(self, item: Dataset, rules: Rules, path: tuple[str, ...]) -> Iterator[str]:
        yield from self._absent(item, rules, path)
        for element in elements(item):
            keyword = values.keyword(int(element.tag))
            if not path and keyword in PATIENT_AND_STUDY:
                continue  # copied as it came: the source's own affair
            if element.VR != "SQ":
                wrong = values.fault(element, self._charset)
                if wrong:
                    yield f"{_name(keyword or str(element.tag), path)} {wrong}"
                continue
            if not element.value and int(element.tag) in rules.filled:
                yield f"{_name(keyword, path)} is there without an item"
            nested, below = rules.items.get(int(element.tag), _NONE), (*path, keyword)
            for each in element.value:
                if id(each) not in self._seen:
                    self._seen.add(id(each))
                    yield from self.level(each, nested, below)

    def _absent(self, item: Dataset, rules: Rules, path: tuple[str, ...]) -> Iterator[str]:
        there = item.keys()
        for tag, keyword, kind in rules.required:
            if tag not in there:
                yield f"{_name(keyword, path)} is missing (type {kind})"
            elif kind == "1" and values.is_empty(item[tag]):
                yield f"{_name(keyword, path)} is empty (type 1)"
        for tag, keyword, kind in rules.conditional:
            if tag in there:
                if kind == "1C" and values.is_empty(item[tag]):
                    yield f"{_name(keyword, path)} is empty (type 1C)"
                continue
            condition = conditions.ATTRIBUTES.get(f"{path[-1]}.{keyword}" if path else keyword)
            condition = condition or conditions.ATTRIBUTES.get(keyword)
            if condition is not None and condition(item, self._root):
                yield f"{_name(keyword, path)} is missing (type {kind})"


def elements(item: Dataset) -> Iterator[DataElement]:
    """As they come: iterating over a Dataset sorts and looks up each, which counts with thousands of frames."""
    for tag, element in item.items():
        yield element if isinstance(element, DataElement) else item[tag]


def _name(keyword: str, path: tuple[str, ...]) -> str:
    return "/".join((*path, keyword))
