"""A recipe (YAML) -> checked numbers of one training run. Each key is used; one that nothing knows is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dicom_node.errors import ConfigError
from dicom_node.forms import parse_form
from dicom_node.model.spec import (
    Count,
    Fraction,
    MergeSpec,
    NetworkSpec,
    Positive,
    PreprocessSpec,
    RefinementSpec,
    Spec,
)

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # a date such as 20260131 is one


class InitialWeights(Spec):
    """Where a run starts. imagenet: the trunk alone, from torchvision; bundle: every weight of a model bundle.

    path: a bundle's folder, or the downloaded ImageNet file for a machine without a network.
    sha256: of that file; torchvision does not check a file that is already there.
    """

    source: Literal["random", "imagenet", "bundle"] = "random"
    path: str | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _complete(self) -> InitialWeights:
        if self.source == "bundle" and self.path is None:
            raise ValueError("source bundle needs a path: the bundle's folder")
        if self.source == "random" and self.path is not None:
            raise ValueError("source random reads no path")
        if self.source != "imagenet" and self.sha256 is not None:
            raise ValueError(f"source {self.source} reads no sha256")
        if self.source == "imagenet" and (self.path is None) != (self.sha256 is None):
            raise ValueError("a file of ImageNet weights needs both path and sha256")
        return self


class Sampling(Spec):
    """Which slices the network sees.

    crop_mm: side of the square crop on the grid. positive_share: crops centred near a nodule; hard_share: of the
    others, those at places known to be hard (false candidates of an earlier model, excluded findings).
    large_mm, large_weight: nodules wider than this are drawn that much more often: they are rare and matter most.
    least_width_mm: a slice that shows less of a nodule than this is ignored, neither nodule nor background.
    """

    crop_mm: Annotated[int, Field(ge=32, multiple_of=16)]
    positive_share: Fraction = 0.5
    hard_share: Fraction = 0.5
    large_mm: Positive = 10.0
    large_weight: Annotated[float, Field(ge=1)] = 2.5
    least_width_mm: Positive = 3.0


class Augmentation(Spec):
    """3D geometry, drawn before a slice is cut, and CT intensity.

    exact_share: samples that are only flipped and turned by quarters, so that no voxel is interpolated and the
    network sees the texture that it will see at work. tilt_deg: off the axial plane; turn_deg: within it.
    zoom: factors. offset_hu: standard deviation of a shift; noise_hu: highest standard deviation of added noise;
    soften_share, contrast_share: samples blurred a little, samples whose soft tissue is stretched as by a
    contrast medium.
    """

    exact_share: Fraction = 0.3
    tilt_deg: Annotated[float, Field(ge=0, le=45)] = 10.0
    turn_deg: Annotated[float, Field(ge=0, le=180)] = 180.0
    zoom: tuple[Positive, Positive] = (0.85, 1.2)
    flips: bool = True
    offset_hu: NotNegative = 12.0
    noise_hu: NotNegative = 30.0
    noise_share: Fraction = 0.5
    soften_share: Fraction = 0.3
    contrast_share: Fraction = 0.2

    @model_validator(mode="after")
    def _zoom_is_a_range(self) -> Augmentation:
        if self.zoom[0] > self.zoom[1]:
            raise ValueError(f"zoom {self.zoom} is no range")
        return self


class Optimisation(Spec):
    """Momentum SGD with linear warm-up, then half a cosine down to final_share of the learning rate.

    batch: slices of one forward pass in one process; accumulate: passes summed to one update.
    norm: "frozen" keeps the statistics of the initial weights; "batch" learns them.
    ema_decay: of the averaged weights that are exported; 0 exports the last ones.
    non_finite_limit: so many updates in a row that are not finite end the run.
    """

    steps: Count
    batch: Count
    accumulate: Count = 1
    learning_rate: Positive
    momentum: Fraction = 0.9
    weight_decay: NotNegative = 1e-4
    warmup_steps: Count = 150
    final_share: Fraction = 0.01
    clip_norm: Positive = 5.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    norm: Literal["frozen", "batch"] = "frozen"
    non_finite_limit: Count = 5


class CubeSampling(Spec):
    """What a batch is made of.

    positive_share: cubes round labelled nodules and hits; mined_share: round false candidates, the higher their
    score the more often; the rest: round bright structures of the lungs, where no candidate has to be.
    jitter_mm: how far from a nodule's middle its cube may be centred, within 0.8 of its radius.
    """

    positive_share: Fraction = 0.4
    mined_share: Fraction = 0.45
    jitter_mm: NotNegative = 2.0
    augmentation: Augmentation = Augmentation(exact_share=0.5, tilt_deg=25.0, zoom=(0.85, 1.15))


class RefineSettings(Spec):
    """minutes: the run, and its cosine, ends here if `steps` are not reached first; None: steps alone count.

    validation_share: of the mined scans; they choose the weight of the cube's score and give the figures.
    non_finite_limit: so many updates in a row that are not finite end the run.
    workers: processes that cut cubes; the samples are the same whatever their number.
    """

    steps: Count = 8000
    minutes: Positive | None = None
    batch: Count = 16
    learning_rate: Positive = 2e-3
    weight_decay: Positive = 0.01
    warmup_steps: Count = 100
    clip_norm: Positive = 2.0
    ema_decay: Fraction = 0.998
    validation_share: Fraction = 0.2
    save_every: Count = 200
    log_every: Count = 50
    non_finite_limit: Count = 5
    seed: Seed = 1
    workers: Annotated[int, Field(ge=0)] = 0
    sampling: CubeSampling = CubeSampling()


class Refinement(Spec):
    """The second stage: the network that looks at cubes, and how it learns. Its weight in the score is chosen there."""

    network: RefinementSpec = RefinementSpec()
    learning: RefineSettings = RefineSettings()

    @model_validator(mode="after")
    def _weight_is_found(self) -> Refinement:
        # A recipe that was written out holds the default, too.
        if self.network.weight != RefinementSpec().weight:
            raise ValueError("network.weight is not given: the run chooses it")
        return self


class Keeping(Spec):
    """save_every, validate_every: steps between. validation_slices: fixed slices whose loss is watched; 0: none."""

    save_every: Count = 200
    log_every: Count = 20
    validate_every: Count = 500
    validation_slices: Annotated[int, Field(ge=0)] = 32


class Recipe(Spec):
    """One run, from the numbers in the bundle to be to the numbers of the optimizer."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    seed: Seed = 1
    network: NetworkSpec
    preprocessing: PreprocessSpec
    merging: MergeSpec = MergeSpec()
    proposal_score: Fraction = 0.02
    initial_weights: InitialWeights = InitialWeights()
    sampling: Sampling
    augmentation: Augmentation = Augmentation()
    optimisation: Optimisation
    keeping: Keeping = Keeping()
    refinement: Refinement | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.initial_weights.source == "random" and self.optimisation.norm == "frozen":
            raise ValueError("random weights with optimisation.norm frozen: nothing would normalise; use norm: batch")
        if self.optimisation.warmup_steps > self.optimisation.steps:
            raise ValueError("optimisation.warmup_steps is more than optimisation.steps")
        return self


def load_recipe(path: Path) -> Recipe:
    """Raises ConfigError: not there, or each problem with its line."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"recipe {path} can't be read: {err}") from err
    return parse_form(text, str(path), Recipe, needs="name, version, network, preprocessing, sampling, optimisation")
