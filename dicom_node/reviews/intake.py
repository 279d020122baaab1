"""Instances of Segmentations, reports or Structure Sets -> rows that say what each makes of our results.

Everything may be done twice, and in whatever order objects and CT come: the row is that of the Instance.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dicom_node import metrics
from dicom_node.config import Config
from dicom_node.corrections import KINDS, Compared, References
from dicom_node.corrections import references_of as read_references
from dicom_node.db import Database, Row
from dicom_node.errors import CorrectionUnusable, DicomNodeError, StorageError
from dicom_node.logs import describe
from dicom_node.reviews.analyses import Analyses, Meant
from dicom_node.reviews.examining import Examined, Examiner
from dicom_node.storage import Storage

log = logging.getLogger(__name__)

# The engine waits for a decision meanwhile; a reader's own objects are a few megabytes.
MOST_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviews:
    """What a radiologist made of our results."""

    config: Config
    database: Database
    storage: Storage

    @property
    def analyses(self) -> Analyses:
        return Analyses(database=self.database, storage=self.storage)

    @property
    def examiner(self) -> Examiner:
        return Examiner(config=self.config, database=self.database, storage=self.storage)

    def take(self, rows: Sequence[Row], source_ae: str) -> bool:
        """Whether the series is about results of ours, so that nothing else becomes of it; its rows are written then.

        rows: of its Instances.
        """
        mine = {row["sop_instance_uid"] for row in self.database.results_among([r["sop_instance_uid"] for r in rows])}
        if not all(row["sop_class_uid"] in KINDS or row["sop_instance_uid"] in mine for row in rows):
            return False
        taken = [self._take(row, source_ae, unchanged=row["sop_instance_uid"] in mine) for row in rows]
        return any(taken)

    def series_ended(self, series_uid: str) -> None:
        """Compare what waited for an analysis of the series, or say why there is none.

        What was refused for want of one is looked at again: more of the CT came, or somebody retried its job. So is
        what came before the CT, and was rejected as none.
        """
        for row in self.database.corrections(of_series_uid=series_uid):
            instance = self.database.instance(row["sop_instance_uid"]) if row["job_id"] is None else None
            if instance is not None:
                self._take(instance, row["source_ae"], unchanged=False)
        seen = self.database.series(series_uid)
        for instance in () if seen is None else self.database.not_recognised(seen["study_uid"], KINDS):
            if instance["series_uid"] != series_uid:
                self._take(instance, instance["source_ae"], unchanged=False)

    def _take(self, row: Row, source_ae: str, *, unchanged: bool) -> bool:
        try:
            return self._recognised(row, source_ae, unchanged=unchanged)
        except StorageError:
            raise
        except Exception:
            # Nobody foresaw it. The series must not vanish: it is judged as if it were about nothing of ours.
            log.exception("correction not recognised", extra={"action": "failed", "series": row["series_uid"]})
            return False

    def _recognised(self, row: Row, source_ae: str, *, unchanged: bool) -> bool:
        if unchanged:
            metrics.correction_taken(KINDS.get(row["sop_class_uid"], metrics.OTHER), "ours")
            log.info("a result of ours came back", extra={"action": "ours", "series": row["series_uid"]})
            return True
        before = self.database.correction(row["sop_instance_uid"])
        if before is not None and before["job_id"] is not None and before["changed_at"] >= row["received_at"]:
            return True
        header = self.analyses.header(row)
        if header is None:
            return False
        try:
            references = read_references(header)
            meant = self.analyses.meant(references)
        except CorrectionUnusable:
            return False  # about whatever it is: nothing says that it is about results of ours
        if meant is None and before is not None and before["job_id"] is None:
            problem = self.analyses.not_analysed(before["of_series_uid"])
            meant = Meant(
                series_uid=before["of_series_uid"],
                job_id=None,
                by=before["recognised_by"],
                answers_ours=False,
                problem=problem,
            )
        if meant is None:
            return False
        values = self._values(row, source_ae, references, meant)
        self.database.record_correction(row["sop_instance_uid"], **values)
        extra = {"action": "correction", "series": row["series_uid"], "state": values["state"], "by": meant.by}
        log.info("correction", extra=extra)
        if before is None or before["state"] != values["state"]:
            metrics.correction_taken(references.kind, values["state"])
        if values["state"] == "waiting" and self.analyses.meant(references) != meant:
            # The series ended, and what waits for it was looked for, before this row was there.
            return self._recognised(row, source_ae, unchanged=False)
        return True

    def _values(self, row: Row, source_ae: str, references: References, meant: Meant) -> dict[str, Any]:
        """Columns of the correction's row."""
        values: dict[str, Any] = {
            "series_uid": row["series_uid"],
            "study_uid": row["study_uid"],
            "kind": references.kind,
            "source_ae": source_ae,
            "recognised_by": meant.by,
            "of_series_uid": meant.series_uid,
            "job_id": meant.job_id,
            "made": references.made,
        }
        if not self.config.may_correct(source_ae):
            values |= {"state": "refused", "text": f"{source_ae} is no peer with may_correct"}
        elif row["size_bytes"] > MOST_BYTES:
            values |= {"state": "refused", "text": f"it has {row['size_bytes']} bytes, {MOST_BYTES} are read"}
        elif meant.problem:
            values |= {"state": "refused", "text": meant.problem}
        elif meant.job_id is None:
            values |= {"state": "waiting", "text": "the CT is not analysed yet"}
        else:
            values |= self._compared(row, references, meant)
        return values

    def _compared(self, row: Row, references: References, meant: Meant) -> dict[str, Any]:
        try:
            seen = self.examiner.examined(row, references, meant)
        except (DicomNodeError, OSError) as err:
            return {"state": "refused", "text": str(err) if isinstance(err, DicomNodeError) else describe(err)}
        except Exception as err:  # parsers meet whatever a peer sent, and raise whatever they like
            log.exception("correction not read", extra={"action": "correction", "series": row["series_uid"]})
            return {"state": "refused", "text": f"it can't be read: {describe(err)}"}
        if references.equipment_is_ours and all(_untouched(each) for each in seen.verdicts):
            return {"state": "ours", "text": "a result of ours under another UID"}
        if not seen.drawn and not (seen.whole and seen.ours):
            return {"state": "refused", "text": "it marks no nodule"}
        return {"state": "compared", "text": None, "verdicts": [each.as_json() for each in seen.verdicts]}

    def examined(self, correction: Row) -> Examined:
        """What a compared correction draws, read again against the very revision that it was compared with.

        Raises DicomNodeError where a purge took what it needs.
        """
        instance = self.database.instance(correction["sop_instance_uid"])
        header = None if instance is None else self.analyses.header(instance)
        if instance is None or header is None:
            raise CorrectionUnusable("its file is not here any more")
        references = read_references(header)
        meant = self.analyses.meant(references)
        if meant is None or meant.job_id is None:
            raise CorrectionUnusable("the analysis that it is about is not here any more")
        if meant.problem:
            raise CorrectionUnusable(meant.problem)
        try:
            return self.examiner.examined(instance, references, replace(meant, job_id=correction["job_id"]))
        except OSError as err:
            raise CorrectionUnusable(f"a file of the CT is not here any more ({describe(err)})") from err


def _untouched(verdict: Compared) -> bool:
    return verdict.verdict == "confirmed" or (verdict.verdict == "unreviewed" and verdict.number is not None)
