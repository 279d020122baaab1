"""Keys -> C-FIND (PS3.4 C.4.1) -> answers, each checked: of the level asked for, with a valid UID, no other's.

Study Root where the peer has it, else Patient Root.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

from pydicom.dataset import Dataset
from pynetdicom.dimse_primitives import C_FIND
from pynetdicom.dsutils import decode, encode

from dicom_node.dimse.requestor import PENDING, NothingAccepted, Requested, associate
from dicom_node.dimse.statuses import FIND_REPLIES, reply_of
from dicom_node.errors import DeliveryError, InvalidUID
from dicom_node.peers import PeerConfig
from dicom_node.storage import checked_uid
from dicom_node.transfer_syntaxes import EXPLICIT_LITTLE, IMPLICIT_LITTLE

log = logging.getLogger(__name__)

Level = Literal["PATIENT", "STUDY", "SERIES", "IMAGE"]
STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.2.1"
PATIENT_ROOT = "1.2.840.10008.5.1.4.1.2.1.1"
MODELS = (STUDY_ROOT, PATIENT_ROOT)
SYNTAXES = (EXPLICIT_LITTLE, IMPLICIT_LITTLE)
# PS3.4 Tables C.6-1 to C.6-4: the Unique Key of each level.
UNIQUE_KEYS: Mapping[Level, str] = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}
# What an answer must repeat as it was asked: some peers match nothing and answer all that they have.
_EXACT = (*UNIQUE_KEYS.values(), "AccessionNumber")
_CANCELLED = 0xFE00
# Enough for any study: a larger answer comes from a question that was too wide.
DEFAULT_LIMIT = 20_000
# After a C-CANCEL the peer may finish what is on its way; one that goes on for ever is left.
_MOST_SURPLUS = 1000
_LONGEST_S = 600.0
# No series has more; a column of the database holds no number without end.
_MOST_RELATED = 1_000_000


class QueryFailed(DeliveryError):
    """The peer did not answer the query, or ended it with a failure. The text says what to check.

    It never repeats the peer's own words, which may quote a patient.
    """

    def __init__(self, text: str, *, retry_helps: bool = False) -> None:
        super().__init__(text)
        self.retry_helps = retry_helps


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a query brought.

    data_sets: answers that can be trusted, in the peer's order; each has a valid unique key of its level.
    unusable: why other answers were left out. truncated: there were more than the limit.
    """

    data_sets: tuple[Dataset, ...]
    unusable: tuple[str, ...]
    truncated: bool


