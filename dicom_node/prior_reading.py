"""A Reading and the earlier CT's files -> the Reading that says what changed; or that says why nothing is compared."""

from __future__ import annotations

import logging
from dataclasses import replace

import pydicom

from dicom_node import growth
from dicom_node.comparison import Comparison, NoPrior, PriorFiles
from dicom_node.config import GateConfig
from dicom_node.errors import DicomNodeError, SeriesRejected
from dicom_node.results.reading import Reading
from dicom_node.results.tracking import track
from dicom_node.series import read_series, to_volume

log = logging.getLogger(__name__)


def compared(reading: Reading, prior: PriorFiles | NoPrior, limits: GateConfig) -> Reading:
    """Never an error: the findings stand without a comparison. Equal files give an equal Reading.

    Findings that the earlier report knows take their names from it.
    """
    comparison = _comparison(reading, prior, limits)
    return replace(reading, comparison=comparison, tracking=track(reading.findings, reading.origin, comparison))


def _comparison(reading: Reading, prior: PriorFiles | NoPrior, limits: GateConfig) -> Comparison:
    if isinstance(prior, NoPrior):
        return growth.not_compared(prior.outcome, prior.text)
    try:
        return _with_files(reading, prior, limits)
    except SeriesRejected as err:
        return growth.not_compared("not_available", f"The earlier CT cannot be compared with: {err}.")
    except Exception as err:
        log.exception("not compared", extra={"action": "prior", "series": reading.series.series_uid})
        why = type(err).__name__ if not isinstance(err, DicomNodeError) else str(err)
        return growth.not_compared("not_available", f"The comparison with the earlier CT failed: {why}.")


def _with_files(reading: Reading, prior: PriorFiles, limits: GateConfig) -> Comparison:
    now = growth.acquired_at(reading.series.header)
    if now is None:
        return growth.not_compared(
            "not_available", "This CT does not say when it was acquired, so nothing is compared."
        )
    series = read_series(prior.images, limits)
    segmentation = None if prior.segmentation is None else pydicom.dcmread(prior.segmentation)
    exam = growth.read_prior(pydicom.dcmread(prior.report), segmentation, series.header)
    return growth.compare(reading.volume, reading.findings, reading.measurements, now, to_volume(series), exam)
