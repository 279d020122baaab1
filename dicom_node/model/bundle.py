"""A model bundle on disk <-> checked objects. A folder with weights.safetensors, bundle.json and MODEL_CARD.md.

Nothing in it can run code. What does not match its own description is refused before a network is built.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dicom_node.domain import ModelIdentity
from dicom_node.errors import BundleError
from dicom_node.model.network import build_network
from dicom_node.model.refine import Refiner
from dicom_node.model.spec import Fraction, MergeSpec, NetworkSpec, PreprocessSpec, RefinementSpec, Spec

FORM = 1
REFINEMENT = "refinement."  # the second network's weights lie beside the first one's under this prefix
CUBE_MM = (32.0, 48.0)
WEIGHTS, FORM_FILE, CARD = "weights.safetensors", "bundle.json", "MODEL_CARD.md"


class Thresholds(Spec):
    """proposal_score: what a slice detection needs. operating_point: what a finding needs to be reported."""

    proposal_score: Fraction
    operating_point: Fraction


class ClassCode(Spec):
    """A class of the network and the coded concept a DICOM object names it with."""

    name: str
    code_value: str
    coding_scheme: str
    code_meaning: str


class Metric(Spec):
    """A figure, with what it is, on which data, and the command that gave it. low, high: its interval, if any."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    definition: str
    data: str
    command: str


class BundleForm(Spec):
    """bundle.json. refinement: None in bundles without a second network, and in those written before there was one."""

    form: int = Field(ge=FORM, le=FORM)
    name: str = Field(pattern=r"^[a-z0-9_]+$")
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    network: NetworkSpec
    preprocessing: PreprocessSpec
    merging: MergeSpec
    refinement: RefinementSpec | None = None
    thresholds: Thresholds
    classes: tuple[ClassCode, ...] = Field(min_length=1)
    training_data: str
    metrics: tuple[Metric, ...]
    licence: str
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _cube_holds_a_nodule(self) -> BundleForm:
        if self.refinement and not CUBE_MM[0] <= self.refinement.cube * self.preprocessing.spacing_mm <= CUBE_MM[1]:
            raise ValueError(f"refinement.cube must be {CUBE_MM[0]:.0f} to {CUBE_MM[1]:.0f} mm long")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle whose weights fit its network. weights: float32, by name."""

    folder: Path
    form: BundleForm
    weights: dict[str, Tensor]
    sha256: str

    @property
    def identity(self) -> ModelIdentity:
        return ModelIdentity(
            name=self.form.name,
            version=self.form.version,
            bundle_sha256=self.sha256,
            operating_point=self.form.thresholds.operating_point,
            parameters=parameters_of(self.form),
        )

    def network(self) -> nn.Module:
        """The network with its weights, in eval mode."""
        model = build_network(
            self.form.network, self.form.preprocessing, score_threshold=self.form.thresholds.proposal_score
        )
        model.load_state_dict({n: v for n, v in self.weights.items() if not n.startswith(REFINEMENT)})
        return model.eval()

    def refiner(self) -> Refiner | None:
        """The second network with its weights, in eval mode; None where the bundle has none."""
        if self.form.refinement is None:
            return None
        model = Refiner(self.form.refinement)
        model.load_state_dict(
            {n.removeprefix(REFINEMENT): v for n, v in self.weights.items() if n.startswith(REFINEMENT)}
        )
        return model.eval()


def default_bundle() -> Path:
    """The folder of the bundle that comes with the package."""
    return Path(str(resources.files("dicom_node") / "data" / "models" / "lung_nodule_small"))


def load_bundle(folder: Path) -> Bundle:
    """Raises BundleError: missing, altered, truncated, of another form, or not what its network needs."""
    if not folder.is_dir():
        raise BundleError(f"model bundle {folder}: no such folder")
    text, stored = _read(folder, FORM_FILE), _read(folder, WEIGHTS)
    _read(folder, CARD)
    form = parse_form(text, folder)
    found = hashlib.sha256(stored).hexdigest()
    if found != form.weights_sha256:
        raise BundleError(
            f"model bundle {folder}: {WEIGHTS} was altered or cut short "
            f"({len(stored)} bytes, sha256 {found[:12]}..., {FORM_FILE} says {form.weights_sha256[:12]}...)"
        )
    try:
        weights = {name: value.float() for name, value in load(stored).items()}
    except SafetensorError as err:
        raise BundleError(f"model bundle {folder}: {WEIGHTS} is not a safetensors file: {err}") from err
    check_weights(form, weights, folder)
    return Bundle(folder=folder, form=form, weights=weights, sha256=hashlib.sha256(text + stored).hexdigest())


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as err:
        raise BundleError(f"model bundle {folder}: {name} can't be read ({err.strerror})") from err


def parse_form(text: bytes, folder: Path) -> BundleForm:
    """bundle.json's text -> its form. Raises BundleError naming the place."""
    try:
        raw = json.loads(text)
    except ValueError as err:
        raise BundleError(f"model bundle {folder}: {FORM_FILE} is not JSON: {err}") from err
    version = raw.get("form") if isinstance(raw, dict) else None
    if version != FORM:
        raise BundleError(f"model bundle {folder}: form {version!r} is unknown; this version reads form {FORM}")
    try:
        return BundleForm.model_validate_json(text)
    except ValidationError as err:
        first = err.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"model bundle {folder}: {FORM_FILE} at {place}: {first['msg']}") from err


