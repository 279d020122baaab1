"""A correction's file and the analysis that it is about -> what it draws, and a verdict on each finding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from dicom_node.config import Config
from dicom_node.corrections import (
    KINDS,
    Compared,
    Drawn,
    Ours,
    References,
    SourceGrid,
    compare,
    read_correction,
    read_ours,
)
from dicom_node.db import Database, Row
from dicom_node.manifest import manifest_paths
from dicom_node.reviews.analyses import Meant
from dicom_node.series import read_series
from dicom_node.storage import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A correction, read. whole: it answers to our result as a whole, so that what it lacks was struck out."""

    grid: SourceGrid
    ours: list[Ours]
    drawn: list[Drawn]
    verdicts: list[Compared]
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Examiner:
    """Reads files; every method raises DicomNodeError, and OSError where one is gone."""

    config: Config
    database: Database
    storage: Storage

    def examined(self, row: Row, references: References, meant: Meant) -> Examined:
        """row: of the correction's Instance. meant: with a job."""
        assert meant.job_id is not None  # noqa: S101  # the caller looked
        grid, ours = self.analysed(meant.job_id)
        ds = pydicom.dcmread(self.storage.path(row["path"]))
        drawn = read_correction(ds, references.kind, grid, self._segmentation)
        whole = meant.answers_ours and (references.kind != "sr" or bool(references.replaced))
        verdicts = compare(ours, drawn, grid, answers_ours=whole)
        return Examined(grid=grid, ours=ours, drawn=drawn, verdicts=verdicts, whole=whole)

    def analysed(self, job_id: str) -> tuple[SourceGrid, list[Ours]]:
        """Where the voxels of a job's series are, and its findings on them."""
        grid = SourceGrid.of(read_series(self.manifest(job_id), self.config.gate))
        segs = [r for r in self.database.results(job_id) if r["kind"] == "seg" and r["sop_class_uid"] in KINDS]
        files = [self.storage.path(row["path"]) for row in segs]
        ds = next((pydicom.dcmread(file) for file in files if file.exists()), None)
        return grid, read_ours(self.database.findings(job_id), ds, grid)

    def manifest(self, job_id: str) -> list[Path]:
        """The files of the series that a job analysed."""
        return manifest_paths(self.storage, job_id)

    def _segmentation(self, sop_instance_uid: str) -> Dataset | None:
        """One that a report refers to: of ours, or received."""
        for table in (self.database.result_of, self.database.instance):
            row = table(sop_instance_uid)
            if row is not None and KINDS.get(row["sop_class_uid"]) == "seg":
                path = self.storage.path(row["path"])
                return pydicom.dcmread(path) if path.exists() else None
        return None
