"""Files -> STOW-RS (PS3.18 10.5) -> an outcome for each, as of a C-STORE. Files go as they are.

Only what the service says it cannot read for its Transfer Syntax is sent again, decoded.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import requests

from dicom_node.dicomweb.client import DicomWebError, answered, error_of_status, session, settings, timeouts_s
from dicom_node.dimse.contexts import UNCOMPRESSED
from dicom_node.dimse.part10 import write_file_head
from dicom_node.dimse.scu import CannotConvert, Kind, Outcome, SendObject, converted, examined, outcome_of
from dicom_node.errors import ConfigError
from dicom_node.peers import PeerConfig
from dicom_node.transfer_syntaxes import EXPLICIT_LITTLE

# A request is held in memory, and where the service fails on it, all of it is sent again.
_LONGEST_BATCH_BYTES = 32 * 1024**2
_LARGEST_BATCH = 100
_STORED, _PARTLY, _CONFLICT, _TOO_LARGE, _UNSUPPORTED = 200, 202, 409, 413, 415
# PS3.18 10.5.3.1: all three may say of each object what became of it.
_TELLING = (_STORED, _PARTLY, _CONFLICT)
# These are about the service or our account there and not about what was sent.
_FOR_OPERATORS = (401, 403)
_ABOUT_OBJECTS = (400, _CONFLICT, _TOO_LARGE, _UNSUPPORTED)
# PS3.18 Table 10.5.3-1: referenced Transfer Syntax not supported.
_SYNTAX_NOT_SUPPORTED = 0xC122


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    item: SendObject
    data: bytes


def send(files: Iterable[Path], peer: PeerConfig) -> Iterator[Outcome]:
    """Send files; one Outcome for each, in their order. Where the service is down or shuts us out, the rest is left."""
    left: Sequence[SendObject | Outcome] = [examined(path) for path in files]
    try:
        with session(peer) as web:
            while left:
                batch, left = _batch(left)
                outcomes, ends = _send_batch(web, peer, batch)
                yield from outcomes
                if ends is not None:
                    yield from (_ended(item, ends) for item in left)
                    return
    except ConfigError as err:
        # Not for ever: what waits for this peer goes on once its files are mended.
        yield from (_ended(item, DicomWebError(str(err), refused=True)) for item in left)


def _batch(
    items: Sequence[SendObject | Outcome],
) -> tuple[Sequence[SendObject | Outcome], Sequence[SendObject | Outcome]]:
    """The first objects, as many as one request takes, at least one; and the others."""
    size = 0
    for count, item in enumerate(items[:_LARGEST_BATCH]):
        size += item.size_bytes if isinstance(item, SendObject) else 0
        if count and size > _LONGEST_BATCH_BYTES:
            return items[:count], items[count:]
    return items[:_LARGEST_BATCH], items[_LARGEST_BATCH:]


def _send_batch(
    web: requests.Session, peer: PeerConfig, batch: Sequence[SendObject | Outcome]
) -> tuple[list[Outcome], DicomWebError | None]:
    """Outcomes in order, and the error that makes further requests useless, where there is one."""
    parts, read = _read(batch)
    if not parts:
        return _in_order(batch, read), None
    try:
        sent = _post(web, peer, parts)
    except DicomWebError as err:
        if err.status in (_TOO_LARGE, _UNSUPPORTED) and len(parts) > 1:
            # Whichever of them it is about: one by one.
            singly = [_send_batch(web, peer, [part.item]) for part in parts]
            sent = {outcomes[0].path: outcomes[0] for outcomes, _ in singly}
            return _in_order(batch, read | sent), next((ends for _, ends in singly if ends is not None), None)
        sent = {part.item.path: _failed(part.item.path, err) for part in parts}
        if err.status not in _ABOUT_OBJECTS:
            return _in_order(batch, read | sent), err
        unreadable = err.status == _UNSUPPORTED
    else:
        unreadable = False
    for part in parts:
        outcome = sent[part.item.path]
        about_syntax = unreadable or outcome.status == _SYNTAX_NOT_SUPPORTED
        if about_syntax and part.item.transfer_syntax_uid not in UNCOMPRESSED:
            sent[part.item.path] = _decoded(web, peer, part, outcome)
    return _in_order(batch, read | sent), None


def _read(batch: Sequence[SendObject | Outcome]) -> tuple[list[_Part], dict[Path, Outcome]]:
    parts, outcomes = [], {}
    for item in batch:
        if isinstance(item, Outcome):
            outcomes[item.path] = item
            continue
        try:
            parts.append(_Part(item=item, data=item.path.read_bytes()))
        except OSError as err:
            outcomes[item.path] = Outcome(
                path=item.path, kind="refused", status=None, message=f"cannot be read: {err.strerror}"
            )
    return parts, outcomes


def _in_order(batch: Sequence[SendObject | Outcome], found: Mapping[Path, Outcome]) -> list[Outcome]:
    return [found[item.path] for item in batch]


def _post(web: requests.Session, peer: PeerConfig, parts: Sequence[_Part]) -> dict[Path, Outcome]:
    """Raises DicomWebError where nothing is said of single objects."""
    boundary = uuid.uuid4().hex
    content_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
    with answered(peer):
        # A file, not bytes: those would have to leave within one time limit, however many they are.
        response = web.post(
            settings(peer).url.rstrip("/") + "/studies",
            data=BytesIO(_multipart(boundary, [part.data for part in parts])),
            headers={"Content-Type": content_type, "Accept": "application/dicom+json"},
            timeout=timeouts_s(peer),
            # A redirected POST would become a GET.
            allow_redirects=False,
        )
    if response.status_code not in _TELLING:
        raise error_of_status(peer, response.status_code, response.headers)
    told = _told(response.content)
    if response.status_code == _CONFLICT and told is None:
        raise error_of_status(peer, response.status_code, response.headers)
    alone = len(parts) == 1
    return {part.item.path: _outcome(part.item, response.status_code, told, alone=alone) for part in parts}


def _multipart(boundary: str, contents: Iterable[bytes]) -> bytes:
    """RFC 2387, a part for each file."""
    pieces = []
    for content in contents:
        pieces += [f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode(), content, b"\r\n"]
    return b"".join([*pieces, f"--{boundary}--\r\n".encode()])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What a response says: SOP Instance UID -> Warning Reason or None; SOP Instance UID -> Failure Reason."""

    stored: Mapping[str, int | None]
    failed: Mapping[str, int]