def check_weights(form: BundleForm, weights: dict[str, Tensor], folder: Path) -> None:
    """Raises BundleError unless names and shapes are exactly those of the networks described."""
    with torch.device("meta"):
        wanted = dict(build_network(form.network, form.preprocessing).state_dict())
        if form.refinement:
            wanted |= {REFINEMENT + name: value for name, value in Refiner(form.refinement).state_dict().items()}
    problems = [f"{name} is missing" for name in wanted.keys() - weights.keys()]
    problems += [f"{name} is not part of the network" for name in weights.keys() - wanted.keys()]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, the network needs {tuple(wanted[name].shape)}"
        for name in wanted.keys() & weights.keys()
        if wanted[name].shape != weights[name].shape
    ]
    problems += [f"{name} is not finite" for name, value in weights.items() if not value.isfinite().all()]
    if problems:
        raise BundleError(f"model bundle {folder}: {sorted(problems)[0]} ({len(problems)} such)")


def write_bundle(
    folder: Path, description: dict[str, Any], weights: dict[str, Tensor], card: str, *, half: bool = True
) -> Bundle:
    """Writes and reads back. description: bundle.json without `form` and `weights_sha256`.

    half: matrices are stored as float16, vectors (biases, norms) as float32; else all as float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    packed = {n: (v.half() if half and v.ndim > 1 else v.float()).contiguous() for n, v in weights.items()}
    stored = save(packed)
    raw = {"form": FORM, **description, "weights_sha256": hashlib.sha256(stored).hexdigest()}
    form = BundleForm.model_validate_json(json.dumps(raw))
    (folder / WEIGHTS).write_bytes(stored)
    (folder / FORM_FILE).write_text(json.dumps(form.model_dump(mode="json"), indent=2) + "\n")
    (folder / CARD).write_text(card)
    return load_bundle(folder)


def parameters_of(form: BundleForm) -> dict[str, Any]:
    """The numbers that shaped a result, flat: what a report can print."""
    parts: dict[str, Spec] = {
        "thresholds": form.thresholds,
        "merging": form.merging,
        "preprocessing": form.preprocessing,
    }
    if form.refinement:
        parts["refinement"] = form.refinement
    return {
        f"{part}.{key}": value for part, spec in parts.items() for key, value in spec.model_dump(mode="json").items()
    }
