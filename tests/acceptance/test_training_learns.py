"""The proof that the trainer learns: it over-fits composites it has seen, and can't where their labels lie.

Slabs of a real lung with real nodules, through every part of the pipeline: compose, read, prepare, train, export,
the node's own detector, and the evaluator.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dicom_node.model.bundle import load_bundle
from tests.fakes.recipes import tiny_recipe
from training.composites.backgrounds import crop, make_background, read_background
from training.composites.write import compose
from training.evaluation.evaluate import judge
from training.evaluation.marks import ScanResult
from training.evaluation.overlap import Overlap, ScanOverlap, average_precision
from training.export import export
from training.prepare import prepare
from training.prepared import FORM_FILE, PreparedScan, open_prepared, open_scan, to_json
from training.provenance import record
from training.readers.luna16 import list_luna16
from training.team import Team
from training.train import Job, train
from training.voi import load_vois, split

SLAB_MM = 60.0
STEPS = 1000
NETWORK = {
    "levels": 2,
    "fpn_channels": 48,
    "box_head_width": 96,
    "mask_head_channels": [48, 48],
    "anchors": [[8.0, 11.0, 15.0], [20.0, 27.0, 36.0]],
    "roi_canonical_px": 24.0,
    "rpn_pre_nms": 100,
    "rpn_post_nms": 50,
}


@pytest.fixture(scope="module")
def composites(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slabs with seven nodules of 9 to 20 mm each, in LUNA16's layout."""
    whole = read_background(shared_data, "LIDC-IDRI-0002")
    low, high = whole.lungs.box_mm(10.0)
    middle = (low[2] + high[2]) / 2
    low[2], high[2] = middle - SLAB_MM / 2, middle + SLAB_MM / 2
    slab = make_background("LIDC-IDRI-0002", crop(whole.volume, np.stack([low, high])), ())
    seen = [voi for voi in split(load_vois(shared_data))[0] if 9 < voi.diameter_mm < 20][:14]
    out = tmp_path_factory.mktemp("learn") / "composites"
    compose(backgrounds=[slab], nodules=seen, out=out, scans=2, nodules_per_scan=7, seed=1, tag="proof")
    return out


def learn(composites: Path, folder: Path, shuffled: bool) -> Overlap:
    """Trains on the composites and judges them with the node's detector."""
    recipe = tiny_recipe(
        network=NETWORK,
        sampling={"crop_mm": 64, "positive_share": 0.8},
        augmentation={"exact_share": 0.7, "noise_share": 0.0, "soften_share": 0.0, "contrast_share": 0.0},
        optimisation={"steps": STEPS, "batch": 4, "learning_rate": 0.02, "warmup_steps": 50, "ema_decay": 0.98},
        keeping={"validation_slices": 0, "log_every": 100, "save_every": STEPS},
    )
    scans = list_luna16(composites).scans
    prepare(scans, folder / "cache", recipe.preprocessing)
    prepared = open_prepared(folder / "cache", recipe.preprocessing)
    if shuffled:
        prepared = [shuffled_labels(scan) for scan in prepared]
    torch.set_num_threads(1)
    job = Job(recipe=recipe, scans=prepared, validation=[], hard_mm={}, run=folder / "run")
    record(job.run, recipe, prepared, [], command="python -m training train", device="cpu")
    train(job, Team(rank=0, size=1, device=torch.device("cpu")))
    export(job.run, folder / "bundle")
    results = judge(load_bundle(folder / "bundle"), scans, folder / "judged").results
    return average_precision([overlap_of(result) for result in results])


def overlap_of(result: ScanResult) -> ScanOverlap:
    diameter_mm = np.array([nodule.diameter_mm for nodule in result.nodules])
    return ScanOverlap(iou=result.box_iou, score=result.scores, ignored=result.unsure, diameter_mm=diameter_mm)


def shuffled_labels(scan: PreparedScan) -> PreparedScan:
    """The labels and their centres turned by half about the scan's middle: on lung and tissue, not on nodules."""
    labels = np.ascontiguousarray(scan.labels()[::-1, ::-1, ::-1])
    np.save(scan.folder / "labels.npy", labels)
    far = np.array(scan.form.shape) - 1.0
    turned = [scan.to_mm(far - scan.to_index(np.array(n.center_mm))) for n in scan.form.nodules]
    nodules = tuple(
        replace(n, center_mm=(float(x), float(y), float(z)))
        for n, (x, y, z) in zip(scan.form.nodules, turned, strict=True)
    )
    (scan.folder / FORM_FILE).write_text(to_json(replace(scan.form, nodules=nodules)))
    return open_scan(scan.folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_model_learns_composites_by_heart(composites: Path, tmp_path: Path) -> None:
    found = learn(composites, tmp_path, shuffled=False)
    assert found.truths >= 12
    assert found.map >= 0.9, f"3D box AP@[.1:.5] {found.map:.3f}, {found.ap}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_labels_in_the_wrong_places_teach_nothing(composites: Path, tmp_path: Path) -> None:
    assert learn(composites, tmp_path, shuffled=True).map < 0.2