class Query:
    """Questions on one Association."""

    def __init__(self, association: Requested, peer: PeerConfig, clock: Callable[[], float]) -> None:
        self._association, self._peer, self._clock = association, peer, clock
        self._model, self._syntax, self._context_id = chosen_model(association.contexts, MODELS)

    def find(self, level: Level, keys: Mapping[str, str], *, limit: int = DEFAULT_LIMIT) -> Found:
        """Answers of one level. keys: DICOM keyword -> value to match; empty: return it, match everything.

        Below PATIENT level a peer that has Patient Root alone needs `PatientID` among the keys (PS3.4 C.4.1.2.1).
        Raises QueryFailed; NoAnswer when a reply does not come in time.
        """
        request = self._request(level, keys)
        gathered = _Gathered(level, keys, self._syntax == IMPLICIT_LITTLE)
        deadline = self._clock() + _LONGEST_S
        surplus = 0
        with contextlib.closing(self._association.ask(request, self._context_id)) as replies:
            for reply in replies:
                if reply.Status not in PENDING:
                    if not (surplus and reply.Status == _CANCELLED):
                        self._check(reply.Status)
                elif gathered.count < limit:
                    gathered.add(reply)
                else:
                    surplus += 1
                    if surplus == 1:
                        self._association.cancel(request, self._context_id)
                if surplus > _MOST_SURPLUS or self._clock() > deadline:
                    break  # the Association is left in the middle of the answers, and aborted for it
        self._log(gathered)
        return Found(
            data_sets=tuple(gathered.data_sets),
            unusable=tuple(gathered.unusable),
            truncated=surplus > 0 or self._association.broken,
        )

    def series_instance_count(self, study_uid: str, series_uid: str, *, patient_id: str = "") -> int | None:
        """How many Instances the peer has of a series; None where it does not know the series.

        NumberOfSeriesRelatedInstances is optional (PS3.4 Table C.6-3): without it the Instances are counted.
        """
        keys = {"PatientID": patient_id, "StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid}
        found = self.find("SERIES", {**keys, "NumberOfSeriesRelatedInstances": ""})
        if found.unusable:
            raise QueryFailed(f"{self._peer.ae_title} answers what cannot be used: {found.unusable[0]}")
        if not found.data_sets:
            return None
        count = related_instances(found.data_sets[0], "NumberOfSeriesRelatedInstances")
        if count is not None:
            return count
        images = self.find("IMAGE", keys)
        if images.unusable or images.truncated:
            raise QueryFailed(f"the Instances of the series cannot be counted at {self._peer.ae_title}")
        return len({str(image.SOPInstanceUID) for image in images.data_sets})

    def _request(self, level: Level, keys: Mapping[str, str]) -> C_FIND:
        request = C_FIND()
        request.AffectedSOPClassUID = self._model
        request.Priority = 0x00  # PS3.7 E.1: medium
        encoded = encode(identifier(self._peer, level, keys, self._model), self._syntax == IMPLICIT_LITTLE, True)
        if encoded is None:
            raise QueryFailed("the keys of the query cannot be encoded")
        request.Identifier = BytesIO(encoded)
        return request

    def _check(self, status: int) -> None:
        """The last status of a query (PS3.4 Table C.4-1)."""
        if status == 0x0000:
            return
        reply = reply_of(FIND_REPLIES, status)
        raise QueryFailed(
            f"{self._peer.ae_title} does not answer the query: {reply.text} ({status:#06x})",
            retry_helps=reply.ending == "retry",
        )

    def _log(self, gathered: _Gathered) -> None:
        if gathered.unusable:
            extra = {"action": "query", "peer": self._peer.ae_title, "answers": len(gathered.unusable)}
            log.warning("answers left out", extra={**extra, "why": "; ".join(sorted(set(gathered.unusable)))})


class _Gathered:
    """Answers of one query, sorted into those that can be trusted and the others."""

    def __init__(self, level: Level, keys: Mapping[str, str], implicit: bool) -> None:
        self._level, self._keys, self._implicit = level, keys, implicit
        self.data_sets: list[Dataset] = []
        self.unusable: list[str] = []

    @property
    def count(self) -> int:
        return len(self.data_sets) + len(self.unusable)

    def add(self, reply: Any) -> None:
        try:
            data_set = decode(reply.Identifier, self._implicit, True)
            self._check(data_set)
        except (InvalidUID, Unusable) as err:
            self.unusable.append(str(err))
        except Exception:  # noqa: BLE001  what pydicom raises on hostile bytes has no common type
            self.unusable.append("an answer is no data set")
        else:
            self.data_sets.append(data_set)

    def _check(self, data_set: Dataset) -> None:
        if str(data_set.get("QueryRetrieveLevel", "")).strip() != self._level:
            raise Unusable(f"an answer is not of {self._level} level")
        check_answer(data_set, self._level, self._keys)


class Unusable(Exception):
    """One answer that cannot be trusted; the text holds no value of it."""


@contextlib.contextmanager
def querying(peer: PeerConfig, calling_ae: str, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Query]:
    """An Association for queries. Raises CannotAssociate, NothingAccepted where the peer answers no C-FIND."""
    contexts = [(model, [syntax]) for model in MODELS for syntax in SYNTAXES]
    with associate(peer, calling_ae, contexts, clock=clock) as association:
        yield Query(association, peer, clock)


def find(
    peer: PeerConfig, calling_ae: str, level: Level, keys: Mapping[str, str], *, limit: int = DEFAULT_LIMIT
) -> Found:
    """One query on an Association of its own. Raises DeliveryError: no Association, no answer, or a failure."""
    with querying(peer, calling_ae) as query:
        return query.find(level, keys, limit=limit)


def series_instance_count(
    peer: PeerConfig, calling_ae: str, study_uid: str, series_uid: str, *, patient_id: str = ""
) -> int | None:
    """How many Instances the peer has of a series; None where it does not know the series. Raises DeliveryError."""
    with querying(peer, calling_ae) as query:
        return query.series_instance_count(study_uid, series_uid, patient_id=patient_id)


def related_instances(data_set: Dataset, keyword: str) -> int | None:
    """NumberOfSeriesRelatedInstances or its like of the study; None where the peer does not say, or says nonsense."""
    try:
        count = int(str(data_set.get(keyword, "")))
    except ValueError:
        return None
    return count if 0 <= count <= _MOST_RELATED else None


def identifier(peer: PeerConfig, level: Level, keys: Mapping[str, str], model: str) -> Dataset:
    """The Identifier of a request; which keys above its level are needed hangs on the information model."""
    values = {UNIQUE_KEYS[level]: "", **keys}
    if "5.1.4.1.2.2." in model:
        if level == "PATIENT":
            raise QueryFailed(f"{peer.ae_title} has Study Root alone, which has no PATIENT level")
        if level != "STUDY":
            values.pop("PatientID", None)  # in Study Root it is a key of the study (PS3.4 C.6.2.1)
    elif level != "PATIENT" and not values.get("PatientID"):
        raise QueryFailed(f"{peer.ae_title} has Patient Root alone, which needs a Patient ID: query by patient")
    made = Dataset()
    made.QueryRetrieveLevel = level
    if not all(value.isascii() for value in values.values()):
        made.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def check_answer(data_set: Dataset, level: Level, keys: Mapping[str, str]) -> None:
    """Raises InvalidUID or Unusable where an answer lacks a valid unique key, or is of something else."""
    for at, keyword in UNIQUE_KEYS.items():
        if keyword != "PatientID" and (at == level or data_set.get(keyword)):
            checked_uid(data_set.get(keyword), keyword)
    if level == "PATIENT" and not data_set.get("PatientID"):
        raise Unusable("an answer has no PatientID")
    for keyword in _EXACT:
        found, asked = str(data_set.get(keyword) or "").strip(), keys.get(keyword, "").strip()
        if found and asked and found not in asked.split("\\"):
            raise Unusable(f"an answer has another {keyword} than was asked for")


def chosen_model(contexts: Mapping[tuple[str, str], int], models: tuple[str, str]) -> tuple[str, str, int]:
    """Information model, Transfer Syntax and context id: Study Root first, whose keys need no patient."""
    for pair in ((model, syntax) for model in models for syntax in SYNTAXES):
        if pair in contexts:
            return *pair, contexts[pair]
    raise NothingAccepted("the peer accepts no such request: C-FIND, C-MOVE or C-GET must be allowed to us there")
