"""How numbers are written for people."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.results import quantities

numbers = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (quantities.length(12.34), "12.3 mm"),
        (quantities.whole_length(8.0), "8 mm"),
        (quantities.axes(12.34, 9.81), "12.3 x 9.8 mm"),
        (quantities.position((-45.13, 12.0, -250.46)), "x -45.1, y 12.0, z -250.5 mm"),
        (quantities.volume(4.26), "4.3 mm3"),
        (quantities.volume(9.97), "10 mm3"),
        (quantities.volume(12345.6), "12346 mm3"),
        (quantities.volume_with_error(523.4, 61.8), "523 mm3 (SD 62 mm3)"),
        (quantities.attenuation(-412.3), "-412 HU"),
        (quantities.attenuation_with_sd(-0.4, 85.1), "0 HU (SD 85 HU)"),
        (quantities.percent(62.4), "62 %"),
        (quantities.change_percent(26.4), "+26 %"),
        (quantities.change_percent(-8.0), "-8 %"),
        (quantities.change_percent(-0.3), "0 %"),
        (quantities.days(412.3), "412 days"),
        (quantities.days(1.2), "1 day"),
        (quantities.score(0.873), "0.87"),
    ],
)
def test_a_number_has_its_unit_and_the_digits_that_mean_something(text: str, expected: str) -> None:
    assert text == expected


@given(numbers, numbers)
def test_text_is_ascii_without_negative_zero_or_exponent(a: float, b: float) -> None:
    for text in (
        quantities.axes(a, b),
        quantities.position((a, b, a)),
        quantities.volume_with_error(a, b),
        quantities.attenuation_with_sd(a, b),
        quantities.change_percent(a),
        quantities.days(a),
        quantities.score(b),
    ):
        assert text.isascii()
        assert not re.search(r"-0(\.0*)?(?![.\d])|\de", text), text
