"""Recipes: the shipped ones load, every key is used, every wrong one is named with its line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

import training
from dicom_node.errors import ConfigError
from dicom_node.model.network import REFERENCE, SMALL
from training.recipe import Recipe, load_recipe

PACKAGE = Path(training.__file__).parent
SMALL_TEXT = (PACKAGE / "small.yaml").read_text()


def load(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path)


def test_the_shipped_recipes_are_the_known_networks() -> None:
    assert load_recipe(PACKAGE / "small.yaml").network == SMALL
    reference = load_recipe(PACKAGE / "luna16.yaml")
    assert reference.network == REFERENCE
    assert reference.initial_weights.source == "imagenet"
    assert (reference.preprocessing.spacing_mm, reference.preprocessing.hu_window) == (1.0, (-1200, 600))
    assert reference.optimisation.norm == "frozen"


def test_every_key_of_a_recipe_is_read_somewhere() -> None:
    source = "".join(p.read_text() for p in PACKAGE.rglob("*.py") if p.name != "recipe.py")

    def keys(form: type[BaseModel]) -> set[str]:
        found = set()
        for name, field in form.model_fields.items():
            found.add(name)
            for part in (field.annotation, *get_args(field.annotation)):  # an optional section is one too
                if isinstance(part, type) and issubclass(part, BaseModel):
                    found |= keys(part) if part.__module__ == "training.recipe" else set()
        return found

    assert [key for key in sorted(keys(Recipe)) if not re.search(rf"\.{key}\b", source)] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("batch: 4", "batches: 4"), r":\d+: optimisation.batches: unknown key; did you mean 'batch'\?"),
        (("crop_mm: 96", "crop_mm: 100"), r"sampling.crop_mm: .*multiple of 16"),
        (("source: bundle", "source: random"), "source random reads no path"),
        (("seed: 2", "seed: two"), r"recipe.yaml:4: seed: "),
        (("seed: 2", "seed: -2"), r"recipe.yaml:4: seed: "),
        (("steps: 8000", "steps: 8000\n    workers: -1"), "refinement.learning.workers: "),
        (("levels: 3", "levels: 4"), "rows of anchors for 4 levels"),
        (("warmup_steps: 100", "warmup_steps: 9000"), "warmup_steps is more than"),
        (("seed: 2", "seed: 2\nseed: 3"), "seed: is given twice"),
        (("ema_decay: 0.998", "ema_decay: 1.0"), "ema_decay: "),
        (("cube: 32", "weight: 0.7"), "network.weight is not given: the run chooses it"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    assert change[0] in SMALL_TEXT
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, SMALL_TEXT.replace(*change, 1))


def test_random_weights_need_a_norm_that_learns(tmp_path: Path) -> None:
    text = re.sub(r"initial_weights:.*?\n\n", "\n", SMALL_TEXT, flags=re.S)
    assert load(tmp_path, text).initial_weights.source == "random"
    with pytest.raises(ConfigError, match="nothing would normalise"):
        load(tmp_path, text.replace("norm: batch", "norm: frozen"))


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml can't be read"):
        load_recipe(tmp_path / "none.yaml")
