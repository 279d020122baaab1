"""Folders as they come -> Scans. A reader lists without reading voxels; what can't be used is named, never dropped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from training.cases import DataProblem, Scan

OnProblem = Literal["refuse", "skip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """scans: sorted by uid. left_out: scan uid or file -> why. summary: lines for people."""

    scans: list[Scan]
    left_out: dict[str, str]
    summary: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problems:
    """Refuses at the first problem, or notes it and goes on: as its owner chose."""

    on_problem: OnProblem
    left_out: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, why: str) -> None:
        """Raises DataProblem where problems are to be refused."""
        if self.on_problem == "refuse":
            raise DataProblem(f"{name}: {why}")
        self.left_out[name] = why
