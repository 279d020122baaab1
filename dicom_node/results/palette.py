"""Number of a finding -> its colour, the same in the SEG and in the pictures."""

from __future__ import annotations

# Okabe and Ito's colours without black and their dark blue, which vanish on lung, then six that were searched for so
# that all twelve are told apart with every form of colour blindness (tests/unit/test_results_palette.py).
COLOURS = (
    "#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#D55E00",
    "#9966FF", "#CCFFCC", "#33FF80", "#80B366", "#CCCCE6", "#E6B3B3",
)  # fmt: skip


def colour(number: int) -> str:
    """`#RRGGBB` of the finding with this number (from 1); after twelve they come again."""
    return COLOURS[(number - 1) % len(COLOURS)]
