"""Lungs of two CTs -> where each place of the one lies in the other, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.growth.landmarks import Landmarks, find_landmarks
from dicom_node.growth.registration import Affine, register
from dicom_node.lungs import Lungs

# Landmarks that lie this far from where the affine map has them, in the median, say that it stuck on its way.
STUCK_MM = 4.0
NEIGHBOURS = 12
# The grid of 2 mm, and centroids of outlines drawn twice.
LEAST_SD_MM = 1.0
# How much less sure a place is for each millimetre to the landmarks that speak for it: lungs stretch by some percent.
SD_PER_MM = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """affine: current -> prior, LPS mm. landmarks: by which it is corrected on the spot."""

    affine: Affine
    landmarks: Landmarks

    def to_prior(self, point_mm: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """(3,) of the current exam -> (3,) of the prior one, and the standard deviation of that along an axis, mm."""
        away, sd_mm = self._local(point_mm)
        return self.affine(point_mm + away), sd_mm

    def to_current(self, point_mm: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """(3,) of the prior exam -> (3,) of the current one, and the standard deviation of that along an axis, mm."""
        target = self.affine.inverse()(point_mm)
        place = target
        for _ in range(4):  # what moves it is known where it ends; it changes slowly from place to place
            away, sd_mm = self._local(place)
            place = target - away
        return place, sd_mm

    def _local(self, point_mm: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """What the nearest landmarks were moved by: the middle one along each axis, and how far they disagree."""
        points, away = self.landmarks.points_mm, self.landmarks.away_mm
        if len(points) < NEIGHBOURS:
            return np.zeros(3), float("inf")
        distance = np.linalg.norm(points - point_mm, axis=1)
        nearest = np.argsort(distance, kind="stable")[:NEIGHBOURS]
        middle = np.median(away[nearest], axis=0)
        spread = 1.4826 * float(np.median(np.abs(away[nearest] - middle), axis=0).max())
        sd_mm = float(np.sqrt(LEAST_SD_MM**2 + spread**2 + (SD_PER_MM * distance[nearest].mean()) ** 2))
        return middle, sd_mm


def align(current: Lungs, prior: Lungs) -> Alignment:
    """Raises RuntimeError (SimpleITK's) where the two have nothing in common that could be compared."""
    affine = register(current, prior)
    landmarks = find_landmarks(current, prior, affine)
    away = np.linalg.norm(landmarks.away_mm, axis=1)
    if len(away) >= NEIGHBOURS and np.median(away) > STUCK_MM:
        affine = _refitted(affine, landmarks)
        landmarks = find_landmarks(current, prior, affine)
    return Alignment(affine=affine, landmarks=landmarks)


def _refitted(affine: Affine, landmarks: Landmarks) -> Affine:
    """The affine map that fits the landmarks best; twice, the second time without those that it fits worst."""
    here = np.column_stack([landmarks.points_mm, np.ones(len(landmarks.points_mm))])
    there = affine(landmarks.points_mm + landmarks.away_mm)
    kept = np.ones(len(here), np.bool_)
    for _ in range(2):
        solution: NDArray[np.float64] = np.linalg.lstsq(here[kept], there[kept], rcond=None)[0]
        misses = np.linalg.norm(here @ solution - there, axis=1)
        kept = misses <= np.quantile(misses, 0.8)
    return Affine(matrix=solution[:3].T, shift_mm=solution[3])
