"""OHIF as a person uses it: nginx serves the built viewer before an Orthanc, and Chromium shows it.

`tests/peers.sh` fetches OHIF into cache/ and installs nginx and Chromium. What a Page tells about a picture is what the
canvas holds, pixel by pixel, and where OHIF says that they lie.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Error, Locator, sync_playwright
from playwright.sync_api import Page as BrowserPage

from dicom_node.domain import Volume
from tests.peers import Orthanc, free_port, stopped, wait_for_port

OHIF = Path(__file__).resolve().parent.parent / "cache" / "ohif-3.13.2" / "dist"
CHROMIUM = Path("/usr/bin/chromium")
NGINX = Path("/usr/sbin/nginx")

CONFIG: dict[str, Any] = {
    "name": "test",
    "routerBasename": None,
    "extensions": [],
    "modes": [],
    "customizationService": {},
    "showStudyList": True,
    "maxNumberOfWebWorkers": 2,
    "showWarningMessageForCrossOrigin": False,
    "showCPUFallbackMessage": False,
    "showLoadingIndicator": True,
    "strictZSpacingForVolumeViewport": True,
    "investigationalUseDialog": {"option": "never"},
    "defaultDataSourceName": "dicomweb",
    "dataSources": [
        {
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "dicomweb",
            "configuration": {
                "friendlyName": "Orthanc",
                "name": "orthanc",
                "wadoUriRoot": "/wado",
                "qidoRoot": "/dicom-web",
                "wadoRoot": "/dicom-web",
                "qidoSupportsIncludeField": False,
                "imageRendering": "wadors",
                "thumbnailRendering": "wadors",
                "enableStudyLazyLoad": True,
                "supportsFuzzyMatching": False,
                "supportsWildcard": True,
                "omitQuotationForMultipartRequest": True,
                "singlepart": "bulkdata,video",
                "bulkDataURI": {"enabled": True, "relativeResolution": "studies"},
            },
        }
    ],
}

NGINX_CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
{user}
events {{ worker_connections 256; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    types {{
        text/html html;
        text/css css;
        text/javascript js mjs;
        application/json json;
        application/wasm wasm;
        image/svg+xml svg;
        image/png png;
        font/woff2 woff2;
    }}
    default_type application/octet-stream;
    server {{
        listen 127.0.0.1:{port};
        add_header Cross-Origin-Opener-Policy same-origin always;
        add_header Cross-Origin-Embedder-Policy require-corp always;
        location = /app-config.js {{ root {folder}; }}
        location / {{ root {dist}; try_files $uri /index.html; }}
        location ~ ^/(dicom-web|wado) {{
            proxy_pass http://127.0.0.1:{orthanc};
            proxy_http_version 1.1;
            # Without it the BulkDataURIs that Orthanc writes lose the port.
            proxy_set_header Forwarded "host=127.0.0.1:{port};proto=http";
            proxy_set_header Host 127.0.0.1:{port};
        }}
    }}
}}
"""


@contextlib.contextmanager
def run_ohif(folder: Path, orthanc: Orthanc) -> Iterator[str]:
    """The viewer's address; what it shows is what `orthanc` holds."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    (folder / "app-config.js").write_text(f"window.config = {json.dumps(CONFIG)};\n")
    config = folder / "nginx.conf"
    config.write_text(
        NGINX_CONFIG.format(
            folder=folder,
            dist=OHIF,
            port=port,
            orthanc=orthanc.http_port,
            # Workers of a root nginx would become somebody who may not enter pytest's folders.
            user="user root;" if os.geteuid() == 0 else "",
        )
    )
    command = [str(NGINX), "-e", "stderr", "-c", str(config), "-p", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    with stopped(process):
        wait_for_port(process, port)
        yield f"http://127.0.0.1:{port}"


_CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    # Nothing but loopback, whatever a page asks for.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]


@contextlib.contextmanager
def run_chromium() -> Iterator[Browser]:
    """Debian's Chromium with WebGL in software, a fresh profile each time."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=_CHROMIUM_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


