"""Volume in, Detection out: lungs -> 1 mm grid -> network, a few slices at a time -> candidates -> Findings.

A bundle with a refinement has a second network, which looks at a cube round each candidate and has its say in
the candidate's score before the operating point is applied.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dicom_node.domain import Detection, Finding, LungDistance, ModelIdentity, Volume
from dicom_node.errors import ConfigError
from dicom_node.model.bundle import Bundle, load_bundle
from dicom_node.model.findings import Candidate, SliceDetections, best_first, link, mask_on, score, suppress, trim
from dicom_node.model.lungs import Lungs, find_lungs
from dicom_node.model.preprocess import extent_mm, network_input, resample, slice_stacks, windowed
from dicom_node.model.refine import cut_cubes, fused

Progress = Callable[[float], None]
Extent = NDArray[np.float64]  # (2, 3): lowest and highest x, y, z in mm
Scored = list[tuple[Candidate, float]]
BATCH = {"cpu": 4, "cuda": 16}
CUBES = {"cpu": 8, "cuda": 64}
LUNGS_DONE, RESAMPLED, NETWORK_DONE, REFINED = 0.04, 0.06, 0.97, 0.99


class Detector:
    """A bundle on a device. Not thread-safe: one `detect` at a time."""

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        self._device = checked_device(device)
        self._form = bundle.form
        network = bundle.network().to(self._device)
        self._network: nn.Module = network.to(memory_format=torch.channels_last)
        refiner = bundle.refiner()
        self._refiner = refiner and refiner.to(self._device).to(memory_format=torch.channels_last_3d)
        self.identity: ModelIdentity = bundle.identity

    @classmethod
    def load(cls, bundle_dir: Path, device: str = "cpu") -> Detector:
        """Raises BundleError (the bundle), ConfigError (the device is not here)."""
        return cls(load_bundle(bundle_dir), device)

    def detect(self, volume: Volume, *, progress: Progress | None = None) -> Detection:
        """Findings at or above the operating point, best first. The same volume gives the same bits.

        progress: called with a rising part of 1; what it raises stops the work and passes through.
        Raises SeriesRejected(NO_LUNG).
        """
        report = progress or (lambda part: None)
        report(0.0)
        watch = _Watch()
        prep = self._form.preprocessing
        lungs = find_lungs(volume, prep.air_hu)
        watch.lap("lung")
        report(LUNGS_DONE)
        within = _within(lungs.box_mm(prep.crop_margin_mm), volume)
        grid = resample(volume, prep.spacing_mm, prep.air_hu, within)
        watch.lap("resample")
        report(RESAMPLED)
        slices = self.look(grid, report)
        watch.lap("network")
        scored = self.candidates(slices)
        watch.lap("link")
        if self._refiner:
            scored = self.refine(grid, scored, report)
            watch.lap("refine")
        findings = self.place(self.chosen(scored), volume, grid, lungs)
        watch.lap("link")
        report(1.0)
        return Detection(
            findings=tuple(findings),
            analysed=_source_slices(volume, within),
            model=self.identity,
            timings_s=watch.laps,
            lungs=LungDistance(distance_mm=lungs.distance_mm, affine=lungs.grid.affine, margin_mm=prep.lung_margin_mm),
        )

    def look(self, grid: Volume, report: Progress) -> list[SliceDetections]:
        """The network over the grid's slices; memory does not grow with their number."""
        prep = self._form.preprocessing
        voxels = torch.from_numpy(grid.hu).to(self._device)
        centers = list(range(0, len(voxels), prep.slice_step))
        size = BATCH[self._device.type]
        found: list[SliceDetections] = []
        with torch.inference_mode():
            for start in range(0, len(centers), size):
                batch = centers[start : start + size]
                answers = self._network(list(network_input(slice_stacks(voxels, batch, prep), prep)))
                found += [_on_grid(k, a, prep.upsampling) for k, a in zip(batch, answers, strict=True)]
                done = (start + len(batch)) / len(centers)
                report(RESAMPLED + (NETWORK_DONE - RESAMPLED) * done)
        return found

    def candidates(self, slices: list[SliceDetections]) -> Scored:
        """All that the slices hold, whatever its score, in no particular order."""
        prep, spec = self._form.preprocessing, self._form.merging
        tracks = [trim(c, spec) for c in link(slices, spec, prep.slice_step)]
        return [(c, score(c, spec, prep.spacing_mm, prep.slice_step)) for c in tracks]

    def refine(self, grid: Volume, scored: Scored, report: Progress) -> Scored:
        """The best candidates above the floor, with the second network's opinion in their scores."""
        spec, refiner = self._form.refinement, self._refiner
        if spec is None or refiner is None:
            return scored
        seen = [(c, s) for c, s in scored if s >= spec.floor]
        order = best_first([c for c, _ in seen], [s for _, s in seen])[: spec.most]
        best, size, prep = [seen[i] for i in order], CUBES[self._device.type], self._form.preprocessing
        refined: Scored = []
        with torch.inference_mode():
            for start in range(0, len(best), size):
                batch = best[start : start + size]
                centers = np.array([c.center for c, _ in batch])
                cubes = cut_cubes(grid.hu, centers, spec.cube, prep).to(self._device)
                logits = refiner(windowed(cubes, prep)).float().cpu().numpy()
                refined += [(c, fused(s, float(v), spec.weight)) for (c, s), v in zip(batch, logits, strict=True)]
                report(NETWORK_DONE + (REFINED - NETWORK_DONE) * len(refined) / len(best))
        return refined

    def chosen(self, scored: Scored) -> Scored:
        """Those at or above the operating point, best first, each place once."""
        strong = [(c, s) for c, s in scored if s >= self._form.thresholds.operating_point]
        return suppress([c for c, _ in strong], [s for _, s in strong], self._form.merging)

    def place(self, candidates: Scored, volume: Volume, grid: Volume, lungs: Lungs) -> list[Finding]:
        """Candidates near enough to the lungs, as Findings on the volume's own voxels."""
        findings = []
        for candidate, value in candidates:
            mask, corner = mask_on(
                volume, grid, candidate, self._form.merging.mask_threshold, self._form.preprocessing.slice_step
            )
            center = volume.to_mm(np.argwhere(mask).mean(axis=0) + corner)
            radius = (3 * float(mask.sum()) * volume.voxel_mm3 / (4 * np.pi)) ** (1 / 3)
            if not lungs.within_reach(center, radius, self._form.preprocessing.lung_margin_mm):
                continue
            x, y, z = (float(v) for v in center)
            findings.append(
                Finding(mask=mask, corner=corner, center_mm=(x, y, z), score=value, side=lungs.side_at(center))
            )
        return findings


