"""Lungs of two CTs -> the affine map that lays one on the other: by translation, then rigid, then affine.

Same images, same map, bit for bit: one thread, every voxel in each step, no random start. Whether the map is one that
two exams of one chest can have is judged in `quality`, not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.grids import simple_itk, to_image
from dicom_node.lungs import Lungs

# Air to soft tissue: bone, contrast medium and metal differ from day to day, lungs and their vessels do not.
WINDOW_HU = (-1000.0, 200.0)
# Chest wall and diaphragm round the lungs hold the shape that vessels alone do not give.
MARGIN_MM = 12.0
COARSE_MM = 8.0
# (voxel, first step) of each pass, mm. A first step that is too long throws an affine map out of its valley.
RIGID_PASSES_MM = ((8.0, 4.0),)
AFFINE_PASSES_MM = ((8.0, 0.5), (4.0, 0.25))
SHORTEST_STEP_MM = 0.01
MOST_STEPS = 80
# Of the smaller lungs: less in common than a quarter of them can't be told from a chance likeness.
LEAST_OVERLAP = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """point -> matrix @ point + shift_mm, between the patient coordinates (LPS mm) of two exams."""

    matrix: NDArray[np.float64]
    shift_mm: NDArray[np.float64]

    def __call__(self, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 3) -> (..., 3)."""
        return points_mm @ self.matrix.T + self.shift_mm

    def inverse(self) -> Affine:
        matrix = np.linalg.inv(self.matrix)
        return Affine(matrix=matrix, shift_mm=-matrix @ self.shift_mm)


def register(current: Lungs, prior: Lungs) -> Affine:
    """The map from points of `current` to the points of `prior` that show the same place.

    Raises RuntimeError (SimpleITK's) where the two have nothing in common that could be compared.
    """
    sitk = simple_itk()
    fixed, moving = windowed(current), windowed(prior)
    fixed_mask, moving_mask = _region(current), _region(prior)
    rigid = sitk.Euler3DTransform()
    rigid.SetCenter([float(v) for v in current.grid.to_mm(np.argwhere(current.mask).mean(axis=0))])
    rigid.SetTranslation([float(v) for v in _translation((fixed, moving), (fixed_mask, moving_mask))])
    _refine(fixed, moving, fixed_mask, rigid, RIGID_PASSES_MM)
    affine = sitk.AffineTransform(3)
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    _refine(fixed, moving, fixed_mask, affine, AFFINE_PASSES_MM)
    matrix = np.array(affine.GetMatrix()).reshape(3, 3)
    center = np.array(affine.GetCenter())
    return Affine(matrix=matrix, shift_mm=np.array(affine.GetTranslation()) + center - matrix @ center)


def windowed(lungs: Lungs) -> Any:
    """The lungs' grid as SimpleITK image, the window as 0 to 1."""
    low, high = WINDOW_HU
    return to_image(((lungs.grid.hu.clip(low, high) - low) / (high - low)).astype(np.float32), lungs.grid.affine)


def _region(lungs: Lungs) -> Any:
    """1 within and near the lungs, float32: so that it can be shrunk."""
    return to_image((lungs.distance_mm <= MARGIN_MM).astype(np.float32), lungs.grid.affine)


def _translation(images: tuple[Any, Any], regions: tuple[Any, Any]) -> NDArray[np.float64]:
    """The best of all translations by correlation where both regions are (Padfield, IEEE TIP 2012;21:2706).

    No start has to be near: the table may stand anywhere, and one exam may show a part of what the other shows.
    """
    sitk = simple_itk()
    fixed, moving = (_shrunk(image, COARSE_MM) for image in images)
    masks = [sitk.Cast(_shrunk(region, COARSE_MM) > 0.5, sitk.sitkFloat32) for region in regions]
    apart = np.array(moving.GetOrigin()) - np.array(fixed.GetOrigin())
    for image in (fixed, moving, *masks):
        image.SetOrigin((0.0, 0.0, 0.0))  # the filter takes no images from different places
    least = int(LEAST_OVERLAP * min(sitk.GetArrayViewFromImage(mask).sum() for mask in masks))
    scores = sitk.GetArrayViewFromImage(sitk.MaskedFFTNormalizedCorrelation(fixed, moving, *masks, least, 0.0))
    best = np.array(np.unravel_index(int(scores.argmax()), scores.shape))[::-1]
    # At the index of the moving image's last voxel both images lie on each other.
    steps: NDArray[np.float64] = best - (np.array(moving.GetSize()) - 1.0)
    return apart - steps * COARSE_MM


def _shrunk(image: Any, spacing_mm: float) -> Any:
    """Smoothed and resampled to isotropic voxels of `spacing_mm`."""
    sitk = simple_itk()
    size = [int((n - 1) * s / spacing_mm) + 1 for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    return sitk.Resample(
        sitk.SmoothingRecursiveGaussian(image, spacing_mm / 2.5), size, sitk.Transform(), sitk.sitkLinear,
        image.GetOrigin(), [spacing_mm] * 3, image.GetDirection(), 0.0,
    )  # fmt: skip


def _refine(fixed: Any, moving: Any, region: Any, transform: Any, passes_mm: tuple[tuple[float, float], ...]) -> None:
    """Changes `transform`. By correlation: lungs are denser with less air in them, which no difference would allow."""
    sitk = simple_itk()
    for spacing_mm, first_step_mm in passes_mm:
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)
        method.SetNumberOfWorkUnits(1)
        method.SetMetricAsCorrelation()
        method.SetMetricSamplingStrategy(method.NONE)
        method.SetMetricFixedMask(_shrunk(region, spacing_mm) > 0.5)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=first_step_mm, minStep=SHORTEST_STEP_MM, numberOfIterations=MOST_STEPS,
            relaxationFactor=0.6, gradientMagnitudeTolerance=1e-6,
        )  # fmt: skip
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(transform, inPlace=True)
        method.Execute(_shrunk(fixed, spacing_mm), _shrunk(moving, spacing_mm))
