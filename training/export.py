"""Checkpoint + settings + figures -> model bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from dicom_node.model.bundle import Bundle, write_bundle
from dicom_node.model.network import SMALL
from dicom_node.model.spec import MergeSpec, PreprocessSpec
from training.card import render

NAME = "lung_nodule_small"
NODULE = {"name": "nodule", "code_value": "27925004", "coding_scheme": "SCT", "code_meaning": "Nodule"}
TRAINING_DATA = (
    "Composites: LIDC-IDRI nodule crops of LUNA16 subsets 0-7 (no patient of subset 8, LIDC-IDRI-0001 or "
    "LIDC-IDRI-0002) in the lungs of LIDC-IDRI-0002 and C3N-00247 (CPTAC-LSCC)"
)
EVALUATE = "python -m training evaluate"
COMPOSITES = "composites: held-out LIDC-IDRI nodule crops in the held-out scan LIDC-IDRI-0001"


def export(
    run: Path,
    out: Path,
    prep: PreprocessSpec,
    merging: MergeSpec,
    *,
    version: str,
    operating_point: float,
    figures: dict[str, Any] | None,
    facts: dict[str, Any],
) -> Bundle:
    """Writes the bundle of a run's last checkpoint. figures: what `evaluate` returned for it, if it was judged."""
    tensors = load_file(run / "last.safetensors")
    weights = {
        name.removeprefix("model."): value
        for name, value in tensors.items()
        if name.startswith("model.") and not name.endswith("num_batches_tracked")
    }
    description = {
        "name": NAME,
        "version": version,
        "network": SMALL.model_dump(mode="json"),
        "preprocessing": prep.model_dump(mode="json"),
        "merging": merging.model_dump(mode="json"),
        "thresholds": {"proposal_score": 0.02, "operating_point": operating_point},
        "classes": [NODULE],
        "training_data": TRAINING_DATA,
        "metrics": metrics_of(figures) if figures else [],
        "licence": "Apache-2.0",
    }
    size = sum(v.numel() * (2 if v.ndim > 1 else 4) for v in weights.values())
    return write_bundle(out, description, weights, render(description, {"megabytes": size / 1e6, **facts}))


def metrics_of(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures as rows with their definitions. What a case does not have (no nodule in it) has no row."""
    composites, metrics = figures["composites"], []

    def add(name: str, value: float, definition: str, data: str) -> None:
        metrics.append(
            {"name": name, "value": float(value), "definition": definition, "data": data, "command": EVALUATE}
        )

    nodules = f"{COMPOSITES}; {composites['truths']:.0f} nodules in {composites['scans']} composites"
    add("sensitivity", composites["sensitivity"], "nodules hit at the operating point, of all", nodules)
    add("false positives a scan", composites["false_positives_per_scan"], "marks on no nodule, a composite", nodules)
    add("Dice", composites["dice"], "mean over hit nodules, on the scan's own voxels", nodules)
    for rate, value in composites["froc"].items():
        add(f"sensitivity at {rate} false positives", value, "free-response curve, linear between steps", nodules)
    for scan in ("LIDC-IDRI-0001", "LIDC-IDRI-0002", "C3N-00247"):
        case = figures[scan]
        add("false positives", case["false_positives"], "marks on no known nodule; excluded findings ignored", scan)
        if "found" in case:
            add("known nodule's score", case["score"], "0 where no mark hits it", scan)
        add("seconds", case["seconds"], "Detector.detect, wall clock", scan)
    return metrics


def read_json(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded
