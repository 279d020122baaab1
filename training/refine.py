"""Fits the 3D network that looks again at each candidate, read top-down: settings, data, model, optimizer, loop.

Prepared scans + mined candidates -> <run>/refinement.safetensors, the weights as a bundle holds them, and
<run>/refinement.json, its numbers and figures. Checkpoints are safetensors; a run that finds one goes on there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from dicom_node.domain import RESEARCH_USE
from dicom_node.model.bundle import REFINEMENT
from dicom_node.model.preprocess import windowed
from dicom_node.model.refine import Refiner, cut_cubes, fused
from dicom_node.model.spec import PreprocessSpec, RefinementSpec
from training.cases import DataProblem
from training.checkpoint import AVERAGED, Averaged
from training.cubes import CubeSampler
from training.mine import MinedCandidate, Say, read_candidates
from training.prepared import PreparedScan
from training.recipe import RefineSettings
from training.train import NON_FINITE, TrainingFailed

WEIGHTS, SUMMARY, LAST = "refinement.safetensors", "refinement.json", "refinement_last.safetensors"
DATA = "data.sha256"
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
WEIGHT_CHOICES = tuple(round(0.1 * n, 1) for n in range(11))
FINAL_SHARE = 0.01
CUBES_AT_ONCE = 32
UNCLEAR = 0.02  # of the mean sensitivity: two nodules of a hundred
REHEARSAL = 0.5  # of the steps and the minutes: a weight needs no more
MOMENTS = ("exp_avg", "exp_avg_sq")


def refine(
    scans: Sequence[PreparedScan],
    mined: Path,
    out: Path,
    prep: PreprocessSpec,
    spec: RefinementSpec,
    settings: RefineSettings,
    *,
    validation: Sequence[PreparedScan] = (),
    device: str = "cpu",
    say: Say = print,
) -> dict[str, Any]:
    """Trains into `out`; what is in refinement.json. spec.weight plays no part: scans that were not learned from
    choose it.

    scans: all that may be learned from; those that test the model must not be among them. validation: mined scans
    that neither stage learned from; they choose the weight. Without any, some of `scans` are held back, or rehearsed.
    Raises DataProblem: nothing to learn from, or `out` holds a run on other data. Raises TrainingFailed.
    """
    candidates = read_candidates(mined)
    _same_data(out, scans, candidates)
    judges = [s for s in validation if s.form.uid in candidates]

    def trained(part: Sequence[PreparedScan], run: Path, numbers: RefineSettings) -> tuple[dict[str, Tensor], int]:
        sampler = CubeSampler(part, candidates, spec.cube, prep, settings.sampling)
        say(f"{run.name}: {len(part)} scans, {len(sampler.positives)} positives, {len(sampler.false)} false candidates")
        run.mkdir(parents=True, exist_ok=True)
        averaged, step = fit(sampler, spec, numbers, run, device, say)
        return folded(averaged.state, spec), step

    seen: list[Seen] = []
    held: list[PreparedScan] = []
    parts = [] if judges else rehearsals(scans, candidates)
    for number, (learn, judge) in enumerate(parts):
        weights, _ = trained(learn, out / f"rehearsal{number}", shorter(settings))
        seen.append(looked_at(weights, spec, prep, judge, candidates))
        held += judge
    training = list(scans)
    if judges:
        held = judges
    elif not parts:
        training, held = divided(scans, candidates, settings)
    weights, step = trained(training, out, settings)
    if not parts:
        seen.append(looked_at(weights, spec, prep, held, candidates))
    weight, figures = choose_weight(together(seen))
    summary = {
        "refinement": spec.model_copy(update={"weight": weight}).model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "steps": step,
        "composites": any(s.form.composite for s in scans),
        "scans": {"training": [s.form.uid for s in training], "validation": [s.form.uid for s in held]},
        "rehearsals": len(parts),
        "validation": figures,
        "note": RESEARCH_USE,
    }
    save_file(weights, out / WEIGHTS)
    (out / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def told(summary: Mapping[str, Any]) -> list[str]:
    """What a terminal shows of refinement.json: the weight, on what it was chosen, and what the cubes brought there."""
    figures, weight = summary["validation"], summary["refinement"]["weight"]
    rows = zip(RATES, figures["sensitivity_slices"].values(), figures["sensitivity_both"].values(), strict=True)
    return [
        f"{summary['steps']} steps; the cubes' weight in the score is {weight:g}, chosen on {figures['scans']} scans "
        f"with {figures['nodules']} nodules and {figures['false_candidates']} false candidates",
        f"{'false candidates a scan':>24}  sensitivity of slices alone  with cubes",
        *(f"{rate:>24g}{alone:>28.3f}{both:>12.3f}" for rate, alone, both in rows),
        RESEARCH_USE,
    ]


def _same_data(out: Path, scans: Sequence[PreparedScan], mined: Mapping[str, Sequence[MinedCandidate]]) -> None:
    """Notes in `out` what a run learns from; one that finds other data's run there must not go on with it."""
    told = [sorted(s.form.key for s in scans), sorted((uid, repr(found)) for uid, found in mined.items())]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    out.mkdir(parents=True, exist_ok=True)
    note = out / DATA
    if note.exists() and note.read_text().strip() != digest:
        raise DataProblem(f"{out} holds a second stage of other scans or candidates: use a new folder")
    note.write_text(digest + "\n")


