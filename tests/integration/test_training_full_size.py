"""The reference recipe at full size on a CPU: forward, backward, resume and export of ResNeXt-101-FPN. No more is
claimed of it here: it learns on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import training
from dicom_node.model.network import REFERENCE
from tests.fakes.prepared import write_prepared
from training.export import export, parity
from training.provenance import record
from training.recipe import InitialWeights, Recipe, load_recipe
from training.team import Team
from training.train import Job, train

ALONE = Team(rank=0, size=1, device=torch.device("cpu"))


def full_size() -> Recipe:
    """luna16.yaml as it is, but from random weights (ImageNet's are not here), with small crops, for two updates."""
    recipe = load_recipe(Path(training.__file__).parent / "luna16.yaml")
    plan = recipe.optimisation.model_copy(update={"steps": 2, "warmup_steps": 1, "batch": 1, "norm": "batch"})
    return recipe.model_copy(
        update={
            "optimisation": plan,
            "initial_weights": InitialWeights(),
            "sampling": recipe.sampling.model_copy(update={"crop_mm": 64, "positive_share": 1.0}),
            "keeping": recipe.keeping.model_copy(update={"validation_slices": 0}),
        }
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_reference_network_trains_resumes_and_exports_at_full_size(tmp_path: Path) -> None:
    recipe = full_size()
    assert recipe.network == REFERENCE
    scan = write_prepared(tmp_path / "cache", "a", nodules=((30.0, 45.0, 120.0, 8.0),))
    job = Job(recipe=recipe, scans=[scan], validation=[], hard_mm={}, run=tmp_path / "run")
    record(job.run, recipe, [scan], [], command="python -m training train", device="cpu")
    assert train(job, ALONE, stop=lambda: True) == 1
    assert train(job, ALONE) == 2
    bundle = export(job.run, tmp_path / "bundle")
    assert sum(value.numel() for value in bundle.weights.values()) > 100_000_000
    assert parity(job.run, bundle) <= 1e-4
