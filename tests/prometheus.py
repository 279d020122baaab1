"""Debian's Prometheus on a free port of loopback, which scrapes what it is told, every second, and knows our rules."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.peers import ENDS_WITH_US, free_port

RULES = Path(__file__).parents[1] / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = Path(__file__).parents[1] / "deploy" / "grafana" / "dicom-node.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prometheus:
    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The vector that it is now. Raises ValueError with Prometheus's own word on one that is wrong."""
        return list(self._get("query", query=expression)["result"])

    def rules(self) -> list[dict[str, Any]]:
        """Each with its health and its last error."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"Prometheus waited in vain for {what}"
            time.sleep(0.1)

    def _get(self, what: str, **parameters: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(
                f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}", timeout=30
            ) as answer:
                return dict(json.loads(answer.read())["data"])
        except urllib.error.HTTPError as err:
            raise ValueError(json.loads(err.read())["error"]) from None


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """target: HOST:PORT. The rules that are for each hour are for each second here."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("no prometheus here: tests/peers.sh installs it")
    folder.mkdir()
    (folder / "rules.yml").write_text(RULES.read_text().replace("interval: 1h", "interval: 1s"))
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "dicom-node", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    address = f"127.0.0.1:{free_port()}"
    options = {"config.file": "prometheus.yml", "storage.tsdb.path": "data", "web.listen-address": address}
    command = [*ENDS_WITH_US, binary, *(f"--{name}={value}" for name, value in options.items()), "--log.level=warn"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process:
        made = Prometheus(url=f"http://{address}")
        try:
            made.wait(lambda: process.poll() is not None or _is_ready(made.url), "its own start")
            assert process.poll() is None, (folder / "log").read_text()
            yield made
        finally:
            process.terminate()


def _is_ready(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/-/ready", timeout=30) as answer:
        return bool(answer.status == 200)
    return False


def expressions_of_rules() -> Iterator[str]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def expressions_of_dashboard() -> Iterator[str]:
    board = json.loads(DASHBOARD.read_text())
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]


def recorded() -> dict[str, str]:
    """What rules record -> of which expression."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["record"]: rule["expr"] for group in groups for rule in group["rules"] if "record" in rule}
