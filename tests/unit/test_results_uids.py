from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from dicom_node.results.uids import derive_uid


@given(st.lists(st.text(), max_size=5))
def test_derived_uid_is_a_valid_uid(parts: list[str]) -> None:
    uid = UID(derive_uid(*parts))

    assert uid.is_valid
    assert uid.startswith("2.25.")


def test_derived_uid_never_changes() -> None:
    # A new value here would give every stored result a second identity.
    assert derive_uid("series", "SEG") == "2.25.12255340566449305017898911569466478064"


def test_derived_uid_depends_on_the_borders_between_its_parts() -> None:
    assert len({derive_uid("ab", "c"), derive_uid("a", "bc"), derive_uid("abc"), derive_uid("abc", "")}) == 4
