"""The table of transfer syntaxes is what the libraries can do, and what the node negotiates."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, JPEGTransferSyntaxes

from dicom_node.dimse.contexts import TRANSFER_SYNTAXES
from dicom_node.transfer_syntaxes import ACCEPTED, BY_UID, Coding, TransferSyntax


def test_what_is_negotiated_is_what_is_decoded() -> None:
    assert tuple(BY_UID) == TRANSFER_SYNTAXES
    assert len(BY_UID) == len(ACCEPTED)


@pytest.mark.parametrize("syntax", ACCEPTED, ids=lambda syntax: syntax.name)
def test_the_named_plugin_is_installed_and_decodes_it(syntax: TransferSyntax) -> None:
    decoder = get_decoder(UID(syntax.uid))
    assert UID(syntax.uid).is_transfer_syntax
    assert UID(syntax.uid).is_compressed == (syntax.coding is not Coding.NATIVE)
    assert (syntax.plugin in decoder.available_plugins) == (syntax.coding is not Coding.NATIVE)


def test_lossy_syntaxes_have_a_name_for_their_method_and_no_other_has() -> None:
    for syntax in ACCEPTED:
        assert bool(syntax.method) == (syntax.lossy != "no"), syntax.name
    # PS3.5 10: the syntaxes that say "lossless only" in their names are.
    assert {s.uid for s in ACCEPTED if s.lossy == "yes"} == {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81)}
    assert {s.uid for s in ACCEPTED if s.lossy == "maybe"} == {f"1.2.840.10008.1.2.4.{number}" for number in (91, 203)}


def test_no_jpeg_of_the_standard_is_forgotten() -> None:
    assert {str(uid) for uid in JPEGTransferSyntaxes} <= set(TRANSFER_SYNTAXES)


def test_lossless_is_preferred_to_lossy() -> None:
    grades = [("no", "maybe", "yes").index(syntax.lossy) for syntax in ACCEPTED]
    assert grades == sorted(grades)


def test_the_table_needs_no_library() -> None:
    code = "import sys, dicom_node.transfer_syntaxes as t; print({'torch', 'pydicom', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
