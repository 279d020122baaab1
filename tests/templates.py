"""The closed templates of the Chest CAD SR, as far as they concern nodules on CT (PS3.16 2026a), and a reader of them.

No validator at hand knows TID 4100: PixelMed's of 2022 stops at the Mammography CAD's. So its rows stand here as data,
from the standard's tables: relationship, value type, concept name, how often, value set, what is below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydicom.dataset import Dataset
from pydicom.sr._cid_dict import cid_concepts
from pydicom.sr.codedict import codes

MANY = 1 << 31


@dataclass(frozen=True)
class Row:
    """concept: code value; "" for any name or none. values: code values of the answer (of the unit, for a NUM)."""

    relationship: str
    value_type: str
    concept: str
    least: int = 1
    most: int = 1
    values: frozenset[str] = frozenset()
    below: Sequence[Row] = field(default_factory=tuple)
    graphic: str = ""


def cid(*numbers: int) -> frozenset[str]:
    """Code values of context groups."""
    return frozenset(
        str(getattr(getattr(codes, scheme), keyword).value)
        for number in numbers
        for scheme, keywords in cid_concepts[number].items()
        for keyword in keywords
    )


def tid_4019(relationship: str) -> list[Row]:
    return [
        Row(relationship, "TEXT", "111001"),
        Row(relationship, "TEXT", "111003"),
        Row(relationship, "TEXT", "122405", 0),
        Row(relationship, "TEXT", "111002", 0, MANY),
    ]


def scoord(relationship: str, concept: str, graphic: str, least: int = 1) -> Row:
    return Row(relationship, "SCOORD", concept, least, 1, graphic=graphic, below=[Row("SELECTED FROM", "IMAGE", "")])


LANGUAGE = Row("HAS CONCEPT MOD", "CODE", "121049", values=frozenset({"en-US", "en"}))
MM, MM3, HU, PERCENT = (frozenset({unit}) for unit in ("mm", "mm3", "[hnsf'U]", "%"))
COSINE = frozenset({"{-1:1}"})

TID_4020 = [
    Row("HAS ACQ CONTEXT", "CODE", "111027", 0, values=cid(244)),
    Row("HAS ACQ CONTEXT", "TEXT", "111044", 0),
    Row("HAS ACQ CONTEXT", "TEXT", "111043", 0),
    Row("HAS ACQ CONTEXT", "DATE", "111060", 0),
    Row("HAS ACQ CONTEXT", "TIME", "111061", 0),
    Row("HAS ACQ CONTEXT", "DATE", "111018", 0),
    Row("HAS ACQ CONTEXT", "TIME", "111019", 0),
    Row("HAS ACQ CONTEXT", "NUM", "111026", values=MM),
    Row("HAS ACQ CONTEXT", "NUM", "111066", values=MM),
    Row("HAS ACQ CONTEXT", "NUM", "112226", 0, values=MM),
    Row("HAS ACQ CONTEXT", "NUM", "112225", 0, values=MM),
    *(Row("HAS ACQ CONTEXT", "NUM", concept, values=MM) for concept in ("110901", "110902", "110903")),
    *(
        Row("HAS ACQ CONTEXT", "NUM", concept, values=COSINE)
        for concept in ("110904", "110905", "110906", "110907", "110908", "110909")
    ),
]
TID_1400 = Row(
    "HAS PROPERTIES", "NUM", "", 0, MANY, values=MM, below=[scoord("INFERRED FROM", "121055", "POLYLINE", 0)]
)
TID_1402 = Row(
    "HAS PROPERTIES", "NUM", "118565006", 0, MANY, values=MM3,
    below=[Row("HAS PROPERTIES", "CODE", "370129005", 0, values=cid(7474))],
)  # fmt: skip
TID_4105 = [
    Row("HAS PROPERTIES", "CODE", "272741003", 0, values=cid(244)),
    *(Row("HAS PROPERTIES", "NUM", concept, 0, values=HU) for concept in ("112181", "112183", "112182")),
]
TID_4104 = Row(
    "INFERRED FROM", "CODE", "111059", 0, MANY, values=cid(6101),
    below=[
        Row("HAS CONCEPT MOD", "CODE", "112024", 0, values=cid(6102)),
        Row("HAS CONCEPT MOD", "CODE", "111056", values=cid(6034)),
        Row("HAS OBS CONTEXT", "TEXT", "112039", 0),
        Row("HAS OBS CONTEXT", "UIDREF", "112040", 0),
        *tid_4019("HAS OBS CONTEXT"),
        Row("HAS PROPERTIES", "NUM", "111012", 0, values=PERCENT),
        scoord("HAS PROPERTIES", "111010", "POINT", 0),
        scoord("HAS PROPERTIES", "111041", "POLYLINE"),
        Row("HAS PROPERTIES", "NUM", "103339001", 0, values=MM, below=TID_1400.below),
        Row("HAS PROPERTIES", "NUM", "103340004", 0, values=MM, below=TID_1400.below),
        TID_1402,
        *TID_4105,
    ],
)  # fmt: skip
TID_4017 = Row(
    "CONTAINS", "CODE", "111022", 1, MANY, values=cid(6101, 6102),
    below=[*tid_4019("HAS PROPERTIES"), Row("HAS PROPERTIES", "UIDREF", "112002", 1, MANY)],
)  # fmt: skip
TID_4100 = [
    LANGUAGE,
    Row("CONTAINS", "CONTAINER", "111028", 0, below=[Row("CONTAINS", "IMAGE", "", 1, MANY, below=TID_4020)]),
    Row("CONTAINS", "CODE", "111017", values=cid(6047), below=[TID_4104]),
    Row(
        "CONTAINS", "CODE", "111064", values=cid(6042),
        below=[
            Row("INFERRED FROM", "CONTAINER", "111063", 0, below=[TID_4017]),
            Row("INFERRED FROM", "CONTAINER", "111025", 0, below=[TID_4017]),
        ],
    ),
    Row("CONTAINS", "CODE", "111065", values=cid(6042)),
]  # fmt: skip


def breaches(parent: Dataset, rows: Sequence[Row], where: str = "root") -> Iterator[str]:
    """Where the items below `parent` are not those of the rows, in their order."""
    items = list(parent.get("ContentSequence", ()))
    for row in rows:
        taken = 0
        while items and taken < row.most and _is(items[0], row):
            item = items.pop(0)
            taken += 1
            yield from _item_breaches(item, row, f"{where}/{_concept(item) or item.ValueType}")
        if taken < row.least:
            yield f"{where}: {row.value_type} {row.concept} is missing"
    yield from (f"{where}: no place for {_concept(item) or item.ValueType}" for item in items)


def _item_breaches(item: Dataset, row: Row, where: str) -> Iterator[str]:
    if row.values and _answer(item) not in row.values:
        yield f"{where}: {_answer(item)} is not of its value set"
    if row.graphic and item.GraphicType != row.graphic:
        yield f"{where}: {item.GraphicType}"
    yield from breaches(item, row.below, where)


def _is(item: Dataset, row: Row) -> bool:
    return (item.RelationshipType, item.ValueType) == (row.relationship, row.value_type) and (
        row.concept in ("", _concept(item))
    )


def _concept(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].CodeValue) if names else ""


def _answer(item: Dataset) -> str:
    if item.ValueType == "NUM":
        return str(item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue)
    return str(item.ConceptCodeSequence[0].CodeValue)
