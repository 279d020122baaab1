"""What the pages are made of: cards from hostile text, words, settings, events, bounds."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

import dicom_node.web
from dicom_node.config import Config
from dicom_node.config.masked import resolved
from dicom_node.errors import DatabaseUnavailable
from dicom_node.web import cards, words
from dicom_node.web.answers.configuration import warnings
from dicom_node.web.events import Events
from dicom_node.web.pages.settings import sections

_VENDORED = Path(dicom_node.web.__file__).parent / "static" / "vendor"


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "[go](javascript:alert(1))",
        "![x](https://elsewhere.example/x.png)",
        "<img src=x onerror=alert(1)>",
        "[go](data:text/html,<script>alert(1)</script>)",
    ],
)
def test_a_card_cannot_bring_markup_of_its_own(text: str) -> None:
    html = str(cards.markdown(text))
    assert not any(mark in html for mark in ("<script", "<img", 'href="javascript', 'href="data:'))


def test_a_cards_headings_come_below_those_of_the_page() -> None:
    assert "<h3>One</h3>" in str(cards.markdown("# One"))
    assert "<table>" in str(cards.markdown("| a |\n|---|\n| b |"))


def test_the_vendored_scripts_are_those_that_were_pinned() -> None:
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in _VENDORED.glob("*.js")}
    assert digests == {
        "htmx-2.0.4.min.js": "e209dda5c8235479f3166defc7750e1dbcd5a5c1808b7792fc2e6733768fb447",
        "idiomorph-ext-0.7.3.min.js": "1589f425608653a841fa06ef2bb103a59e19f1e6d27064cff894d365efd6d948",
    }


def test_no_template_asks_another_host() -> None:
    templates = Path(dicom_node.web.__file__).parent / "templates"
    for path in templates.glob("*.html"):
        text = path.read_text()
        assert "http://" not in text, path.name
        assert "https://" not in text, path.name
        assert "|safe" not in text.replace(" ", ""), path.name


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.44, "0.4 s"), (12, "12 s"), (185, "3 min 5 s"), (7800, "2 h 10 min"), (356400, "4 d 3 h")]
)
def test_durations_are_told_in_two_units_at_most(seconds: float, said: str) -> None:
    assert words.duration(seconds) == said


def test_each_state_has_a_sign_beside_its_colour() -> None:
    from dicom_node.schema import DELIVERY_STATES, JOB_STATES

    assert {*JOB_STATES, *DELIVERY_STATES} <= set(words.SIGNS)


def test_settings_show_no_password_and_warn_of_open_doors(node_config: Callable[..., Config]) -> None:
    config = node_config(database={"url": "postgresql+psycopg://node:s3cret@db/node"})
    text = str(sections(resolved(config)))
    assert "s3cret" not in text
    assert "db/node" in text
    assert any("unknown_peers is accept" in each for each in warnings(config, 0.0))


def test_all_clients_share_one_look_and_nobody_looks_without_them() -> None:
    asked: list[int] = []

    def version() -> int:
        asked.append(1)
        if len(asked) == 3:
            raise DatabaseUnavailable("away")
        return len(asked) // 6

    async def two_clients() -> None:
        events = Events(version, every_s=0.005)
        assert asked == []
        streams = [events.stream(), events.stream()]
        for stream in streams:
            assert (await anext(stream)).startswith("retry")
        for stream in streams:
            assert await asyncio.wait_for(anext(stream), 5) == "event: changed\ndata: \n\n"
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]
        assert events.clients == 0
        await asyncio.sleep(0.05)
        before = len(asked)
        await asyncio.sleep(0.05)
        assert len(asked) == before

    asyncio.run(two_clients())
    assert len(asked) < 40


def test_a_stream_ends_with_its_login_and_says_so_however_much_changes() -> None:
    allowed = [True, True, False]
    versions = iter(range(10**6))

    async def stream_of_changes() -> list[str]:
        events = Events(lambda: next(versions), every_s=0.001, beat_s=0.02)

        def may() -> bool:
            if len(allowed) == 2:
                allowed.pop(0)
                raise DatabaseUnavailable("away")
            return allowed.pop(0)

        return [said async for said in events.stream(may)]

    said = asyncio.run(asyncio.wait_for(stream_of_changes(), 20))
    assert said[-1] == "event: over\ndata: \n\n"
    assert said.count(": still here\n\n") == 2, "one answer was yes, and to one nobody could answer"
    assert "event: changed\ndata: \n\n" in said