# The one viewport; null while there is none yet or the next one is being set up.
_READ_VIEWPORT = """() => {
    const viewport = cornerstone.getEnabledElements()[0]?.viewport;
    const image = viewport?.getCurrentImageId?.();
    if (!image) return null;
    const canvas = viewport.canvas;
    const instance = cornerstone.metaData.get('instance', image);
    return {
        sop_instance_uid: instance.SOPInstanceUID,
        png: canvas.toDataURL('image/png'),
        corners_mm: [[0, 0], [canvas.clientWidth, 0], [0, canvas.clientHeight]].map(
            p => Array.from(viewport.canvasToWorld(p))),
    };
}"""
_SHOW_SLICE = """(uid) => {
    const viewport = cornerstone.getEnabledElements()[0].viewport;
    const index = viewport.getImageIds().findIndex(
        id => cornerstone.metaData.get('instance', id).SOPInstanceUID === uid);
    return cornerstone.utilities.jumpToSlice(viewport.element, { imageIndex: index });
}"""
_ON_SCREEN = """(point) => {
    const viewport = cornerstone.getEnabledElements()[0].viewport;
    const box = viewport.element.getBoundingClientRect();
    const [x, y] = viewport.worldToCanvas(point);
    return [x, y, box.left, box.top];
}"""
_OUTLINES = """() => {
    const viewport = cornerstone.getEnabledElements()[0].viewport;
    const box = viewport.element.getBoundingClientRect();
    return [...viewport.element.querySelectorAll('svg polyline')].filter(line => line.getBBox().width > 0).map(
        line => [...line.points].map(p => viewport.canvasToWorld([p.x, p.y])));
}"""
_READ_PDF = """async () => {
    const answer = await fetch(document.querySelector('object[type="application/pdf"]').data);
    const bytes = new Uint8Array(await answer.arrayBuffer());
    return btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ''));
}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What the viewport shows. rgb: (rows, columns, 3) uint8. corners_mm: top left, top right, bottom left, LPS."""

    sop_instance_uid: str
    rgb: NDArray[np.uint8]
    corners_mm: NDArray[np.float64]

    def coloured(self) -> NDArray[np.bool_]:
        """Where something else than shades of grey was drawn."""
        shades = self.rgb.astype(np.int16)
        return np.asarray((shades.max(axis=-1) - shades.min(axis=-1)) > 25)

    def sampled(self, volume: Volume, values: NDArray[Any], outside: int = 0) -> NDArray[Any]:
        """Of an array with the Volume's shape, the value that lies under each pixel."""
        rows, columns = self.rgb.shape[:2]
        top_left, top_right, bottom_left = self.corners_mm
        x = ((np.arange(columns) + 0.5) / columns)[None, :, None]
        y = ((np.arange(rows) + 0.5) / rows)[:, None, None]
        points = top_left + x * (top_right - top_left) + y * (bottom_left - top_left)
        index = np.rint(volume.to_index(points)).astype(int)
        inside = ((index >= 0) & (index < volume.hu.shape)).all(axis=-1)
        index[~inside] = 0
        under: NDArray[Any] = np.where(
            inside, values[index[..., 0], index[..., 1], index[..., 2]], values.dtype.type(outside)
        )
        return under