def rehearsals(
    scans: Sequence[PreparedScan], mined: Mapping[str, Sequence[MinedCandidate]]
) -> list[tuple[list[PreparedScan], list[PreparedScan]]]:
    """(training, validation) with each background of composites left out once; none for other scans.

    A network knows the vessels of the lungs it learned from: judged in them, it deserves all the weight; in lungs
    it never saw, it does not. But with a few backgrounds none can be spared, so that the network in the bundle
    learns from all of them, and shorter runs, each without one of them, say what weight it deserves.
    """
    judge = [s for s in scans if s.form.uid in mined and s.form.nodules]
    backgrounds = sorted({s.form.patient for s in judge})
    if len(backgrounds) < 2 or not all(s.form.composite for s in scans):
        return []
    return [
        ([s for s in scans if s.form.patient != name], [s for s in judge if s.form.patient == name])
        for name in backgrounds
    ]


def shorter(settings: RefineSettings) -> RefineSettings:
    """A rehearsal's numbers."""
    minutes = settings.minutes and settings.minutes * REHEARSAL
    return settings.model_copy(update={"steps": max(1, int(settings.steps * REHEARSAL)), "minutes": minutes})


def divided(
    scans: Sequence[PreparedScan], mined: Mapping[str, Sequence[MinedCandidate]], settings: RefineSettings
) -> tuple[list[PreparedScan], list[PreparedScan]]:
    """(training, validation). Only mined scans validate; no patient is in both parts.

    Composites of one single background count for themselves: their nodules are new to each other, their lungs not.
    """
    names = sorted({_unit(s) for s in scans if s.form.uid in mined})
    order = np.random.default_rng(settings.seed).permutation(len(names))
    held = {names[i] for i in order[: max(1, round(settings.validation_share * len(names)))]}
    training = [s for s in scans if _unit(s) not in held]
    validation = [s for s in scans if _unit(s) in held and s.form.uid in mined]
    if not training or not any(s.form.nodules for s in validation):
        raise DataProblem(f"{len(mined)} mined scans can't be divided into two parts with nodules: mine more of them")
    return training, validation


def _unit(scan: PreparedScan) -> str:
    """What is not to be in both parts."""
    return scan.form.uid if scan.form.composite else scan.form.patient


