"""Number of a finding -> its colour, the same in the SEG and in the pictures."""

from __future__ import annotations

# Okabe and Ito's colours, told apart with every form of colour blindness; black and their dark blue are left
# out because they vanish on lung.
COLOURS = ("#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#D55E00")


def colour(number: int) -> str:
    """`#RRGGBB` of the finding with this number (from 1)."""
    return COLOURS[(number - 1) % len(COLOURS)]
