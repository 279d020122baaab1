"""The software's tables -> its DICOM conformance statement, in the layout of PS3.2 Annex N."""

from __future__ import annotations

from importlib import resources
from typing import Any

from dicom_node.commitment import BATCH, SAME_ASSOCIATION_WAIT_S
from dicom_node.commitments import MOST_ROUNDS
from dicom_node.config import GateConfig, ReceiveConfig
from dicom_node.conformance import associations, document, objects, services, settings, statuses
from dicom_node.conformance.document import Table
from dicom_node.dimse.commit_link import SAME_ASSOCIATION_S
from dicom_node.dimse.contexts import PRIOR_CLASSES, name_of
from dicom_node.dimse.query import DEFAULT_LIMIT
from dicom_node.dimse.scu import ECHO_SYNTAXES, FALLBACK
from dicom_node.dimse.tls import CIPHERS, WARN_DAYS
from dicom_node.identity import MODEL_NAME, SOFTWARE_VERSION


def statement() -> str:
    """The whole document as Markdown."""
    return _filled()[0]


def tables() -> list[dict[str, Any]]:
    """The tables alone, as they stand in the document, for a script."""
    return [
        {
            "number": number,
            "name": table.name,
            "title": table.title,
            "rows": [dict(zip(table.columns, row, strict=True)) for row in table.rows],
        }
        for number, table in _filled()[1]
    ]


def _filled() -> tuple[str, list[tuple[str, Table]]]:
    text = resources.files("dicom_node.conformance").joinpath("statement.md").read_text(encoding="utf-8")
    made = [table for part in (services, associations, statuses, settings, objects) for table in part.tables()]
    return document.fill(text, made, _values())


def _values() -> dict[str, str]:
    """What stands in running text."""
    return {
        "product": MODEL_NAME,
        "version": SOFTWARE_VERSION,
        "ae_title": ReceiveConfig().ae_title,
        "lossy": GateConfig().lossy,
        "prior_classes": ", ".join(map(name_of, PRIOR_CLASSES)),
        "fallback": " or ".join(map(name_of, FALLBACK)),
        "echo_syntaxes": " or ".join(map(name_of, ECHO_SYNTAXES)),
        "result_syntax": objects.transfer_syntax(),
        "copied_attributes": objects.copied_attributes(),
        "commit_batch": str(BATCH),
        "commit_rounds": str(MOST_ROUNDS),
        "commit_wait_s": f"{SAME_ASSOCIATION_WAIT_S:g}",
        "find_limit": str(DEFAULT_LIMIT),
        "report_wait_s": f"{SAME_ASSOCIATION_S:g}",
        "tls_ciphers": CIPHERS,
        "tls_warn_days": str(WARN_DAYS),
    }