def fit(
    sampler: CubeSampler, spec: RefinementSpec, settings: RefineSettings, out: Path, device: str, say: Say
) -> tuple[Averaged, int]:
    """(averaged weights, steps done)."""
    torch.manual_seed(settings.seed)
    model = build(spec).to(device).to(memory_format=torch.channels_last_3d).train()
    averaged = Averaged(model, settings.ema_decay)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=settings.weight_decay)
    step, used_s = load(out, settings, model, averaged, optimizer)
    started, losses, bad = time.monotonic() - used_s, [], 0
    for cubes, labels in _batches(sampler, settings, step):
        used_s = time.monotonic() - started
        progress = _progress(settings, step, used_s)
        if progress >= 1:
            break
        _set_rate(optimizer, settings, step, progress)
        loss, finite = update(model, optimizer, cubes.to(device), labels.to(device), settings.clip_norm)
        losses.append(loss)
        bad = 0 if finite else bad + 1
        if finite:
            averaged.update(model, step)
        else:
            _dump(out, step, cubes, labels, say)
        if bad >= settings.non_finite_limit:
            raise TrainingFailed(
                f"{bad} updates of the second stage in a row were not finite, the last at step {step}: their cubes are "
                f"in {out / NON_FINITE}; lower refinement.learning.learning_rate, or look at the data"
            )
        step += 1
        if step % settings.log_every == 0:
            say(f"step {step}  loss {np.mean(losses[-settings.log_every :]):.4f}  {used_s / 60:.1f} min")
        if step % settings.save_every == 0:
            save(out, settings, model, averaged, optimizer, step, time.monotonic() - started)
    save(out, settings, model, averaged, optimizer, step, time.monotonic() - started)
    return averaged, step


