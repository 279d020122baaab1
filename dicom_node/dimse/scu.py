"""Files -> C-STORE -> an outcome for each. Files go as they are; only what a peer cannot read is converted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydicom
from pynetdicom.dsutils import encode

from dicom_node.dimse.comments import without_identity
from dicom_node.dimse.contexts import UNCOMPRESSED, VERIFICATION, name_of
from dicom_node.dimse.part10 import read_file_head
from dicom_node.dimse.requestor import (
    MAX_CONTEXTS,
    CannotAssociate,
    NoAnswer,
    NothingAccepted,
    Requested,
    associate,
)
from dicom_node.dimse.statuses import SUCCESS, store_meaning
from dicom_node.errors import DeliveryError, UnreadableInstance
from dicom_node.peers import PeerConfig
from dicom_node.transfer_syntaxes import EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE

Kind = Literal["stored", "retry", "unknown", "refused"]

# Every peer must understand Implicit VR Little Endian (PS3.5 10.1).
FALLBACK = (EXPLICIT_LITTLE, IMPLICIT_LITTLE)
ECHO_SYNTAXES = (IMPLICIT_LITTLE,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one file.

    stored: the peer has it (`message` keeps a warning). retry: it does not have it and may take it later.
    unknown: it was sent and no answer came; sending it again under its UID is safe. refused: never in this form.
    retry_after_s: how long the peer asks us to wait.
    """

    path: Path
    kind: Kind
    status: int | None
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SendObject:
    """A file to be sent, and what it says it holds."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set_at: int
    size_bytes: int


class CannotConvert(DeliveryError):
    """The peer does not accept the file's SOP Class, or its Transfer Syntax and it cannot be converted to another."""


def echo(peer: PeerConfig, calling_ae: str) -> None:
    """C-ECHO. Raises DeliveryError with what to check."""
    with associate(peer, calling_ae, [(VERIFICATION, ECHO_SYNTAXES)]) as association:
        status = association.echo()
    if status != SUCCESS:
        raise DeliveryError(f"{peer.ae_title} answered the C-ECHO with status {status:#06x}")


def send(files: Iterable[Path], peer: PeerConfig, calling_ae: str) -> Iterator[Outcome]:
    """Send files; one Outcome for each, in their order, as it becomes known.

    One Association carries them all, unless they need more than 128 Presentation Contexts. After an answer that
    did not come the others go on a new one; after a second such in a row the rest is left for later.
    """
    left: Sequence[SendObject | Outcome] = [examined(path) for path in files]
    silences = 0
    while left:
        outcomes = []
        for outcome in _send_batch(_batch(left), peer, calling_ae):
            outcomes.append(outcome)
            yield outcome
        left = left[len(outcomes) :]
        answered = any(outcome.status is not None for outcome in outcomes)
        silences = 0 if answered else silences
        silences += outcomes[-1].kind == "unknown"
        if silences == 2:
            yield from _not_sent(left, f"{peer.ae_title} stopped answering")
            return


def outcome_of(path: Path, status: int, comment: str = "") -> Outcome:
    """The meaning of a C-STORE status (PS3.4 B.2.3, PS3.7 C.5), and the peer's comment without whom it is about."""
    said = f": {without_identity(comment, path)}" if comment and status != SUCCESS else ""
    meaning = store_meaning(status)
    if status == SUCCESS:
        message = ""
    elif meaning.kind == "refused":
        message = f"{meaning.text} ({status:#06x}){said}"
    else:
        message = meaning.text + said
    return Outcome(path=path, kind=meaning.kind, status=status, message=message)


def examined(path: Path) -> SendObject | Outcome:
    """What a file says it holds; refused where it is none that can be sent."""
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            # File Meta Information is some hundred bytes; private elements in it may be longer.
            head = read_file_head(file.read(65536))
    except UnreadableInstance as err:
        return Outcome(path=path, kind="refused", status=None, message=str(err))
    except OSError as err:
        return Outcome(path=path, kind="refused", status=None, message=f"cannot be read: {err.strerror}")
    if not head.sop_class_uid or not head.sop_instance_uid:
        return Outcome(path=path, kind="refused", status=None, message="no SOP UIDs in the File Meta Information")
    return SendObject(
        path=path,
        sop_class_uid=head.sop_class_uid,
        sop_instance_uid=head.sop_instance_uid,
        transfer_syntax_uid=head.transfer_syntax_uid,
        data_set_at=head.data_set_at,
        size_bytes=size_bytes,
    )


