"""Profiles: what a site may write, what is refused with a mend, and what docs/profiles.md says of the built-in ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dicom_node.config import Config, parse_config
from dicom_node.errors import ConfigError
from dicom_node.profiles import BUILT_IN_PROFILES, COLUMNS, KINDS, REPORT_KINDS, ResultProfile, in_words

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "profiles.md"


def config(text: str) -> Config:
    return parse_config("storage: {root: /tmp/x}\n" + text, "f.yaml")


def switches(profile: ResultProfile) -> dict[str, object]:
    return profile.model_dump(exclude={"like"})


def test_a_profile_like_a_built_in_one_differs_in_what_it_says_alone() -> None:
    made = config("profiles: {ours: {like: legacy, pdf: true}}").profiles["ours"]
    assert switches(made) == switches(BUILT_IN_PROFILES["legacy"]) | {"pdf": True}


def test_a_profile_from_nothing_is_what_most_viewers_read() -> None:
    assert switches(config("profiles: {ours: {}}").profiles["ours"]) == switches(BUILT_IN_PROFILES["ohif"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "profiles:\n  a: {like: legasy}",
            "f.yaml:3: profiles.a.like: 'legasy' is no built-in profile; did you mean 'l",
        ),
        ("profiles:\n  a: {lik: legacy}", "f.yaml:3: profiles.a.lik: unknown key; did you mean 'like'?"),
        (
            "profiles:\n  a: {segmentation: binry}",
            "f.yaml:3: profiles.a.segmentation: Input should be 'binary', 'fract",
        ),
        (
            "profiles:\n  a: {reports: [tid1500, txt]}",
            "f.yaml:3: profiles.a.reports.1: Input should be 'tid1500', 'text",
        ),
        ("profiles:\n  a: {reports: [text, text]}", "f.yaml:3: profiles.a: reports names a kind twice"),
        ("profiles:\n  a: {like: ohif, reports: []}", "f.yaml:3: profiles.a: needs a report, captures or pdf"),
        ("profiles:\n  ohif: {pdf: true}", "f.yaml:3: profiles.ohif: 'ohif' is a built-in profile: give yours another"),
    ],
)
def test_a_wrong_profile_is_refused_with_its_line_and_a_mend(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(text)
    assert str(refused.value).startswith(expected)


def test_a_peer_names_a_profile_that_there_is() -> None:
    peer = "peers: {pacs: {ae_title: P, host: h, port: 104, profile: %s}}\n"
    assert config(peer % "ours" + "profiles: {ours: {like: air}}").profile("pacs").key_objects
    with pytest.raises(ConfigError, match="did you mean 'weasis'"):
        config(peer % "weasi")


def test_a_destination_that_is_gone_from_the_settings_gets_what_most_viewers_read() -> None:
    assert config("").profile("gone") == BUILT_IN_PROFILES["ohif"]


def test_what_is_referred_to_is_sent_before_what_refers_to_it() -> None:
    order = {kind: place for place, kind in enumerate(KINDS)}
    assert all(order["seg"] < order[kind] for kind in REPORT_KINDS.values())
    assert max(order.values()) == order["key_objects"]


def test_the_document_shows_each_built_in_profile_as_it_is() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    cut = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}
    # Behind the columns of the code stands whom it is for.
    shown = {name: cells[:-1] for name, cells in cut.items() if len(cells) == len(COLUMNS) + 1}
    assert shown == {name: list(in_words(profile)) for name, profile in BUILT_IN_PROFILES.items()}


def test_the_document_explains_every_switch() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in ResultProfile.model_fields if f"| `{name}` |" not in text] == []
