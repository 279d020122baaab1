"""Compared corrections -> a folder of cases, as `python -m training prepare --layout dicom` reads it.

    <out>/<train|validation|test>/<case>/ct/0001.dcm ...   the images of the volume
                                         truth.dcm         a segment a nodule; none where there is no nodule
                                         case.json         what is a nodule, what is false, what nobody knows
    <out>/<part>/hard/<case>.json        false findings, as `python -m training train --hard` reads them

Of several corrections of one series the newest counts. A case appears complete, or not at all.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from dicom_node.audit import Patient, Study
from dicom_node.cases.deidentify import deidentified, put_identity
from dicom_node.cases.labels import segmentation
from dicom_node.cases.patients import Place, identities_of, settle
from dicom_node.cases.pseudonyms import Pseudonyms
from dicom_node.cases.truth import note_of, truth_of
from dicom_node.db import Row
from dicom_node.domain import CTSeries
from dicom_node.errors import CaseRefused, DicomNodeError
from dicom_node.logs import describe
from dicom_node.results.headers import TYPE_2
from dicom_node.reviews import Reviews, newest_of_each
from dicom_node.series import read_headers, read_series

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """cases: "<part>/<case>" -> how many positives, hard negatives and ignored places. left_out: series UID -> why.

    studies: whose they are, for the audit trail alone.
    """

    cases: Mapping[str, Mapping[str, int]]
    left_out: Mapping[str, str]
    studies: tuple[Study, ...]


def export_cases(
    reviews: Reviews,
    out: Path,
    names: Pseudonyms,
    patients: Path,
    *,
    deidentify: bool,
    when: datetime,
    since: float | None = None,
) -> Exported:
    """An export into a folder that has cases already replaces those that are there, and adds to them.

    patients: the file of what earlier exports said of patients.
    since: only corrections that came or changed since then, seconds since the epoch.
    """
    cases: dict[str, Mapping[str, int]] = {}
    left_out: dict[str, str] = {}
    studies: list[Study] = []
    wanted: dict[str, tuple[Row, tuple[str, ...]]] = {}
    for row in _newest(reviews, since):
        with _leaving_out(left_out, row):
            wanted[row["of_series_uid"]] = row, _identities(reviews, row)
    places = settle([identities for _, identities in wanted.values()], names, patients)
    for row, identities in wanted.values():
        with _leaving_out(left_out, row):
            name, counts, study = _export(
                reviews, row, out, names, places[identities[0]], deidentify=deidentify, when=when
            )
            cases[name] = counts
            studies.append(study)
    return Exported(cases=cases, left_out=left_out, studies=tuple(studies))


@contextmanager
def _leaving_out(left_out: dict[str, str], row: Row) -> Iterator[None]:
    """What stands against one case stops no other."""
    try:
        yield
    except DicomNodeError as err:
        left_out[row["of_series_uid"]] = str(err)
    except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as err:
        log.exception("case not exported", extra={"action": "export", "series": row["of_series_uid"]})
        left_out[row["of_series_uid"]] = f"it can't be exported: {describe(err)}"


def _identities(reviews: Reviews, row: Row) -> tuple[str, ...]:
    paths = reviews.examiner.manifest(row["job_id"])
    return identities_of(read_headers(paths[:1])[0].header)


def _newest(reviews: Reviews, since: float | None) -> list[Row]:
    """The correction that counts, of each series of which something came or changed since then."""
    touched = {row["of_series_uid"] for row in reviews.database.corrections(state="compared", since=since)}
    return [row for row in newest_of_each(reviews.database) if row["of_series_uid"] in touched]


def _export(
    reviews: Reviews, row: Row, out: Path, names: Pseudonyms, place: Place, *, deidentify: bool, when: datetime
) -> tuple[str, dict[str, int], Study]:
    if place.apart:
        raise CaseRefused("its patient is in another part under another Patient ID")
    seen = reviews.examined(row)
    series = read_series(reviews.examiner.manifest(row["job_id"]), reviews.config.gate)
    series_uid, part, patient = series.series_uid, place.part, place.patient
    case = f"{patient}_{names.uid(series_uid).rpartition('.')[2][:12]}"
    folder = out / f".{uuid.uuid4().hex}"
    try:
        # Closed to others of this machine: a CT shows a person, with or without a name.
        folder.mkdir(mode=0o750)
        (folder / "ct").mkdir()
        images = []
        paths = dict.fromkeys(image.path for image in series.images)
        for number, path in enumerate(paths, start=1):
            target = folder / "ct" / f"{number:04}.dcm"
            images.append(_write_image(Path(path), target, names, patient if deidentify else None))
        truth = truth_of(seen)
        if truth.positives:
            uids = names.uid(f"{series_uid} truth"), names.uid(f"{series_uid} truth {row['sop_instance_uid']}")
            ds = segmentation(truth, images, uids=uids, when=when)
            if deidentify:
                put_identity(ds, patient)
            ds.save_as(folder / "truth.dcm", enforce_file_format=True)
        note = note_of(truth, series_uid=str(images[0].SeriesInstanceUID), patient=patient, part=part, seen=seen)
        (folder / "case.json").write_text(json.dumps(note, indent=1) + "\n")
        final = out / part / case
        final.parent.mkdir(exist_ok=True)
        shutil.rmtree(final, ignore_errors=True)
        folder.rename(final)
        _write_hard(out / part / "hard" / f"{case}.json", note)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    counts = {name: len(note[name]) for name in ("positives", "hard_negatives", "ignored")}
    return f"{part}/{case}", counts, _study(series)


def _study(series: CTSeries) -> Study:
    header = series.header
    patient = Patient(id=str(header.get("PatientID") or ""), name=str(header.get("PatientName") or ""))
    return Study(uid=series.study_uid, patient=patient, series_uids=(series.series_uid,))


def _write_hard(path: Path, note: Mapping[str, Any]) -> None:
    """The form of the trainer's mined candidates, of which the false ones are hard negatives."""
    path.unlink(missing_ok=True)
    if not note["hard_negatives"]:
        return
    path.parent.mkdir(exist_ok=True)
    false = [
        {"center_mm": each["center_mm"], "score": 1.0, "kind": "false", "nodule": None}
        for each in note["hard_negatives"]
    ]
    form = {"layout": 1, "uid": note["series_instance_uid"], "made_by": "corrections", "floor": 0.0}
    path.write_text(json.dumps({**form, "candidates": false}, indent=1) + "\n")


def _write_image(source: Path, target: Path, names: Pseudonyms, patient: str | None) -> Dataset:
    """The image as it is exported, without its pixels. patient: the pseudonym; None where identities stay."""
    if patient is not None:
        ds = deidentified(source, names, patient)
        ds.save_as(target, enforce_file_format=True)
        del ds.PixelData
        return ds
    shutil.copyfile(source, target)
    ds = pydicom.dcmread(target, stop_before_pixels=True)
    for keyword in TYPE_2:
        if keyword not in ds:
            setattr(ds, keyword, "")
    return ds