def _batch(objects: Sequence[SendObject | Outcome]) -> Sequence[SendObject | Outcome]:
    """As many of the first objects as one Association has Presentation Contexts for."""
    classes: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    for count, item in enumerate(objects):
        if isinstance(item, Outcome):
            continue
        classes.add(item.sop_class_uid)
        pairs.add((item.sop_class_uid, item.transfer_syntax_uid))
        if len(classes) + len(pairs) > MAX_CONTEXTS:
            return objects[:count]
    return objects


def _contexts(objects: Iterable[SendObject | Outcome]) -> list[tuple[str, Sequence[str]]]:
    """Each file's own Transfer Syntax in a context of its own, and for each class one that every peer can read."""
    pairs = {(o.sop_class_uid, o.transfer_syntax_uid): None for o in objects if isinstance(o, SendObject)}
    classes = dict.fromkeys(sop_class for sop_class, _ in pairs)
    return [(sop_class, [syntax]) for sop_class, syntax in pairs] + [(uid, FALLBACK) for uid in classes]


def _send_batch(batch: Sequence[SendObject | Outcome], peer: PeerConfig, calling_ae: str) -> Iterator[Outcome]:
    """Outcomes of the first objects, at least one: all of them unless an answer did not come."""
    contexts = _contexts(batch)
    if not contexts:
        yield from (item for item in batch if isinstance(item, Outcome))
        return
    done = 0
    try:
        with associate(peer, calling_ae, contexts) as association:
            for item in batch:
                outcome = item if isinstance(item, Outcome) else _send_one(association, item)
                done += 1
                yield outcome
                if outcome.kind == "unknown":
                    return
    except NothingAccepted as err:
        yield from _not_sent(batch[done:], str(err), kind="refused")
    except CannotAssociate as err:
        yield from _not_sent(batch[done:], str(err))


def _send_one(association: Requested, item: SendObject) -> Outcome:
    try:
        context_id, data_set = _encoded(association, item)
        status, comment = association.store(context_id, item.sop_class_uid, item.sop_instance_uid, data_set)
    except NoAnswer as err:
        return Outcome(path=item.path, kind="unknown", status=None, message=str(err))
    except CannotConvert as err:
        return Outcome(path=item.path, kind="refused", status=None, message=str(err))
    except OSError as err:
        return Outcome(path=item.path, kind="refused", status=None, message=f"cannot be read: {err.strerror}")
    return outcome_of(item.path, status, comment)


def _encoded(association: Requested, item: SendObject) -> tuple[int, bytes]:
    """Context id and data set: the file's own bytes where the peer accepts its Transfer Syntax."""
    context_id = association.contexts.get((item.sop_class_uid, item.transfer_syntax_uid))
    if context_id is not None:
        return context_id, item.path.read_bytes()[item.data_set_at :]
    for syntax in FALLBACK:
        context_id = association.contexts.get((item.sop_class_uid, syntax))
        if context_id is not None:
            return context_id, converted(item, implicit=syntax == IMPLICIT_LITTLE)
    raise CannotConvert(
        f"the peer does not accept {name_of(item.sop_class_uid)}: it must, or its profile must not have it"
    )


def converted(item: SendObject, *, implicit: bool) -> bytes:
    """The data set as uncompressed little endian. Its SOP Instance UID stays: the pixels say the same."""
    if item.transfer_syntax_uid == EXPLICIT_BIG:
        # pydicom 3.0 writes words of pixel data in the order in which it read them.
        raise CannotConvert("the peer does not accept big endian, which is not converted here")
    try:
        data_set = pydicom.dcmread(item.path)
        if item.transfer_syntax_uid not in UNCOMPRESSED:
            data_set.decompress(generate_instance_uid=False)
        encoded = encode(data_set, implicit, True)
    except Exception as err:
        # Decoders are plugins: what they raise has no common type.
        raise CannotConvert("the peer does not accept its compression, and it cannot be decoded here") from err
    if encoded is None:
        raise CannotConvert("it cannot be converted to a Transfer Syntax that the peer accepts")
    return encoded


def _not_sent(items: Iterable[SendObject | Outcome], message: str, kind: Kind = "retry") -> Iterator[Outcome]:
    for item in items:
        yield item if isinstance(item, Outcome) else Outcome(path=item.path, kind=kind, status=None, message=message)
