"""The conformance statement says what the code does, all of it, and stands in docs/ as it is printed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from dicom_node import cli, conformance
from dicom_node.config import ReceiveConfig, ReceiveTLS
from dicom_node.conformance import settings
from dicom_node.conformance.document import Table, fill
from dicom_node.conformance.objects import IODS
from dicom_node.conformance.sample import make
from dicom_node.dimse import commitment, statuses
from dicom_node.dimse.admission import REJECTIONS, Rejection, over_limit
from dicom_node.dimse.contexts import STORAGE_CLASSES, supported_contexts
from dicom_node.dimse.requestor import PENDING
from dicom_node.errors import OutOfSpace, Reason, UnreadableInstance
from dicom_node.identity import IMPLEMENTATION_CLASS_UID, SOFTWARE_VERSION
from dicom_node.peers import DicomWebConfig, PeerConfig, PeerTLS
from dicom_node.profiles import SiteProfile


def numbers(module: Any) -> set[int]:
    return {value for name, value in vars(module).items() if name.isupper() and isinstance(value, int)}


def codes(rows: list[dict[str, str]]) -> set[int]:
    return {int(row["Status Code"], 16) for row in rows}


ROOT = Path(__file__).resolve().parents[2]
COMMAND = "dicom-node conformance > docs/conformance.md"


@pytest.fixture(scope="module")
def tables() -> dict[str, list[dict[str, str]]]:
    return {table["name"]: table["rows"] for table in conformance.tables()}


def test_docs_hold_the_statement_of_this_code() -> None:
    written = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert written == conformance.statement(), f"docs/conformance.md is out of date: {COMMAND}"


def test_sections_follow_annex_n() -> None:
    # PS3.2 N.1 to N.8, then N.9 on, which the template numbers A.A to A.E.
    chapters = re.findall(r"^## (\S+) (.+)$", conformance.statement(), re.MULTILINE)
    assert chapters == [
        ("1", "Overview"),
        ("2", "Table of Contents"),
        ("3", "Introduction"),
        ("4", "Implementation Model"),
        ("5", "Service and Interoperability Description"),
        ("6", "Configuration"),
        ("7", "Network and Media Communication Details"),
        ("8", "Security"),
        ("A.A", "Information Object Definitions"),
        ("A.B", "Structured Report Content Encoding"),
        ("A.C", "Security Details"),
        ("A.D", "Mapping of Attributes"),
        ("A.E", "Code Set Usage"),
    ]


def test_each_reference_to_a_section_leads_to_one() -> None:
    text = conformance.statement()
    sections = set(re.findall(r"^#+ ([\dA][\w.]*) ", text, re.MULTILINE))
    prose = re.sub(r"(PS3|PS3\.\d+|RFC) [\w.]+", "", text.partition("## 3 ")[2])
    named = set(re.findall(r"\b(?:see|of|\() ?(\d\.\d[\d.]*\d)\b", prose))
    assert named
    assert named <= sections, named - sections


def test_contents_link_to_every_chapter_and_section() -> None:
    text = conformance.statement()
    links = re.findall(r"^ *- \[(.+)\]\(#(.+)\)$", text, re.MULTILINE)
    assert [name for name, _ in links] == [
        f"{n} {t}" for n, t in re.findall(r"^#{2,3} (\S+) (.+)$", text, re.MULTILINE)
    ]
    assert all(re.fullmatch(r"[\w-]+", anchor) for _, anchor in links)


def test_every_class_and_syntax_that_the_acceptor_offers_stands_in_it(tables: dict[str, Any]) -> None:
    [verification, *storage] = supported_contexts(STORAGE_CLASSES)
    listed = [row["SOP Class UID"] for row in tables["accepted_classes"]]
    assert sorted(listed) == sorted(str(context.abstract_syntax) for context in storage)
    for context in storage:
        assert [row["Transfer Syntax UID"] for row in tables["accepted_syntaxes"]] == context.transfer_syntax
    [row] = [row for row in tables["accepted_contexts"] if row["UID"] == verification.abstract_syntax]
    assert re.findall(r"\((1\.2[\d.]+)\)", row["Transfer Syntaxes"]) == verification.transfer_syntax


def test_every_uid_has_its_name(tables: dict[str, Any]) -> None:
    for row in (*tables["accepted_classes"], *tables["accepted_syntaxes"]):
        name, uid = list(row.values())[:2]
        assert name
        assert name != uid


def test_every_status_that_the_code_can_give_stands_in_it(tables: dict[str, Any]) -> None:
    # The numbers in the module, whatever table they are used in.
    assert codes(tables["store_scp_statuses"]) == numbers(statuses)
    names = ("commit_action_scp", "commit_event_scu", "commit_reasons")
    told = set().union(*(codes(tables[name]) for name in names))
    # Beside statuses the module has the Action Type, the Event Types and a limit.
    others = {commitment.REQUEST_COMMITMENT, commitment.ALL_KEPT, commitment.FAILURES_EXIST, commitment.MAX_REFERENCES}
    assert told == numbers(commitment) - others


def test_every_error_of_a_store_has_its_status(tables: dict[str, Any]) -> None:
    assert statuses.store_status(ValueError()) == statuses.PROCESSING_FAILURE
    assert statuses.store_status(OutOfSpace()) == statuses.OUT_OF_RESOURCES
    assert statuses.store_status(UnreadableInstance()) == statuses.CANNOT_UNDERSTAND


@pytest.mark.parametrize("name", ["find_statuses", "retrieve_statuses"])
def test_every_reply_of_an_archive_has_a_meaning_and_pending_ones_never_end(name: str, tables: dict[str, Any]) -> None:
    replies = {"find_statuses": statuses.FIND_REPLIES, "retrieve_statuses": statuses.RETRIEVE_REPLIES}[name]
    assert len(tables[name]) == len(replies) + 1
    pending = {status for status in range(0x10000) if statuses.reply_of(replies, status).ending == "pending"}
    assert pending
    assert pending <= set(PENDING)


def test_every_status_of_a_peer_is_judged_as_the_statement_says(tables: dict[str, Any]) -> None:
    ranges = []
    for row in tables["store_scu_statuses"][:-1]:
        first, _, last = row["Status Code"].partition("-")
        ranges.append((int(first, 16), int(last or first, 16), row["Behavior"]))
    other = tables["store_scu_statuses"][-1]["Behavior"]
    kinds: dict[str, set[str]] = {}
    for status in range(0x10000):
        [behavior] = [b for first, last, b in ranges if first <= status <= last] or [other]
        kinds.setdefault(behavior, set()).add(statuses.store_meaning(status).kind)
    assert sorted(map(sorted, kinds.values())) == [["refused"], ["retry"], ["stored"]]


@pytest.mark.parametrize(
    ("prefix", "model"),
    [
        ("receive", ReceiveConfig),
        ("receive.tls", ReceiveTLS),
        ("peers.NAME", PeerConfig),
        ("peers.NAME.tls", PeerTLS),
        ("peers.NAME.dicomweb", DicomWebConfig),
        ("profiles.NAME", SiteProfile),
    ],
)
def test_every_setting_of_the_network_stands_in_it(prefix: str, model: Any, tables: dict[str, Any]) -> None:
    shown = {row["Parameter"] for rows in tables.values() for row in rows if "Parameter" in row}
    keys = {field.alias or name for name, field in model.model_fields.items()}
    assert {f"`{prefix}.{key}`" for key in keys} <= shown


def test_defaults_and_ranges_are_those_of_the_settings(tables: dict[str, Any]) -> None:
    rows = {row["Parameter"]: row for row in tables["general_parameters"]}
    pdu = rows["`receive.max_pdu_bytes`"]
    assert (pdu["Default"], pdu["Range"]) == (str(ReceiveConfig().max_pdu_bytes), "4096 to 16777216")
    assert rows["`receive.ae_title`"]["Default"] == ReceiveConfig().ae_title
    assert rows["`receive.unknown_peers`"]["Range"] == "refuse, accept"


def test_table_of_settings_refuses_a_key_that_is_none() -> None:
    with pytest.raises(KeyError):
        list(settings._rows("receive", ReceiveConfig, {"max_pdu": "?"}))


def test_every_reason_has_a_meaning_here_and_in_the_operator_s_guide(tables: dict[str, Any]) -> None:
    assert {row["Code"]: row["Meaning"] for row in tables["reasons"]} == {r.value: r.meaning for r in Reason}
    assert all(reason.meaning for reason in Reason)
    guide = (ROOT / "docs" / "operations.md").read_text().partition("## Reason codes")[2]
    assert re.findall(r"^\| `([A-Z_]+)` \| (.+) \|$", guide, re.MULTILINE) == [(r.value, r.meaning) for r in Reason]


def test_every_rejection_stands_in_it_and_no_other_can_be_given(tables: dict[str, Any]) -> None:
    told = {
        tuple(int(row[name].split()[0]) for name in ("Result", "Source", "Reason/Diagnostic"))
        for row in tables["rejections"]
    }
    assert told == set(REJECTIONS)
    limit = over_limit("all in use")
    assert (limit.result, limit.source, limit.diagnostic) in told
    with pytest.raises(ValueError, match="REJECTIONS"):
        Rejection(diagnostic=0x01, text="no reason")


def test_identity_is_the_one_on_the_wire(tables: dict[str, Any]) -> None:
    for name in ("receive_association", "deliver_association", "pull_association"):
        values = {row["Name"]: row["Value"] for row in tables[name]}
        assert values["Implementation Class UID"] == IMPLEMENTATION_CLASS_UID
    assert conformance.statement().startswith(f"# DICOM Conformance Statement: dicom_node {SOFTWARE_VERSION}\n")


def test_samples_hold_nothing_that_the_attribute_tables_lack(tables: dict[str, Any]) -> None:
    samples = make(1), make(2)
    for iod in IODS:
        name = f"{iod.name}_attributes"
        objects = [ds for s in samples for ds in s.objects if ds.SOPClassUID in iod.classes]
        assert objects
        tops = {row["Tag"] for row in tables[name] if not row["Attribute Name"].startswith(">")}
        assert tops == {f"({e.tag.group:04X},{e.tag.element:04X})" for ds in objects for e in ds}
        # PS3.5 6.1.2.3: sorted attributes aside, one that is always there is in every object.
        always = [
            row["Tag"] for row in tables[name] if row["Presence"] == "ALWAYS" and ">" not in row["Attribute Name"]
        ]
        assert all({f"({e.tag.group:04X},{e.tag.element:04X})" for e in ds} >= set(always) for ds in objects)


def test_no_sample_value_passes_for_a_fixed_one(tables: dict[str, Any]) -> None:
    names = [name for name in tables if name.endswith(("_attributes", "_content"))]
    assert len(names) == len(IODS) + 4
    for name in (*names, "codes"):
        assert not re.search(r"model \d|evidence|Sample\^|text \d|2\.25\.\d", json.dumps(tables[name]))


@pytest.mark.parametrize("words", [[], ["--json"]], ids=" ".join)
def test_command_prints_statement_and_tables(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dicom-node", "conformance", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert json.loads(said) == conformance.tables() if words else said == conformance.statement()


# -- the document itself -------------------------------------------------------------------------------

TABLE = Table(name="t", title="T", columns=("A", "B"), rows=(("x|y", "z"),))


def test_tables_are_numbered_by_chapter_and_cells_cannot_break_them() -> None:
    text, numbered = fill("## 1 One\n\n{table: t}\n\nis {v}", [TABLE], {"v": "it"})
    assert text == "## 1 One\n\n**Table 1-1. T**\n\n| A | B |\n|---|---|\n| x\\|y | z |\n\nis it\n"
    assert numbered == [("1-1", TABLE)]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("## 1 One\n{table: t}\n{table: u}", {}),
        ("## 1 One\n{table: t}\n{table: t}", {}),
        ("## 1 One", {}),
        ("## 1 One\n{table: t}\n{v}", {}),
        ("## 1 One\n{table: t}", {"v": "it"}),
    ],
)
def test_what_the_code_says_of_itself_cannot_get_lost(text: str, values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"no table|no value|nowhere"):
        fill(text, [TABLE], values)


def test_table_without_rows_or_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="table t"):
        Table(name="t", title="T", columns=("A",), rows=())
    with pytest.raises(ValueError, match="table t"):
        Table(name="t", title="T", columns=("A",), rows=(("x", "y"),))


def test_paragraphs_are_wrapped_as_their_values_need_and_figures_never() -> None:
    figure = "```\n" + "x --> " * 30 + "y\n```"
    text, _ = fill(f"## 1 One\n\n{{table: t}}\n\nshort {{v}}\nand more\n\n{figure}", [TABLE], {"v": "w " * 80 + "w"})
    assert figure in text
    paragraph = text.split("\n\n")[3].split("\n")
    assert len(paragraph) == 2
    assert max(map(len, paragraph)) <= 120
    assert paragraph[1].endswith("w and more")
