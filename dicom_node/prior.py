"""A job's series -> the patient's newest earlier CT with a result of ours -> its files in the job's folder.

Fetched by C-GET or WADO-RS they are written there and nowhere else. By C-MOVE they come to our receiver like any other
series: it is told before that they are for a comparison, and once they are in the folder they go from where they came.
What goes wrong is an outcome that the report states, never an error of the job.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pydicom
from pydicom.dataset import Dataset

from dicom_node import growth, subjects, tracing
from dicom_node.audit import Audit, NoAudit, Patient, Study, instances_transferred
from dicom_node.comparison import NoPrior
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.dicomweb import retrieve as web
from dicom_node.dimse import retrieve
from dicom_node.dimse.contexts import CT_CLASSES, REPORT_CLASS, SEGMENTATION_CLASSES
from dicom_node.dimse.intake import StoreAnswer, StoreRequest, checked_identifiers
from dicom_node.dimse.part10 import write_file_head
from dicom_node.dimse.statuses import SUCCESS, store_status
from dicom_node.errors import ConfigError, DeliveryError, DicomNodeError, FileGone, OutOfSpace, StorageError
from dicom_node.locks import Lock, try_lock
from dicom_node.logs import describe
from dicom_node.lookback import IMAGES, REPORT, SEGMENTATION, Found, Missed, not_available
from dicom_node.patients import difference, patient_of
from dicom_node.peers import PeerConfig
from dicom_node.prior_search import (
    Cited,
    Current,
    EarlierSeries,
    EarlierStudy,
    cited_by,
    current_of,
    earlier_studies,
    series_of,
)
from dicom_node.pull import AFTERWARDS_S, Ask, arrived, asking, check_allowed, counted
from dicom_node.results.headers import SERIES_NUMBER, Kind
from dicom_node.storage import Storage

log = logging.getLogger(__name__)

# An archive that was left in the middle of a C-MOVE may go on sending for so long; else a moment is enough.
_STRAGGLERS_S = 3600.0
_ECHOES_S = 60.0
_LOOK_S = 0.2
_LEAST_TIMEOUT_S = 1.0
# A study has one report of ours a CT series; many more are no study that a comparison can choose from.
_MOST_REPORTS = 8
# What tells two patients apart, beside the Patient ID itself.
_PATIENT = ("PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientName")


class _GiveUp(Exception):
    """Nothing will be compared; carries why."""

    def __init__(self, text: str, why: str = "") -> None:
        super().__init__(text)
        self.missed = not_available(text, why)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report of ours on an earlier CT. beside: results of the same job that are here, by SOP Instance UID."""

    path: Path
    cited: Cited
    made_at: str
    beside: Mapping[str, Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorFinder:
    """Looks in archives. Safe to call from several threads and processes: of one study one at a time fetches."""

    config: Config
    database: Database
    storage: Storage
    audit: Audit = field(default_factory=NoAudit)
    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep

    def __call__(
        self, job_id: str, archive: str, header: Dataset, until: float, settle: Callable[[Found], None]
    ) -> Missed | None:
        """header: of one image of the job's series. until: when to give up, seconds since the epoch. settle: is told
        what was found, before anybody else looks into the same study.

        Raises StorageError where the database or the disk may be back later.
        """
        search, begun_at, outcome = _Search(self, job_id, archive, until, settle), self.now(), "failed"
        try:
            missed = self._looked(search, header)
            outcome = "found" if missed is None else missed.said.outcome
            return missed
        finally:
            tracing.spent(
                "priors",
                job_id.rpartition("-")[0],
                job_id=job_id,
                begun_at=begun_at,
                ended_at=self.now(),
                parts_s=search.spent_s,
                about={"archive": archive, "outcome": outcome},
            )

    def _looked(self, search: _Search, header: Dataset) -> Missed | None:
        try:
            return search.run(header)
        except _GiveUp as err:
            return err.missed
        except OutOfSpace as err:
            return not_available("This node had no room for the earlier CT.", str(err))
        except StorageError:
            raise
        except (DeliveryError, ConfigError) as err:
            log.warning("archive not looked in", extra={"action": "prior", "job": search.job_id, "why": str(err)})
            return not_available("The archive could not be asked for earlier CTs.", str(err))


@dataclass(slots=True)
class _Search:
    """One look for one job. copied: bytes that lie nowhere else. spent_s: seconds by part of the look."""

    finder: PriorFinder
    job_id: str
    archive: str
    until: float
    settle: Callable[[Found], None]
    copied: int = field(default=0, init=False)
    spent_s: dict[str, float] = field(default_factory=dict, init=False)

    @property
    def database(self) -> Database:
        return self.finder.database

    @property
    def storage(self) -> Storage:
        return self.finder.storage

    def run(self, header: Dataset) -> Missed | None:
        config, peer = self.finder.config, self.peer
        check_allowed(config, self.archive, peer)
        current = _checked_current(header)
        self.check_time()
        with self._asking() as ask:
            studies, strangers = earlier_studies(ask, current, config.priors.max_age_days)
        if strangers:
            extra = {"action": "prior", "job": self.job_id, "studies": len(strangers)}
            log.warning(
                "studies of another patient left out", extra={**extra, "why": ", ".join(sorted(set(strangers)))}
            )
        newest: EarlierStudy | None = None
        for study in studies:
            self.check_time()
            with self._asking() as ask:
                series = series_of(ask, study)
            if not any(one.modality == "CT" for one in series):
                continue
            newest = newest or study
            with self._alone(study.study_uid):
                if found := self._from_study(current, study, series):
                    self.settle(found)
                    return None
        return _nothing(newest, strangers, config.priors.max_age_days)

    @contextmanager
    def _asking(self) -> Iterator[Ask]:
        calling_ae = self.finder.config.receive.ae_title
        with self._timed("ask"), asking(self._hurried(), calling_ae, self.finder.audit) as ask:
            yield ask

    # -- one study ---------------------------------------------------------------------------------

    def _from_study(self, current: Current, study: EarlierStudy, series: Sequence[EarlierSeries]) -> Found | None:
        """Its newest report of ours with all that belongs to it; None where it has none."""
        folder = self.storage.prior_folder(self.job_id)
        self.copied = 0
        try:
            found = self._gathered(current, study, {one.key.series_uid: one for one in series}, folder)
        except BaseException:
            self.storage.discard(folder)
            raise
        if found is None:
            self.storage.discard(folder)
        return found

    def _gathered(
        self, current: Current, study: EarlierStudy, series: Mapping[str, EarlierSeries], folder: str
    ) -> Found | None:
        reports = self._reports_here(current, study, series) or self._reports_there(current, study, series, folder)
        if not reports:
            return None
        report = max(reports, key=lambda one: self._rank(current, series[one.cited.series_uid], one))
        self.storage.link({REPORT: report.path}, folder)
        self._take_segmentation(current, study, series, report, folder)
        self._take_images(current, series[report.cited.series_uid], report.cited.images, folder)
        self.storage.discard(f"{folder}/reports")
        return Found(
            folder=folder, study_uid=study.study_uid, series_uid=report.cited.series_uid, size_bytes=self.copied
        )

    def _rank(self, current: Current, series: EarlierSeries, report: Report) -> tuple[bool, str, str]:
        """Of several CT series of a study, the one that was made like the present one; then the latest report."""
        alike = bool(current.description) and series.description.strip() == current.description.strip()
        return alike, report.made_at, str(report.path)

    def _reports_here(self, current: Current, study: EarlierStudy, series: Mapping[str, EarlierSeries]) -> list[Report]:
        """This node's own results on the study's CT series, as far as they were not purged."""
        found: list[Report] = []
        for uid in series:
            for job in self.database.jobs(series_uid=uid):
                if job["state"] != "complete" or job["study_uid"] != study.study_uid:
                    continue
                results = self.database.results(job["job_id"])
                beside = {row["sop_instance_uid"]: self.storage.path(row["path"]) for row in results}
                made = [beside[row["sop_instance_uid"]] for row in results if row["kind"] == "sr"]
                if made and (report := self._report(current, study, series, made[0], beside)):
                    found.append(report)
                    break  # newest first: an older one is of a part of the series
        return found

    def _reports_there(
        self, current: Current, study: EarlierStudy, series: Mapping[str, EarlierSeries], folder: str
    ) -> list[Report]:
        found: list[Report] = []
        for one in [one for one in series.values() if one.may_be_our_report][:_MOST_REPORTS]:
            for path in self._fetched(one, (REPORT_CLASS,), f"{folder}/reports").values():
                report = self._report(current, study, series, path, {})
                if report is not None:
                    found.append(report)
        return found

    def _report(
        self,
        current: Current,
        study: EarlierStudy,
        series: Mapping[str, EarlierSeries],
        path: Path,
        beside: Mapping[str, Path],
    ) -> Report | None:
        """None where it is none of ours on an analysed CT of this study, or cannot be read."""
        try:
            report = pydicom.dcmread(path)
            cited = cited_by(report, CT_CLASSES, SEGMENTATION_CLASSES)
            # By its number it is a report on what was analysed; on what was not, there is one of another number.
            ours = growth.is_ours(report) and report.get("SeriesNumber") == SERIES_NUMBER[Kind.REPORT]
            ours = ours and str(report.StudyInstanceUID) == study.study_uid
            made_at = f"{report.get('ContentDate', '')}{report.get('ContentTime', '')}"
        except Exception as err:  # noqa: BLE001  what pydicom raises on hostile bytes has no common type
            log.warning("report left out", extra={"action": "prior", "job": self.job_id, "why": describe(err)})
            return None
        if not ours or cited is None or cited.series_uid not in series:
            return None
        _check_patient(current, report)
        return Report(path=path, cited=cited, made_at=made_at, beside=beside)

    def _take_segmentation(
        self,
        current: Current,
        study: EarlierStudy,
        series: Mapping[str, EarlierSeries],
        report: Report,
        folder: str,
    ) -> None:
        if report.cited.segmentation is None:
            return
        series_uid, instance_uid = report.cited.segmentation
        path = report.beside.get(instance_uid)
        if path is None or not path.exists():
            there = series.get(series_uid)
            if there is None:
                raise _GiveUp("The archive has our earlier report, and not the segmentation that belongs to it.")
            path = self._fetched(there, SEGMENTATION_CLASSES, f"{folder}/reports").get(instance_uid)
        if path is None:
            raise _GiveUp("The archive did not send the segmentation of our earlier report.")
        _check_patient(current, _header(path))
        self.storage.link({SEGMENTATION: path}, folder)

    # -- files -------------------------------------------------------------------------------------

    def _take_images(self, current: Current, series: EarlierSeries, wanted: Collection[str], folder: str) -> None:
        """All images that the report is about: from this node where it has them, else from the archive."""
        images = f"{folder}/{IMAGES}"
        if not self._linked_from_here(series.key.series_uid, wanted, images):
            came = self._fetched(series, CT_CLASSES, images)
            if missing := len(set(wanted) - came.keys()):
                raise _GiveUp(f"Of the earlier CT {missing} of {len(wanted)} images could not be had from the archive.")
            for uid in came.keys() - set(wanted):
                came[uid].unlink()  # a localizer, or what came into the series after our report
        for uid in wanted:
            self.check_time()
            _check_patient(current, _header(self.storage.path(f"{images}/{uid}.dcm")))

    def _linked_from_here(self, series_uid: str, wanted: Collection[str], folder: str) -> bool:
        here = {row["sop_instance_uid"]: self.storage.path(row["path"]) for row in self.database.instances(series_uid)}
        places = [here]
        for row in self.database.prior_folders(series_uid):
            beside = self.storage.path(f"results/{row['job_id']}/{row['folder']}/{IMAGES}")
            places.append({uid: beside / f"{uid}.dcm" for uid in wanted})
        for place in places:
            if not all(uid in place and place[uid].exists() for uid in wanted):
                continue
            with suppress(FileGone):
                self.copied += self.storage.link({f"{uid}.dcm": place[uid] for uid in wanted}, folder)
                if place is here:
                    self._clear(series_uid, self.finder.now() + _ECHOES_S)  # of a look that was killed
                return True
        return False

    def _fetched(self, series: EarlierSeries, classes: Sequence[str], folder: str) -> dict[str, Path]:
        """What the archive sent of a series, by SOP Instance UID. Raises DeliveryError, _GiveUp when time is over."""
        self.check_time()
        uid = series.key.series_uid
        here = self.database.instance_count(uid)
        if here and series.there is not None and here >= series.there:
            return self._moved_over(uid, folder, self.finder.now() + _ECHOES_S)
        if self.peer.retrieve_by == "c_move" and here and not self.database.is_expected(uid):
            raise _GiveUp("A part of the earlier study lies on this node already, so it was not fetched.")
        with self._timed("fetch"):
            return self._retrieved(series, classes, folder)

    def _retrieved(self, series: EarlierSeries, classes: Sequence[str], folder: str) -> dict[str, Path]:
        if self.peer.retrieve_by == "c_move":
            return self._by_move(series, folder)
        shelf = _Shelf(self, folder)
        store = counted(shelf.store, self.archive, self.peer.retrieve_by)
        peer, calling_ae = self._hurried(), self.finder.config.receive.ae_title
        if self.peer.retrieve_by == "c_get":
            said = retrieve.get(peer, calling_ae, series.key, classes, store)
        else:
            said = web.fetch(peer, series.key, store)
        self._tell(series, shelf.files, said.problem)
        self._log(series, len(shelf.files), said.problem)
        return shelf.files

    def _tell(self, series: EarlierSeries, files: Mapping[str, Path], problem: str) -> None:
        """The audit trail; by C-MOVE our receiver tells it."""
        study = Study(
            uid=series.key.study_uid,
            patient=subjects.patient_of(next(iter(files.values()))) if files else Patient(id=series.key.patient_id),
            series_uids=(series.key.series_uid,),
        )
        self.finder.audit.write(
            instances_transferred(
                source=self.peer.ae_title,
                destination=self.finder.config.receive.ae_title,
                address=self.peer.host,
                received=True,
                study=study,
                outcome=4 if problem else 0,
                text=f"{len(files)} instances came, for a comparison",
            )
        )

    def _by_move(self, series: EarlierSeries, folder: str) -> dict[str, Path]:
        """To our receiver, which may be a process or a machine of its own; from there into the folder."""
        uid, receive = series.key.series_uid, self.finder.config.receive
        # Whatever becomes of us, the mark holds while the archive may still be sending.
        self.database.series_expected(uid, self.archive, self.until + _STRAGGLERS_S)
        stays_s = _STRAGGLERS_S
        try:
            said = retrieve.move(
                self._hurried(),
                receive.ae_title,
                self.peer.called_as or receive.ae_title,
                series.key,
                our_port=receive.port or (receive.tls.port if receive.tls is not None else None),
                goes_on=self._goes_on(uid),
                on_response=lambda _sent: self.check_time(),
            )
            expected = said.sent if said.problem or series.there is None else series.there
            patience_s = min(AFTERWARDS_S, self.peer.response_timeout_s)
            here = arrived(lambda: self._count(uid), expected, patience_s, sleep=self.finder.sleep)
            self._log(series, here, said.problem)
            stays_s = _STRAGGLERS_S if said.problem or here < expected else _ECHOES_S
            return self._moved_over(uid, folder, self.finder.now() + stays_s)
        except BaseException:
            self._clear(uid, self.finder.now() + stays_s)
            raise

    def _moved_over(self, series_uid: str, folder: str, until: float) -> dict[str, Path]:
        """From where the receiver put it into the folder; what came for a comparison alone stays nowhere else."""
        rows = {row["sop_instance_uid"]: row["path"] for row in self.database.instances(series_uid)}
        sources = {f"{uid}.dcm": self.storage.path(path) for uid, path in rows.items()}
        self.copied += self.storage.link(sources, folder)
        self._clear(series_uid, until)
        return {uid: self.storage.path(f"{folder}/{uid}.dcm") for uid in rows}

    def _clear(self, series_uid: str, until: float) -> None:
        """Away from where the receiver put it."""
        folders = {str(PurePosixPath(row["path"]).parent) for row in self.database.instances(series_uid)}

        def discard() -> None:
            for folder in sorted(folders):
                self.storage.discard(folder)

        self.database.series_fetched(series_uid, until, discard)

    def _goes_on(self, series_uid: str) -> Callable[[], bool]:
        """Whether something came since it was asked last."""
        seen = [self.database.instance_count(series_uid)]

        def goes_on() -> bool:
            seen.append(self._count(series_uid))
            return seen[-1] > seen[-2]

        return goes_on

    def _count(self, series_uid: str) -> int:
        self.check_time()
        return self.database.instance_count(series_uid)

    def _log(self, series: EarlierSeries, came: int, problem: str) -> None:
        extra = {"action": "prior", "job": self.job_id, "peer": self.archive, "series": series.key.series_uid}
        extra |= {"here": str(came), "there": str(series.there)}
        if problem:
            log.warning("earlier series not complete", extra={**extra, "why": problem})
        else:
            log.info("earlier series fetched", extra=extra)

    # -- time --------------------------------------------------------------------------------------

    @property
    def peer(self) -> PeerConfig:
        return self.finder.config.peers[self.archive]

    def _hurried(self) -> PeerConfig:
        """The archive, with no longer to answer than there is time."""
        left_s = max(_LEAST_TIMEOUT_S, self.until - self.finder.now())
        times = {name: min(getattr(self.peer, name), left_s) for name in ("connect_timeout_s", "response_timeout_s")}
        return self.peer.model_copy(update=times)

    def check_time(self) -> None:
        if self.finder.now() >= self.until:
            longest_s = self.finder.config.priors.longest_wait_s
            raise _GiveUp(f"The archive did not answer, or send an earlier CT, within {longest_s:g} seconds.")

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begun_at = self.finder.now()
        try:
            yield
        finally:
            self.spent_s[part] = self.spent_s.get(part, 0.0) + self.finder.now() - begun_at

    @contextmanager
    def _alone(self, study_uid: str) -> Iterator[None]:
        """Two series of one new study want the same earlier one: the second finds what the first has fetched."""
        lock: Lock | None = None
        with self._timed("wait"):
            while (lock := try_lock(self.database.url, f"prior:{study_uid}")) is None:
                self.check_time()
                self.finder.sleep(_LOOK_S)
        try:
            yield
        finally:
            lock.release()


class _Shelf:
    """Takes Instances that this process retrieves for a comparison: a durable file each, no row, no announcement."""

    def __init__(self, search: _Search, folder: str) -> None:
        self._search, self._folder = search, folder
        self.files: dict[str, Path] = {}

    def store(self, request: StoreRequest) -> StoreAnswer:
        """Raises _GiveUp or OutOfSpace: the Association is then left, since nothing more is wanted of it."""
        self._search.check_time()
        try:
            found = checked_identifiers(request)
        except DicomNodeError as err:
            return StoreAnswer(status=store_status(err), comment=str(err))
        head = write_file_head(
            sop_class_uid=found.sop_class_uid,
            sop_instance_uid=found.sop_instance_uid,
            transfer_syntax_uid=request.transfer_syntax_uid,
        )
        name = f"{found.sop_instance_uid}.dcm"
        kept = self._search.storage.write_prior(self._folder, name, head, request.data_set)
        self._search.copied += kept.size_bytes
        self.files[found.sop_instance_uid] = self._search.storage.path(kept.path)
        return StoreAnswer(status=SUCCESS, series_uid=found.series_uid)


def _checked_current(header: Dataset) -> Current:
    current = current_of(header)
    if current is None:
        raise _GiveUp("The images tell no date, so what is earlier is not known.")
    patient_id = current.patient.patient_id
    if not patient_id or set(patient_id) & set("*?\\"):
        raise _GiveUp("The images tell no Patient ID by which earlier CTs could be found.")
    return current


def _check_patient(current: Current, header: Dataset) -> None:
    """What an archive answers and what it sends may differ: the object itself has the last word."""
    if unlike := difference(current.patient, patient_of(header)):
        raise _GiveUp(f"The earlier study has another {unlike}, so it may be another patient's and was not used.")


def _header(path: Path) -> Dataset:
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_PATIENT))
    except Exception as err:  # noqa: BLE001  what pydicom raises on hostile bytes has no common type
        raise _GiveUp("A file of the earlier study cannot be read.", describe(err)) from None


def _nothing(newest: EarlierStudy | None, strangers: Sequence[str], max_age_days: float) -> Missed:
    if newest is not None:
        text = f"The newest earlier CT in the archive, of {newest.when.text}, has no result of this node."
        return Missed(said=NoPrior(outcome="no_prior_result", text=text))
    if strangers:
        unlike = " and ".join(sorted(set(strangers)))
        text = f"Earlier studies under this Patient ID have another {unlike}: they may be another patient's."
        return not_available(text)
    text = f"The archive has no CT of this patient from the {max_age_days:g} days before."
    return Missed(said=NoPrior(outcome="no_prior", text=text))
