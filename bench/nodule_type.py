"""How the rule for nodule types was chosen and how often it is right: 904 crops of LIDC-IDRI with readers' masks.

The readers' texture, by majority: 1 and 2 count as ground glass, 3 as part-solid, 4 and 5 as solid. For each limit in
HU, both shares are chosen for the best balanced accuracy on four fifths of the patients and tried on the last fifth.
Prints Markdown tables for docs/measurement.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.measure import Case, read_cases
from dicom_node.results.nodule_type import NoduleType, inside

LIMITS_HU = (-350, -300, -250, -200, -160, -130, -100)
SHARES = np.arange(0.02, 0.8, 0.02)
FOLDS, ROUNDS = 5, 3
TYPES = (NoduleType.GROUND_GLASS, NoduleType.PART_SOLID, NoduleType.SOLID)
OF_TEXTURE = {1: 0, 2: 0, 3: 1, 4: 2, 5: 2}
SIZES_MM = ((0.0, 6.0), (6.0, 8.0), (8.0, 12.0), (12.0, 60.0))

Numbers = NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="bench/nodule_type", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds nodule_voi")
    arguments = parser.parse_args()
    cases = list(read_cases(arguments.data))
    true = np.array([OF_TEXTURE[int(case.row["Texture_value"])] for case in cases])
    print(_limits_table(cases, true))
    print(_rule_table(cases, true))


def _limits_table(cases: Sequence[Case], true: Numbers) -> str:
    lines = [
        "| limit, HU | balanced accuracy on held-out patients | shares chosen on all |",
        "|---|---|---|",
    ]
    for limit in LIMITS_HU:
        share = np.array([(_hu_inside(case) > limit).mean() for case in cases])
        low, high = _chosen(share, true)
        rounds = ", ".join(f"{value:.3f}" for value in _held_out(share, true, [case.voi.patient for case in cases]))
        lines.append(f"| {limit} | {rounds} | {low:.2f}, {high:.2f} |")
    return "\n".join(lines) + "\n"


def _hu_inside(case: Case) -> NDArray[np.int16]:
    return case.voi.volume.hu[inside(case.voi.mask)]


def _held_out(share: NDArray[np.float64], true: Numbers, patients: Sequence[str]) -> list[float]:
    """One balanced accuracy a round, each nodule judged by shares that its patient had no part in."""
    random = np.random.default_rng(0)
    names, of_patient = np.unique(patients, return_inverse=True)
    found = []
    for _ in range(ROUNDS):
        fold = (random.permutation(len(names)) % FOLDS)[of_patient]
        said = np.zeros_like(true)
        for part in range(FOLDS):
            low, high = _chosen(share[fold != part], true[fold != part])
            said[fold == part] = _judged(share[fold == part], low, high)
        found.append(_balanced(true, said))
    return found


def _chosen(share: NDArray[np.float64], true: Numbers) -> tuple[float, float]:
    return max(combinations(SHARES.tolist(), 2), key=lambda pair: _balanced(true, _judged(share, *pair)))


def _judged(share: NDArray[np.float64], low: float, high: float) -> Numbers:
    return (share >= low).astype(np.int64) + (share >= high)


def _balanced(true: Numbers, said: Numbers) -> float:
    return float(np.mean([(said[true == kind] == kind).mean() for kind in range(len(TYPES))]))


def _rule_table(cases: Sequence[Case], true: Numbers) -> str:
    """What the node says, undetermined last."""
    said = np.array([_index(case.measured.nodule_type) for case in cases])
    size = np.array([case.measured.equivalent_diameter_mm for case in cases])
    lines = [
        "| equivalent diameter, mm | readers say | nodules | ground glass | part-solid | solid | undetermined |",
        "|---|---|---|---|---|---|---|",
    ]
    for low, high in SIZES_MM:
        for kind, name in enumerate(TYPES):
            chosen = (size >= low) & (size < high) & (true == kind)
            counts = " | ".join(str(int((said[chosen] == other).sum())) for other in range(4))
            lines.append(f"| {_range(low, high)} | {name} | {chosen.sum()} | {counts} |")
    judged, large = said < len(TYPES), size >= SIZES_MM[0][1]
    right = (said == true)[judged].mean()
    sure = (true[(said == 2) & ~large] == 2).mean()
    lines.append(
        f"\n{judged.sum()} of {len(cases)} get a type, {right:.1%} of them the readers' one. From 6 mm, balanced "
        f"accuracy {_balanced(true[large], said[large]):.3f}. Under 6 mm, {sure:.1%} of what is called solid is."
    )
    return "\n".join(lines) + "\n"


def _index(kind: NoduleType | None) -> int:
    return len(TYPES) if kind is None else TYPES.index(kind)


def _range(low: float, high: float) -> str:
    if low == 0:
        return f"under {high:.0f}"
    return f"from {low:.0f}" if high > 50 else f"{low:.0f} to {high:.0f}"


if __name__ == "__main__":
    main()
