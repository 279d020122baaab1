"""What the conformance statement claims of Associations is what a running receiver does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import pytest
from pydicom.uid import AllTransferSyntaxes

from dicom_node import conformance
from dicom_node.config import ReceiveConfig
from dicom_node.dimse.contexts import STORAGE_CLASSES
from dicom_node.dimse.requestor import MAX_CONTEXTS, NothingAccepted, associate
from tests.conftest import RunningReceiver

pytestmark = pytest.mark.usefixtures("no_leaked_threads")

Start = Callable[..., RunningReceiver]
Context = tuple[str, tuple[str, ...]]
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
# Neither is in the statement: a service that only archives have, a private class, a private syntax.
STRANGE_CLASSES = ("1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.1.9", "1.2.826.0.1.3680043.8.498.9")
PRIVATE_SYNTAX = "1.2.826.0.1.3680043.8.498.10"


@pytest.fixture(scope="module")
def tables() -> dict[str, list[dict[str, str]]]:
    return {table["name"]: table["rows"] for table in conformance.tables()}


@pytest.fixture(scope="module")
def syntaxes(tables: dict[str, Any]) -> list[str]:
    return [row["Transfer Syntax UID"] for row in tables["accepted_syntaxes"]]


def accepted(running: RunningReceiver, contexts: Sequence[Context]) -> Iterator[tuple[str, str]]:
    """(SOP Class UID, Transfer Syntax UID) of the contexts that the receiver accepts."""
    for first in range(0, len(contexts), MAX_CONTEXTS):
        try:
            with associate(running.peer, "ANYBODY", contexts[first : first + MAX_CONTEXTS]) as association:
                yield from association.contexts
        except NothingAccepted:
            continue


def beside_storage(tables: dict[str, Any]) -> set[tuple[str, str]]:
    """Contexts of the services that have one SOP Class."""
    return {
        (row["UID"], syntax)
        for row in tables["accepted_contexts"]
        if row["UID"] != "as there"
        for syntax in re.findall(r"\((1\.2[\d.]+)\)", row["Transfer Syntaxes"])
    }


def test_a_receiver_accepts_exactly_the_contexts_of_the_statement(
    start_receiver: Start, tables: dict[str, Any], syntaxes: list[str]
) -> None:
    running = start_receiver(receive={"also_accept": list(STORAGE_CLASSES)})
    claimed = set(product((row["SOP Class UID"] for row in tables["accepted_classes"]), syntaxes))
    claimed |= beside_storage(tables)
    classes = {sop_class for sop_class, _ in claimed} | set(STRANGE_CLASSES)
    proposed = [(sop_class, (syntax,)) for sop_class, syntax in product(sorted(classes), syntaxes)]
    # All that no table names, in one context a class.
    others = tuple(str(uid) for uid in AllTransferSyntaxes if uid not in syntaxes)
    proposed += [(sop_class, (*others, PRIVATE_SYNTAX)) for sop_class in sorted(classes)]
    assert set(accepted(running, proposed)) == claimed


def test_a_receiver_as_it_comes_accepts_the_groups_that_the_statement_marks(
    start_receiver: Start, tables: dict[str, Any]
) -> None:
    running = start_receiver()
    assert running.config.receive.also_accept == ReceiveConfig().also_accept
    rows = tables["accepted_classes"]
    got = {
        sop_class for sop_class, _ in accepted(running, [(row["SOP Class UID"], (EXPLICIT_LITTLE,)) for row in rows])
    }
    assert got == {
        row["SOP Class UID"]
        for row in rows
        if row["receive.also_accept"] == "always" or "default" in row["receive.also_accept"]
    }


def test_the_first_syntax_of_the_table_wins_whatever_the_order_of_the_proposal(
    start_receiver: Start, tables: dict[str, Any], syntaxes: list[str]
) -> None:
    running = start_receiver()
    ct = tables["accepted_classes"][0]["SOP Class UID"]
    for count in range(1, len(syntaxes) + 1):
        assert list(accepted(running, [(ct, tuple(reversed(syntaxes[-count:])))])) == [(ct, syntaxes[-count])]
