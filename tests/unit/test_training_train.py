"""The trainer: schedule, checkpoints, updates that are not finite, what it tells, where weights come from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torchvision.models import resnet18

from dicom_node.errors import ConfigError
from dicom_node.model.bundle import default_bundle, load_bundle
from tests.fakes.prepared import write_prepared
from tests.fakes.recipes import tiny_recipe
from training import train as train_module
from training.cases import DataProblem
from training.checkpoint import LAST, Averaged, exported_weights, load_checkpoint, read_checkpoint
from training.prepared import PreparedScan
from training.provenance import read_provenance, record
from training.recipe import Recipe
from training.sampling import Sampler
from training.team import Team, join_team
from training.train import Job, TrainingFailed, build_model, passes, set_learning_rate, stop_when, train
from training.weights import load_initial

ALONE = Team(rank=0, size=1, device=torch.device("cpu"))
FROM_BUNDLE = {"source": "bundle", "path": str(default_bundle())}


@pytest.fixture
def scans(tmp_path: Path) -> list[PreparedScan]:
    nodules = ((20.0, 40.0, 120.0, 5.0), (50.0, 60.0, 125.0, 4.0))
    return [write_prepared(tmp_path / "cache", uid, nodules=nodules, seed=n) for n, uid in enumerate("ab")]


def job(scans: list[PreparedScan], run: Path, recipe: Recipe | None = None) -> Job:
    return Job(recipe=recipe or tiny_recipe(), scans=scans, validation=scans[:1], hard_mm={}, run=run)


def losses(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]


def test_a_stopped_run_goes_on_with_the_losses_of_an_unbroken_one(scans: list[PreparedScan], tmp_path: Path) -> None:
    train(job(scans, tmp_path / "whole"), ALONE)
    asked = iter([False, False, True])
    assert train(job(scans, tmp_path / "broken"), ALONE, stop=lambda: next(asked)) == 3
    assert train(job(scans, tmp_path / "broken"), ALONE) == 8
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")
    whole, broken = (exported_weights(tmp_path / name)[1] for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_lines_after_the_last_checkpoint_are_written_once(scans: list[PreparedScan], tmp_path: Path) -> None:
    asked = iter([False, True])
    train(job(scans, tmp_path), ALONE, stop=lambda: next(asked))
    with (tmp_path / "losses.jsonl").open("a") as file:
        file.write('{"step": 3, "total": 99}\n')
    train(job(scans, tmp_path), ALONE)
    assert [row["step"] for row in losses(tmp_path)] == list(range(1, 9))
    assert all(row["total"] != 99 for row in losses(tmp_path))


def test_a_run_of_another_recipe_is_not_gone_on_with(scans: list[PreparedScan], tmp_path: Path) -> None:
    asked = iter([True])
    train(job(scans, tmp_path), ALONE, stop=lambda: next(asked))
    with pytest.raises(DataProblem, match="another recipe"):
        train(job(scans, tmp_path, tiny_recipe(seed=7)), ALONE)


def test_a_cut_checkpoint_is_named(scans: list[PreparedScan], tmp_path: Path) -> None:
    asked = iter([True])
    train(job(scans, tmp_path), ALONE, stop=lambda: next(asked))
    stored = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(stored[: len(stored) // 2])
    with pytest.raises(DataProblem, match="no checkpoint that can be read"):
        train(job(scans, tmp_path), ALONE)


def test_tensorboard_holds_losses_and_validation(scans: list[PreparedScan], tmp_path: Path) -> None:
    train(job(scans, tmp_path), ALONE)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("training/total")] == [2, 4, 6, 8]
    assert [event.step for event in events.Scalars("validation/total")] == [4, 8]
    assert "training/learning_rate" in events.Tags()["scalars"]


def test_updates_that_are_not_finite_are_left_out_kept_and_in_the_end_fatal(
    scans: list[PreparedScan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(optimisation={"non_finite_limit": 2})
    honest = train_module.sample
    calls = iter(range(100))

    def poisoned(*arguments: Any) -> Any:
        images, targets = honest(*arguments)
        if next(calls) in poison:
            for target in targets:
                target["boxes"] = torch.tensor([[4.0, 4.0, 12.0, 12.0]])
                target["labels"] = torch.ones(1, dtype=torch.int64)
                target["masks"] = torch.full((1, 32, 32), float("nan"))
        return images, targets

    monkeypatch.setattr(train_module, "sample", poisoned)
    monkeypatch.setattr(train_module, "validate", lambda *_: {"total": 0.0})
    poison = {2}
    train(job(scans, tmp_path / "once", recipe), ALONE)
    assert [row["step"] for row in losses(tmp_path / "once") if not row["finite"]] == [3]
    assert [p.name for p in (tmp_path / "once" / "non_finite").iterdir()] == ["step2-pass2.safetensors"]
    assert all(value.isfinite().all() for value in exported_weights(tmp_path / "once")[1].values())
    calls, poison = iter(range(100)), {2, 4}  # call 3 keeps the batch of call 2
    with pytest.raises(TrainingFailed, match="2 updates in a row were not finite"):
        train(job(scans, tmp_path / "twice", recipe), ALONE)


def test_what_is_not_finite_does_not_reach_the_running_statistics(
    scans: list[PreparedScan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = train_module.sample

    def poisoned(*arguments: Any) -> Any:
        images, targets = honest(*arguments)
        return [image * float("nan") for image in images], targets

    monkeypatch.setattr(train_module, "sample", poisoned)
    recipe = tiny_recipe(optimisation={"non_finite_limit": 2})
    model = build_model(recipe).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    blocks = [train_module.cut(draw, recipe.preprocessing, 32) for draw in draws(scans, recipe, 2)]
    assert not train_module.update(model, optimizer, iter([blocks]), recipe, ALONE, 0)["finite"]
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())


def draws(scans: list[PreparedScan], recipe: Recipe, count: int) -> list[Any]:
    sampler = Sampler(scans, recipe.sampling, recipe.augmentation, {}, 1)
    return [sampler.draw(number) for number in range(count)]


def test_a_run_that_goes_on_draws_its_whole_curve(scans: list[PreparedScan], tmp_path: Path) -> None:
    asked = iter([False, False, False, True])
    train(job(scans, tmp_path), ALONE, stop=lambda: next(asked))
    train(job(scans, tmp_path), ALONE)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted({event.step for event in events.Scalars("training/total")}) == [2, 4, 6, 8]
    assert sorted({event.step for event in events.Scalars("validation/total")}) == [4, 8]


def test_a_folder_does_not_forget_what_its_weights_were_learned_from(scans: list[PreparedScan], tmp_path: Path) -> None:
    recipe = tiny_recipe()
    record(tmp_path, recipe, scans, [], command="first", device="cpu")
    train(job(scans, tmp_path), ALONE)
    record(tmp_path, recipe, scans, [], command="second", device="cpu")
    assert read_provenance(tmp_path).commands == ("first", "second")
    for other in ((recipe, scans[:1]), (tiny_recipe(seed=8), scans)):
        with pytest.raises(DataProblem, match="another recipe or of other scans"):
            record(tmp_path, *other, [], command="third", device="cpu")
    assert len(read_provenance(tmp_path).scans) == 2


def test_the_learning_rate_warms_up_and_falls_along_half_a_cosine() -> None:
    recipe = tiny_recipe(optimisation={"steps": 100, "warmup_steps": 10, "learning_rate": 0.1, "final_share": 0.01})
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)
    rates = [set_learning_rate(optimizer, recipe, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] == max(rates) > 0.09
    assert rates[50] == pytest.approx(0.1 * (0.01 + 0.99 * 0.5))
    assert rates[-1] < 0.0012
    assert optimizer.param_groups[0]["lr"] == rates[-1]


def test_two_processes_share_the_very_draws_of_one_with_twice_the_accumulation() -> None:
    one = tiny_recipe(optimisation={"accumulate": 4})
    two = tiny_recipe(optimisation={"accumulate": 2})
    teams = [Team(rank=rank, size=2, device=torch.device("cpu")) for rank in range(2)]
    alone = [number for batch in passes(one, ALONE, 3) for number in batch]
    shared = [number for team in teams for batch in passes(two, team, 3) for number in batch]
    assert sorted(alone) == sorted(shared)
    assert len(set(shared)) == len(shared)


def test_averaged_weights_follow_slowly_and_are_what_is_exported(scans: list[PreparedScan], tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    averaged = Averaged(model, 0.9)
    start = averaged.state["weight"].clone()
    with torch.no_grad():
        model.weight += 1.0
    averaged.update(model, step=1000)
    torch.testing.assert_close(averaged.state["weight"], start + 0.1)
    train(job(scans, tmp_path), ALONE)
    _, weights = exported_weights(tmp_path)
    tensors = read_checkpoint(tmp_path)[1]
    name = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(weights[name], tensors[f"averaged.{name}"])
    assert not torch.equal(weights[name], tensors[f"model.{name}"])


def test_a_fresh_folder_starts_at_step_zero(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    model = build_model(recipe)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert load_checkpoint(tmp_path, recipe, model, Averaged(model, 0.9), optimizer) == 0


def test_a_bundle_gives_all_its_weights_to_a_run() -> None:
    bundle = load_bundle(default_bundle())
    network = bundle.form.network.model_dump(mode="json")
    recipe = tiny_recipe(network=network, initial_weights=FROM_BUNDLE, preprocessing={"upsampling": 2})
    state = build_model(recipe).state_dict()
    assert all(torch.equal(state[name], value) for name, value in bundle.weights.items() if name in state)
    with pytest.raises(ConfigError, match="do not fit the recipe's network"):
        build_model(tiny_recipe(initial_weights=FROM_BUNDLE))


def test_imagenet_weights_from_a_file_are_checked_before_they_are_used(tmp_path: Path) -> None:
    trunk = resnet18(weights=None)
    path = tmp_path / "resnet18.pth"
    torch.save(trunk.state_dict(), path)
    given = {"source": "imagenet", "path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    model = build_model(tiny_recipe(initial_weights=given, optimisation={"norm": "frozen"}))
    assert torch.equal(model.state_dict()["backbone.body.layer1.0.conv1.weight"], trunk.layer1[0].conv1.weight)
    assert torch.equal(model.state_dict()["backbone.body.bn1.running_var"], trunk.bn1.running_var)
    with pytest.raises(ConfigError, match=r"sha256 is .*, the recipe says 0000"):
        build_model(tiny_recipe(initial_weights={**given, "sha256": "0" * 64}))
    with pytest.raises(ConfigError, match="can't be read"):
        build_model(tiny_recipe(initial_weights={**given, "path": str(tmp_path / "none.pth")}))


def test_without_a_network_the_message_says_which_file_to_fetch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from urllib.error import URLError

    def unreachable(*_: Any, **__: Any) -> Any:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    recipe = tiny_recipe(initial_weights={"source": "imagenet"})
    with pytest.raises(ConfigError, match=r"Fetch resnet18-[0-9a-f]{8}\.pth on another machine"):
        load_initial(nn.Module(), recipe)


def test_the_time_limit_counts_from_its_start() -> None:
    now = iter([0.0, 59.0, 61.0])
    stop = stop_when(1, clock=lambda: next(now))
    assert [stop(), stop()] == [False, True]
    assert not stop_when(None)()


def test_without_torchrun_a_team_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with join_team("cpu") as team:
        assert (team.size, team.leads) == (1, True)
        assert team.agrees(True)
