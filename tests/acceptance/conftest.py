"""A node in a temporary folder and a small PACS that it delivers to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

from dicom_node.dimse.archive import Archive
from tests.node import TINY, Node


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    running = Archive(tmp_path / "archive", "TESTPACS")
    running.port = running.start()  # type: ignore[attr-defined]
    yield running
    running.stop()


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(*, peers: dict[str, Any], **sections: Any) -> Node:
        made.append(Node(tmp_path / f"node{len(made)}", peers=peers, **sections))
        return made[-1]

    yield make
    for node in made:
        node.close()


@pytest.fixture
def node(make_node: Callable[..., Node], archive: Archive) -> Node:
    """Delivers to `archive`."""
    port = archive.port  # type: ignore[attr-defined]
    return make_node(peers={"pacs": {"ae_title": "TESTPACS", "host": "127.0.0.1", "port": port}})


@pytest.fixture(scope="session")
def tiny_files() -> list[Path]:
    return sorted(TINY.glob("*.dcm"))


@pytest.fixture(scope="session")
def tiny_uids(tiny_files: list[Path]) -> tuple[str, list[str]]:
    """Series Instance UID and the SOP Instance UIDs of the small scan."""
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in tiny_files]
    return str(headers[0].SeriesInstanceUID), [str(header.SOPInstanceUID) for header in headers]