class Page:
    """One study in the viewer; mode: "viewer" to look, "segmentation" to draw."""

    def __init__(self, browser: Browser, url: str, study_uid: str, mode: str = "viewer") -> None:
        self.page: BrowserPage = browser.new_page(viewport={"width": 1280, "height": 800})
        self.page.add_init_script("localStorage.setItem('shownTours', '[\"basicViewerTour\"]')")
        self.page.set_default_timeout(60_000)
        address = f"{url}/{mode}?StudyInstanceUIDs={study_uid}"
        try:
            self._open(address)
        except Error as error:
            if "ERR_NETWORK_CHANGED" not in str(error):
                raise
            self._open(address)

    def _open(self, address: str) -> None:
        self.page.goto(address)
        self.page.locator('[data-cy="viewport-overlay-bottom-right"]', has_text="I:").first.wait_for()

    def close(self) -> None:
        self.page.close()

    def series(self, number: int) -> Locator:
        """Its entry in the list at the left."""
        return self.page.locator(f'[data-series="{number}"]')

    def open_series(self, number: int) -> None:
        self.series(number).dblclick()

    def say(self, question: str, answer: str) -> None:
        self.page.get_by_text(question).wait_for()
        self.page.get_by_role("button", name=answer, exact=True).click()

    def press(self, data_cy: str) -> None:
        """A button by the name that OHIF's own tests use."""
        self.page.locator(f'[data-cy="{data_cy}"]').click()

    def rows(self) -> list[str]:
        """What the panel at the right lists."""
        titles = self.page.locator('[data-cy="data-row-title"]')
        titles.first.wait_for()
        return titles.all_inner_texts()

    def choose(self, *names: str) -> None:
        """From a menu that is open, and its submenus."""
        for name in names:
            self.page.get_by_role("menuitem", name=name, exact=True).click()

    def menu_of_row(self, row: int) -> None:
        """That of an entry in the panel at the right, counted from 0."""
        self.page.locator('[data-cy="actionsMenuTrigger"]').nth(row).click()

    def choose_row(self, row: int) -> None:
        self.page.locator('[data-cy="data-row-title"]').nth(row).click()

    def paint(self, at_mm: Sequence[float]) -> None:
        """A dab of the brush on a place that is grey yet, again until it has a colour: the tool may be on its way."""
        for _ in range(20):
            x, y, left, top = self.page.evaluate(_ON_SCREEN, [float(value) for value in at_mm])
            self.page.mouse.move(left + x, top + y)
            self.page.mouse.down()
            self.page.mouse.move(left + x + 2, top + y + 2, steps=2)
            self.page.mouse.up()
            self.page.mouse.move(5, 5)
            self.page.wait_for_timeout(500)
            picture = self.picture()
            if picture is not None and picture.coloured()[round(y), round(x)]:
                return
        raise AssertionError("the brush paints nothing")

    def drawn_text(self) -> list[str]:
        """The lines of text drawn over the image."""
        return self.page.locator("svg.svg-layer tspan").all_text_contents()

    def wait_for_text(self, text: str) -> None:
        """Until the viewport says it, whatever its lines."""
        said = """(text) => document.querySelector('[data-cy="viewport-grid"]').innerText.replace(/\\s+/g, ' ')
            .includes(text)"""
        self.page.wait_for_function(said, arg=" ".join(text.split()))

    def is_marked(self, number: int) -> bool:
        """The series carries the sign of what OHIF cannot show."""
        return self.series(number).locator("#status-warning").count() > 0

    def pdf(self) -> bytes:
        """The document that was handed to the browser."""
        self.page.locator('object[type="application/pdf"]').wait_for()
        return base64.b64decode(self.page.evaluate(_READ_PDF))

    def keep(self, name: str) -> None:
        """A picture of the whole window, where DICOM_NODE_SCREENSHOTS names a folder for it."""
        folder = os.environ.get("DICOM_NODE_SCREENSHOTS")
        if folder:
            with Image.open(io.BytesIO(self.page.screenshot())) as image:
                image.convert("RGB").save(Path(folder) / f"{name}.webp", quality=80, method=6)

    def picture(self) -> Picture | None:
        """None while nothing is shown."""
        seen = self.page.evaluate(_READ_VIEWPORT)
        if seen is None:
            return None
        with Image.open(io.BytesIO(base64.b64decode(seen["png"].partition(",")[2]))) as image:
            rgb = np.asarray(image.convert("RGB"))
        corners_mm = np.array(seen["corners_mm"], dtype=np.float64)
        return Picture(sop_instance_uid=seen["sop_instance_uid"], rgb=rgb, corners_mm=corners_mm)

    def show_slice(self, sop_instance_uid: str) -> None:
        self.page.evaluate(_SHOW_SLICE, sop_instance_uid)

    def outlines_mm(self) -> list[NDArray[np.float64]]:
        """The lines drawn over the image, each as (points, 3) LPS mm."""
        return [np.array(line) for line in self.page.evaluate(_OUTLINES)]

    def until(self, judge: Callable[[Picture], bool], seconds: float = 60.0) -> Picture:
        """The first picture that the judge accepts; when time is over the last one, for an assertion to judge."""
        deadline = time.monotonic() + seconds
        while True:
            picture = self.picture()
            late = time.monotonic() > deadline
            if picture is not None and (late or judge(picture)):
                return picture
            if late:
                raise AssertionError("the viewer shows no image")
            self.page.wait_for_timeout(100)