class _Watch:
    """Seconds from lap to lap; laps of one name add up."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = self.laps.get(name, 0.0) + now - self._last, now


def checked_device(name: str) -> torch.device:
    """cpu, cuda or cuda:N. Raises ConfigError where this machine has no such device."""
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise ConfigError(f"device {name!r} is none that torch knows: use cpu or cuda:0") from err
    if device.type not in BATCH:
        raise ConfigError(f"device {name!r} is not supported: use cpu or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def _within(box_mm: Extent, volume: Volume) -> Extent:
    """The part of a box (2, 3) that the volume covers."""
    low, high = extent_mm(volume)
    return np.stack([np.maximum(box_mm[0], low), np.minimum(box_mm[1], high)])


def _source_slices(volume: Volume, within: Extent) -> tuple[int, int]:
    """Half-open range of the volume's slices that a box (2, 3) in mm touches."""
    corners = np.array(np.meshgrid(*within.T)).reshape(3, -1).T
    index = volume.to_index(corners)[:, 0]
    first, last = int(np.floor(index.min() + 1e-6)), int(np.ceil(index.max() - 1e-6))
    return max(0, first), min(len(volume.hu), last + 1)


def _on_grid(index: int, answer: dict[str, Tensor], upsampling: int) -> SliceDetections:
    return SliceDetections(
        index=index,
        boxes=(answer["boxes"] / upsampling).float().cpu().numpy(),
        scores=answer["scores"].float().cpu().numpy(),
        masks=answer["masks"][:, 0].float().cpu().numpy(),
    )
