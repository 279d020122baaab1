"""The quick look in a real browser, from a file: keys, wheel, slider, buttons; nothing is asked of any network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.profiles import BUILT_IN_PROFILES
from dicom_node.render import folder_files, render
from dicom_node.results.part10 import to_bytes
from tests.golden import made_of
from tests.golden.cases import cases

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: tests/peers.sh installs it")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ct")
    [case] = [case for case in cases(folder) if case.name == "findings"]
    for each in made_of(case, BUILT_IN_PROFILES["ohif"]):
        (folder / f"{each.made.name}.dcm").write_bytes(to_bytes(each.made.ds))
    out = tmp_path_factory.mktemp("look")
    render(folder_files(folder), out)
    return out / "quicklook.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    if not CHROMIUM.exists():
        pytest.skip("no Chromium here: tests/peers.sh installs it")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield running
        running.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_every_way_to_a_slice_leads_there_and_nothing_leaves_the_machine(
    browser: playwright.Browser, page_file: Path, width: int
) -> None:
    view = browser.new_page(viewport={"width": width, "height": 850})
    problems: list[str] = []
    view.on("pageerror", lambda error: problems.append(str(error)))
    view.on("console", lambda message: problems.append(message.text))
    view.on(
        "request", lambda asked: problems.append(asked.url) if not asked.url.startswith(("data:", "file:")) else None
    )
    view.goto(page_file.as_uri())
    place, stage = view.locator("#place"), view.locator("#stage")

    assert place.inner_text() == "21 / 44", "the first finding's largest slice"
    stage.focus()
    for key, there in (("ArrowUp", 22), ("PageDown", 12), ("Home", 1), ("End", 44), ("n", 31), ("p", 21)):
        view.keyboard.press(key)
        assert place.inner_text() == f"{there} / 44", key
    stage.hover()
    view.mouse.wheel(0, -120)
    assert place.inner_text() == "24 / 44"
    box = stage.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    view.mouse.move(x, y)
    view.mouse.down()
    view.mouse.move(x, y + 30)
    view.mouse.up()
    assert place.inner_text() == "19 / 44", "dragged down, toward the feet"
    view.locator("#slider").fill("4")
    assert place.inner_text() == "5 / 44"
    view.get_by_role("button", name="Show Nodule 2, number 2").click()
    assert place.inner_text() == "31 / 44"
    assert view.locator("#marks path").count() == 2
    for _ in range(2):
        view.get_by_role("button", name="Zoom").click()
    mark, whole = view.locator("#marks path").last.bounding_box(), stage.bounding_box()
    assert mark is not None
    assert whole is not None
    assert mark["width"] > 0.25 * whole["width"], "four times as large"
    assert abs(mark["x"] + mark["width"] / 2 - whole["x"] - whole["width"] / 2) < 0.1 * whole["width"], "in the middle"
    view.get_by_role("button", name="Outlines").click()
    assert not view.locator("#marks").is_visible()
    assert view.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
    playwright.expect(view.locator("#status")).to_contain_text("Nodule 2")
    assert view.evaluate("document.querySelector('#slice').naturalWidth") == 64
    assert problems == []
    view.close()
