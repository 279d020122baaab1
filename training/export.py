"""A run's checkpoint, a refinement and figures -> a model bundle with its card.

All numbers come from the recipe in the checkpoint. Figures are taken only if they are of these very weights and
numbers, at the operating point that the bundle gets.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from dicom_node.errors import ConfigError
from dicom_node.model.bundle import CARD, Bundle, write_bundle
from dicom_node.model.network import build_network
from training.card import RANDOM_IMAGES, card
from training.cases import DataProblem
from training.checkpoint import exported_weights
from training.evaluation.marks import behaviour
from training.evaluation.report import read_figures
from training.provenance import Provenance, counted, read_provenance, refinement_facts, write_provenance
from training.recipe import Recipe
from training.refine import as_trained, read_refinement

NODULE = {"name": "nodule", "code_value": "27925004", "coding_scheme": "SCT", "code_meaning": "Nodule"}
UNSTATED = "not stated"
DEFAULT_POINT = 0.5  # until an evaluation has chosen one
PARITY_SEED = 7
PARITY = 1e-4

OF_ONE_SCAN = frozenset(
    {"operating_point", "false_positives_per_scan", "recall", "dice", "volume_error", "diameter_error", "seconds"}
)


def run_export(
    run: Path,
    out: Path,
    *,
    figures: Sequence[Path] = (),
    refinement: Path | None = None,
    version: str | None = None,
    operating_point: float | None = None,
    licence: str = UNSTATED,
    half: bool = False,
) -> Bundle:
    """`python -m training export`. figures: files that `evaluate` wrote. Raises DataProblem, ConfigError."""
    return export(
        run, out, figures=[read_figures(path) for path in figures], refinement=refinement, version=version,
        operating_point=operating_point, licence=licence, half=half,
    )  # fmt: skip


def export(
    run: Path,
    out: Path,
    *,
    figures: Sequence[Mapping[str, Any]] = (),
    refinement: Path | None = None,
    version: str | None = None,
    operating_point: float | None = None,
    licence: str = UNSTATED,
    half: bool = False,
) -> Bundle:
    """Writes the bundle of a run's checkpoint. version: default is the recipe's.

    operating_point: default is the figures' own. half: float16 matrices, half the size; the bundle's answers then
    differ a little from the trainer's, and a figure says by how much. Raises DataProblem, ConfigError.
    """
    state, weights = exported_weights(run)
    recipe = Recipe.model_validate_json(json.dumps(state["recipe"]))
    facts = _facts(read_provenance(run), state["step"], refinement)
    description = _description(recipe, facts, version, _point(figures, operating_point), licence)
    if refinement is not None:
        spec, more = read_refinement(refinement)
        description["refinement"] = spec.model_dump(mode="json")
        weights = weights | more
    out.parent.mkdir(parents=True, exist_ok=True)
    # Tried beside: what is refused must not take the place of a bundle that is there.
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as aside:
        bundle = write_bundle(Path(aside), description, weights, "", half=half)
        for one in figures:
            _belong(one, bundle)
        same = list(_parity_rows(run, refinement, bundle))
    if not half and (worst := max(row["value"] for row in same)) > PARITY:
        raise DataProblem(f"the bundle's answers differ from the trainer's by {worst:.1e}: it is not written")
    description["metrics"] = [row for one in figures for row in metrics_of(one)] + same
    bundle = write_bundle(out, description, weights, "", half=half)
    write_provenance(out, facts)
    (out / CARD).write_text(card(bundle))
    return bundle


def metrics_of(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An evaluation's figures as bundle.json's metrics. Single stages of the time stay in the report, and so do the
    curves and averages of a single scan, which say no more than what was found in it."""
    rows = [row for row in figures["figures"] if not row["key"].startswith("seconds_")]
    rows = [row for row in rows if row["scans"] > 1 or row["key"] in OF_ONE_SCAN]
    return [
        {
            "name": row["name"] + (f" ({row['unit']})" if row["unit"] else ""),
            "value": row["value"],
            "low": row["low"],
            "high": row["high"],
            "definition": row["definition"],
            "data": f"{row['data']}; {counted(row['scans'], 'scan')}, {counted(row['nodules'], 'nodule')}",
            "command": row["command"],
        }
        for row in rows
    ]


def check_origin(bundle: Bundle, run: Path, refinement: Path | None) -> None:
    """Raises DataProblem where a bundle does not hold the weights of a run, and of a refinement's run."""
    weights = exported_weights(run)[1]
    if bundle.form.refinement is not None:
        if refinement is None:
            raise DataProblem(f"bundle {bundle.folder} has a second stage: say with --refinement which run made it")
        weights |= read_refinement(refinement)[1]
    own = bundle.weights
    stored = {n: v.half().float() if v.ndim > 1 and _is_half(own[n]) else v for n, v in weights.items() if n in own}
    if own.keys() != weights.keys() or not all(torch.equal(own[n], stored[n]) for n in own):
        raise DataProblem(f"bundle {bundle.folder} does not hold the weights of {run}: give the run that it came from")


