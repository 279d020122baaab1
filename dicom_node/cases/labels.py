"""Positives of a case -> the Segmentation of its truth, on the images as they are exported."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicom_node.cases.deidentify import file_meta_of
from dicom_node.cases.truth import Truth
from dicom_node.domain import RESEARCH_USE
from dicom_node.identity import MANUFACTURER, MODEL_NAME, SOFTWARE_VERSION

_DATES = ("InstanceCreationDate", "InstanceCreationTime", "SeriesDate", "SeriesTime")


def segmentation(truth: Truth, images: Sequence[Dataset], *, uids: tuple[str, str], when: datetime) -> Dataset:
    """images: in the order of the grid's slices. uids: of its series and of itself. when: its content date and time."""
    slices = sorted({int(k) for _, region in truth.positives for k in region.index()[:, 0]})
    place = {k: n for n, k in enumerate(slices)}
    shape = (len(slices), int(images[0].Rows), int(images[0].Columns), len(truth.positives))
    pixels = np.zeros(shape, np.uint8)
    for number, (_, region) in enumerate(truth.positives):
        for k, row, column in region.index():
            pixels[place[int(k)], row, column, number] = 1
    seg = Segmentation(
        source_images=[images[k] for k in slices],
        pixel_array=pixels,
        segmentation_type="BINARY",
        segment_descriptions=[_segment(n) for n in range(1, len(truth.positives) + 1)],
        series_instance_uid=uids[0],
        series_number=900,
        sop_instance_uid=uids[1],
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=SOFTWARE_VERSION,
        device_serial_number=SOFTWARE_VERSION,
        content_label="NODULE_TRUTH",
        content_description=RESEARCH_USE,
        series_description=f"Nodules as corrected. {RESEARCH_USE}"[:64],
    )
    return _settled(seg, when)


def _segment(number: int) -> SegmentDescription:
    return SegmentDescription(
        segment_number=number,
        segment_label=f"Nodule {number}",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Nodule,
        algorithm_type="MANUAL",
        anatomic_regions=[codes.SCT.Lung],
    )


def _settled(seg: Any, when: datetime) -> Dataset:
    """Without the moments that highdicom takes from the clock."""
    ds: Dataset = seg
    for keyword in _DATES:
        if keyword in ds:
            delattr(ds, keyword)
    ds.ContentDate, ds.ContentTime = f"{when:%Y%m%d}", f"{when:%H%M%S}"
    ds.file_meta = file_meta_of(ds, str(ds.file_meta.TransferSyntaxUID))
    return ds
