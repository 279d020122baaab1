"""Two volumes of one nodule with their errors, and the days between -> grown, stable or shrunk, and how fast."""

from __future__ import annotations

import math

from dicom_node.comparison import SIGNIFICANT_CHANGE_PERCENT, Change, DoublingTime

NORMAL_95 = 1.959964


def change_percent(now_mm3: float, then_mm3: float) -> float:
    return 100.0 * (now_mm3 / then_mm3 - 1.0)


def log_ratio_sd(now_mm3: float, now_error_mm3: float, then_mm3: float, then_error_mm3: float) -> float:
    """Standard deviation of the natural logarithm of the ratio, to first order (delta method)."""
    return math.hypot(now_error_mm3 / now_mm3, then_error_mm3 / then_mm3)


def judged(now_mm3: float, then_mm3: float, sd: float) -> Change:
    """By comparison.RULE. sd: of the logarithm of the ratio."""
    percent = change_percent(now_mm3, then_mm3)
    if abs(percent) < SIGNIFICANT_CHANGE_PERCENT or abs(math.log(now_mm3 / then_mm3)) <= NORMAL_95 * sd:
        return "stable"
    return "grown" if percent > 0 else "shrunk"


def doubling_time(now_mm3: float, then_mm3: float, sd: float, interval_days: float) -> DoublingTime | None:
    """ln 2 times the interval over the logarithm of the ratio, by exponential growth; None for equal volumes.

    The interval of 95 % is that of the growth *rate*, which is near normal, turned over. Where it holds 0, the nodule
    may be at rest, and the doubling time is without bound on that side.
    """
    growth = math.log(now_mm3 / then_mm3)
    if growth == 0.0:
        return None
    slow, fast = sorted((growth - NORMAL_95 * sd, growth + NORMAL_95 * sd), key=lambda rate: rate * growth)
    bounds = sorted(
        (math.log(2) * interval_days / rate for rate in (slow, fast) if rate * growth > 0),
        key=abs,
    )
    near = bounds[0]
    far = bounds[1] if len(bounds) == 2 else None
    low, high = (near, far) if growth > 0 else (far, near)
    return DoublingTime(days=math.log(2) * interval_days / growth, low=low, high=high)
