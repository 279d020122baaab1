"""Runs as processes: killed and started again, and two together against one alone."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from tests import forks
from tests.fakes.prepared import write_prepared
from tests.fakes.recipes import tiny_text
from training.checkpoint import LAST, exported_weights

NODULES = ((20.0, 40.0, 120.0, 5.0), (50.0, 60.0, 125.0, 4.0))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    for seed, uid in enumerate("ab"):
        write_prepared(tmp_path / "cache", uid, nodules=NODULES, seed=seed)
    return tmp_path / "cache"


def command(cache: Path, recipe: Path, run: Path) -> list[str]:
    return ["train", "--recipe", str(recipe), "--cache", str(cache), "--out", str(run), "--threads", "1"]


def begin(cache: Path, recipe: Path, run: Path) -> forks.Forked:
    return forks.start(*command(cache, recipe, run), log=run.with_suffix(".log"), program="training.cli")


def losses(run: Path) -> list[dict[str, float]]:
    path = run / "losses.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_a_run_killed_with_9_goes_on_with_the_losses_of_an_unbroken_one(cache: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny_text(optimisation={"steps": 12}))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert begin(cache, recipe, whole).wait(200) == 0

    started = begin(cache, recipe, broken)
    deadline = time.monotonic() + 120
    while not (broken / LAST).exists():
        assert started.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    started.kill()
    started.wait()
    assert len(losses(broken)) < 12
    assert begin(cache, recipe, broken).wait(200) == 0
    assert losses(broken) == losses(whole)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_with_twice_the_accumulation(cache: Path, tmp_path: Path) -> None:
    weights = tmp_path / "start.pth"
    torch.manual_seed(1)
    torch.save(resnet18(weights=None).state_dict(), weights)
    start = {"source": "imagenet", "path": str(weights), "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    recipes, runs = {}, {}
    for name, accumulate in (("one", 2), ("two", 1)):
        recipes[name], runs[name] = tmp_path / f"{name}.yaml", tmp_path / name
        plan = {"steps": 3, "accumulate": accumulate, "norm": "frozen", "learning_rate": 0.002}
        recipes[name].write_text(tiny_text(initial_weights=start, optimisation=plan))
    assert begin(cache, recipes["one"], runs["one"]).wait(200) == 0
    together = "torch.distributed.run --standalone --nproc-per-node 2 -m training"
    launcher = [sys.executable, "-m", *together.split()]
    subprocess.run([*launcher, *command(cache, recipes["two"], runs["two"])], check=True, env=ENVIRONMENT, timeout=280)
    one, two = (exported_weights(run)[1] for run in runs.values())
    assert [row["total"] for row in losses(runs["one"])] == pytest.approx([row["total"] for row in losses(runs["two"])])
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-5)
    learned = "backbone.body.layer1.0.conv1.weight"
    assert not torch.equal(one[learned], torch.load(weights)[learned.removeprefix("backbone.body.")])
