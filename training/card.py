"""A bundle -> its model card: what a reader must know before trusting it. All of it from the bundle's own files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dicom_node.domain import RESEARCH_USE
from dicom_node.model.bundle import CARD, WEIGHTS, Bundle, BundleForm, Metric, load_bundle
from training.prepare import write_whole
from training.provenance import FACTS, DataPart, Provenance, counted, read_provenance

USE = """Analysing chest CT of adults beside a PACS for research, within the limits below; a baseline to compare another
model with. Not for patients, not for screening, not as a second reader."""
RANDOM_IMAGES = "random images"  # what `export` compares its own output on
BACKBONES = {"resnet18": "ResNet-18", "resnext101_32x8d": "ResNeXt-101 32x8d"}


def run_card(bundle_dir: Path, *, write: bool = False) -> str:
    """`python -m training card`: the card as the bundle's files make it. write: in place of MODEL_CARD.md.

    Raises BundleError, DataProblem.
    """
    text = card(load_bundle(bundle_dir))
    if write:
        write_whole(bundle_dir / CARD, text)
    return text


def card(bundle: Bundle) -> str:
    """Markdown. Bundles from before training.json was written say less. Raises DataProblem."""
    facts = read_provenance(bundle.folder) if (bundle.folder / FACTS).exists() else None
    form = bundle.form
    sections = [
        (f"# {form.name} {form.version}", f"**{RESEARCH_USE}.** No regulatory clearance, no clinical validation."),
        ("## What it is", "\n".join(_what(bundle))),
        ("## Intended use", USE),
        ("## Training data", "\n".join(_data(form, facts))),
        ("## How it was made", "\n".join(_made(form, facts))),
        ("## Figures", "\n".join(_figures(form))),
        ("## Limits", "\n".join(f"- {line}" for line in _limits(form, facts))),
        ("## Licence and sources", "\n".join(_sources(form, facts))),
    ]
    return (
        "\n\n".join(f"{title}\n{body}" if title.startswith("##") else f"{title}\n\n{body}" for title, body in sections)
        + "\n"
    )


def _what(bundle: Bundle) -> Iterator[str]:
    form, prep, network = bundle.form, bundle.form.preprocessing, bundle.form.network
    millions = sum(value.numel() for value in bundle.weights.values()) / 1e6
    size_mb = (bundle.folder / WEIGHTS).stat().st_size / 1e6
    yield (
        f"A 2.5D Mask R-CNN that marks lung nodules in chest CT: {BACKBONES[network.backbone]} with {network.levels} "
        f"feature levels of {network.fpn_channels} channels (FPN), {millions:.1f} million parameters, {size_mb:.1f} MB."
    )
    offsets = ", ".join(f"{offset * prep.spacing_mm:+g}" for offset in prep.slice_offsets if offset)
    yield (
        f"Input: CT at {prep.spacing_mm:g} mm isotropic, HU {prep.hu_window[0]} to {prep.hu_window[1]}, each slice "
        f"with its neighbours at {offsets} mm as channels, upsampled x{prep.upsampling} in plane. Slice detections are "
        "linked to 3D candidates."
    )
    if form.refinement:
        edge = form.refinement.cube * prep.spacing_mm
        yield (
            f"A 3D network looks at a cube of {edge:g} mm round each candidate and has its say in the score "
            f"(weight {form.refinement.weight:g})."
        )
    yield "Every number is in `bundle.json`; the code that applies them is `dicom_node.model`."


def _data(form: BundleForm, facts: Provenance | None) -> Iterator[str]:
    if facts is None:
        yield f"{form.training_data}."
        return
    yield from _part("Learned from", facts.train)
    if facts.validation is None:
        yield "- Watched on: nothing apart."
    else:
        yield from _part("Watched on, not learned from", facts.validation)
    used = {s for part in (facts.train, facts.validation) if part for s in part.subsets}
    if used:
        kept = sorted(set(range(10)) - used)
        yield f"- LUNA16 subsets in no part: {', '.join(map(str, kept)) or 'none'}."
    if facts.left_out:
        what = "scan or file" if facts.left_out == 1 else "scans or files"
        yield f"- {facts.left_out} {what} could not be used: left out."
    if facts.refinement:
        learned = counted(facts.refinement.scans, "composite" if facts.refinement.composites else "scan")
        chosen = f"on {facts.refinement.validation} more"
        if facts.refinement.rehearsals:
            chosen = f"in {facts.refinement.rehearsals} shorter runs, each judged on a lung that it had not seen"
        yield f"- The 3D network learned from candidates of {learned}; its weight in the score was chosen {chosen}."


def _part(title: str, part: DataPart) -> Iterator[str]:
    masks = ", ".join(f"{count} from {source}" for source, count in part.masks.items())
    yield (
        f"- {title}: {counted(part.scans, 'scan')} of {counted(part.patients, 'patient')}, "
        f"{counted(part.nodules, 'nodule')} (masks: {masks or 'none'}), {counted(part.ignored, 'finding')} ignored."
    )
    if part.composites:
        yield (
            f"  **Composites** among them: {part.composites}; real nodules blended into real lungs where they never "
            "were. Their patients are those of the lungs."
        )
    if part.subsets:
        yield f"  LUNA16 subsets: {', '.join(map(str, part.subsets))}."


def _made(form: BundleForm, facts: Provenance | None) -> Iterator[str]:
    if facts is None:
        yield "Not recorded in this bundle."
        return
    recipe = facts.recipe
    plan, initial = recipe.optimisation, recipe.initial_weights
    yield "```"
    yield from facts.commands
    yield "```"
    begun = {
        "random": "random weights",
        "imagenet": "ImageNet's weights (the trunk)",
        "bundle": "an earlier bundle's weights",
    }[initial.source]
    yield (
        f"{facts.steps} of {plan.steps} steps of {plan.batch * plan.accumulate} crops of {recipe.sampling.crop_mm} x "
        f"{recipe.sampling.crop_mm} mm a process, from {begun}. SGD with momentum {plan.momentum:g}, weight decay "
        f"{plan.weight_decay:g}, learning rate {plan.learning_rate:g} after {plan.warmup_steps} steps of warm-up, then "
        f"half a cosine; normalisation {plan.norm}; exported weights: "
        + (f"average with decay {plan.ema_decay:g}." if plan.ema_decay else "the last ones.")
    )
    if facts.refinement:
        yield f"3D network: {facts.refinement.steps} steps."
    yield f"Machine: {facts.machine}. Seed {recipe.seed}. The whole recipe is in `{FACTS}`."


def _figures(form: BundleForm) -> Iterator[str]:
    if not form.metrics:
        yield "None yet: these weights were not judged."
        return
    if any(metric.data.startswith("composites") for metric in form.metrics):
        yield "Figures on composites are figures on composites: they say nothing of patients.\n"
    yield f"Operating point: score {form.thresholds.operating_point:g}. Intervals are of 95 %, over scans.\n"
    for data, command in dict.fromkeys((metric.data, metric.command) for metric in form.metrics):
        yield f"### {data[0].upper()}{data[1:]}\n"
        yield f"`{command}`\n"
        yield "| figure | value | 95 % interval | definition |"
        yield "| --- | --- | --- | --- |"
        for metric in form.metrics:
            if (metric.data, metric.command) == (data, command):
                yield f"| {metric.name} | {metric.value:.3g} | {_interval(metric)} | {metric.definition} |"
        yield ""


def _interval(metric: Metric) -> str:
    return "" if metric.low is None or metric.high is None else f"{metric.low:.3g} to {metric.high:.3g}"


def _limits(form: BundleForm, facts: Provenance | None) -> Iterator[str]:
    prep = form.preprocessing
    yield "What the training data hold little of was not learned: disease of the whole lung, metal, strong motion."
    if facts is not None:
        if facts.train.composites:
            yield (
                f"The lungs are those of {counted(facts.train.patients, 'patient')}: other anatomy was not seen. "
                "Blended nodules are cleaner than real ones, and seldom lie at hila."
            )
        if facts.recipe.initial_weights.source == "bundle":
            yield "It began with an earlier bundle's weights: what those had learned from is not counted above."
        if spheres := facts.train.masks.get("sphere"):
            yield f"{spheres} nodules had a listed centre and diameter only: their masks were balls."
    if prep.slice_step > 1:
        yield (
            f"Every {prep.slice_step * prep.spacing_mm:g} mm one slice is looked at: the smallest nodules get one or "
            "two."
        )
    data = [metric.data for metric in form.metrics if metric.data != RANDOM_IMAGES]
    if data and all(each.startswith("composites") for each in data):
        yield "Judged on composites alone: no figure here is of real scans."
    if form.refinement is None:
        yield "No 3D network looks at the candidates: vessels that cross the slices at a right angle look like nodules."
    yield "Scores are no probabilities of anything, and compare only within one version of one bundle."


def _sources(form: BundleForm, facts: Provenance | None) -> Iterator[str]:
    yield f"Licence of the weights: {form.licence}."
    if facts is not None:
        yield from (f"- {source}" for source in facts.sources)
