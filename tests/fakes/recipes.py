"""A recipe small enough to train in a test."""

from __future__ import annotations

import json
from typing import Any

import yaml

from training.recipe import Recipe

NETWORK: dict[str, Any] = {
    "backbone": "resnet18",
    "levels": 2,
    "fpn_channels": 16,
    "box_head_width": 32,
    "mask_head_channels": [8],
    "anchors": [[6.0, 10.0], [16.0, 24.0]],
    "roi_canonical_px": 20.0,
    "rpn_pre_nms": 50,
    "rpn_post_nms": 20,
}


def tiny_recipe(**sections: Any) -> Recipe:
    """Sections given replace or extend the tiny ones."""
    return Recipe.model_validate_json(yaml_to_json(tiny_text(**sections)))


def tiny_text(**sections: Any) -> str:
    base: dict[str, Any] = {
        "name": "tiny",
        "version": "0.0.1",
        "network": NETWORK,
        "preprocessing": {"upsampling": 1, "mean": 0.35, "std": 0.3},
        "sampling": {"crop_mm": 32},
        "optimisation": {"steps": 8, "batch": 2, "learning_rate": 0.01, "warmup_steps": 2, "norm": "batch"},
        "keeping": {"save_every": 2, "log_every": 2, "validate_every": 4, "validation_slices": 2},
    }
    for name, section in sections.items():
        base[name] = {**base[name], **section} if isinstance(base.get(name), dict) else section
    return yaml.safe_dump(base)


def yaml_to_json(text: str) -> str:
    return json.dumps(yaml.safe_load(text))
