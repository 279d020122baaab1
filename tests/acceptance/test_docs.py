"""What the documents tell a reader to type works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

import dicom_node.cli
import training.cli
from dicom_node import schema
from dicom_node.config import load_config
from dicom_node.dimse import scu
from tests.conftest import RunningReceiver

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "dicom_node/data").rglob("*.md")),
]
BIN = Path(sys.executable).parent

PROGRAMS = {
    "dicom-node": typer.main.get_command(dicom_node.cli.app),
    "training": typer.main.get_command(training.cli.app),
}


def commands() -> list[tuple[str, str]]:
    """(document, command) for each dicom-node or training command that stands in a document as code."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        code = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
        for block in code:
            for line in block.splitlines():
                command = line.strip().rstrip("\\").strip()
                if re.match(r"(\.venv/bin/|/opt/\S+/)?dicom-node \w|(\S+/)?python -m training \w", command):
                    found.append((document.name, command))
    return sorted(set(found))


def resolved(command: str) -> list[str]:
    words = shlex.split(command.split(" | ")[0], comments=True)
    if Path(words[0]).name == "python":
        return [sys.executable, *words[1:]]
    return [str(BIN / "dicom-node"), *words[1:]]


def assert_command_with_its_options(words: list[str], what: str) -> None:
    """words: dicom-node or python -m training, its command and that command's own words."""
    if words[1:3] == ["-m", "training"]:
        words = words[2:]
    command, words = PROGRAMS[Path(words[0]).name], words[1:]
    while hasattr(command, "commands") and words:
        assert words[0] in command.commands, f"{what}: no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    known = {"--help", *(name for parameter in command.params for name in parameter.opts)}
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert option in known, f"{what}: no option {option}"


@pytest.mark.parametrize(("document", "command"), commands())
def test_command_in_a_document_exists_with_its_options(document: str, command: str) -> None:
    assert_command_with_its_options(resolved(command), f"{document}: {command}")


def test_readme_route_command_explains_the_shipped_scan() -> None:
    [command] = [c for name, c in commands() if name == "README.md" and " route " in c]
    said = subprocess.run(resolved(command), capture_output=True, text=True, check=True, cwd=ROOT)
    assert "gate: passed, 133 slices" in said.stdout
    assert "-> model lung_nodule, results to pacs" in said.stdout


@pytest.fixture
def tls_chapter() -> str:
    _, _, rest = (ROOT / "docs" / "operations.md").read_text().partition("## TLS\n")
    return rest.partition("\n## ")[0]


def test_certificates_made_as_the_document_says_carry_an_association(
    tls_chapter: str, tmp_path: Path, start_receiver: Callable[..., RunningReceiver]
) -> None:
    script = "\n".join(re.findall(r"```sh\n(.*?)```", tls_chapter, re.DOTALL))
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, check=True, capture_output=True, timeout=60
    )
    [settings] = re.findall(r"```yaml\n(.*?)```", tls_chapter, re.DOTALL)
    path = tmp_path / "config.yaml"
    path.write_text(f"storage: {{root: node}}\n{settings}")
    config = load_config(path)
    assert config.receive.tls is not None
    assert config.receive.port is None
    running = start_receiver(receive={"port": None, "tls": {**config.receive.tls.model_dump(), "port": 0}})
    tls = config.peers["pacs"].tls
    assert tls is not None
    scu.echo(running.secure_peer(**tls.model_dump()), "PACS")


def headings(document: Path) -> set[str]:
    """What links may name in it, as GitHub makes it of a heading."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_in_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", document.read_text()):
            there = document.parent / target if target else document
            assert there.exists(), f"{document.name}: {target}"
            assert not heading or heading in headings(there), f"{document.name}: {target}#{heading}"


def test_modules_and_files_that_documents_name_are_there() -> None:
    here = [path.relative_to(ROOT).as_posix() for top in ("dicom_node", "training", "tests", "bench", "deploy")
            for path in (ROOT / top).rglob("*")]  # fmt: skip
    for document in DOCUMENTS:
        for named in re.findall(r"`((?:tests|bench|deploy|dicom_node)/[\w./-]+|[\w/]+\.py)`", document.read_text()):
            assert any(f"/{path}".endswith((f"/{named}", f"/{named}.py")) for path in here), f"{document.name}: {named}"


def test_the_architecture_tells_of_each_table_by_whom_it_is_changed() -> None:
    _, _, rest = (ROOT / "docs" / "architecture.md").read_text().partition("| module | tables |\n")
    told = [row.split("|")[2] for row in rest.partition("\n\n")[0].splitlines()[1:]]
    assert set(schema.metadata.tables) <= set(re.findall(r"\w+", " ".join(told)))


@pytest.mark.parametrize("unit", sorted((ROOT / "systemd").glob("*.service")), ids=lambda path: path.stem)
def test_service_unit_starts_a_command_that_exists(unit: Path) -> None:
    [command] = re.findall(r"^ExecStart=\S+/dicom-node (.*)$", unit.read_text(), re.MULTILINE)
    assert_command_with_its_options(["dicom-node", *shlex.split(command)], unit.name)
    target = (ROOT / "systemd" / "dicom-node.target").read_text()
    assert unit.name.replace("@.", "@0.") in target
