"""QIDO-RS -> answers checked like those of C-FIND; WADO-RS -> Instances of one series, handed on one by one.

Used for a peer with `retrieve_by: wado_rs`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO

import pydicom
import requests
from pydicom.dataset import Dataset

from dicom_node.dicomweb.client import DicomWebError, answered, client, settings
from dicom_node.dimse import part10
from dicom_node.dimse.intake import StoreRequest
from dicom_node.dimse.query import DEFAULT_LIMIT, Found, Level, Unusable, check_answer
from dicom_node.dimse.retrieve import Said, SeriesKey, Store, belongs
from dicom_node.dimse.statuses import SUCCESS
from dicom_node.errors import ConfigError, DicomNodeError, InvalidUID, UnreadableInstance
from dicom_node.peers import PeerConfig

log = logging.getLogger(__name__)

# PS3.18 8.7.3.5.2: any Transfer Syntax, as the archive holds it; nothing is converted for us.
_AS_STORED = (("application/dicom", "*"),)
_PAGE = 500


def search(peer: PeerConfig, level: Level, keys: Mapping[str, str], *, limit: int = DEFAULT_LIMIT) -> Found:
    """QIDO-RS at STUDY, SERIES or IMAGE level. Empty keys are asked for, others match. Raises DicomWebError."""
    answers: dict[str, dict[str, dict[str, object]]] = {}
    with client(peer) as asked:
        while len(answers) <= limit:
            before = len(answers)
            with answered(peer):
                # Some services give less at once than they are asked for, and some the same again and again.
                answers |= {json.dumps(one, sort_keys=True): one for one in _page(asked, level, keys, before)}
            if len(answers) == before:
                break
    data_sets: list[Dataset] = []
    unusable: list[str] = []
    for answer in list(answers.values())[:limit]:
        try:
            data_set = Dataset.from_json(answer)
            check_answer(data_set, level, keys)
            data_sets.append(data_set)
        except (InvalidUID, Unusable) as err:
            unusable.append(str(err))
        except Exception:  # noqa: BLE001  what pydicom raises on hostile JSON has no common type
            unusable.append("an answer is no data set")
    return Found(data_sets=tuple(data_sets), unusable=tuple(unusable), truncated=len(answers) > limit)


def _page(asked: object, level: Level, keys: Mapping[str, str], offset: int) -> list[dict[str, dict[str, object]]]:
    above = {name: keys.get(name) or None for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    functions = {"STUDY": "search_for_studies", "SERIES": "search_for_series", "IMAGE": "search_for_instances"}
    if level not in functions:
        raise ConfigError("QIDO-RS has no PATIENT level")
    arguments: dict[str, object] = {
        "limit": _PAGE,
        "offset": offset,
        "fields": [keyword for keyword, value in keys.items() if not value],
        "search_filters": {keyword: value for keyword, value in keys.items() if value},
    }
    # PS3.18 10.6.1: what the path names is no parameter of the query.
    if level != "STUDY":
        arguments["study_instance_uid"] = above["StudyInstanceUID"]
        arguments["search_filters"].pop("StudyInstanceUID", None)  # type: ignore[attr-defined]
    if level == "IMAGE":
        arguments["series_instance_uid"] = above["SeriesInstanceUID"]
        arguments["search_filters"].pop("SeriesInstanceUID", None)  # type: ignore[attr-defined]
    return list(getattr(asked, functions[level])(**arguments))


def fetch(
    peer: PeerConfig, series: SeriesKey, store: Store, *, on_response: Callable[[int], None] = lambda sent: None
) -> Said:
    """WADO-RS of one series, each Instance to `store` as it comes. Raises DicomWebError where the answer ends early."""
    sent = failed = 0
    for request in _requests(peer, series):
        if not belongs(request, series.series_uid):
            failed += 1
            extra = {"action": "refuse", "source_ae": peer.ae_title}
            log.warning("instance of another series refused", extra=extra)
            continue
        status = store(request).status
        sent, failed = sent + 1, failed + (status != SUCCESS)
        on_response(sent)
    problem = f"{failed} of the instances that came were refused here" if failed else ""
    return Said(sent=sent, failed=failed, status=SUCCESS, problem=problem)


def _requests(peer: PeerConfig, series: SeriesKey) -> Iterator[StoreRequest]:
    with client(peer) as asked:
        with answered(peer):
            instances = asked.iter_series(series.study_uid, series.series_uid, media_types=_AS_STORED)
        while True:
            with answered(peer):
                request = _next(peer, instances)
            if request is None:
                return
            yield request


def _next(peer: PeerConfig, instances: Iterator[Dataset]) -> StoreRequest | None:
    """The next Instance of the answer; None at its end."""
    try:
        instance = next(instances, None)
        return None if instance is None else _request(peer, instance)
    except (requests.RequestException, DicomNodeError):
        raise
    except Exception:  # noqa: BLE001  what pydicom raises on hostile bytes has no common type
        raise DicomWebError(f"{settings(peer).url}: a part of its answer is no DICOM file", status=200) from None


def _request(peer: PeerConfig, instance: Dataset) -> StoreRequest:
    """As if it had come by C-STORE. Elements that nobody touched are written with the bytes that came."""
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, instance, enforce_file_format=True)
    data = buffer.getvalue()
    try:
        head = part10.read_file_head(data)
    except UnreadableInstance as err:
        raise DicomWebError(f"{settings(peer).url}: an instance of its answer is no DICOM file", status=200) from err
    return StoreRequest(
        sop_class_uid=str(instance.get("SOPClassUID", "")),
        sop_instance_uid=str(instance.get("SOPInstanceUID", "")),
        abstract_syntax=str(instance.get("SOPClassUID", "")),
        transfer_syntax_uid=head.transfer_syntax_uid,
        data_set=data[head.data_set_at :],
        source_ae=peer.ae_title,
        source_ip=peer.host[:45],
    )
