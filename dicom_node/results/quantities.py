"""Numbers -> text with a unit and no more digits than an image can give; the one place where that is decided.

Plain ASCII, so that the text survives any Specific Character Set: mm3 as UCUM writes it, SD for a standard deviation.
No separator of thousands: a comma is a decimal point to half of the readers.
"""

from __future__ import annotations

from dicom_node.domain import Point


def length(mm: float) -> str:
    """12.34 -> "12.3 mm": a tenth of a millimetre is a fifth of the smallest pixel in use."""
    return f"{_fixed(mm, 1)} mm"


def whole_length(mm: float) -> str:
    """12.0 -> "12 mm": mean diameters, and lengths where the tenth says nothing (a field of view)."""
    return f"{_fixed(mm, 0)} mm"


def axes(long_mm: float, short_mm: float) -> str:
    """Long and short axis -> "12.3 x 9.8 mm"."""
    return f"{_fixed(long_mm, 1)} x {_fixed(short_mm, 1)} mm"


def position(point_mm: Point) -> str:
    """LPS mm -> "x -45.1, y 12.0, z -250.5 mm"."""
    x, y, z = (_fixed(value, 1) for value in point_mm)
    return f"x {x}, y {y}, z {z} mm"


def volume(mm3: float) -> str:
    """523.4 -> "523 mm3"; below 10 mm3 with one decimal."""
    return f"{_volume_number(mm3)} mm3"


def volume_with_error(mm3: float, error_mm3: float) -> str:
    """523.4 and 61.8 -> "523 mm3 (SD 62 mm3)"."""
    return f"{volume(mm3)} (SD {volume(error_mm3)})"


def attenuation(hu: float) -> str:
    """-412.3 -> "-412 HU"."""
    return f"{_fixed(hu, 0)} HU"


def attenuation_with_sd(mean_hu: float, sd_hu: float) -> str:
    """-412.3 and 85.1 -> "-412 HU (SD 85 HU)"."""
    return f"{attenuation(mean_hu)} (SD {attenuation(sd_hu)})"


def percent(value: float) -> str:
    """A share in percent: 62.4 -> "62 %"."""
    return f"{_fixed(value, 0)} %"


def change_percent(value: float) -> str:
    """With its sign: 26.4 -> "+26 %", -8.0 -> "-8 %"; what rounds to nothing is "0 %"."""
    number = _fixed(value, 0)
    return f"{number} %" if number == "0" or number.startswith("-") else f"+{number} %"


def days(value: float) -> str:
    """412.3 -> "412 days", 1.0 -> "1 day"."""
    number = _fixed(value, 0)
    return f"{number} day" if number in ("1", "-1") else f"{number} days"


def score(value: float) -> str:
    """0.873 -> "0.87"; without a unit."""
    return _fixed(value, 2)


def _volume_number(mm3: float) -> str:
    return _fixed(mm3, 0 if abs(mm3) >= 9.95 else 1)


def _fixed(value: float, decimals: int) -> str:
    """Never "-0"."""
    rounded = round(value, decimals)
    return f"{rounded if rounded else 0.0:.{decimals}f}"