def _told(body: bytes) -> _Told | None:
    """PS3.18 10.5.3.2. None where the body is no DICOM JSON that names objects."""
    try:
        answer = json.loads(body)
        data_set = answer[0] if isinstance(answer, list) else answer
        stored = {_uid(item): _first(item, "00081196") for item in _items(data_set, "00081199")}
        failed = {_uid(item): _first(item, "00081197") or 0x0110 for item in _items(data_set, "00081198")}
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return _Told(stored=stored, failed=failed) if stored or failed else None


def _items(data_set: Any, tag: str) -> list[Any]:
    return list(data_set.get(tag, {}).get("Value") or [])


def _uid(item: Any) -> str:
    return str(item["00081155"]["Value"][0])


def _first(item: Any, tag: str) -> int | None:
    value = item.get(tag, {}).get("Value")
    return int(value[0]) if value else None


def _outcome(item: SendObject, status: int, told: _Told | None, *, alone: bool) -> Outcome:
    """Nothing is taken for stored that the service did not say it stored."""
    uid = item.sop_instance_uid
    if told is not None and uid in told.failed:
        return outcome_of(item.path, told.failed[uid])
    if told is not None and uid in told.stored:
        return _stored(item, told.stored[uid] or 0x0000)
    if told is None and (status == _STORED or alone):
        return _stored(item)
    return Outcome(path=item.path, kind="unknown", status=None, message="the answer does not name this object")


def _stored(item: SendObject, warning: int = 0x0000) -> Outcome:
    known = outcome_of(item.path, warning)
    message = known.message if known.kind == "stored" else f"stored with warning {warning:#06x}"
    return replace(known, kind="stored", message=message)


def _failed(path: Path, err: DicomWebError) -> Outcome:
    # Where nothing tells that it was not acted on, it may have been.
    kind: Kind = "retry" if err.refused else "unknown"
    if err.status in (*_FOR_OPERATORS, *_ABOUT_OBJECTS):
        kind = "refused"
    return Outcome(path=path, kind=kind, status=None, message=str(err), retry_after_s=err.retry_after_s)


def _ended(item: SendObject | Outcome, err: DicomWebError) -> Outcome:
    """What was not sent because of `err`."""
    if isinstance(item, Outcome):
        return item
    outcome = _failed(item.path, err)
    return outcome if outcome.kind == "refused" else replace(outcome, kind="retry")


def _decoded(web: requests.Session, peer: PeerConfig, part: _Part, refused: Outcome) -> Outcome:
    """The object decoded to Explicit VR Little Endian and sent again."""
    item = part.item
    try:
        data_set = converted(item, implicit=False)
    except CannotConvert as err:
        return replace(refused, message=f"{refused.message}; {err}")
    head = write_file_head(
        sop_class_uid=item.sop_class_uid,
        sop_instance_uid=item.sop_instance_uid,
        transfer_syntax_uid=EXPLICIT_LITTLE,
    )
    try:
        return _post(web, peer, [_Part(item=item, data=head + data_set)])[item.path]
    except DicomWebError as err:
        return _failed(item.path, err)
