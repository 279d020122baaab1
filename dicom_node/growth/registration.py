"""Lungs of two CTs -> the affine map that lays one on the other: by translation, then rigid, then affine.

Same images, same map, bit for bit: one thread, every voxel in each step, no random start. A map that is no
anatomy of one chest is judged in `quality`, not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dicom_node.grids import to_image
from dicom_node.lungs import Lungs

# Air to soft tissue: bone, contrast medium and metal differ from day to day, lungs and their vessels do not.
WINDOW_HU = (-1000.0, 200.0)
# Chest wall and diaphragm round the lungs hold the shape that vessels alone do not give.
MARGIN_MM = 12.0
COARSE_MM = 8.0
# (voxel, first step) of each pass, mm. A first step that is too long throws an affine map out of its valley.
PASSES_MM = {"rigid": ((8.0, 4.0),), "affine": ((8.0, 1.0), (4.0, 0.5))}
MOST_STEPS = 80
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


def align(current: Lungs, prior: Lungs) -> Affine:
    """The map from points of `current` to the points of `prior` that show the same place."""
    fixed, moving = _image(current), _image(prior)
    fixed_mask, moving_mask = _mask(current), _mask(prior)
    start = _translation(fixed, moving, fixed_mask, moving_mask)
    rigid = sitk.Euler3DTransform()
    rigid.SetCenter([float(v) for v in _center_mm(current)])
    rigid.SetTranslation([float(v) for v in start])
    _refine(fixed, moving, fixed_mask, rigid, "rigid")
    affine = sitk.AffineTransform(3)
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    _refine(fixed, moving, fixed_mask, affine, "affine")
    matrix = np.array(affine.GetMatrix()).reshape(3, 3)
    center = np.array(affine.GetCenter())
    return Affine(matrix=matrix, shift_mm=np.array(affine.GetTranslation()) + center - matrix @ center)


def _image(lungs: Lungs) -> Any:
    low, high = WINDOW_HU
    return to_image(((lungs.grid.hu.clip(low, high) - low) / (high - low)).astype(np.float32), lungs.grid.affine)


def _mask(lungs: Lungs) -> Any:
    return to_image((lungs.distance_mm <= MARGIN_MM).astype(np.uint8), lungs.grid.affine)


def _center_mm(lungs: Lungs) -> NDArray[np.float64]:
    return lungs.grid.to_mm(np.argwhere(lungs.mask).mean(axis=0))


def _translation(fixed: Any, moving: Any, fixed_mask: Any, moving_mask: Any) -> NDArray[np.float64]:
    """The best of all translations by correlation where both masks are (Padfield, IEEE TIP 2012;21:2706).

    No start has to be near: the table may stand anywhere, and one exam may show a part of what the other shows.
    """
    images = [_shrunk(image, COARSE_MM) for image in (fixed, moving)]
    masks = [_shrunk(sitk.Cast(mask, sitk.sitkFloat32), COARSE_MM) > 0.5 for mask in (fixed_mask, moving_mask)]
    shift = np.array(images[1].GetOrigin()) - np.array(images[0].GetOrigin())
    for image in (*images, *masks):
        image.SetOrigin((0.0, 0.0, 0.0))  # the filter takes no images from different places
    scores = sitk.MaskedFFTNormalizedCorrelation(
        *images, *(sitk.Cast(mask, sitk.sitkFloat32) for mask in masks), 0, LEAST_OVERLAP
    )
    best = np.unravel_index(int(sitk.GetArrayViewFromImage(scores).argmax()), scores.GetSize()[::-1])
    # Full correlation: the zero shift of index coordinates lies at the moving image's last voxel.
    steps = np.array(best[::-1], dtype=np.float64) - (np.array(images[1].GetSize()) - 1)
    result: NDArray[np.float64] = shift - steps * COARSE_MM
    return result


def _shrunk(image: Any, spacing_mm: float) -> Any:
    """Smoothed and resampled to isotropic voxels of `spacing_mm`."""
    spacing = image.GetSpacing()
    if spacing_mm <= spacing[0]:
        return image
    smooth = sitk.SmoothingRecursiveGaussian(image, spacing_mm / 2.5)
    size = [int((n - 1) * s / spacing_mm) + 1 for n, s in zip(image.GetSize(), spacing, strict=True)]
    return sitk.Resample(
        smooth, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), [spacing_mm] * 3, image.GetDirection(), 0.0
    )


def _refine(fixed: Any, moving: Any, fixed_mask: Any, transform: Any, kind: str) -> None:
    """Changes `transform`."""
    for spacing_mm, step_mm in PASSES_MM[kind]:
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)
        method.SetNumberOfWorkUnits(1)
        METRIC(method)
        method.SetMetricSamplingStrategy(method.NONE)
        mask = _shrunk(sitk.Cast(fixed_mask, sitk.sitkFloat32), spacing_mm) > 0.5
        method.SetMetricFixedMask(mask)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=step_mm, minStep=0.02, numberOfIterations=MOST_STEPS, relaxationFactor=0.7,
            gradientMagnitudeTolerance=1e-6,
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(transform, inPlace=True)
        method.Execute(_shrunk(fixed, spacing_mm), _shrunk(moving, spacing_mm))
        if DEBUG:
            print(kind, spacing_mm, method.GetOptimizerIteration(), method.GetMetricValue(), method.GetOptimizerStopConditionDescription())

DEBUG=False
METRIC = lambda m: m.SetMetricAsCorrelation()