def build(spec: RefinementSpec) -> Refiner:
    """As it is trained: with norms, which `folded` later takes into the convolutions."""
    return Refiner(spec, nn.BatchNorm3d)


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, cubes: Tensor, labels: Tensor, clip: float
) -> tuple[float, bool]:
    """(loss, whether it was finite) of one step. One that is not is left out, and what its pass did to the running
    statistics is undone."""
    before = {name: value.clone() for name, value in model.named_buffers()}
    loss = functional.binary_cross_entropy_with_logits(model(cubes), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    finite = bool(torch.isfinite(norm) & torch.isfinite(loss))
    if finite:
        optimizer.step()
    else:
        for name, value in model.named_buffers():
            value.copy_(before[name])
    return loss.item(), finite


def _dump(out: Path, step: int, cubes: Tensor, labels: Tensor, say: Say) -> None:
    """The batch of an update that is not finite, as the network saw it, to be looked at."""
    folder = out / NON_FINITE
    folder.mkdir(exist_ok=True)
    save_file({"cubes": cubes.contiguous(), "labels": labels.contiguous()}, folder / f"step{step}.safetensors")
    say(f"step {step} was not finite and is left out; its cubes are in {folder}")


class _Cubes(Dataset[tuple[Tensor, float]]):
    def __init__(self, sampler: CubeSampler, seed: int) -> None:
        self.sampler, self.seed = sampler, seed

    def __getitem__(self, number: int) -> tuple[Tensor, float]:
        return self.sampler.sample(self.seed, number)


def _batches(sampler: CubeSampler, settings: RefineSettings, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """From step `first` on."""
    numbers = range(first * settings.batch, settings.steps * settings.batch)
    cubes = _Cubes(sampler, settings.seed)
    for x, labels in DataLoader(cubes, settings.batch, sampler=numbers, num_workers=settings.workers):
        yield x, labels.float()


def _progress(settings: RefineSettings, step: int, used_s: float) -> float:
    by_time = used_s / (60 * settings.minutes) if settings.minutes else 0.0
    return max(step / settings.steps, by_time)


def _set_rate(optimizer: torch.optim.Optimizer, settings: RefineSettings, step: int, progress: float) -> None:
    """Linear warm-up, then half a cosine."""
    warm = min(1.0, (step + 1) / settings.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * warm * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)


def save(
    out: Path,
    settings: RefineSettings,
    model: nn.Module,
    averaged: Averaged,
    optimizer: torch.optim.Optimizer,
    step: int,
    used_s: float,
) -> None:
    """Written aside, flushed and renamed: a kill leaves the last good one."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"{AVERAGED}{name}": value for name, value in averaged.state.items()}
    for name, parameter in model.named_parameters():
        tensors |= {f"{m}.{name}": optimizer.state[parameter][m] for m in MOMENTS if optimizer.state[parameter]}
    state = {"step": step, "used_s": used_s, "settings": settings.model_dump(mode="json")}
    aside = out / (LAST + ".part")
    packed = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(packed, aside, metadata={"state": json.dumps(state)})
    with aside.open("rb") as written:
        os.fsync(written.fileno())
    aside.replace(out / LAST)


def load(
    out: Path, settings: RefineSettings, model: nn.Module, averaged: Averaged, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """(steps done, seconds used); (0, 0.0) where there is no checkpoint. Raises DataProblem on another run's."""
    if not (out / LAST).exists():
        return 0, 0.0
    try:
        with safe_open(out / LAST, framework="pt") as stored:
            state = json.loads((stored.metadata() or {})["state"])
        tensors = load_file(out / LAST)
    except (OSError, KeyError, ValueError, SafetensorError) as err:
        raise DataProblem(f"{out / LAST} is no checkpoint that can be read ({err}): remove it to start anew") from err
    # A run may be given more time than it had; all else must be as it was.
    if _but_time(state["settings"]) != _but_time(settings.model_dump(mode="json")):
        raise DataProblem(f"{out / LAST} was made with other settings: use another folder, or those settings")
    try:
        model.load_state_dict({n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")})
    except RuntimeError as err:
        raise DataProblem(f"{out / LAST} is of a network of another shape: use another folder") from err
    for name, value in averaged.state.items():
        value.copy_(tensors[f"{AVERAGED}{name}"])
    for name, parameter in model.named_parameters():
        if f"{MOMENTS[0]}.{name}" in tensors:
            moments = {m: tensors[f"{m}.{name}"].to(parameter.device) for m in MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(state["step"])), **moments}
    return int(state["step"]), float(state["used_s"])


def _but_time(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in ("minutes", "workers")}


def folded(state: Mapping[str, Tensor], spec: RefinementSpec) -> dict[str, Tensor]:
    """Weights of `build(spec)` -> those of the same network without norms, as a bundle holds it."""
    model = build(spec)
    model.load_state_dict({name: value.cpu() for name, value in state.items()})
    weights = {name: value for name, value in model.state_dict().items() if name in Refiner(spec).state_dict()}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Sequential) and isinstance(layer[-1], nn.BatchNorm3d):
            plain = nn.utils.fuse_conv_bn_eval(cast(nn.Conv3d, layer[0]).eval(), layer[-1].eval())
            weights |= {f"{name}.0.{part}": value for part, value in plain.state_dict().items()}
    return {name: value.detach().float().contiguous() for name, value in weights.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Validation candidates as both networks scored them. nodule: index over all scans, -1 for a false candidate."""

    first: NDArray[np.float64]
    logit: NDArray[np.float64]
    nodule: NDArray[np.int64]
    nodules: int
    scans: int


def looked_at(
    weights: Mapping[str, Tensor],
    spec: RefinementSpec,
    prep: PreprocessSpec,
    scans: Sequence[PreparedScan],
    mined: Mapping[str, Sequence[MinedCandidate]],
) -> Seen:
    """What the detector would hand to the network: above the floor, at most so many a scan; ignored ones left out."""
    model = Refiner(spec).eval()
    model.load_state_dict(dict(weights))
    first: list[float] = []
    logits: list[float] = []
    nodule: list[int] = []
    known = 0
    for scan in scans:
        best = [c for c in mined[scan.form.uid] if c.score >= spec.floor][: spec.most]
        kept = [c for c in best if c.kind != "ignored"]
        numbers = {n.number: known + i for i, n in enumerate(scan.form.nodules)}
        first += [c.score for c in kept]
        nodule += [-1 if c.nodule is None else numbers[c.nodule] for c in kept]
        centers = scan.to_index(np.array([c.center_mm for c in kept]).reshape(-1, 3))
        hu = scan.hu()
        with torch.inference_mode():
            for start in range(0, len(kept), CUBES_AT_ONCE):
                cubes = cut_cubes(hu, centers[start : start + CUBES_AT_ONCE], spec.cube, prep)
                logits += model(windowed(cubes, prep)).tolist()
        known += len(numbers)
    return Seen(
        first=np.array(first), logit=np.array(logits), nodule=np.array(nodule, dtype=np.int64), nodules=known,
        scans=len(scans),
    )  # fmt: skip


def together(parts: Sequence[Seen]) -> Seen:
    """Their candidates in one list; each part's nodules are its own."""
    offsets = np.cumsum([0] + [part.nodules for part in parts])
    shifted = [np.where(p.nodule >= 0, p.nodule + offset, -1) for p, offset in zip(parts, offsets[:-1], strict=True)]
    return Seen(
        first=np.concatenate([part.first for part in parts]),
        logit=np.concatenate([part.logit for part in parts]),
        nodule=np.concatenate(shifted),
        nodules=sum(part.nodules for part in parts),
        scans=sum(part.scans for part in parts),
    )


def choose_weight(seen: Seen) -> tuple[float, dict[str, Any]]:
    """(weight, figures without and with the cubes). Of the weights whose mean sensitivity is not clearly below the
    best, the one nearest to an equal say: both networks err, and in other lungs not where they err in these.
    """
    means = {w: float(np.mean(list(sensitivities(seen, _scores(seen, w)).values()))) for w in WEIGHT_CHOICES}
    best = max(means.values())
    weight = min((w for w in means if means[w] >= best - UNCLEAR), key=lambda w: (abs(w - 0.5), -means[w]))
    hits = seen.nodule >= 0
    return weight, {
        "scans": seen.scans,
        "nodules": seen.nodules,
        "nodules_among_candidates": len(np.unique(seen.nodule[hits])),
        "false_candidates": int((~hits).sum()),
        "area_under_roc": {
            "slices": auc(seen.first, hits), "cubes": auc(seen.logit, hits), "both": auc(_scores(seen, weight), hits),
        },
        "sensitivity_slices": sensitivities(seen, seen.first),
        "sensitivity_both": sensitivities(seen, _scores(seen, weight)),
        "mean_sensitivity_by_weight": means,
    }  # fmt: skip


def _scores(seen: Seen, weight: float) -> NDArray[np.float64]:
    return np.array([fused(s, v, weight) for s, v in zip(seen.first, seen.logit, strict=True)])


def sensitivities(seen: Seen, scores: NDArray[np.float64]) -> dict[float, float]:
    """Nodules found, of all, at each rate of false candidates a scan: the highest threshold that keeps within it."""
    false = np.sort(scores[seen.nodule < 0])[::-1]
    found = {}
    for rate in RATES:
        allowed = math.floor(rate * seen.scans)
        above = false[allowed] if allowed < len(false) else -math.inf
        hit = seen.nodule[(seen.nodule >= 0) & (scores > above)]
        found[rate] = len(np.unique(hit)) / max(seen.nodules, 1)
    return found


def auc(scores: NDArray[np.float64], hits: NDArray[np.bool_]) -> float | None:
    """Chance that a hit scores higher than a false candidate; ties count half. None where either is missing."""
    low = np.sort(scores[~hits])
    if not len(low) or not hits.any():
        return None
    below, upto = (np.searchsorted(low, scores[hits], side=side) for side in ("left", "right"))
    return float((below + upto).mean() / (2 * len(low)))


def as_trained(run: Path, spec: RefinementSpec) -> Refiner:
    """The averaged network of a run's checkpoint as it was trained, norms and all, in eval mode. Raises DataProblem."""
    try:
        tensors = load_file(run / LAST)
        model = build(spec)
        model.load_state_dict({n.removeprefix(AVERAGED): v for n, v in tensors.items() if n.startswith(AVERAGED)})
    except (OSError, RuntimeError, SafetensorError) as err:
        raise DataProblem(f"{run / LAST} does not hold the network of this run ({err}): run it to its end") from err
    return model.eval()


def read_refinement(run: Path) -> tuple[RefinementSpec, dict[str, Tensor]]:
    """(spec, weights under their names in a bundle) of a run that ended. Raises DataProblem."""
    try:
        summary = json.loads((run / SUMMARY).read_text())
        spec = RefinementSpec.model_validate_json(json.dumps(summary["refinement"]))
        weights = load_file(run / WEIGHTS)
    except (OSError, ValueError, KeyError, SafetensorError) as err:
        raise DataProblem(f"{run} holds no refinement that can be read ({err}): run it to its end first") from err
    return spec, {REFINEMENT + name: value for name, value in weights.items()}
