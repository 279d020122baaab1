"""How many slices a second a recipe trains on, beside torchvision's own Mask R-CNN with the same trunk.

Both see the same crops in the same order, on the same device, and take turns round by round; the ratio is the median
of same-round ratios. torchvision's is as it comes (`maskrcnn_resnet50_fpn`'s parts: 800 px, its anchors, 1000 and 2000
proposals). Ours is measured whole, with cutting, augmentation and the optimizer. Data: --cache, or made-up scans.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from tests.fakes.prepared import write_prepared
from training.prepared import PreparedScan, open_prepared
from training.recipe import InitialWeights, Recipe, load_recipe
from training.sampling import Sampler
from training.slices import Block, cut, sample
from training.team import Team
from training.train import build_model, set_learning_rate, update


def main() -> None:
    options = _parser().parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = untrained(load_recipe(options.recipe), options.batch)
    team = Team(rank=0, size=1, device=torch.device(options.device))
    with tempfile.TemporaryDirectory(prefix="bench-training-") as folder:
        scans = _scans(options.cache, recipe, Path(folder))
        report = measure(recipe, scans, team, options.updates, options.rounds)
    print(json.dumps(report, indent=1) if options.json else _text(report))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/training", description=__doc__)
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parent.parent / "training" / "small.yaml")
    parser.add_argument("--cache", type=Path, help="prepared scans; default: made-up ones")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--batch", type=int, help="slices an update; default: the recipe's")
    parser.add_argument("--updates", type=int, default=4, help="in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--json", action="store_true")
    return parser


def untrained(recipe: Recipe, batch: int | None) -> Recipe:
    """The recipe from random weights: how fast it is does not depend on them, and none have to be fetched."""
    plan = recipe.optimisation.model_copy(update={"norm": "batch", "batch": batch or recipe.optimisation.batch})
    return recipe.model_copy(update={"initial_weights": InitialWeights(), "optimisation": plan})


def _scans(cache: Path | None, recipe: Recipe, folder: Path) -> list[PreparedScan]:
    if cache is not None:
        return open_prepared(cache, recipe.preprocessing)
    nodules = ((60.0, 80.0, 150.0, 6.0), (200.0, 190.0, 180.0, 4.0), (120.0, 220.0, 130.0, 9.0))
    return [write_prepared(folder, uid, nodules=nodules, shape=(120, 280, 320), seed=n) for n, uid in enumerate("ab")]


def measure(recipe: Recipe, scans: list[PreparedScan], team: Team, updates: int, rounds: int) -> dict[str, Any]:
    """Seconds are of whole updates; `data_s`, the cutting and augmentation of slices, is part of `update_s`."""
    sampler = Sampler(scans, recipe.sampling, recipe.augmentation, {}, recipe.seed)
    batch = recipe.optimisation.batch
    ours = build_model(recipe).to(team.device).to(memory_format=torch.channels_last).train()
    peer = peer_of(recipe).to(team.device).train()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9) for model in (ours, peer)]
    for optimizer in optimizers:
        set_learning_rate(optimizer, recipe, 0)

    def blocks(number: int) -> list[Block]:
        side = recipe.sampling.crop_mm
        return [cut(sampler.draw(number * batch + i), recipe.preprocessing, side) for i in range(batch)]

    def ours_once(number: int) -> None:
        update(ours, optimizers[0], iter([blocks(number)]), recipe, team, number)

    def peer_once(number: int) -> None:
        images, targets = _sampled(blocks(number), recipe, team)
        optimizers[1].zero_grad(set_to_none=True)
        torch.stack(list(peer(images, targets).values())).sum().backward()
        nn.utils.clip_grad_norm_(peer.parameters(), recipe.optimisation.clip_norm)
        optimizers[1].step()

    def data_only(number: int) -> None:
        _sampled(blocks(number), recipe, team)

    ours_once(0)
    peer_once(0)
    seconds: dict[str, list[float]] = {"ours": [], "peer": [], "data": []}
    for turn in range(rounds):
        first = 1 + turn * updates
        for name, once in (("ours", ours_once), ("peer", peer_once)):
            seconds[name].append(_timed(once, first, updates, team))
        seconds["data"].append(_timed(data_only, first, updates, team))
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [theirs / mine for mine, theirs in zip(seconds["ours"], seconds["peer"], strict=True)]
    return {
        "recipe": recipe.name,
        "device": torch.cuda.get_device_name(team.device) if team.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "batch": batch,
        "crop_px": recipe.sampling.crop_mm * recipe.preprocessing.upsampling,
        "update_s": middle["ours"],
        "slices_per_s": batch / middle["ours"],
        "data_s": middle["data"],
        "memory_gb": _memory_gb(team),
        "whole_recipe_s": recipe.optimisation.steps * middle["ours"],
        "ratio_torchvision": statistics.median(ratios),
    }


def peer_of(recipe: Recipe) -> nn.Module:
    """torchvision's Mask R-CNN as it comes, with the recipe's trunk and statistics that learn, as ours here."""
    trunk = resnet_fpn_backbone(
        backbone_name=recipe.network.backbone, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    return MaskRCNN(trunk, num_classes=recipe.network.classes)


def _sampled(
    blocks: list[Block], recipe: Recipe, team: Team
) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    return sample(blocks, recipe.preprocessing, recipe.sampling, recipe.augmentation, team.device, recipe.seed)


def _timed(once: Callable[[int], None], first: int, times: int, team: Team) -> float:
    """Seconds of one, over so many in a row."""
    started = time.perf_counter()
    for number in range(first, first + times):
        once(number)
    if team.device.type == "cuda":
        torch.cuda.synchronize(team.device)
    return (time.perf_counter() - started) / times


def _memory_gb(team: Team) -> float:
    if team.device.type == "cuda":
        return torch.cuda.max_memory_allocated(team.device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _text(report: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"{report['recipe']} on {report['device']}, {report['threads']} threads, torch {report['torch']}: "
            f"batches of {report['batch']} crops of {report['crop_px']} px",
            f"update           {report['update_s']:.2f} s, {report['data_s']:.3f} s of them for its slices",
            f"training         {report['slices_per_s']:.2f} slices/s, {report['memory_gb']:.1f} GB",
            f"whole recipe     {report['whole_recipe_s'] / 3600:.1f} h",
            f"ratio to torchvision's Mask R-CNN as it comes: {report['ratio_torchvision']:.1f}",
        ]
    )


if __name__ == "__main__":
    main()
