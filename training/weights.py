"""Where a network's first weights come from: chance, ImageNet through torchvision, or a model bundle."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from dicom_node.errors import ConfigError
from dicom_node.model.bundle import load_bundle
from training.recipe import InitialWeights, Recipe

TRUNK = "backbone.body."
COUNTER = "num_batches_tracked"


def load_initial(model: nn.Module, recipe: Recipe) -> None:
    """Fills the model. Raises ConfigError or BundleError saying what to fetch, or what does not fit."""
    start = recipe.initial_weights
    if start.source == "imagenet":
        _fill(model, {TRUNK + name: value for name, value in _imagenet(recipe).items()}, part=TRUNK)
    elif start.source == "bundle":
        _fill(model, load_bundle(Path(start.path or "")).weights, part="")


def _fill(model: nn.Module, weights: dict[str, Tensor], part: str) -> None:
    """Everything of the model below `part` must be there in its shape; what the model does not have is left."""
    own = {n: v for n, v in model.state_dict().items() if n.startswith(part) and not n.endswith(COUNTER)}
    wrong = sorted(n for n, v in own.items() if n not in weights or weights[n].shape != v.shape)
    if wrong:
        raise ConfigError(f"initial_weights: {len(wrong)} tensors do not fit the recipe's network, like {wrong[0]}")
    model.load_state_dict({n: weights[n] for n in own}, strict=False)


def _imagenet(recipe: Recipe) -> dict[str, Tensor]:
    """The trunk's weights by torchvision's names, without its classifier."""
    from torchvision.models import get_model_weights

    start, backbone = recipe.initial_weights, recipe.network.backbone
    published = get_model_weights(backbone).DEFAULT
    if start.path is not None:
        state = _checked_file(Path(start.path), start)
    else:
        _check_fetched(Path(published.url).name)
        try:
            state = published.get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError, RuntimeError) as err:
            raise ConfigError(
                f"ImageNet weights of {backbone} can't be fetched ({err}). Fetch {Path(published.url).name} on another "
                f"machine and name it in the recipe: initial_weights: {{source: imagenet, path: FILE, sha256: ...}}"
            ) from err
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def _check_fetched(name: str) -> None:
    """torchvision trusts a file that is there already; its name carries the first eight digits of its sha256."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.exists():
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if not found.startswith(path.stem.rsplit("-", 1)[-1]):
            raise ConfigError(f"{path} was cut short or altered (sha256 {found[:12]}...): remove it, and start again")


def _checked_file(path: Path, start: InitialWeights) -> dict[str, Any]:
    try:
        stored = path.read_bytes()
    except OSError as err:
        raise ConfigError(f"initial_weights.path {path} can't be read: {err.strerror}") from err
    found = hashlib.sha256(stored).hexdigest()
    if found != start.sha256:
        raise ConfigError(f"initial_weights.path {path}: sha256 is {found}, the recipe says {start.sha256}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load

        return dict(load(stored))
    # torchvision publishes .pth files only; weights_only reads tensors and refuses code.
    return dict(torch.load(path, map_location="cpu", weights_only=True))