def _is_half(values: Tensor) -> bool:
    """Whether a bundle stored them as float16."""
    return torch.equal(values, values.half().float())


def parity(run: Path, bundle: Bundle) -> float:
    """The greatest difference between the trainer's probabilities and the bundle's, on one input and the same boxes."""
    state, weights = exported_weights(run)
    recipe = Recipe.model_validate_json(json.dumps(state["recipe"]))
    trained = build_network(recipe.network, recipe.preprocessing)
    trained.load_state_dict(weights)
    rng = torch.Generator().manual_seed(PARITY_SEED)
    images = torch.rand(2, len(recipe.preprocessing.slice_offsets), 128, 128, generator=rng)
    middle = 24 + 80 * torch.rand(16, 2, generator=rng)
    half_width = 3 + 12 * torch.rand(16, 1, generator=rng)
    boxes = torch.cat([middle - half_width, middle + half_width], dim=1)
    pairs = zip(*(probabilities(model.eval(), images, boxes) for model in (trained, bundle.network())), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def refinement_parity(refinement: Path, bundle: Bundle) -> float:
    """Of the second stage's answers before the sigmoid, to the same cubes: its norms a bundle holds folded into the
    convolutions. Raises DataProblem."""
    spec, _ = read_refinement(refinement)
    trained, stored = as_trained(refinement, spec), bundle.refiner()
    if stored is None:
        raise DataProblem(f"bundle {bundle.folder} has no second stage to hold against {refinement}")
    cubes = torch.rand(16, 1, spec.cube, spec.cube, spec.cube, generator=torch.Generator().manual_seed(PARITY_SEED))
    with torch.inference_mode():
        return float((trained(cubes) - stored(cubes)).abs().max())


def probabilities(model: nn.Module, images: Tensor, boxes: Tensor) -> list[Tensor]:
    """What each of the network's heads says, without choosing among it: (n, channels, H, W), (k, 4) in model pixels.

    Of each anchor, each box on each image, and each of their masks' pixels.
    """
    net: Any = model  # torchvision ships no types
    with torch.inference_mode():
        inputs, _ = net.transform(list(images))
        maps = net.backbone(inputs.tensors)
        anchors, _ = net.rpn.head(list(maps.values()))
        heads, on, sizes = net.roi_heads, [boxes] * len(images), inputs.image_sizes
        classes, _ = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, on, sizes)))
        masks = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(maps, on, sizes)))
    return [*(level.sigmoid() for level in anchors), classes.softmax(dim=1), masks.sigmoid()]


def _facts(facts: Provenance, steps: int, refinement: Path | None) -> Provenance:
    """What goes out with a bundle: no patient, no scan."""
    made = refinement_facts(refinement) if refinement else None
    return facts.model_copy(update={"scans": (), "patients": (), "steps": steps, "refinement": made})


def _point(figures: Sequence[Mapping[str, Any]], wanted: float | None) -> float:
    """Raises ConfigError where figures were made at another operating point than the bundle is to have."""
    points = {float(one["operating_point"]["score"]) for one in figures}
    if wanted is None and len(points) < 2:
        return next(iter(points), DEFAULT_POINT)
    if wanted is None or points - {wanted}:
        listed = ", ".join(f"{point:g}" for point in sorted(points))
        raise ConfigError(
            f"the figures were made at operating point {listed}, the bundle "
            f"{'can have one only' if wanted is None else f'is to have {wanted:g}'}: evaluate again at one point"
        )
    return wanted


def _description(
    recipe: Recipe, facts: Provenance, version: str | None, operating_point: float, licence: str
) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "version": version or recipe.version,
        "network": recipe.network.model_dump(mode="json"),
        "preprocessing": recipe.preprocessing.model_dump(mode="json"),
        "merging": recipe.merging.model_dump(mode="json"),
        "thresholds": {"proposal_score": recipe.proposal_score, "operating_point": operating_point},
        "classes": [NODULE],
        "training_data": facts.told(),
        "metrics": [],
        "licence": licence,
    }


def _belong(figures: Mapping[str, Any], bundle: Bundle) -> None:
    if figures["bundle"]["behaviour"] != behaviour(bundle.form):
        raise DataProblem(
            "the figures are of other weights or numbers than this run's: export without figures, evaluate that "
            "bundle, then export with its figures"
        )


def _parity_rows(run: Path, refinement: Path | None, bundle: Bundle) -> Iterator[dict[str, Any]]:
    same = {"data": RANDOM_IMAGES, "command": "python -m training export"}
    yield {
        "name": "difference to the trainer's output",
        "value": parity(run, bundle),
        "definition": "greatest difference of any probability of the network's heads on the same input and boxes",
        **same,
    }
    if refinement is not None:
        yield {
            "name": "difference to the trainer's output, second stage",
            "value": refinement_parity(refinement, bundle),
            "definition": "greatest difference of the 3D network's answers, before the sigmoid, to the same cubes",
            **same,
        }
