"""A question to a peer's archive -> the series it has -> Instances here, counted against what the peer has and says.

Resumable: what is complete here is left alone, so a pull that was cut goes on when it is made again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydicom.dataset import Dataset

from dicom_node import audit as trail
from dicom_node import metrics, tracing
from dicom_node.audit import Audit, NoAudit
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.dicomweb import retrieve as web
from dicom_node.dimse import retrieve
from dicom_node.dimse.announce import Announcer
from dicom_node.dimse.contexts import accepted_classes
from dicom_node.dimse.intake import Intake, StoreAnswer, StoreRequest
from dicom_node.dimse.query import Found, Level, QueryFailed, querying, related_instances
from dicom_node.dimse.requestor import CannotAssociate
from dicom_node.dimse.retrieve import Said, SeriesKey, Store
from dicom_node.errors import ConfigError, DeliveryError
from dicom_node.locks import try_lock
from dicom_node.peers import PeerConfig
from dicom_node.pull_selection import Selection, digits, is_one_of, is_since, may_hold, series_keys, study_keys
from dicom_node.storage import Storage
from dicom_node.subjects import study_of

log = logging.getLogger(__name__)

# After the last word of a C-MOVE a peer may still be sending: so long nothing new may come before we count.
AFTERWARDS_S = 10.0
_LOOK_S = 0.2
# Study Root Query/Retrieve Information Model - FIND; QIDO-RS asks by the same model.
_STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
# A UID below pydicom's root for tests and examples: no archive has such a study.
_NO_STUDY = "1.2.826.0.1.3680043.8.498.0"

Ask = Callable[[Level, Mapping[str, str]], Found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One series of the archive: how many Instances are there, and how many of them were here when we looked."""

    key: SeriesKey
    study_date: str
    modality: str
    there: int
    here: int

    @property
    def complete(self) -> bool:
        return self.here >= self.there


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What matches, oldest study first. problems: what of the archive's answers could not be used."""

    series: tuple[Planned, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What became of one series. problem: why it is not all here, empty where it is. reached: whether there was an
    Association at all."""

    planned: Planned
    here: int
    problem: str
    reached: bool = True


class Landing:
    """Takes Instances that this process retrieved, like the receiver: durable file, row, announcement."""

    def __init__(self, storage: Storage, database: Database, announcer: Announcer) -> None:
        self._intake, self._database, self._announcer = Intake(storage, database), database, announcer
        self._storage = storage

    def start(self) -> None:
        self._announcer.start()

    def stop(self) -> None:
        """Every series that grew is announced."""
        self._announcer.close()

    @contextlib.contextmanager
    def landing(self, series_uid: str, source_ae: str) -> Iterator[Store]:
        """Over one retrieval, which counts as an Association that brings the series: how it ended is evidence."""
        association, begun = self._storage.mark.on(uuid.uuid4().hex), False

        def store(request: StoreRequest) -> StoreAnswer:
            nonlocal begun
            answer = self._intake.store(request)
            if answer.series_uid is not None and answer.arrival != "same":
                if not begun:
                    self._database.association_began(answer.series_uid, association)
                    begun = True
                self._announcer.grew(answer.series_uid, source_ae)
            return answer

        released = False
        try:
            yield store
            released = True
        finally:
            if begun:
                self._database.association_ended([series_uid], association, released=released)
            self._announcer.ended([series_uid], source_ae)

    def study(self, series: SeriesKey) -> trail.Study:
        """What is here of a series, for the audit trail."""
        found = study_of(self._database, self._storage, series.series_uid)
        return found or trail.Study(uid=series.study_uid, series_uids=(series.series_uid,))

    def remind(self, series_uid: str) -> None:
        """A series that is here and that no assembly has seen: whoever brought it died before it was announced."""
        seen = self._database.series(series_uid)
        if seen is not None and (seen["assembled_at"] is None or seen["last_at"] > seen["assembled_at"]):
            self._announcer.ended([series_uid], seen["source_ae"])


class Retrieval(Protocol):
    """One way to fetch a series: calls `on_response` with how many Instances the peer says that it sent."""

    def __call__(self, series: SeriesKey, on_response: Callable[[int], None]) -> Said: ...


class Puller:
    """Pulls from one peer. name: as the settings call it, or its AE title."""

    def __init__(
        self,
        config: Config,
        database: Database,
        landing: Landing,
        *,
        name: str,
        peer: PeerConfig,
        route: str | None = None,
        audit: Audit | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        check_allowed(config, name, peer)
        if route is not None:
            config.route(route)
        self._config, self._database, self._landing = config, database, landing
        self._name, self._peer, self._route = name, peer, route
        self._audit = audit or NoAudit()
        self._clock, self._sleep, self._now = clock, sleep, now

    def plan(self, wanted: Selection) -> Plan:
        """What the peer has of it. Raises DeliveryError when it cannot be asked."""
        problems: list[str] = []
        planned: dict[str, Planned] = {}
        with asking(self._peer, self._config.receive.ae_title, self._audit) as ask:
            for study in self._found(ask, "STUDY", study_keys(wanted), problems):
                if not (is_since(study, wanted.since) and may_hold(study, wanted.match.get("Modality", ""))):
                    continue
                patient_id = str(study.get("PatientID") or wanted.patient_id)
                keys = series_keys(wanted, str(study.StudyInstanceUID), patient_id)
                for series in self._found(ask, "SERIES", keys, problems):
                    if is_one_of(str(series.get("Modality", "")), wanted.match.get("Modality", "")):
                        one = self._planned(ask, study, series, patient_id, problems)
                        planned[one.key.series_uid] = one
        by_date = sorted(planned.values(), key=lambda one: one.study_date)
        return Plan(series=tuple(by_date), problems=tuple(problems))

    def remind(self, planned: Planned) -> None:
        """See to it that a series that is here already is assembled."""
        self._landing.remind(planned.key.series_uid)

    def fetch(self, planned: Planned, progress: Callable[[int], None] = lambda here: None) -> Fetched:
        """One series. Its route is remembered before its first Instance comes. progress: Instances here so far."""
        uid, begun_at = planned.key.series_uid, self._now()
        self._database.pull_asked(
            uid, study_uid=planned.key.study_uid, peer=self._name, route=self._route, there=planned.there
        )
        reached, said = True, Said(sent=0, failed=0, status=0, problem="")
        try:
            said = self._retrieval()(planned.key, lambda sent: progress(max(planned.here, sent)))
        except DeliveryError as err:
            reached = not isinstance(err, CannotAssociate)
            said = Said(sent=0, failed=0, status=0, problem=str(err))
        fetched_at = self._now()
        here = self._arrived(uid, expected=min(planned.there, said.sent) if said.problem else planned.there)
        if here > planned.here and self._peer.retrieve_by != "c_move":  # else our receiver tells it
            self._tell(planned, here)
        problem = "" if here >= planned.there else _shortage(planned, here, said, self._name)
        extra = {"action": "pull", "peer": self._name, "series": uid, "here": here, "there": planned.there}
        if problem:
            self._database.pull_failed(uid, here=here, problem=problem, reached=reached)
            log.warning("series not complete", extra={**extra, "why": problem})
        else:
            self._database.pull_done(uid, here=here)
            log.info("series pulled", extra=extra)
        self._trace(planned, here, begun_at, fetched_at)
        return Fetched(planned=planned, here=here, problem=problem, reached=reached)

    def _trace(self, planned: Planned, here: int, begun_at: float, fetched_at: float) -> None:
        """fetched_at: when the peer had its last word; what a C-MOVE sends may come after it."""
        ended_at = self._now()
        tracing.spent(
            "pull",
            planned.key.series_uid,
            begun_at=begun_at,
            ended_at=ended_at,
            parts_s={"fetch": fetched_at - begun_at, "arrive": ended_at - fetched_at},
            about={
                "peer": self._known_name or metrics.UNKNOWN_PEER,
                "by": self._peer.retrieve_by,
                "there": planned.there,
                "here": here,
            },
        )

    @property
    def _known_name(self) -> str | None:
        """None for a peer that was named by its address alone."""
        return self._name if self._name in self._config.peers else None

    def _tell(self, planned: Planned, here: int) -> None:
        self._audit.write(
            trail.instances_transferred(
                source=self._peer.ae_title,
                destination=self._config.receive.ae_title,
                address=self._peer.host,
                received=True,
                study=self._landing.study(planned.key),
                outcome=0 if here >= planned.there else 4,
                text=None if here >= planned.there else f"{here} of {planned.there} instances came",
            )
        )

    # -- asking ------------------------------------------------------------------------------------

    def _found(self, ask: Ask, level: Level, keys: Mapping[str, str], problems: list[str]) -> tuple[Dataset, ...]:
        found = ask(level, keys)
        problems += [f"{self._name}: {why}" for why in sorted(set(found.unusable))]
        if found.truncated:
            problems.append(f"{self._name} has more than {len(found.data_sets)} answers: ask for less at once")
        return found.data_sets

    def _planned(self, ask: Ask, study: Dataset, series: Dataset, patient_id: str, problems: list[str]) -> Planned:
        key = SeriesKey(
            study_uid=str(study.StudyInstanceUID), series_uid=str(series.SeriesInstanceUID), patient_id=patient_id
        )
        there = related_instances(series, "NumberOfSeriesRelatedInstances")
        if there is None:
            images = self._found(ask, "IMAGE", key.keys(), problems)
            there = len({str(image.SOPInstanceUID) for image in images})
        return Planned(
            key=key,
            study_date=digits(study.get("StudyDate")),
            modality=str(series.get("Modality", ""))[:16],
            there=there,
            here=self._database.instance_count(key.series_uid),
        )

    # -- fetching ----------------------------------------------------------------------------------

    def _retrieval(self) -> Retrieval:
        return {"c_move": self._by_move, "c_get": self._by_get, "wado_rs": self._by_web}[self._peer.retrieve_by]

    def _by_move(self, series: SeriesKey, on_response: Callable[[int], None]) -> Said:
        """Our receiver takes what comes: it may be a process or a machine of its own."""
        receive, count = self._config.receive, self._database.instance_count
        seen = [count(series.series_uid)]

        def goes_on() -> bool:
            seen.append(count(series.series_uid))
            return seen[-1] > seen[-2]

        return retrieve.move(
            self._peer,
            receive.ae_title,
            self._peer.called_as or receive.ae_title,
            series,
            our_port=receive.port or (receive.tls.port if receive.tls is not None else None),
            goes_on=goes_on,
            on_response=on_response,
        )

    def _by_get(self, series: SeriesKey, on_response: Callable[[int], None]) -> Said:
        receive = self._config.receive
        classes = accepted_classes(receive.also_accept)
        with self._landed(series) as store:
            return retrieve.get(self._peer, receive.ae_title, series, classes, store, on_response=on_response)

    def _by_web(self, series: SeriesKey, on_response: Callable[[int], None]) -> Said:
        with self._landed(series) as store:
            return web.fetch(self._peer, series, store, on_response=on_response)

    @contextlib.contextmanager
    def _landed(self, series: SeriesKey) -> Iterator[Store]:
        with self._no_sweep(), self._landing.landing(series.series_uid, self._peer.ae_title) as store:
            yield counted(store, self._known_name, self._peer.retrieve_by)

    @contextlib.contextmanager
    def _no_sweep(self) -> Iterator[None]:
        """A receiver that starts meanwhile must not take our temporary files for those of a crash."""
        lock = try_lock(self._database.url, "receive")
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def _arrived(self, series_uid: str, expected: int) -> int:
        patience_s = min(AFTERWARDS_S, self._peer.response_timeout_s)
        return arrived(
            lambda: self._database.instance_count(series_uid), expected, patience_s, self._clock, self._sleep
        )


def counted(store: Store, peer: str | None, by: str) -> Store:
    """`store`, and each Instance that it answers is counted. peer: its name in the settings, None where it has none."""

    def counting(request: StoreRequest) -> StoreAnswer:
        answer = store(request)
        metrics.instance_retrieved(peer, by, answer.status, len(request.data_set))
        return answer

    return counting


def arrived(
    count: Callable[[], int],
    expected: int,
    patience_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """How many Instances are here, once `expected` of them are or no more came for `patience_s`."""
    here = count()
    deadline = clock() + patience_s
    while here < expected and clock() < deadline:
        sleep(_LOOK_S)
        before, here = here, count()
        if here > before:
            deadline = clock() + patience_s
    return here


def check_allowed(config: Config, name: str, peer: PeerConfig) -> None:
    """Raises ConfigError that names the key to set."""
    if not peer.may_be_queried:
        raise ConfigError(f"this node may not look in {name}: set peers.{name}.may_be_queried: true")
    if peer.retrieve_by != "wado_rs" and peer.port is None:
        raise ConfigError(f"{name} has no port for {peer.retrieve_by}: set peers.{name}.port or retrieve_by: wado_rs")
    welcome = config.receive.unknown_peers == "accept" or any(
        known.may_send and known.ae_title == peer.ae_title for known in config.peers.values()
    )
    if peer.retrieve_by == "c_move" and not welcome:
        raise ConfigError(
            f"by C-MOVE {name} stores to this node: set peers.{name}.may_send: true, or its retrieve_by: c_get"
        )


def archive_answers(config: Config, name: str, peer: PeerConfig) -> None:
    """A query for nothing. Raises ConfigError, or DeliveryError with what to check."""
    check_allowed(config, name, peer)
    with asking(peer, config.receive.ae_title) as ask:
        ask("STUDY", {"StudyInstanceUID": _NO_STUDY, "PatientID": ""})


@contextlib.contextmanager
def asking(peer: PeerConfig, calling_ae: str, audit: Audit | None = None) -> Iterator[Ask]:
    """C-FIND on one Association, or QIDO-RS; each question is in the audit trail before it goes out."""

    def told(ask: Ask) -> Ask:
        def asked(level: Level, keys: Mapping[str, str]) -> Found:
            if audit is not None:
                question = json.dumps({"QueryRetrieveLevel": level, **keys}).encode()
                audit.write(
                    trail.query(
                        source=calling_ae,
                        destination=peer.ae_title,
                        address=peer.host,
                        sop_class_uid=_STUDY_ROOT_FIND,
                        identifier=question,
                    )
                )
            return ask(level, keys)

        return asked

    if peer.retrieve_by == "wado_rs" or peer.port is None:
        yield told(lambda level, keys: web.search(peer, level, keys))
    else:
        with querying(peer, calling_ae) as query:
            yield told(query.find)


def _shortage(planned: Planned, here: int, said: Said, name: str) -> str:
    counts = f"{here} of {planned.there} instances are here, {name} says that it sent {said.sent}"
    counts += f" and failed to send {said.failed}" if said.failed else ""
    return f"series {planned.key.series_uid}: {counts}" + (f". {said.problem}" if said.problem else "")


def not_found(name: str, wanted: Selection) -> QueryFailed:
    """For a pull of something that was named and is not there."""
    what = "series" if wanted.series_uid else "study"
    kinds = wanted.match.get("Modality", "")
    return QueryFailed(f"{name} has no {what} that matches" + (f" with {kinds} series" if kinds else ""))


def due_first(planned: Sequence[Planned], asked_at: Mapping[str, float]) -> list[Planned]:
    """Never asked for before those that were, and of these the one asked for longest ago first."""
    return sorted(planned, key=lambda one: asked_at.get(one.key.series_uid, 0.0))
